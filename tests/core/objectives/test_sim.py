"""SIM: the divergence whose gradient it has, its distances, and where an affine student ends."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fewstep.core.analytic import GaussianDenoiser
from fewstep.core.denoisers import Denoiser
from fewstep.core.objectives.contract import Sample, Turn
from fewstep.core.objectives.sid import SiD
from fewstep.core.objectives.sim import SIM, Distance, distance_gradient
from fewstep.core.paths import LinearPath, Path, VPPath
from fewstep.core.schedules import TimeSampler
from tests.core.objectives.known_numbers import GivenNoise

MEAN, STD = 1.3, 0.7
TEACHER = GaussianDenoiser(mean=MEAN, std=STD)
CRITIC = GaussianDenoiser(mean=0.4, std=1.1)
C = 0.3
DISTANCES: list[Distance] = ["pseudo_huber", "squared"]

every_distance = pytest.mark.parametrize("distance", DISTANCES)


@dataclass(frozen=True)
class Constant:
    """Answers the same whatever it is asked."""

    answer: Tensor
    path: Path = field(default_factory=LinearPath)

    def __call__(self, x_t: Tensor, t: Tensor, condition: object) -> Tensor:
        return self.answer


def scalar(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64, requires_grad=True)


def gaussian_nodes(count: int = 32) -> tuple[Tensor, Tensor, Tensor]:
    """z, eps and weights that sum to 1, for expectations over two standard Gaussians."""
    nodes, weights = (torch.from_numpy(values) for values in np.polynomial.hermite_e.hermegauss(count))
    z, eps = torch.cartesian_prod(nodes, nodes).unbind(1)
    return z[:, None], eps[:, None], torch.cartesian_prod(weights, weights).prod(1) / weights.sum() ** 2


def gradient(
    x: Tensor, objective: SIM | SiD, teacher: Denoiser = TEACHER, critic: Denoiser = CRITIC, **sample: Any
) -> Tensor:
    """d loss / d x with the noise of a fixed seed."""
    leaf = x.detach().clone().requires_grad_()
    generator = torch.Generator().manual_seed(7)
    turn = Turn(sample=Sample(x=leaf, **sample), teacher=teacher, critic=critic, generator=generator)
    return torch.autograd.grad(objective.student_loss(turn)[0], leaf)[0]


def test_golden_gradient_is_that_of_the_divergence_at_a_fixed_law(
    fixed_times: Callable[..., TimeSampler],
) -> None:
    """T-SIM-1: a student N(0.4, 1.1^2), a teacher N(1.3, 0.7^2), t = 0.5, c = 0.3; by quadrature."""
    z, eps, weights = gaussian_nodes()
    mu, v = scalar(0.4), scalar(1.1)
    turn = GivenNoise(
        sample=Sample(x=mu + v * z, weight=len(z) * weights), teacher=TEACHER, critic=CRITIC, eps=eps
    )
    loss, _ = SIM(c=C, times=fixed_times(0.5)).student_loss(turn)
    surrogate = [grad.item() for grad in torch.autograd.grad(loss, [mu, v])]

    x_t, t = 0.5 * (mu + v * z).detach() + 0.5 * eps, torch.full((len(z),), 0.5, dtype=torch.float64)
    y = GaussianDenoiser(mean=mu, std=v)(x_t, t, None) - TEACHER(x_t, t, None)
    divergence = (weights * ((y.square() + C**2).sqrt() - C)[:, 0]).sum()
    direct = [grad.item() for grad in torch.autograd.grad(divergence, [mu, v])]

    assert direct == pytest.approx([-0.3610, 0.1408], abs=6e-5)
    assert surrogate == pytest.approx(direct, abs=1e-6)  # of 32 nodes


def test_the_squared_distance_is_twice_sid_at_alpha_1(fixed_times: Callable[..., TimeSampler]) -> None:
    x, times = torch.randn(6, 3, dtype=torch.float64), fixed_times(0.2, 0.5, 0.9)
    twice = 2 * gradient(x, SiD(alpha=1.0, weighting="none", times=times))
    torch.testing.assert_close(gradient(x, SIM(distance="squared", times=times)), twice, rtol=1e-9, atol=0)


def test_the_loss_is_the_formula_over_the_root_of_the_number_of_elements() -> None:
    x, x0_teacher, x0_critic = torch.randn(3, 4, 5, 2, dtype=torch.float64)
    turn = Turn(sample=Sample(x=x), teacher=Constant(x0_teacher), critic=Constant(x0_critic))
    found = SIM(c=C).student_loss(turn)[0].item()
    expected = 0.0
    for one, r, f in zip(x, x0_teacher, x0_critic, strict=True):
        y, residual = (f - r).flatten().tolist(), (f - one).flatten().tolist()
        c = C * math.sqrt(len(y))
        norm = math.sqrt(sum(value**2 for value in y) + c**2)
        expected -= sum(a * b / norm for a, b in zip(y, residual, strict=True)) / math.sqrt(len(y))
    assert found == pytest.approx(expected / 4, rel=1e-9)


def test_the_gradient_passes_through_both_networks(fixed_times: Callable[..., TimeSampler]) -> None:
    """Against the chain rule by hand, for single elements and the affine denoisers of two Gaussians."""
    x = torch.randn(5, 1, dtype=torch.float64)
    generator = torch.Generator().manual_seed(7)
    x_t = 0.4 * x + 0.6 * torch.randn(x.shape, generator=generator, dtype=torch.float64)
    t = torch.full((5,), 0.6, dtype=torch.float64)
    y, critic = CRITIC(x_t, t, None) - TEACHER(x_t, t, None), CRITIC(x_t, t, None)
    d_teacher, d_critic = (0.16 * std**2 / (0.16 * std**2 + 0.36) for std in (0.7, 1.1))
    root = (y.square() + C**2).sqrt()
    d_slope = C**2 / root**3 * (d_critic - d_teacher)
    expected = -(d_slope * (critic - x) + y / root * (d_critic - 1)) / 5
    found = gradient(x, SIM(c=C, times=fixed_times(0.6)))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_far_from_the_teacher_the_gradient_does_not_grow_with_the_gap() -> None:
    """T-SIM-2, with answers that do not depend on x_t: the gradient is the direction of y alone."""
    x, x0_critic, y = torch.randn(3, 4, 6, dtype=torch.float64)
    near, far = (
        gradient(x, SIM(), Constant(x0_critic - scale * y), Constant(x0_critic)) for scale in (10.0, 1000.0)
    )
    torch.testing.assert_close(near, far, rtol=1e-6, atol=0)
    direction = y / y.square().mean(1, keepdim=True).sqrt()
    torch.testing.assert_close(far, direction / x.numel(), rtol=1e-6, atol=0)


def test_close_to_the_teacher_it_is_proportional_to_the_gap() -> None:
    x, x0_critic, y = torch.randn(3, 4, 6, dtype=torch.float64)
    near, nearer = (
        gradient(x, SIM(c=C), Constant(x0_critic - scale * y), Constant(x0_critic)) for scale in (1e-4, 1e-6)
    )
    torch.testing.assert_close(near, 100 * nearer, rtol=1e-6, atol=0)
    torch.testing.assert_close(nearer, 1e-6 * y / C / x.numel(), rtol=1e-6, atol=0)


def test_the_norm_is_of_the_whole_sample_and_not_of_its_elements() -> None:
    y = torch.tensor([[3.0, 4.0], [0.3, 0.4]], dtype=torch.float64)
    slope = distance_gradient(y, distance="pseudo_huber", c=1e-9)
    torch.testing.assert_close(slope, math.sqrt(2) * torch.tensor([[0.6, 0.8]] * 2, dtype=torch.float64))


@every_distance
def test_equal_teacher_and_critic_give_no_gradient_anywhere(distance: Distance) -> None:
    """T-SIM-3, and not only in the mean."""
    x = 5 * torch.randn(16, 3, dtype=torch.float64)
    assert (gradient(x, SIM(distance=distance), TEACHER, TEACHER) == 0).all()


@every_distance
def test_the_layout_makes_no_difference(distance: Distance, layouts_agree: Callable[..., None]) -> None:
    objective = SIM(distance=distance, c=C)
    layouts_agree(lambda turn: objective.student_loss(turn)[0], teacher=TEACHER, critic=CRITIC)


def test_the_layout_makes_no_difference_to_the_critic(
    layouts_agree: Callable[..., None], learnt_gaussian: Callable[..., Any]
) -> None:
    critic = learnt_gaussian()
    layouts_agree(
        lambda turn: SIM().critic_loss(turn)[0], parameters=list(critic.parameters()), critic=critic
    )


def test_frames_of_weight_0_get_no_gradient_and_the_others_keep_theirs(
    fixed_times: Callable[..., TimeSampler],
) -> None:
    x = torch.randn(2, 4, 3, dtype=torch.float64)
    weight = torch.tensor([[0.0, 0.0, 1.0, 2.0]], dtype=torch.float64).expand(2, 4)
    objective = SIM(times=fixed_times(0.5))
    weighted, whole = gradient(x, objective, weight=weight), gradient(x, objective)
    torch.testing.assert_close(weighted, weight[..., None] * whole, rtol=1e-12, atol=0)


def test_half_precision_samples_are_compared_in_float32() -> None:
    x = torch.randn(8, 16).bfloat16().requires_grad_()
    answers = [Constant(torch.full((8, 16), value, dtype=torch.bfloat16)) for value in (1.0, 1.0 + 2**-7)]
    turn = Turn(sample=Sample(x=x), teacher=answers[0], critic=answers[1])
    loss, _ = SIM().student_loss(turn)
    assert loss.dtype == torch.float32
    expected = -(2**-7 / math.hypot(2**-7, 0.00054) * (1.0 + 2**-7 - x.double())).mean().item()
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_diagnostics_are_the_stated_sizes() -> None:
    x, x0_teacher, x0_critic = torch.randn(3, 4, 6, dtype=torch.float64)
    turn = Turn(sample=Sample(x=x), teacher=Constant(x0_teacher), critic=Constant(x0_critic))
    _, diagnostics = SIM().student_loss(turn)
    gap = (x0_critic - x0_teacher).square().mean().sqrt()
    torch.testing.assert_close(diagnostics["gap_rms"], gap, rtol=1e-9, atol=0)
    assert diagnostics["slope_rms"].item() == pytest.approx(1.0, abs=1e-5)


def test_networks_of_different_paths_are_refused_with_the_remedy() -> None:
    with pytest.raises(ValueError, match="OnPath"):
        gradient(torch.randn(2, 3), SIM(), TEACHER, GaussianDenoiser(path=VPPath()))


def test_a_c_of_0_is_refused() -> None:
    with pytest.raises(ValueError, match="c=0"):
        SIM(c=0.0)


def test_it_needs_no_data() -> None:
    assert SIM().needs == {"teacher", "critic", "sample"}


@dataclass(frozen=True)
class Blocked:
    """A denoiser through which no gradient passes."""

    denoiser: Denoiser
    path: Path = field(default_factory=LinearPath)

    def __call__(self, x_t: Tensor, t: Tensor, condition: object) -> Tensor:
        return self.denoiser(x_t, t, condition).detach()


def recovered(objective: SIM, *, fault: str | None = None) -> tuple[float, float]:
    """Mean and width of a student mu + v z from (0.4, 1.1), each step against its exact critic."""
    mu, v = scalar(0.4), scalar(1.1)
    optimiser = torch.optim.Adam([mu, v], lr=4e-2, betas=(0.0, 0.99))
    generator = torch.Generator().manual_seed(0)
    for step in range(120):
        optimiser.param_groups[0]["lr"] = 4e-2 * (1 - step / 120)
        x = mu + v * torch.randn(4096, 1, generator=generator, dtype=torch.float64)
        exact = GaussianDenoiser(mean=mu.detach(), std=v.detach())
        critic = CRITIC if fault == "stale critic" else Blocked(exact) if fault == "blocked critic" else exact
        turn = Turn(sample=Sample(x=x), teacher=TEACHER, critic=critic, generator=generator)
        optimiser.zero_grad()
        objective.student_loss(turn)[0].backward()
        optimiser.step()
    return mu.item(), abs(v.item())


@every_distance
def test_an_affine_student_finds_the_teacher(distance: Distance) -> None:
    assert recovered(SIM(distance=distance, c=C)) == pytest.approx((MEAN, STD), abs=0.01)


@pytest.mark.parametrize("fault", ["stale critic", "blocked critic"])
def test_faulty_critics_miss(fault: str) -> None:
    mean, width = recovered(SIM(c=C), fault=fault)
    assert max(abs(mean - MEAN), abs(width - STD)) > 0.1
