"""Diff-Instruct: the gradient of the integral KL, and what sets it apart from DMD."""

from collections.abc import Callable
from typing import Any, Literal

import pytest
import torch
from torch import Tensor

from fewstep.core.analytic import GaussianDenoiser
from fewstep.core.layouts import DENSE, Layout, Masked
from fewstep.core.objectives.contract import Sample, Turn
from fewstep.core.objectives.diff_instruct import DiffInstruct, LogNormalSigmas, linear_surrogate
from fewstep.core.objectives.dmd import DMD, kl_direction, pseudo_target_loss
from fewstep.core.paths import EDMPath, LinearPath, VPPath
from fewstep.core.schedules import LogitNormalTimes, TimeSampler

Weighting = Literal["x0", "kl"]
FixedTimesOf = Callable[..., TimeSampler]

TEACHER = GaussianDenoiser(mean=1.3, std=0.7)
CRITIC = GaussianDenoiser(mean=0.4, std=1.1)


def gradient(
    objective: DiffInstruct | DMD,
    x: Tensor,
    *,
    teacher: GaussianDenoiser = TEACHER,
    weight: Tensor | None = None,
    layout: Layout = DENSE,
) -> Tensor:
    leaf = x.detach().clone().requires_grad_()
    turn = Turn(
        sample=Sample(x=leaf, weight=weight, layout=layout),
        teacher=teacher,
        critic=CRITIC,
        generator=torch.Generator().manual_seed(7),
    )
    (grad,) = torch.autograd.grad(objective.student_loss(turn)[0], leaf)
    return grad


def test_the_gradient_is_the_bare_gap_over_batch_and_size(fixed_times: FixedTimesOf) -> None:
    """The released code's formula written out: no normaliser, weight 1 in x0 space."""
    x = torch.randn(3, 4, dtype=torch.float64)
    t = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    eps = torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(7))
    x_t = (1 - t)[:, None] * x + t[:, None] * eps
    expected = (CRITIC(x_t, t, None) - TEACHER(x_t, t, None)) / 12
    grad = gradient(DiffInstruct(times=fixed_times(0.1, 0.5, 0.9)), x)
    torch.testing.assert_close(grad, expected, rtol=1e-12, atol=0)


def test_kl_weighting_is_the_score_gap_times_alpha(fixed_times: FixedTimesOf) -> None:
    r"""The paper's formula: :math:`\alpha_t (s_{critic} - s_{teacher})` with the scores of two Gaussians."""
    x = torch.randn(3, 4, dtype=torch.float64)
    t = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)[:, None]
    eps = torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(7))
    x_t = (1 - t) * x + t * eps
    scores = [
        -(x_t - (1 - t) * mean) / ((1 - t) ** 2 * std**2 + t**2) for mean, std in [(0.4, 1.1), (1.3, 0.7)]
    ]
    grad = gradient(DiffInstruct(times=fixed_times(0.1, 0.5, 0.9), weighting="kl"), x)
    torch.testing.assert_close(grad, (1 - t) * (scores[0] - scores[1]) / 12, rtol=1e-10, atol=0)


def test_kl_weighting_gives_the_golden_gradient_of_the_kl_divergence(fixed_times: FixedTimesOf) -> None:
    """T-DMD-2, from x = 0.4 + 1.1 z: the corners of +-1 integrate an affine direction exactly."""
    z, eps = torch.tensor([[1.0, 1.0, -1.0, -1.0], [1.0, -1.0, 1.0, -1.0]], dtype=torch.float64)[..., None]
    t = torch.full((4,), 0.5, dtype=torch.float64)
    x_t = 0.5 * (0.4 + 1.1 * z) + 0.5 * eps
    direction = kl_direction(TEACHER(x_t, t, None), CRITIC(x_t, t, None), LinearPath(), t)
    x = (0.4 + 1.1 * z).requires_grad_()
    linear_surrogate(x, direction).backward()
    assert x.grad is not None
    assert x.grad.sum().item() == pytest.approx(-0.60403, abs=1e-5)
    assert (x.grad * z).sum().item() == pytest.approx(0.24052, abs=1e-5)


@pytest.mark.parametrize("weighting", ["x0", "kl"])
def test_student_equal_to_teacher_gets_no_gradient_anywhere(weighting: Weighting) -> None:
    x = 5 * torch.randn(16, 3, dtype=torch.float64)
    assert (gradient(DiffInstruct(weighting=weighting), x, teacher=CRITIC) == 0).all()


@pytest.mark.parametrize(("ours", "dmds"), [("x0", "none"), ("kl", "kl")])
def test_it_is_dmd_without_its_normaliser(
    ours: Weighting, dmds: Literal["none", "kl"], fixed_times: FixedTimesOf
) -> None:
    x, times = torch.randn(4, 3, dtype=torch.float64), fixed_times(0.3, 0.7)
    weight = torch.rand(4, dtype=torch.float64)
    torch.testing.assert_close(
        gradient(DiffInstruct(times=times, weighting=ours), x, weight=weight),
        gradient(DMD(times=times, weighting=dmds), x, weight=weight),
        rtol=1e-12,
        atol=1e-15,
    )


def test_the_linear_surrogate_and_the_pseudo_target_have_one_gradient_and_two_values() -> None:
    mask = torch.tensor([[True, True, False], [True, False, False]])
    direction, weight = torch.randn(2, 3, 4), torch.rand(2, 3)
    x = torch.randn(2, 3, 4, requires_grad=True)
    losses = [f(x, direction, Masked(mask), weight=weight) for f in (linear_surrogate, pseudo_target_loss)]
    grads = [torch.autograd.grad(loss, x)[0] for loss in losses]
    torch.testing.assert_close(grads[0], grads[1])
    real = direction * weight[..., None] * x
    expected = (real[0, :2].mean() + real[1, :1].mean()) / 2
    torch.testing.assert_close(losses[0], expected)


def test_the_direction_carries_no_gradient() -> None:
    scale = torch.ones((), requires_grad=True)
    linear_surrogate(torch.randn(2, 3, requires_grad=True), scale * torch.randn(2, 3)).backward()
    assert scale.grad is None


@pytest.mark.parametrize("weighting", ["x0", "kl"])
def test_the_layout_changes_neither_loss_nor_gradient(
    layouts_agree: Callable[..., None], weighting: Weighting
) -> None:
    objective = DiffInstruct(weighting=weighting)
    layouts_agree(lambda turn: objective.student_loss(turn)[0], teacher=TEACHER, critic=CRITIC)


def test_the_layout_changes_neither_the_critics_loss_nor_its_gradient(
    layouts_agree: Callable[..., None], learnt_gaussian: Callable[..., Any]
) -> None:
    critic = learnt_gaussian()
    layouts_agree(
        lambda turn: DiffInstruct().critic_loss(turn)[0], critic=critic, parameters=list(critic.parameters())
    )


def test_teacher_and_critic_get_no_gradient(learnt_gaussian: Callable[..., Any]) -> None:
    teacher, critic = learnt_gaussian(1.3, 0.7), learnt_gaussian()
    x = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    DiffInstruct().student_loss(Turn(sample=Sample(x=x), teacher=teacher, critic=critic))[0].backward()
    assert all(p.grad is None for network in (teacher, critic) for p in network.parameters())


class Watched(GaussianDenoiser):
    """Writes down whether it is called with gradients on."""

    def __call__(self, x_t: Tensor, t: Tensor, condition: object) -> Tensor:
        WITH_GRADIENT.append(torch.is_grad_enabled())
        return super().__call__(x_t, t, condition)


WITH_GRADIENT: list[bool] = []


def test_teacher_and_critic_are_called_without_gradient() -> None:
    WITH_GRADIENT.clear()
    x = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    DiffInstruct().student_loss(Turn(sample=Sample(x=x), teacher=Watched(), critic=Watched()))
    assert WITH_GRADIENT == [False, False]


@pytest.mark.parametrize("path", [LinearPath(), VPPath(), EDMPath()], ids=lambda path: type(path).__name__)
def test_noise_levels_are_log_normal_on_every_path(path: LinearPath | VPPath | EDMPath) -> None:
    t = LogNormalSigmas(path=path).sample(4000, generator=torch.Generator().manual_seed(0))
    log_eta = path.eta(t.double()).log()
    assert log_eta.mean().item() == pytest.approx(-1.2, abs=0.1)  # five standard errors of 4000 draws
    assert log_eta.std().item() == pytest.approx(1.2, abs=0.07)


def test_on_the_linear_path_log_normal_sigmas_are_logit_normal_times() -> None:
    times = [
        sampler.sample(64, generator=torch.Generator().manual_seed(0))
        for sampler in (LogNormalSigmas(mean=-0.5, std=0.8), LogitNormalTimes(mean=-0.5, std=0.8))
    ]
    torch.testing.assert_close(*times)


def test_a_width_that_is_not_positive_is_refused() -> None:
    with pytest.raises(ValueError, match="std"):
        LogNormalSigmas(std=0.0)


def test_half_precision_samples_are_compared_in_float32(fixed_times: FixedTimesOf) -> None:
    x = torch.randn(8, 4, dtype=torch.bfloat16, requires_grad=True)
    turn = Turn(sample=Sample(x=x), teacher=TEACHER, critic=CRITIC)
    loss, diagnostics = DiffInstruct(times=fixed_times(0.5)).student_loss(turn)
    assert loss.dtype == torch.float32
    assert {value.dtype for value in diagnostics.values()} == {torch.float32}


def test_diagnostics_are_the_stated_sizes(fixed_times: FixedTimesOf) -> None:
    turn = Turn(sample=Sample(x=torch.randn(8, 4).double()), teacher=TEACHER, critic=CRITIC)
    _, diagnostics = DiffInstruct(times=fixed_times(0.25), weighting="kl").student_loss(turn)
    torch.testing.assert_close(diagnostics["direction_rms"], 9 * diagnostics["gap_rms"])


def test_it_needs_a_teacher_a_critic_and_samples() -> None:
    assert DiffInstruct().needs == {"teacher", "critic", "sample"}
