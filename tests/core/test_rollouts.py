"""Few-step rollouts: closed forms for an affine student, and where the gradient enters."""

from typing import Literal

import pytest
import torch
from torch import Tensor, nn

from fewstep.core.analytic import GaussianDenoiser
from fewstep.core.denoisers import NetworkDenoiser
from fewstep.core.paths import EDMPath, LinearPath, VPPath
from fewstep.core.rollouts import FewStep
from fewstep.core.schedules import step_grid

TIMES = (1.0, 0.75, 0.5, 0.25)


class AffineStudent(nn.Module):
    """x0 = slope_k x + offset_k with parameters of its own for each step k."""

    def __init__(self) -> None:
        super().__init__()
        self.path = LinearPath()
        self.slopes = nn.ParameterList([torch.tensor(value) for value in (0.6, 0.8, 0.5, 0.9)])
        self.offsets = nn.ParameterList([torch.tensor(value) for value in (1.0, -0.2, 0.3, 0.1)])
        self.grad_modes: list[bool] = []

    def forward(self, x_t: Tensor, t: Tensor, condition: object) -> Tensor:
        self.grad_modes.append(torch.is_grad_enabled())
        k = TIMES.index(float(t[0]))
        return self.slopes[k] * x_t + self.offsets[k]


def moments(student: AffineStudent, exit_step: int) -> tuple[float, float]:
    """Mean and variance of the rollout with fresh noise, by hand."""
    mean, variance = 0.0, 1.0
    for k in range(exit_step + 1):
        slope, offset = student.slopes[k].item(), student.offsets[k].item()
        mean, variance = slope * mean + offset, slope**2 * variance
        if k < exit_step:
            t = TIMES[k + 1]
            mean, variance = (1 - t) * mean, (1 - t) ** 2 * variance + t**2
    return mean, variance


@pytest.mark.parametrize("exit_step", [0, 1, 2, 3])
def test_an_affine_student_has_the_closed_form_mean_and_variance(exit_step: int) -> None:
    student = AffineStudent()
    count = 100_000
    x = FewStep(TIMES).rollout(student, torch.randn(count, 1), None, exit_step=exit_step).detach()
    mean, variance = moments(student, exit_step)
    # Five standard errors each.
    assert x.mean().item() == pytest.approx(mean, abs=5 * (variance / count) ** 0.5)
    assert x.var().item() == pytest.approx(variance, abs=5 * variance * (2 / count) ** 0.5)


@pytest.mark.parametrize("exit_step", [0, 1, 2, 3])
def test_gradient_reaches_the_exit_step_and_no_other(exit_step: int) -> None:
    student = AffineStudent()
    noise = torch.randn(8, 1)
    FewStep(TIMES).rollout(student, noise, None, exit_step=exit_step).sum().backward()
    reached = [
        slope.grad is not None and offset.grad is not None
        for slope, offset in zip(student.slopes, student.offsets, strict=True)
    ]
    assert reached == [k == exit_step for k in range(4)]
    assert student.grad_modes == [False] * exit_step + [True]
    assert student.offsets[exit_step].grad == 8


def test_the_last_step_is_the_default_exit() -> None:
    student = AffineStudent()
    runs = [
        FewStep(TIMES).rollout(
            student, torch.ones(2, 1), None, exit_step=exit_step, generator=torch.Generator().manual_seed(5)
        )
        for exit_step in (None, 3)
    ]
    assert torch.equal(runs[0], runs[1])
    assert len(student.grad_modes) == 8


def test_a_generator_decides_the_fresh_noise() -> None:
    student, noise = AffineStudent(), torch.ones(4, 1)
    seeds = (5, 5, 6)
    first, again, other = (
        FewStep(TIMES).rollout(student, noise, None, generator=torch.Generator().manual_seed(seed))
        for seed in seeds
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_each_sample_of_a_batch_may_bring_its_own_noise() -> None:
    student, noise = AffineStudent(), torch.randn(3, 2)
    fresh = torch.randn(len(TIMES) - 1, 3, 2)
    whole = FewStep(TIMES).rollout(student, noise, None, noises=lambda step: fresh[step])
    rows = [
        FewStep(TIMES).rollout(student, noise[[n]], None, noises=lambda step, n=n: fresh[step][[n]])
        for n in range(3)
    ]
    assert torch.equal(whole, torch.cat(rows))
    assert not torch.equal(whole, FewStep(TIMES).rollout(student, noise, None))


def test_ddim_renoising_is_the_ode_step_and_draws_nothing() -> None:
    denoiser = GaussianDenoiser(mean=1.3, std=0.7)
    noise = torch.randn(6, 2, dtype=torch.float64)
    state = torch.get_rng_state()
    x0 = FewStep((1.0, 0.5), renoise="ddim").rollout(denoiser, noise, None)
    assert torch.equal(torch.get_rng_state(), state)
    first = denoiser(noise, torch.ones(6, dtype=torch.float64), None)
    halfway = noise - 0.5 * (noise - first)
    torch.testing.assert_close(x0, denoiser(halfway, torch.full((6,), 0.5, dtype=torch.float64), None))


def test_ddim_with_many_steps_reaches_the_exact_map() -> None:
    denoiser = GaussianDenoiser(mean=1.3, std=0.7)
    noise = torch.linspace(-2, 2, 5, dtype=torch.float64)[:, None]
    x0 = FewStep(step_grid(200), renoise="ddim").rollout(denoiser, noise, None)
    one, zero = torch.ones((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    torch.testing.assert_close(x0, denoiser.transport(noise, one, zero), atol=0.01, rtol=0)


def test_noise_enters_at_the_sigma_of_the_first_time() -> None:
    denoiser = GaussianDenoiser(mean=0.0, std=0.5, path=EDMPath())
    noise = torch.randn(6, 2, dtype=torch.float64)
    expected = denoiser(80 * noise, torch.full((6,), 80.0, dtype=torch.float64), None)
    torch.testing.assert_close(FewStep((80.0,)).rollout(denoiser, noise, None), expected)


def test_exit_steps_are_drawn_evenly_and_by_the_generator() -> None:
    generator = torch.Generator().manual_seed(0)
    drawn = torch.tensor([FewStep(TIMES).draw_exit_step(generator) for _ in range(2000)])
    counts = drawn.bincount(minlength=4)
    assert len(counts) == 4
    assert (counts - 500).abs().max() < 100  # five standard deviations
    again = FewStep(TIMES).draw_exit_step(torch.Generator().manual_seed(0))
    assert again == drawn[0]


@pytest.mark.parametrize("times", [(), (0.5, 0.5), (0.5, 0.75), (1.0, 0.0)])
def test_times_that_do_not_descend_to_above_0_are_refused(times: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="times"):
        FewStep(times)


@pytest.mark.parametrize("exit_step", [-1, 4])
def test_an_exit_beyond_the_steps_is_refused(exit_step: int) -> None:
    with pytest.raises(ValueError, match="exit_step"):
        FewStep(TIMES).rollout(AffineStudent(), torch.ones(2, 1), None, exit_step=exit_step)


@pytest.mark.parametrize("renoise", ["fresh", "ddim"])
def test_a_linear_students_samples_scale_with_the_noise(renoise: Literal["fresh", "ddim"]) -> None:
    noise, denoiser = torch.randn(50, 2), GaussianDenoiser(std=0.7)
    full, half = (
        FewStep(TIMES, renoise=renoise, noise_scale=scale).rollout(
            denoiser, noise, None, generator=torch.Generator().manual_seed(3)
        )
        for scale in (1.0, 0.5)
    )
    torch.testing.assert_close(half, 0.5 * full)


def test_the_times_a_student_is_told_do_not_depend_on_the_scale_of_noise() -> None:
    student = AffineStudent()
    x, call = FewStep(TIMES, noise_scale=0.5).rollout_and_call(
        student, torch.randn(100_000, 1), None, exit_step=1
    )
    assert float(call.t[0]) == TIMES[1]
    mean, variance = 0.0, 0.25
    for k in (0, 1):
        slope, offset = student.slopes[k].item(), student.offsets[k].item()
        mean, variance = slope * mean + offset, slope**2 * variance
        if k == 0:
            t = TIMES[1]
            mean, variance = (1 - t) * mean, (1 - t) ** 2 * variance + (0.5 * t) ** 2
    assert x.detach().var().item() == pytest.approx(variance, rel=0.03)
    assert x.detach().mean().item() == pytest.approx(mean, abs=0.01)


def test_a_negative_scale_of_noise_is_refused() -> None:
    with pytest.raises(ValueError, match="noise_scale=-1"):
        FewStep(TIMES, noise_scale=-1.0)


class Timeless(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x_t: Tensor, t: Tensor, condition: object) -> Tensor:
        return self.network(x_t)


def test_steps_without_gradient_leave_the_last_call_its_gradient_under_autocast() -> None:
    """Autocast keeps copies of weights; those made without gradient must not serve the last call."""
    network = nn.Linear(3, 3)
    student, noise, gradients = NetworkDenoiser(Timeless(network)), torch.randn(16, 3), []
    for enabled in (True, False):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            x = FewStep(TIMES, renoise="ddim").rollout(student, noise, None)
        gradients.append(torch.autograd.grad(x.square().mean(), network.weight)[0])
    assert gradients[1].abs().max() > 0.01
    torch.testing.assert_close(*gradients, rtol=0.05, atol=0.01)  # of bfloat16


def test_noise_in_half_precision_is_scaled_at_the_time_itself() -> None:
    """0.6 is 0.6016 in bfloat16, where the noise of this path is another."""
    noise = torch.ones(1, 1, dtype=torch.bfloat16)
    _, call = FewStep((0.6,)).rollout_and_call(GaussianDenoiser(path=VPPath()), noise, None)
    expected = VPPath().sigma(torch.tensor(0.6)) * noise.float()
    assert torch.equal(call.x_t, expected.bfloat16())


def test_given_noises_are_scaled_as_drawn_ones_are() -> None:
    noise, fresh, denoiser = torch.randn(50, 2), torch.randn(3, 50, 2), GaussianDenoiser(std=0.7)
    full, half = (
        FewStep(TIMES, noise_scale=scale).rollout(denoiser, noise, None, noises=lambda step: fresh[step])
        for scale in (1.0, 0.5)
    )
    torch.testing.assert_close(half, 0.5 * full)


@pytest.mark.parametrize("exit_step", [0, 1, 2, 3])
def test_the_last_call_knows_its_time_and_the_next(exit_step: int) -> None:
    student = AffineStudent()
    x, call = FewStep(TIMES).rollout_and_call(student, torch.randn(2, 1), None, exit_step=exit_step)
    assert call.t.tolist() == [TIMES[exit_step]] * 2
    assert call.t_next.tolist() == [(*TIMES, 0.0)[exit_step + 1]] * 2
    assert torch.equal(student(call.x_t, call.t, None), x)


def test_unrolled_every_call_up_to_the_exit_gets_a_gradient() -> None:
    student = AffineStudent()
    x, _ = FewStep(TIMES).rollout_and_call(student, torch.randn(8, 1), None, exit_step=2, unroll=True)
    x.sum().backward()
    assert [offset.grad is not None for offset in student.offsets] == [True, True, True, False]
    # what a step adds reaches the end through the slopes and alphas after it
    slopes = [slope.item() for slope in student.slopes]
    reached = [8 * 0.25 * slopes[1] * 0.5 * slopes[2], 8 * 0.5 * slopes[2], 8.0]
    found = [offset.grad.item() for offset in student.offsets if offset.grad is not None]
    assert found == pytest.approx(reached)
