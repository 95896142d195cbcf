"""SiD: the Fisher divergence it minimises, its weights, guidance and discriminator, and where it ends."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from fewstep.core.analytic import GaussianDenoiser
from fewstep.core.denoisers import Denoiser, OnPath
from fewstep.core.objectives.contract import Sample, Turn
from fewstep.core.objectives.dmd import DMD
from fewstep.core.objectives.sid import SiD, Weighting, sid_losses, sid_weight
from fewstep.core.paths import EDMPath, LinearPath, Path, VPPath, match_time
from fewstep.core.schedules import TimeSampler
from tests.core.objectives.known_numbers import GivenNoise

MEAN, STD = 1.3, 0.7
TEACHER = GaussianDenoiser(mean=MEAN, std=STD)
CRITIC = GaussianDenoiser(mean=0.4, std=1.1)
ALPHAS = (0.5, 1.0, 1.2, 1.5, 2.0)
F, GRAD_F = 0.47051, (-0.81077, 0.54051)  # of the Fisher divergence in (mean, width), with an exact critic

every_weighting = pytest.mark.parametrize("weighting", get_args(Weighting))


def corners() -> tuple[Tensor, Tensor]:
    """z and eps at +-1: over these four a mean integrates any quadratic of two standard Gaussians."""
    signs = torch.tensor([[1.0, 1.0, -1.0, -1.0], [1.0, -1.0, 1.0, -1.0]], dtype=torch.float64)
    return signs[0, :, None], signs[1, :, None]


def scalar(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64, requires_grad=True)


def expected_loss(objective: SiD, mu: Tensor, v: Tensor, critic: Denoiser) -> Tensor:
    """The expectation of the loss for the student mu + v z, exact for constant weights."""
    z, eps = corners()
    turn = GivenNoise(sample=Sample(x=mu + v * z), teacher=TEACHER, critic=critic, eps=eps)
    return objective.student_loss(turn)[0]


def gradients(alpha: float, fixed_times: Callable[..., TimeSampler]) -> tuple[float, list[float]]:
    mu, v = scalar(0.4), scalar(1.1)
    loss = expected_loss(SiD(alpha=alpha, weighting="none", times=fixed_times(0.5)), mu, v, CRITIC)
    return loss.item(), [grad.item() for grad in torch.autograd.grad(loss, [mu, v])]


def fisher_divergence(mu: Tensor, v: Tensor, *, law_fixed: bool = False) -> Tensor:
    """E |D_r - D_f|^2 at t = 0.5, the critic being exact for mu and v."""
    z, eps = corners()
    x_t = 0.5 * (mu + v * z) + 0.5 * eps
    x_t, t = x_t.detach() if law_fixed else x_t, torch.full((4,), 0.5, dtype=torch.float64)
    return (TEACHER(x_t, t, None) - GaussianDenoiser(mean=mu, std=v)(x_t, t, None)).square().mean()


def gradient(
    x: Tensor, objective: SiD | DMD, teacher: Denoiser = TEACHER, critic: Denoiser = CRITIC, **sample: Any
) -> Tensor:
    """d loss / d x with the noise of a fixed seed."""
    leaf = x.detach().clone().requires_grad_()
    turn = Turn(
        sample=Sample(x=leaf, **sample),
        teacher=teacher,
        critic=critic,
        generator=torch.Generator().manual_seed(7),
    )
    return torch.autograd.grad(objective.student_loss(turn)[0], leaf)[0]


@pytest.mark.parametrize(
    ("alpha", "mean", "width"),
    [(0.0, -0.5375, 0.3228), (0.5, -0.4054, 0.2703), (1.0, -0.2733, 0.2177), (1.2, -0.2205, 0.1966)],
)
def test_golden_gradients(
    alpha: float, mean: float, width: float, fixed_times: Callable[..., TimeSampler]
) -> None:
    """T-SID-1: a student N(0.4, 1.1^2) and a teacher N(1.3, 0.7^2) at t = 0.5; the expectations are exact."""
    loss, grads = gradients(alpha, fixed_times)
    assert grads == pytest.approx([mean, width], abs=6e-5)
    assert loss == pytest.approx((1 - alpha) * F, abs=6e-5)


def test_half_is_half_the_gradient_of_the_fisher_divergence(fixed_times: Callable[..., TimeSampler]) -> None:
    """T-SID-3, by autograd through the divergence and by its difference quotients."""
    mu, v = scalar(0.4), scalar(1.1)
    divergence = fisher_divergence(mu, v)
    by_autograd = torch.autograd.grad(divergence, [mu, v])
    step = 1e-5
    quotients = [
        (fisher_divergence(mu + a, v + b) - fisher_divergence(mu - a, v - b)).item() / (2 * step)
        for a, b in ((step, 0.0), (0.0, step))
    ]
    _, grads = gradients(0.5, fixed_times)
    assert divergence.item() == pytest.approx(F, abs=6e-5)
    assert quotients == pytest.approx(GRAD_F, abs=6e-5)
    assert [2 * grad for grad in grads] == pytest.approx(quotients, rel=1e-6)
    assert [2 * grad for grad in grads] == pytest.approx([grad.item() for grad in by_autograd], rel=1e-9)


def test_one_is_half_the_gradient_at_a_fixed_law_of_noised_samples(
    fixed_times: Callable[..., TimeSampler],
) -> None:
    mu, v = scalar(0.4), scalar(1.1)
    fixed = torch.autograd.grad(fisher_divergence(mu, v, law_fixed=True), [mu, v])
    _, grads = gradients(1.0, fixed_times)
    assert [2 * grad for grad in grads] == pytest.approx([grad.item() for grad in fixed], rel=1e-9)


@pytest.mark.parametrize("alpha", [0.0, *ALPHAS])
@every_weighting
def test_equal_teacher_and_critic_give_no_gradient_anywhere(alpha: float, weighting: Weighting) -> None:
    """T-SID-2."""
    x = 5 * torch.randn(16, 3, dtype=torch.float64)
    assert (gradient(x, SiD(alpha=alpha, weighting=weighting), TEACHER, TEACHER) == 0).all()


@pytest.mark.parametrize("alpha", ALPHAS)
def test_the_gradient_passes_through_both_networks(
    alpha: float, fixed_times: Callable[..., TimeSampler]
) -> None:
    """Against the chain rule by hand, for the affine denoisers of two Gaussians."""
    x = torch.randn(4, 3, dtype=torch.float64)
    generator = torch.Generator().manual_seed(7)
    x_t = 0.4 * x + 0.6 * torch.randn(x.shape, generator=generator, dtype=torch.float64)
    t = torch.full((4,), 0.6, dtype=torch.float64)
    teacher, critic = TEACHER(x_t, t, None), CRITIC(x_t, t, None)
    slopes = [0.4 * std**2 / (0.16 * std**2 + 0.36) for std in (0.7, 1.1)]
    d_teacher, d_critic = (0.4 * slope for slope in slopes)
    gap = teacher - critic
    expected = (d_teacher - d_critic) * (teacher - x - alpha * gap)
    expected = expected + gap * (d_teacher - 1 - alpha * (d_teacher - d_critic))
    found = gradient(x, SiD(alpha=alpha, weighting="none", times=fixed_times(0.6)))
    torch.testing.assert_close(found, expected / x.numel(), rtol=1e-9, atol=1e-12)


def test_the_loss_is_the_formula() -> None:
    x, x0_teacher, x0_critic = torch.randn(3, 4, 5, 2, dtype=torch.float64)
    for i, loss in enumerate(sid_losses(x, x0_teacher, x0_critic, alpha=1.2)):
        terms = [
            (r - f) * ((r - one) - 1.2 * (r - f))
            for one, r, f in zip(
                x[i].flatten().tolist(),
                x0_teacher[i].flatten().tolist(),
                x0_critic[i].flatten().tolist(),
                strict=True,
            )
        ]
        assert loss.item() == pytest.approx(sum(terms) / len(terms), rel=1e-12)


EXPECTED_WEIGHTS: dict[Weighting, Callable[[float], float]] = {
    "none": lambda t: 1.0,
    "one_minus_t": lambda t: 1 - t,
    "one_minus_t_squared": lambda t: (1 - t) ** 2,
    "inverse_t": lambda t: 1 / t,
    "inverse_t_squared": lambda t: 1 / t**2,
    "inverse_eta": lambda t: (1 - t) / t,
    "inverse_eta_squared": lambda t: ((1 - t) / t) ** 2,
}


@pytest.mark.parametrize("weighting", list(EXPECTED_WEIGHTS))
def test_weights_of_time_multiply_the_gradient_of_each_sample(
    weighting: Weighting, fixed_times: Callable[..., TimeSampler]
) -> None:
    times = (0.1, 0.5, 0.9)
    x = torch.randn(3, 4, dtype=torch.float64)
    factors = torch.tensor([[EXPECTED_WEIGHTS[weighting](t)] for t in times], dtype=torch.float64)
    weighted = gradient(x, SiD(weighting=weighting, times=fixed_times(*times)))
    plain = gradient(x, SiD(weighting="none", times=fixed_times(*times)))
    torch.testing.assert_close(weighted, factors * plain, rtol=1e-9, atol=0)


def test_the_legacy_weight_is_one_over_the_distance_to_the_teacher_and_constant(
    fixed_times: Callable[..., TimeSampler],
) -> None:
    x = torch.randn(3, 4, dtype=torch.float64)
    generator = torch.Generator().manual_seed(7)
    x_t = 0.5 * x + 0.5 * torch.randn(x.shape, generator=generator, dtype=torch.float64)
    distance = (
        (x - TEACHER(x_t, torch.full((3,), 0.5, dtype=torch.float64), None)).abs().mean(1, keepdim=True)
    )
    weighted = gradient(x, SiD(weighting="mean_abs", times=fixed_times(0.5)))
    plain = gradient(x, SiD(weighting="none", times=fixed_times(0.5)))
    torch.testing.assert_close(weighted, plain / distance, rtol=1e-9, atol=0)


@every_weighting
def test_weights_are_finite_at_the_ends_of_time(weighting: Weighting) -> None:
    x, t = torch.zeros(2, 3), torch.tensor([0.0, 1.0])
    weight = sid_weight(weighting, x, x, LinearPath(), t)
    assert weight.isfinite().all()
    assert (weight >= 0).all()


@every_weighting
@pytest.mark.parametrize("path", [VPPath(), EDMPath()], ids=lambda path: type(path).__name__)
def test_the_path_makes_no_difference_at_equal_noise_to_signal(
    path: Path, weighting: Weighting, fixed_times: Callable[..., TimeSampler]
) -> None:
    x = torch.randn(12, 3, dtype=torch.float64)
    times = torch.tensor([0.1, 0.4, 0.8], dtype=torch.float64)
    matched, _ = match_time(times, LinearPath(), path)
    here = gradient(x, SiD(weighting=weighting, times=fixed_times(*times.tolist())))
    wrapped = [OnPath(denoiser, path) for denoiser in (TEACHER, CRITIC)]
    there = gradient(x, SiD(weighting=weighting, times=fixed_times(*matched.tolist())), *wrapped)
    torch.testing.assert_close(there, here, rtol=1e-9, atol=1e-9)


@dataclass(frozen=True)
class Blocked:
    """A denoiser through which no gradient passes."""

    denoiser: Denoiser
    path: Path = field(default_factory=LinearPath)

    def __call__(self, x_t: Tensor, t: Tensor, condition: object) -> Tensor:
        return self.denoiser(x_t, t, condition).detach()


@pytest.mark.parametrize("alpha", ALPHAS)
def test_without_the_passage_through_the_networks_only_diff_instruct_is_left(
    alpha: float, fixed_times: Callable[..., TimeSampler]
) -> None:
    x, times = torch.randn(4, 3, dtype=torch.float64), fixed_times(0.3, 0.8)
    blocked = gradient(x, SiD(alpha=alpha, weighting="none", times=times), Blocked(TEACHER), Blocked(CRITIC))
    torch.testing.assert_close(blocked, gradient(x, DMD(weighting="none", times=times)), rtol=1e-9, atol=0)
    assert not torch.allclose(blocked, gradient(x, SiD(alpha=alpha, weighting="none", times=times)), rtol=0.1)


def test_frames_of_weight_0_get_no_gradient_and_the_others_keep_theirs(
    fixed_times: Callable[..., TimeSampler],
) -> None:
    x = torch.randn(2, 4, 3, dtype=torch.float64)
    weight = torch.tensor([[0.0, 0.0, 1.0, 2.0]], dtype=torch.float64).expand(2, 4)
    objective = SiD(times=fixed_times(0.5))
    weighted, whole = gradient(x, objective, weight=weight), gradient(x, objective)
    torch.testing.assert_close(weighted, weight[..., None] * whole, rtol=1e-12, atol=0)


@every_weighting
def test_the_layout_makes_no_difference(weighting: Weighting, layouts_agree: Callable[..., None]) -> None:
    objective = SiD(weighting=weighting, alpha=1.2)
    layouts_agree(lambda turn: objective.student_loss(turn)[0], teacher=TEACHER, critic=CRITIC)


def test_half_precision_samples_are_compared_in_float32(fixed_times: Callable[..., TimeSampler]) -> None:
    x = torch.randn(8, 16)
    half = x.bfloat16().requires_grad_()
    turn = Turn(sample=Sample(x=half), teacher=TEACHER, critic=CRITIC)
    loss, _ = SiD(times=fixed_times(0.5)).student_loss(turn)
    assert loss.dtype == torch.float64  # of the given times; never half
    loss.backward()
    assert half.grad is not None
    assert half.grad.dtype == torch.bfloat16


def test_networks_of_different_paths_are_refused_with_the_remedy() -> None:
    with pytest.raises(ValueError, match="OnPath"):
        gradient(torch.randn(2, 3), SiD(), TEACHER, GaussianDenoiser(path=VPPath()))


def test_diagnostics_are_the_stated_sizes(fixed_times: Callable[..., TimeSampler]) -> None:
    z, eps = corners()
    turn = GivenNoise(sample=Sample(x=0.4 + 1.1 * z), teacher=TEACHER, critic=CRITIC, eps=eps)
    _, diagnostics = SiD(times=fixed_times(0.5)).student_loss(turn)
    assert diagnostics["gap_rms"].item() == pytest.approx(math.sqrt(F), abs=6e-5)
    assert diagnostics["weight"].item() == 0.5
