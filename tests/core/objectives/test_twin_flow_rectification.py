"""TwinFlow: rectification, which is DMD between the twins: its gradient, its clamp, its share of a batch."""

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from fewstep.core.analytic import GaussianDenoiser
from fewstep.core.denoisers import velocity_of
from fewstep.core.layouts import append_dims
from fewstep.core.objectives.contract import Data, Sample, Turn
from fewstep.core.objectives.dmd import DMD
from fewstep.core.objectives.rcgm import RCGM
from fewstep.core.objectives.twin_flow import TwinFlow, twin_gap
from fewstep.core.paths import LinearPath, Path
from tests.core.objectives.known_numbers import FixedTimes, GivenNoise

REAL = GaussianDenoiser(mean=1.3, std=0.7)
FAKE = GaussianDenoiser(mean=0.4, std=1.1)


@dataclass
class Twins:
    """The exact velocities of two Gaussians, the second at negative times; its jumps add a leaf.

    Calls are recorded as (x_t, t, r).
    """

    leaf: Tensor
    real: GaussianDenoiser = REAL
    fake: GaussianDenoiser = FAKE
    path: Path = field(default_factory=LinearPath)
    calls: list[tuple[Tensor, Tensor, Tensor]] = field(default_factory=list)

    def average_velocity(self, x_t: Tensor, t: Tensor, r: Tensor, condition: object) -> Tensor:
        self.calls.append((x_t, t, r))
        size = t.abs().clamp(min=1e-6)
        velocity = torch.where(
            append_dims(t < 0, x_t),
            velocity_of(self.fake, x_t, size, None),
            velocity_of(self.real, x_t, size, None),
        )
        # the leaf must not tell the branches apart
        return velocity if torch.equal(t, r) else velocity + self.leaf

    def __call__(self, x_t: Tensor, t: Tensor, condition: object) -> Tensor:
        return x_t - append_dims(t, x_t) * self.average_velocity(x_t, t, torch.zeros_like(t), condition)


@dataclass(frozen=True, kw_only=True)
class Recording(Turn):
    """A turn that keeps what it drew."""

    noises: list[Tensor] = field(default_factory=list)

    def noise_like(self, x: Tensor) -> Tensor:
        self.noises.append(super().noise_like(x))
        return self.noises[-1]


def rectification(
    twins: Twins, x0: Tensor, s: float, **settings: Any
) -> tuple[Tensor, list[tuple[Tensor, Tensor, Tensor]], list[Tensor]]:
    """The gradient of the rectification alone in the leaf, its calls of the student, the noises drawn."""
    gradients: list[Tensor] = []
    calls: list[tuple[Tensor, Tensor, Tensor]] = []
    noises: list[Tensor] = []
    for weight in (0.0, 1.0):
        settings = {"any_step": RCGM(loss="squared", enhancement=0.0), **settings, "weight": weight}
        twins.calls.clear()
        turn = Recording(
            student=twins,
            target=Twins(torch.zeros_like(x0)),
            data=Data(x0=x0),
            generator=torch.Generator().manual_seed(5),
        )
        loss, _ = TwinFlow(times=FixedTimes((s,)), **settings).student_loss(turn)
        gradients.append(torch.autograd.grad(loss, twins.leaf, retain_graph=True)[0])
        calls, noises = list(twins.calls), turn.noises
    return gradients[1] - gradients[0], calls, noises


@pytest.mark.parametrize("s", [0.2, 0.7, 0.95])
def test_rectification_is_dmd_with_weight_1_over_t(s: float) -> None:
    """Identity 3 and T-TW-3: plain squares, no clamp; s / 2 times the gradient is that of bare DMD."""
    x0 = torch.randn(8, 3, dtype=torch.float64)
    twins = Twins((0.1 * torch.randn(8, 3, dtype=torch.float64)).requires_grad_())
    found, calls, noises = rectification(twins, x0, s, clamp=None)

    z, x_s, eps = calls[1][0], calls[-1][0], noises[-1]
    x0_hat = (x_s - s * eps) / (1 - s)
    jump = velocity_of(REAL, z, torch.ones(8, dtype=torch.float64), None) + twins.leaf.detach()
    torch.testing.assert_close(x0_hat[:2], z[:2] - jump[:2])
    torch.testing.assert_close(z[:2], noises[1][:2])

    leaf = x0_hat[:2].clone().requires_grad_()
    turn = GivenNoise(sample=Sample(x=leaf), teacher=REAL, critic=FAKE, eps=eps[:2])
    dmd, _ = DMD(weighting="none", times=FixedTimes((s,))).student_loss(turn)
    (expected,) = torch.autograd.grad(dmd, leaf)
    # x0_hat = z - u, so that gradients in u and x0_hat have opposite signs
    torch.testing.assert_close(-s / 2 * found[:2], expected)
    assert (found[2:] == 0).all()
    assert expected.abs().max() > 0.01


def test_rectification_moves_samples_towards_the_data() -> None:
    """T-TW-3: the student's samples have a lower mean, which descent must raise, by lowering u."""
    twins = Twins(torch.zeros(400, 1, dtype=torch.float64).requires_grad_())
    gradient, _, _ = rectification(twins, torch.zeros(400, 1, dtype=torch.float64), 0.6)
    assert gradient[:100].mean() > 0


def test_rectification_of_equal_twins_is_nothing() -> None:
    """T-TW-3."""
    twins = Twins(torch.randn(8, 3, dtype=torch.float64).requires_grad_(), fake=REAL)
    gradient, _, _ = rectification(twins, torch.randn(8, 3, dtype=torch.float64), 0.6)
    assert gradient.abs().max() < 1e-12


def test_the_gap_is_that_of_the_denoised_samples_over_t() -> None:
    x_t, t = torch.randn(4, 2, dtype=torch.float64), torch.tensor([0.1, 0.4, 0.7, 1.0], dtype=torch.float64)
    gap = twin_gap(Twins(torch.zeros(4, 2)), x_t, t, None)
    expected = -(FAKE(x_t, t, None) - REAL(x_t, t, None)) / t[:, None]
    torch.testing.assert_close(gap, expected)


@pytest.mark.parametrize("clamp", [0.05, None])
def test_the_clamp_bounds_the_gap_of_each_element(clamp: float | None) -> None:
    twins = Twins(torch.zeros(8, 3, dtype=torch.float64).requires_grad_())
    gradient, calls, _ = rectification(twins, torch.randn(8, 3, dtype=torch.float64), 0.5, clamp=clamp)
    gap = twin_gap(twins, calls[-1][0], torch.full((8,), 0.5, dtype=torch.float64), None)[:2]
    bounded = gap if clamp is None else gap.clamp(-clamp, clamp)
    torch.testing.assert_close(gradient[:2], 2 * bounded / (2 * 3))
    assert gap.abs().max() > 0.05


def test_only_the_twin_is_called_at_negative_times() -> None:
    twins = Twins(torch.zeros(8, 2).requires_grad_())
    rectification(twins, torch.randn(8, 2), 0.5)
    signs = [(t.sign().tolist(), torch.equal(t, r)) for _, t, r in twins.calls]
    once, main, fake, real = signs
    assert once[0] == [1] * 8
    assert main[0] == [1] * 6 + [-1] * 2
    assert torch.equal(*(time[6:] for time in twins.calls[1][1:]))
    assert fake == ([-1] * 8, True)
    assert real == ([1] * 8, True)


@dataclass(frozen=True, kw_only=True)
class Drawing(Turn):
    """A turn whose uniform numbers are all one number."""

    number: float

    def uniform(self, size: int, device: torch.device) -> Tensor:
        return torch.full((size,), self.number, dtype=torch.float64)


@pytest.mark.parametrize(("number", "factor"), [(0.1, 4.0), (0.3, 0.0)])
def test_a_random_split_weighs_the_rectification_by_the_batch(number: float, factor: float) -> None:
    """A sample alone is a whole interval once in four times, and then weighs four times as much."""
    twins, losses = Twins(torch.zeros(1, 3, dtype=torch.float64)), []
    for weight in (0.0, 1.0):
        turn = Drawing(
            student=twins,
            target=Twins(torch.zeros(1, 3)),
            data=Data(x0=torch.zeros(1, 3, dtype=torch.float64)),
            generator=torch.Generator().manual_seed(0),
            number=number,
        )
        any_step = RCGM(loss="squared", split="random")
        objective = TwinFlow(any_step=any_step, times=FixedTimes((0.5,)), clamp=None, weight=weight)
        losses.append(objective.student_loss(turn)[0].item())
    gap = twin_gap(twins, twins.calls[-1][0], torch.tensor([0.5], dtype=torch.float64), None)
    assert losses[1] - losses[0] == pytest.approx(factor * gap.square().mean().item())
