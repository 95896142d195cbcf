"""Denoisers: predictions are interchangeable; guidance does what it says and calls no more than it must."""

import pytest
import torch
from torch import Tensor, nn

from fewstep.core.analytic import GaussianDenoiser
from fewstep.core.denoisers import Condition, Denoiser, Guided, NetworkDenoiser, OnPath
from fewstep.core.layouts import append_dims
from fewstep.core.paths import DiscreteVPPath, EDMPath, LinearPath, Path, Prediction, TrigFlowPath, VPPath

KINDS: list[Prediction] = ["x0", "eps", "velocity", "v_ddpm", "score"]


class ExactNetwork(nn.Module):
    """Predicts the exact quantity of a given kind for Gaussian data."""

    def __init__(self, path: Path, kind: Prediction) -> None:
        super().__init__()
        self.denoiser = GaussianDenoiser(mean=1.3, std=0.7, path=path)
        self.kind: Prediction = kind

    def forward(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        x0 = self.denoiser(x_t, t, condition)
        return self.denoiser.path.from_x0(x0, x_t, append_dims(t, x_t), self.kind)


class ConditionalDenoiser(nn.Module):
    """x0 = x_t * mean(condition) + t, and a record of what it was called with."""

    def __init__(self) -> None:
        super().__init__()
        self.path = LinearPath()
        self.calls: list[Condition] = []

    def forward(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        self.calls.append(condition)
        value = (
            condition if isinstance(condition, Tensor) else torch.full((len(x_t), 1), float(str(condition)))
        )
        return x_t * append_dims(value.flatten(1).mean(1), x_t) + append_dims(t, x_t)


@pytest.fixture
def noisy() -> tuple[Tensor, Tensor]:
    return torch.randn(4, 3, 2), torch.tensor([0.1, 0.4, 0.6, 0.9])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("path", [LinearPath(), VPPath()], ids=lambda path: type(path).__name__)
def test_wrapping_a_teacher_by_any_prediction_changes_nothing(path: Path, kind: Prediction) -> None:
    x_t = torch.randn(4, 3, dtype=torch.float64)
    t = torch.tensor([0.05, 0.3, 0.7, 0.95], dtype=torch.float64)
    denoiser = NetworkDenoiser(ExactNetwork(path, kind), path=path, prediction=kind)
    expected = GaussianDenoiser(mean=1.3, std=0.7, path=path)(x_t, t, None)
    torch.testing.assert_close(denoiser(x_t, t, None), expected, rtol=1e-9, atol=1e-9)


def test_every_frame_may_have_its_own_time() -> None:
    x_t = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    t = torch.rand(2, 3, dtype=torch.float64)
    denoiser = NetworkDenoiser(ExactNetwork(LinearPath(), "velocity"))
    whole = denoiser(x_t, t, None)
    for frame in range(3):
        torch.testing.assert_close(denoiser(x_t[:, frame], t[:, frame], None), whole[:, frame])


@pytest.mark.parametrize(
    "path",
    [VPPath(), EDMPath(), TrigFlowPath(), DiscreteVPPath.scaled_linear()],
    ids=lambda p: type(p).__name__,
)
def test_a_denoiser_of_another_path_agrees_behind_onpath(path: Path) -> None:
    x_t = torch.randn(5, 2, dtype=torch.float64)
    t = torch.tensor([0.05, 0.3, 0.5, 0.7, 0.9], dtype=torch.float64)
    elsewhere = OnPath(GaussianDenoiser(mean=1.3, std=0.7, path=path), LinearPath())
    here = GaussianDenoiser(mean=1.3, std=0.7)
    torch.testing.assert_close(elsewhere(x_t, t, None), here(x_t, t, None), rtol=1e-9, atol=1e-9)


def test_everything_here_is_a_denoiser() -> None:
    inner = GaussianDenoiser()
    network = NetworkDenoiser(ExactNetwork(LinearPath(), "velocity"))
    for denoiser in (inner, network, OnPath(inner, VPPath()), Guided(inner, guidance_scale=2.0)):
        assert isinstance(denoiser, Denoiser)


def test_guidance_is_the_stated_extrapolation(noisy: tuple[Tensor, Tensor]) -> None:
    x_t, t = noisy
    condition, null = torch.rand(4, 5), torch.rand(1, 5)
    plain = ConditionalDenoiser()
    x0_condition, x0_null = plain(x_t, t, condition), plain(x_t, t, null.expand(4, 5))
    guided = Guided(ConditionalDenoiser(), guidance_scale=3.5, null_condition=null)
    torch.testing.assert_close(guided(x_t, t, condition), x0_null + 3.5 * (x0_condition - x0_null))


def test_one_call_of_twice_the_batch_equals_two_calls(noisy: tuple[Tensor, Tensor]) -> None:
    x_t, t = noisy
    condition, null = torch.rand(4, 5), torch.rand(1, 5)
    together, apart = ConditionalDenoiser(), ConditionalDenoiser()
    batched = Guided(together, guidance_scale=2.0, null_condition=null)(x_t, t, condition)
    separate = Guided(apart, guidance_scale=2.0, null_condition=null.repeat(4, 2))(
        x_t, t, condition.repeat(1, 3)
    )
    assert (len(together.calls), len(apart.calls)) == (1, 2)
    torch.testing.assert_close(batched, separate)


def test_conditions_that_are_no_tensors_take_two_calls(noisy: tuple[Tensor, Tensor]) -> None:
    x_t, t = noisy
    denoiser = ConditionalDenoiser()
    guided = Guided(denoiser, guidance_scale=2.0, null_condition="0.5")(x_t, t, "2.0")
    assert denoiser.calls == ["2.0", "0.5"]
    torch.testing.assert_close(guided, 3.5 * x_t + append_dims(t, x_t))


@pytest.mark.parametrize(("guidance_scale", "called"), [(1.0, "condition"), (0.0, "null")])
def test_scales_1_and_0_call_one_branch_only(
    noisy: tuple[Tensor, Tensor], guidance_scale: float, called: str
) -> None:
    denoiser = ConditionalDenoiser()
    conditions = {"condition": torch.full((4, 5), 2.0), "null": torch.full((1, 5), 3.0)}
    guided = Guided(denoiser, guidance_scale=guidance_scale, null_condition=conditions["null"])
    x0 = guided(*noisy, conditions["condition"])
    (seen,) = denoiser.calls
    assert isinstance(seen, Tensor)
    assert torch.equal(seen, conditions[called].expand(4, 5))
    assert torch.equal(x0, ConditionalDenoiser()(*noisy, conditions[called].expand(4, 5)))


def test_guidance_interval_ends_are_included_and_outside_is_unguided() -> None:
    x_t, t = torch.randn(4, 3), torch.tensor([0.1, 0.25, 0.75, 0.9])
    condition, null = torch.rand(4, 5), torch.rand(1, 5)
    inside = Guided(ConditionalDenoiser(), guidance_scale=4.0, null_condition=null)(x_t, t, condition)
    outside = ConditionalDenoiser()(x_t, t, condition)
    limited = Guided(ConditionalDenoiser(), guidance_scale=4.0, null_condition=null, interval=(0.25, 0.75))
    expected = torch.stack([outside[0], inside[1], inside[2], outside[3]])
    torch.testing.assert_close(limited(x_t, t, condition), expected)


def test_a_batch_wholly_outside_the_interval_never_calls_the_null_branch() -> None:
    denoiser = ConditionalDenoiser()
    guided = Guided(denoiser, guidance_scale=4.0, null_condition=torch.rand(1, 5), interval=(0.3, 0.6))
    guided(torch.randn(2, 3), torch.tensor([0.1, 0.9]), torch.rand(2, 5))
    assert [len(call) for call in denoiser.calls if isinstance(call, Tensor)] == [2]


def test_an_empty_interval_is_refused() -> None:
    with pytest.raises(ValueError, match="interval"):
        Guided(GaussianDenoiser(), guidance_scale=2.0, interval=(0.6, 0.3))


def test_per_frame_times_are_guided_per_frame() -> None:
    x_t, t = torch.randn(1, 2, 3), torch.tensor([[0.2, 0.9]])
    condition, null = torch.rand(1, 5), torch.rand(1, 5)
    limited = Guided(ConditionalDenoiser(), guidance_scale=4.0, null_condition=null, interval=(0.5, 1.0))
    guided = Guided(ConditionalDenoiser(), guidance_scale=4.0, null_condition=null)(x_t, t, condition)
    plain = ConditionalDenoiser()(x_t, t, condition)
    x0 = limited(x_t, t, condition)
    torch.testing.assert_close(x0[:, 0], plain[:, 0])
    torch.testing.assert_close(x0[:, 1], guided[:, 1])


class Echo(nn.Module):
    """Answers its condition."""

    def __init__(self) -> None:
        super().__init__()
        self.path = LinearPath()

    def forward(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        assert isinstance(condition, Tensor)
        return condition


def test_guidance_of_half_precision_answers_is_rounded_once() -> None:
    answer, null = torch.randn(2, 1, 500).bfloat16()
    found = Guided(Echo(), guidance_scale=7.3, null_condition=null)(
        torch.zeros_like(answer), torch.ones(1), answer
    )
    exact = null.double() + 7.3 * (answer.double() - null.double())
    torch.testing.assert_close(found.double(), exact, rtol=2**-8, atol=0)  # half a unit of the 8th bit
