"""What holds of the network whatever its weights: padding, order, masks, precision."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from fewstep.core.attention import use_backend
from fewstep.modalities.protein.networks.transformer import ProteinTransformer, ProteinTransformerConfig

Tiny = Callable[..., ProteinTransformer]

ROUNDING = 1e-5  # float32: other shapes, other orders of summation
VARIANTS = [None, 1]
few = settings(deadline=None, max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])


def masked(lengths: list[int], residues: int) -> Tensor:
    return torch.arange(residues) < torch.tensor(lengths)[:, None]


def inputs(batch: int, residues: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Noised chains, times, estimates, labels."""
    labels = torch.stack([torch.randint(0, size, (batch,)) for size in (4, 3, 3)], 1)
    return torch.randn(batch, residues, 3), torch.rand(batch), torch.randn(batch, residues, 3), labels


@pytest.mark.parametrize("every", VARIANTS)
@few
@given(length=st.integers(1, 9), more=st.integers(1, 5), junk=st.sampled_from([0.0, 7.0, float("nan")]))
def test_padding_changes_nothing_and_comes_back_as_zeros(
    tiny: Tiny, every: int | None, length: int, more: int, junk: float
) -> None:
    network = tiny(pair_update_every=every)
    x, t, told, labels = inputs(2, length)
    alone = network(x, t, masked([length, length], length), self_condition=told, labels=labels)
    rest = torch.full((2, more, 3), junk)
    longer = network(
        torch.cat([x, rest], 1),
        t,
        masked([length, length], length + more),
        self_condition=torch.cat([told, rest], 1),
        labels=labels,
    )
    torch.testing.assert_close(longer.velocity[:, :length], alone.velocity, atol=ROUNDING, rtol=ROUNDING)
    assert not bool(longer.velocity[:, length:].any())
    if every is not None:
        torch.testing.assert_close(
            longer.distogram[:, :length, :length], alone.distogram, atol=ROUNDING, rtol=ROUNDING
        )


@pytest.mark.parametrize("every", VARIANTS)
def test_padding_gets_no_gradient_and_changes_none(tiny: Tiny, every: int | None) -> None:
    network = tiny(pair_update_every=every)
    x, t, told, _ = inputs(1, 6)
    gradients = []
    for residues in (6, 9):
        x_t = torch.cat([x, torch.full((1, residues - 6, 3), 5.0)], 1).requires_grad_()
        estimate = torch.cat([told, torch.full((1, residues - 6, 3), 5.0)], 1)
        network.zero_grad()
        network(x_t, t, masked([6], residues), self_condition=estimate).velocity.square().sum().backward()
        assert x_t.grad is not None
        assert not bool(x_t.grad[:, 6:].any())
        weights = [p.grad.clone() for p in network.parameters() if p.grad is not None]
        gradients.append([x_t.grad[:, :6], *weights])
    for short, long in zip(*gradients, strict=True):
        torch.testing.assert_close(short, long, atol=1e-4, rtol=1e-4)  # sums over all residues


@pytest.mark.parametrize("every", VARIANTS)
@few
@given(seed=st.integers(0, 1000))
def test_the_order_of_a_batch_does_not_matter(tiny: Tiny, every: int | None, seed: int) -> None:
    network = tiny(pair_update_every=every)
    torch.manual_seed(seed)
    x, t, told, labels = inputs(4, 7)
    mask, order = masked([7, 3, 5, 1], 7), torch.randperm(4)
    whole = network(x, t, mask, self_condition=told, labels=labels).velocity
    shuffled = network(
        x[order], t[order], mask[order], self_condition=told[order], labels=labels[order]
    ).velocity
    torch.testing.assert_close(shuffled, whole[order], atol=ROUNDING, rtol=ROUNDING)


@pytest.mark.parametrize("registers", [0, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("every", VARIANTS)
def test_a_sample_without_residues_stays_finite(
    tiny: Tiny, registers: int, dtype: torch.dtype, every: int | None
) -> None:
    network = tiny(registers=registers, pair_update_every=every).to(dtype)
    x, t, told, _ = inputs(2, 5)
    for gradient in (False, True):
        with torch.set_grad_enabled(gradient):
            velocity, distogram = network(x, t, masked([5, 0], 5), self_condition=told)
        assert bool(velocity.isfinite().all())
        assert not bool(velocity[1].any())
        assert distogram is None or bool(distogram.isfinite().all())


@pytest.mark.parametrize("every", VARIANTS)
def test_attention_kernels_agree(tiny: Tiny, every: int | None) -> None:
    network = tiny(pair_update_every=every)
    x, t, told, labels = inputs(2, 8)
    found = []
    for backend in ("matmul", "sdpa"):
        with use_backend(backend), torch.no_grad():
            found.append(network(x, t, masked([8, 5], 8), self_condition=told, labels=labels).velocity)
    torch.testing.assert_close(found[0], found[1], atol=ROUNDING, rtol=ROUNDING)


@pytest.mark.parametrize("every", VARIANTS)
def test_forward_derivatives_are_those_of_differences(tiny: Tiny, every: int | None) -> None:
    """Objectives of flow maps take them along a trajectory; the bins of distances have none."""
    network = tiny(pair_update_every=every).double()
    x, t, told, labels = (y.double() if y.is_floating_point() else y for y in inputs(2, 6))
    mask, way = masked([6, 4], 6), torch.randn(2, 6, 3, dtype=torch.float64)

    def velocity(x_t: Tensor, time: Tensor) -> Tensor:
        return network(x_t, time, mask, self_condition=told, labels=labels).velocity

    found = torch.func.jvp(velocity, (x, t), (way, torch.ones_like(t)))[1]
    step = 1e-6
    with torch.no_grad():
        after, before = (velocity(x + sign * step * way, t + sign * step) for sign in (1, -1))
    # the time's angles turn 2000 times as fast as the time, so the error of differences is not small
    torch.testing.assert_close(found, (after - before) / (2 * step), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("what", ["x_t", "time", "self_condition", "labels"])
def test_every_input_matters(tiny: Tiny, what: str) -> None:
    network = tiny()
    x, t, told, labels = inputs(1, 6)
    mask = masked([6], 6)
    given = {"x_t": x, "time": t, "self_condition": told, "labels": labels}
    changed = {
        "x_t": x + 0.1,
        "time": t * 0.9,
        "self_condition": told * 1.1,
        "labels": (labels + 1) % 3,
    }
    before = network(mask=mask, **given).velocity
    after = network(mask=mask, **given | {what: changed[what]}).velocity
    assert (after - before).abs().max() > 1e-4


def test_no_labels_are_the_last_row_of_each_table(tiny: Tiny) -> None:
    network = tiny()
    x, t, _, _ = inputs(2, 4)
    mask = masked([4, 4], 4)
    unknown = network.unknown_labels(2)
    assert unknown.tolist() == [[3, 2, 2]] * 2
    torch.testing.assert_close(network(x, t, mask, labels=unknown).velocity, network(x, t, mask).velocity)


def test_updates_follow_the_blocks_that_the_interval_names() -> None:
    config = ProteinTransformerConfig(num_blocks=15, pair_update_every=3)
    assert [block for block in range(15) if config.updates_pairs_after(block)] == [0, 3, 6, 9, 12]
    config = ProteinTransformerConfig(num_blocks=10, pair_update_every=3)
    assert [block for block in range(10) if config.updates_pairs_after(block)] == [0, 3, 6]


def test_features_are_residues_before_the_last_layer(tiny: Tiny) -> None:
    network = tiny()
    x, t, told, labels = inputs(2, 6)
    mask = masked([6, 4], 6)
    features = network.features(x, t, mask, self_condition=told, labels=labels)
    velocity = network(x, t, mask, self_condition=told, labels=labels).velocity
    assert features.shape == (2, 6, 16)
    assert not bool(features[1, 4:].any())
    torch.testing.assert_close(network.coors_3d_decoder(features)[mask], velocity[mask])


def test_bins_see_coordinates_in_their_own_precision(tiny: Tiny) -> None:
    """Distances after rounding to bfloat16 would fall into other bins at the far end of a long chain."""
    network = tiny().to(torch.bfloat16)
    x = 10 + torch.tensor([[[0.0, 0, 0], [0.38, 0, 0], [0.76, 0, 0]]])
    seen = []
    network.pair_repr_builder.init_repr_factory.register_forward_hook(
        lambda _, given, __: seen.append(given[0])
    )
    network(x, torch.tensor([0.5]), masked([3], 3))
    torch.testing.assert_close(seen[0], x, atol=0, rtol=0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"token_dim": 10, "num_heads": 3}, "token_dim=10 must be a multiple of num_heads=3"),
        ({"separation_bins": 8}, "separation_bins=8 must be odd"),
        ({"sequence_features": ("x_sc", "x_sc")}, "each once"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ProteinTransformerConfig(**changes)  # pyright: ignore[reportArgumentType]
