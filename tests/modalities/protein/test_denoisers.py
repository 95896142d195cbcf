"""The door between Proteina's time and the house's, and guidance."""

import pytest
import torch
from torch import Tensor

from fewstep.core.denoisers import Denoiser, FeatureDenoiser, NetworkDenoiser
from fewstep.core.layouts import Masked
from fewstep.modalities.protein.denoisers import (
    ChainCondition,
    GuidedChains,
    chain_denoiser,
)
from fewstep.modalities.protein.networks.transformer import ProteinTransformer, ProteinTransformerConfig

MASK = torch.tensor([[True] * 6, [True] * 4 + [False] * 2])


def transformer(seed: int) -> ProteinTransformer:
    torch.manual_seed(seed)
    config = ProteinTransformerConfig(
        token_dim=16,
        pair_dim=8,
        cond_dim=8,
        num_blocks=2,
        num_heads=2,
        registers=2,
        time_dim=8,
        index_dim=8,
        fold_dim=4,
        fold_classes=(3, 2, 2),
    )
    network = ProteinTransformer(config).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return network


class Counted(torch.nn.Module):
    """A denoiser that remembers the conditions that it was given."""

    def __init__(self, denoiser: NetworkDenoiser) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.path = denoiser.path
        self.conditions: list[ChainCondition] = []

    def forward(self, x_t: Tensor, t: Tensor, condition: object) -> Tensor:
        assert isinstance(condition, ChainCondition)
        self.conditions.append(condition)
        return self.denoiser(x_t, t, condition)


def sample() -> tuple[Tensor, Tensor, ChainCondition]:
    x_t = torch.randn(2, 6, 3) * MASK[..., None]
    return x_t, torch.tensor([0.2, 0.7]), ChainCondition(MASK, labels=torch.tensor([[1, 0, 1], [2, 1, 0]]))


def test_the_estimate_is_proteinas_own() -> None:
    r"""Proteina: :math:`\hat x_1 = x_t + (1 - t_P) v`, with its time running the other way."""
    network = transformer(0)
    x_t, t, condition = sample()
    velocity = network(x_t, 1 - t, MASK, labels=condition.labels).velocity
    expected = x_t + t[:, None, None] * velocity
    torch.testing.assert_close(chain_denoiser(network)(x_t, t, condition), expected)


def test_times_and_velocities_are_turned_at_the_door() -> None:
    network = transformer(0)
    x_t, t, condition = sample()
    found = chain_denoiser(network).network(x_t, t, condition)
    torch.testing.assert_close(found, -network(x_t, 1 - t, MASK, labels=condition.labels).velocity)
    assert not torch.allclose(found, -network(x_t, t, MASK, labels=condition.labels).velocity, atol=1e-3)


def test_chains_meet_the_contracts_of_the_core() -> None:
    denoiser = chain_denoiser(transformer(0))
    x_t, t, condition = sample()
    assert isinstance(denoiser, Denoiser)
    assert isinstance(denoiser, FeatureDenoiser)
    assert denoiser.features(x_t, t, condition).shape == (2, 6, 16)
    assert isinstance(condition.layout, Masked)
    torch.testing.assert_close(condition.layout.mean(MASK.float()), torch.ones(2))


def test_padding_is_zero_where_it_was() -> None:
    x_t, t, condition = sample()
    assert not bool(chain_denoiser(transformer(0))(x_t, t, condition)[1, 4:].any())


def test_an_estimate_is_passed_on_without_its_gradient() -> None:
    x_t, _, condition = sample()
    told = condition.with_self_condition(x_t.requires_grad_())
    assert told.self_condition is not None
    assert not told.self_condition.requires_grad
    assert told.labels is condition.labels
    assert told.with_self_condition(None).self_condition is None


@pytest.mark.parametrize("w", [0.5, 2.0])
@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_guidance_is_proteinas_formula(w: float, share: float) -> None:
    good, worse = (chain_denoiser(transformer(seed)) for seed in (0, 1))
    x_t, t, condition = sample()
    guided = GuidedChains(good, guidance_scale=w, worse=worse if share else None, autoguidance_share=share)
    x1, x1_ag = good(x_t, t, condition), worse(x_t, t, condition)
    x1_uncond = good(x_t, t, ChainCondition(MASK))
    expected = w * x1 + (1 - w) * (share * x1_ag + (1 - share) * x1_uncond)
    torch.testing.assert_close(guided(x_t, t, condition), expected)


@pytest.mark.parametrize(
    ("w", "share", "calls", "worse_calls"),
    [(1.0, 0.0, 1, 0), (2.0, 0.0, 2, 0), (2.0, 1.0, 1, 1), (2.0, 0.5, 2, 1), (1.0, 0.5, 1, 0)],
)
def test_a_term_without_weight_costs_no_pass(w: float, share: float, calls: int, worse_calls: int) -> None:
    good, worse = (Counted(chain_denoiser(transformer(seed))) for seed in (0, 1))
    guided = GuidedChains(good, guidance_scale=w, worse=worse if share else None, autoguidance_share=share)
    guided(*sample())
    assert (len(good.conditions), len(worse.conditions)) == (calls, worse_calls)


def test_the_same_self_condition_is_given_to_all_terms() -> None:
    good, worse = (Counted(chain_denoiser(transformer(seed))) for seed in (0, 1))
    x_t, t, condition = sample()
    told = condition.with_self_condition(torch.randn_like(x_t))
    GuidedChains(good, guidance_scale=2.0, worse=worse, autoguidance_share=0.5)(x_t, t, told)
    seen = [*good.conditions, *worse.conditions]
    assert all(one.self_condition is told.self_condition for one in seen)
    assert [one.labels is None for one in seen] == [False, True, False]


def test_autoguidance_needs_no_labels_and_classifier_free_guidance_does() -> None:
    good, worse = (chain_denoiser(transformer(seed)) for seed in (0, 1))
    x_t, t, _ = sample()
    guided = GuidedChains(good, guidance_scale=2.0, worse=worse, autoguidance_share=1.0)
    assert guided(x_t, t, ChainCondition(MASK)).shape == x_t.shape
    with pytest.raises(ValueError, match="the condition has no labels"):
        GuidedChains(good, guidance_scale=2.0)(x_t, t, ChainCondition(MASK))


def test_shares_that_do_not_fit_are_refused() -> None:
    denoiser = chain_denoiser(transformer(0))
    with pytest.raises(ValueError, match="do not fit"):
        GuidedChains(denoiser, guidance_scale=2.0, worse=denoiser)
    with pytest.raises(ValueError, match="do not fit"):
        GuidedChains(denoiser, guidance_scale=2.0, autoguidance_share=0.5)
    with pytest.raises(ValueError, match="must be between 0 and 1"):
        GuidedChains(denoiser, guidance_scale=2.0, worse=denoiser, autoguidance_share=1.5)
