"""SLAM: noise on the sub-path, LCM at gamma 1, its gradient against the formula, layouts."""

from collections.abc import Callable, Iterator
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn

from fewstep.core.analytic import GaussianDenoiser
from fewstep.core.denoisers import NetworkDenoiser
from fewstep.core.layouts import append_dims
from fewstep.core.objectives.contract import Data, Turn
from fewstep.core.objectives.lcm import LCM, Interval
from fewstep.core.objectives.slam import SLAM, sub_path_point, sub_path_sigma, x0_at
from fewstep.core.paths import DiscreteVPPath, LinearPath, Path, VPPath

MakeTurn = Callable[..., Turn]
GammaInput = Literal["second_time", "noise_level"]

PATHS = [LinearPath(), VPPath(), DiscreteVPPath.scaled_linear()]
every_path = pytest.mark.parametrize("path", PATHS, ids=lambda path: type(path).__name__)
every_input = pytest.mark.parametrize("gamma_input", ["second_time", "noise_level"])


class LearntFlowMap(nn.Module):
    """u = scale (t - r / 2) x + t^2 - r, which as a denoiser is x - t u at r = 0; records its calls."""

    def __init__(self, scale: float = 0.7, path: Path | None = None) -> None:
        super().__init__()
        self.path = path or LinearPath()
        self.scale = nn.Parameter(torch.tensor(scale, dtype=torch.float64))
        self.calls: list[tuple[Tensor, Tensor, Tensor]] = []

    def average_velocity(self, x_t: Tensor, t: Tensor, r: Tensor, condition: object) -> Tensor:
        self.calls.append((x_t, t, r))
        time, end = append_dims(t, x_t), append_dims(r, x_t)
        return self.scale * (time - end / 2) * x_t + time.square() - end

    def forward(self, x_t: Tensor, t: Tensor, condition: object) -> Tensor:
        velocity = self.average_velocity(x_t, t, torch.zeros_like(t), condition)
        return self.path.x0_from_velocity(velocity, x_t, append_dims(t, x_t))


def double(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def interval(path: Path, t: Tensor, s: Tensor, x0: Tensor, eps: Tensor) -> Interval:
    x_t, x_s = (path.add_noise(x0, eps, time[:, None]) for time in (t, s))
    return Interval(x_t=x_t, t=t, x_s=x_s, s=s)


def turn_of(known_turn: MakeTurn, x0: Tensor, student: Any, **roles: Any) -> Turn:
    teacher = GaussianDenoiser(mean=1.3, std=0.7, path=student.path)
    defaults = {"teacher": teacher, "target": LearntFlowMap(0.4, student.path), "data": Data(x0=x0)}
    return known_turn(x0, student=student, **{**defaults, **roles})


def scripted(turn: Turn, *uniforms: float) -> Turn:
    """The same turn with uniform draws of a constant each."""
    draws: Iterator[float] = iter(uniforms)
    object.__setattr__(
        turn, "uniform", lambda size, device: torch.full((size,), next(draws), dtype=torch.float64)
    )
    return turn


def test_the_noise_on_a_variance_preserving_sub_path_has_the_golden_values() -> None:
    """T-SL-1: t = 0.8, s = 0.7, gamma = 0.5; and the paper's formula for such paths."""
    zeros = torch.zeros(1, 1, dtype=torch.float64)
    ends = interval(VPPath(), double(0.8), double(0.7), zeros, zeros)
    gamma = double(0.5)
    independent, linear = (
        sub_path_sigma(ends, gamma, VPPath(), noise=noise) for noise in ("independent", "linear")
    )
    assert independent.item() == pytest.approx(0.708513, abs=1e-6)
    assert linear.item() == pytest.approx(0.778768, abs=1e-6)
    alpha_t, alpha_s, sigma_s = VPPath().alpha(ends.t), VPPath().alpha(ends.s), VPPath().sigma(ends.s)
    ratio = (alpha_t / alpha_s).square()
    torch.testing.assert_close(independent.square(), ratio * sigma_s.square() + 0.25 * (1 - ratio))


@every_path
@pytest.mark.parametrize("noise", ["independent", "linear"])
def test_the_noise_is_that_of_either_end_where_gamma_is_1_or_0(
    path: Path, noise: Literal["independent", "linear"]
) -> None:
    zeros = torch.zeros(2, 1, dtype=torch.float64)
    t, s = double(0.8, 0.3), double(0.7, 0.1)
    ends = interval(path, t, s, zeros, zeros)
    noisy, clean = (
        sub_path_sigma(ends, torch.full_like(t, gamma), path, noise=noise) for gamma in (1.0, 0.0)
    )
    torch.testing.assert_close(noisy, path.sigma(t))
    torch.testing.assert_close(clean, path.alpha(t) * path.sigma(s) / path.alpha(s))


@every_path
def test_a_point_on_the_sub_path_holds_the_signal_of_t_and_linear_noise(path: Path) -> None:
    x0, eps = torch.randn(2, 3, 2, dtype=torch.float64)
    t, s, gamma = double(0.9, 0.5, 0.2), double(0.8, 0.3, 0.1), double(0.2, 0.5, 0.9)
    ends = interval(path, t, s, x0, eps)
    sigma = sub_path_sigma(ends, gamma, path, noise="linear")
    expected = path.alpha(t)[:, None] * x0 + sigma[:, None] * eps
    torch.testing.assert_close(sub_path_point(ends, gamma, path), expected)


@every_path
def test_x0_at_any_noise_is_the_papers_formula_in_eps(path: Path) -> None:
    """(x - sigma eps) / alpha, where the velocity is that of the same x0 and eps."""
    x0, eps = torch.randn(2, 3, 2, dtype=torch.float64)
    t, sigma = double(0.9, 0.5, 0.2), double(0.4, 0.6, 0.1)
    time = t[:, None]
    x = path.alpha(time) * x0 + sigma[:, None] * eps
    velocity = path.alpha_dot(time) * x0 + path.sigma_dot(time) * eps
    torch.testing.assert_close(x0_at(velocity, x, path, t, sigma), x0)
    own = x0_at(velocity, x, path, t, path.sigma(t))
    torch.testing.assert_close(own, path.x0_from_velocity(velocity, x, time))


@every_input
@every_path
def test_at_gamma_1_it_is_lcm(known_turn: MakeTurn, path: Path, gamma_input: GammaInput) -> None:
    """T-SL-2: loss and gradient."""
    x0, student = torch.randn(12, 3, dtype=torch.float64), LearntFlowMap(path=path)
    # at t = 1 VPPath has no eps to step with
    lcm = LCM(times=(0.999, 0.8, 0.6, 0.3), time_scale=3.0)
    results = []
    for objective in (lcm, SLAM(lcm=lcm, gamma_input=gamma_input, lowest_gamma=1.0)):
        times = (
            1 - 1e-3,
            0.8,
            0.6,
            0.3,
        )  # alpha 0 at t = 1 leaves a velocity on VPPath, but no teacher's eps
        object.__setattr__(lcm, "times", times)
        loss, diagnostics = objective.student_loss(turn_of(known_turn, x0, student))
        results.append(
            (loss.detach(), torch.autograd.grad(loss, [student.scale])[0], diagnostics["error_rms"])
        )
    torch.testing.assert_close(results[0], results[1], rtol=1e-10, atol=0)


@pytest.mark.parametrize("share", [0.0, 0.4])
def test_loss_and_gradient_are_those_of_the_formula_written_out(known_turn: MakeTurn, share: float) -> None:
    """gamma = 1 - share, one sample after another; the second time is (1 - gamma) t."""
    x0, student, average = torch.randn(6, 3, dtype=torch.float64), LearntFlowMap(), LearntFlowMap(0.4)
    lcm = LCM(num_steps=4, huber=None, sigma_data=0.3, time_scale=2.0)
    turn = scripted(turn_of(known_turn, x0, student, target=average), 0.3, share)
    loss, _ = SLAM(lcm=lcm).student_loss(turn)
    (got,) = torch.autograd.grad(loss, [student.scale])

    eps = known_turn(x0).noise_like(x0)
    t, s, gamma = 0.75, 0.5, 1 - share
    time = torch.full((6,), t, dtype=torch.float64)
    x_t = (1 - t) * x0 + t * eps
    clean = turn.teacher(x_t, time, None)  # pyright: ignore[reportOptionalCall]
    x_s = (1 - s) * clean + s * (x_t - (1 - t) * clean) / t
    x = gamma * x_t + (1 - gamma) * (1 - t) / (1 - s) * x_s
    sigma = (((1 - t) * s / (1 - s)) ** 2 + gamma**2 * (t**2 - ((1 - t) * s / (1 - s)) ** 2)) ** 0.5
    second = (1 - gamma) * t
    velocity = student.scale * (t - second / 2) * x + t**2 - second
    x0_hat = (x - sigma * velocity) / (1 - t + sigma)
    x0_average = x_s - s * (0.4 * s * x_s + s**2)
    k, k_s = 2 * t, 2 * s
    prediction = 0.09 / (k**2 + 0.09) * x + k / (k**2 + 0.09) ** 0.5 * x0_hat
    target = 0.09 / (k_s**2 + 0.09) * x_s + k_s / (k_s**2 + 0.09) ** 0.5 * x0_average
    expected = (prediction - target).square().mean()
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=0)
    torch.testing.assert_close(got, torch.autograd.grad(expected, [student.scale])[0], rtol=1e-10, atol=0)


def test_at_gamma_0_the_noise_level_is_that_of_the_target(known_turn: MakeTurn) -> None:
    """T-SL-3: with c_skip 0 and c_out 1 student and target then make the same call."""
    x0, student = torch.randn(6, 3, dtype=torch.float64), LearntFlowMap()
    objective = SLAM(lcm=LCM(num_steps=4, sigma_data=1e-9), gamma_input="noise_level")
    results = {}
    for share in (1.0, 0.5):
        turn = scripted(turn_of(known_turn, x0, student, target=student), 0.3, share)
        results[share] = objective.student_loss(turn)[1]["error_rms"].item()
    assert results[1.0] < 1e-10
    assert results[0.5] > 1e-3


@every_path
def test_the_noise_level_is_that_of_the_point(known_turn: MakeTurn, path: Path) -> None:
    """A student that knows x0 and eps finds its input on the path at the time that comes with it."""
    x0 = torch.randn(16, 3, dtype=torch.float64)
    student = LearntFlowMap(path=path)
    objective = SLAM(lcm=LCM(source="data", times=(0.9, 0.5, 0.1)), gamma_input="noise_level")
    objective.student_loss(turn_of(known_turn, x0, student))
    replay = known_turn(x0)
    share, eps = replay.uniform(16, x0.device), replay.noise_like(x0)
    (x, level, _), *_ = student.calls
    torch.testing.assert_close(x, path.add_noise(x0, eps, level[:, None]))
    t = double(0.9, 0.5, 0.1)[(share * 3).long()]
    assert ((level < t) & (level > 0)).all()


@every_input
def test_pure_noise_is_a_start_like_any_other(known_turn: MakeTurn, gamma_input: GammaInput) -> None:
    """At t = 1 alpha is 0: the sub-path only scales the noise, and the answer is finite."""
    x0, student = torch.randn(6, 3, dtype=torch.float64), LearntFlowMap()
    turn = scripted(turn_of(known_turn, x0, student), 0.0, 0.6)
    objective = SLAM(lcm=LCM(num_steps=4), gamma_input=gamma_input)
    loss, _ = objective.student_loss(turn)
    assert bool(loss.isfinite())
    x, t, _ = student.calls[0]
    noise = known_turn(x0).noise_like(x0)
    torch.testing.assert_close(x, noise if gamma_input == "noise_level" else 0.4 * noise)
    torch.testing.assert_close(t, torch.ones_like(t))


@every_input
def test_layout_changes_neither_loss_nor_gradient(
    layouts_agree: Callable[..., None], gaussian_teacher: GaussianDenoiser, gamma_input: GammaInput
) -> None:
    student = LearntFlowMap()
    objective = SLAM(lcm=LCM(num_steps=7), gamma_input=gamma_input, lowest_gamma=0.2)
    layouts_agree(
        lambda turn: objective.student_loss(turn)[0],
        parameters=[student.scale],
        student=student,
        target=LearntFlowMap(0.4),
        teacher=gaussian_teacher,
    )


def test_gammas_are_uniform_above_the_lowest() -> None:
    x0, student = torch.zeros(20_000, 1), LearntFlowMap()
    objective = SLAM(lcm=LCM(source="data", num_steps=1), lowest_gamma=0.4)
    generator = torch.Generator().manual_seed(0)
    objective.student_loss(Turn(student=student, target=student, data=Data(x0=x0), generator=generator))
    gamma = 1 - student.calls[0][2]  # at t = 1
    assert 0.4 <= gamma.min() < 0.41
    assert 0.99 < gamma.max() <= 1
    assert gamma.mean().item() == pytest.approx(0.7, abs=0.006)  # five standard errors


@every_input
def test_half_precision_samples_are_compared_in_float32(gamma_input: GammaInput) -> None:
    class Half(LearntFlowMap):
        def average_velocity(self, x_t: Tensor, t: Tensor, r: Tensor, condition: object) -> Tensor:
            assert x_t.dtype == torch.bfloat16
            return self.scale.bfloat16() * x_t

    student = Half()
    turn = Turn(student=student, target=Half(), data=Data(x0=torch.randn(8, 3).bfloat16()))
    loss, _ = SLAM(lcm=LCM(source="data"), gamma_input=gamma_input).student_loss(turn)
    assert loss.dtype == torch.float32
    loss.backward()
    assert student.scale.grad is not None


def test_needs_follow_the_settings() -> None:
    assert SLAM().needs == {"student", "target", "data", "teacher", "two_times"}
    assert SLAM(lcm=LCM(source="data"), gamma_input="noise_level").needs == {"student", "target", "data"}


def test_what_does_not_fit_is_refused_with_the_remedy(known_turn: MakeTurn) -> None:
    single = NetworkDenoiser(nn.Identity())
    x0 = torch.randn(4, 2)
    with pytest.raises(ValueError, match=r"NetworkFlowMap or set gamma_input='noise_level'"):
        SLAM().student_loss(turn_of(known_turn, x0, single))
    with pytest.raises(ValueError, match=r"lowest_gamma=1\.5"):
        SLAM(lowest_gamma=1.5)
