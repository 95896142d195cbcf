"""Consistency distillation: order of its error, its gradient against the formula, grids, layouts."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fewstep.core.analytic import GaussianDenoiser, GaussianFlowMap
from fewstep.core.layouts import append_dims
from fewstep.core.objectives.contract import Data, Turn
from fewstep.core.objectives.lcm import LCM, boundary_scalings, ddim_step, distances
from fewstep.core.objectives.trajectories import Source
from fewstep.core.paths import DiscreteVPPath, LinearPath, Path, VPPath
from fewstep.core.samplers import euler
from fewstep.core.schedules import shift

MakeTurn = Callable[..., Turn]

DISCRETE = DiscreteVPPath.scaled_linear()


class LearntDenoiser(nn.Module):
    """x0 = scale x + t^2; records times and inputs."""

    def __init__(self, scale: float = 0.7, path: Path | None = None) -> None:
        super().__init__()
        self.path = path or LinearPath()
        self.scale = nn.Parameter(torch.tensor(scale, dtype=torch.float64))
        self.calls: list[tuple[Tensor, Tensor, bool]] = []

    def forward(self, x_t: Tensor, t: Tensor, condition: object) -> Tensor:
        self.calls.append((x_t, t, torch.is_grad_enabled()))
        return self.scale * x_t + append_dims(t, x_t).square()


@dataclass(frozen=True)
class ExactMap:
    """The consistency function of the Gaussian: where the flow takes a point at time 0, on any path."""

    denoiser: GaussianDenoiser

    @property
    def path(self) -> Path:
        return self.denoiser.path

    def __call__(self, x_t: Tensor, t: Tensor, condition: object) -> Tensor:
        time = append_dims(t, x_t)
        return self.denoiser.transport(x_t, time, torch.zeros_like(time))


def double(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_the_scalings_hold_the_boundary() -> None:
    """c_skip and c_out of LCM at timesteps 0, 20 and 999."""
    c_skip, c_out = boundary_scalings(double(0, 0.02, 0.999), sigma_data=0.5, time_scale=1e4)
    torch.testing.assert_close(c_skip, double(1, 0.25 / (200**2 + 0.25), 0.25 / (9990**2 + 0.25)))
    torch.testing.assert_close(c_out, double(0, 200 / (200**2 + 0.25) ** 0.5, 9990 / (9990**2 + 0.25) ** 0.5))
    torch.testing.assert_close(
        torch.stack(boundary_scalings(double(0.3), sigma_data=0.4, time_scale=1.0)),
        double(0.64, 0.6)[:, None],
    )


def test_a_ddim_step_is_the_solvers_on_the_linear_path(gaussian_teacher: GaussianDenoiser) -> None:
    x_t, t, s = torch.randn(3, 2, dtype=torch.float64), double(0.8, 0.8, 0.8), double(0.6, 0.6, 0.6)
    step = ddim_step(gaussian_teacher(x_t, t, None), x_t, LinearPath(), t, s)
    torch.testing.assert_close(step, euler(gaussian_teacher, x_t, [0.8, 0.6], None))


def test_a_ddim_step_keeps_the_noise_that_the_sample_implies() -> None:
    x0, eps = torch.randn(2, 3, 2, dtype=torch.float64)
    t, s = double(0.9, 0.5, 0.2), double(0.5, 0.1, 0.0)
    x_t, x_s = (VPPath().add_noise(x0, eps, time[:, None]) for time in (t, s))
    torch.testing.assert_close(ddim_step(x0, x_t, VPPath(), t, s), x_s)


def test_distances_are_averages_over_elements_of_the_pseudo_huber_function() -> None:
    error = double(0.0, 3.0, -4.0, 12.0)[None]
    torch.testing.assert_close(distances(error, huber=None), double(169 / 4))
    torch.testing.assert_close(distances(error, huber=5.0), double((0 + 34**0.5 + 41**0.5 + 13 - 15) / 4))


@pytest.mark.parametrize("path", [LinearPath(), VPPath()], ids=lambda path: type(path).__name__)
def test_the_exact_map_errs_at_second_order_and_the_posterior_mean_at_first(
    known_turn: MakeTurn, path: Path
) -> None:
    """T-CM-1: half the interval leaves a quarter of the error, or a half."""
    teacher = GaussianDenoiser(mean=1.3, std=0.7, path=path)
    x0 = 1.3 + 0.7 * torch.randn(32, 4, dtype=torch.float64)

    def error(student: object, interval: float) -> float:
        turn = known_turn(x0, student=student, target=student, teacher=teacher, data=Data(x0=x0))
        object.__setattr__(turn, "uniform", lambda size, device: torch.zeros(size, dtype=torch.float64))
        objective = LCM(times=(0.6, 0.6 - interval), sigma_data=1e-9)
        return objective.student_loss(turn)[1]["error_rms"].item()

    exact, mean = (
        [error(student, interval) for interval in (0.02, 0.01)] for student in (ExactMap(teacher), teacher)
    )
    assert exact[0] / exact[1] == pytest.approx(4, rel=0.05)
    assert mean[0] / mean[1] == pytest.approx(2, rel=0.05)
    assert exact[0] < mean[0] / 20


def test_the_flow_map_called_as_a_denoiser_is_a_consistency_function(
    known_turn: MakeTurn, gaussian_teacher: GaussianDenoiser
) -> None:
    flow = GaussianFlowMap(mean=1.3, std=0.7)
    x0 = 1.3 + 0.7 * torch.randn(32, 4, dtype=torch.float64)
    turn = known_turn(x0, student=flow, target=flow, teacher=gaussian_teacher, data=Data(x0=x0))
    assert LCM(num_steps=200).student_loss(turn)[1]["error_rms"] < 1e-4


@pytest.mark.parametrize("source", ["teacher", "data"])
@pytest.mark.parametrize("huber", [1e-1, None])
@pytest.mark.parametrize("path", [LinearPath(), DISCRETE], ids=lambda path: type(path).__name__)
def test_loss_and_gradient_are_those_of_the_formula_written_out(
    known_turn: MakeTurn, path: Path, source: Source, huber: float | None
) -> None:
    """Targets constant and of the average, one sample after another."""
    x0, student, average = (
        torch.randn(8, 3, dtype=torch.float64),
        LearntDenoiser(path=path),
        LearntDenoiser(0.4),
    )
    average.path = path
    teacher = GaussianDenoiser(mean=1.3, std=0.7, path=path)
    objective = LCM(source=source, num_steps=4, shift=2.0, huber=huber, sigma_data=0.3, time_scale=2.0)
    turn = known_turn(x0, student=student, target=average, teacher=teacher, data=Data(x0=x0))
    loss, diagnostics = objective.student_loss(turn)
    (got,) = torch.autograd.grad(loss, [student.scale])
    assert [grad for *_, grad in student.calls + average.calls] == [True, False]

    replay = known_turn(x0)
    share, eps = replay.uniform(8, x0.device), replay.noise_like(x0)
    grid = shift(double(1, 0.75, 0.5, 0.25, 0), 2.0)
    alpha, sigma = path.alpha(grid), path.sigma(grid)
    losses, squares = [], []
    for i in range(8):
        n = int(share[i] * 4)
        t, s = grid[n], grid[n + 1]
        x = alpha[n] * x0[i] + sigma[n] * eps[i]
        clean, noise = x0[i], eps[i]
        if source == "teacher":
            clean = teacher(x[None], t[None], None)[0]
            noise = (x - alpha[n] * clean) / sigma[n]
        x_s = alpha[n + 1] * clean + sigma[n + 1] * noise
        f = [
            0.09 / (4 * time**2 + 0.09) * point
            + 2 * time / (4 * time**2 + 0.09).sqrt() * (scale * point + time**2)
            for time, point, scale in ((t, x, student.scale), (s, x_s, average.scale.detach()))
        ]
        squares.append((f[0] - f[1]).square())
        losses.append(squares[-1] if huber is None else (squares[-1] + huber**2).sqrt() - huber)
    expected = torch.stack(losses).mean()
    torch.testing.assert_close(loss, expected, rtol=1e-9, atol=0)
    torch.testing.assert_close(got, torch.autograd.grad(expected, [student.scale])[0], rtol=1e-9, atol=0)
    torch.testing.assert_close(diagnostics["error_rms"], torch.stack(squares).mean().sqrt().detach())


def test_at_the_end_of_the_grid_the_target_is_the_teachers_sample(
    known_turn: MakeTurn, gaussian_teacher: GaussianDenoiser
) -> None:
    """Whatever the average says at time 0."""
    student, average = LearntDenoiser(), LearntDenoiser(1e6)
    x0 = torch.randn(8, 3, dtype=torch.float64)
    turn = known_turn(x0, student=student, target=average, teacher=gaussian_teacher, data=Data(x0=x0))
    loss, _ = LCM(times=(0.5,), huber=None, sigma_data=1e-9).student_loss(turn)
    (x_t, t, _), *_ = student.calls
    assert t.tolist() == [0.5] * 8
    expected = (student.scale * x_t + 0.25 - gaussian_teacher(x_t, t, None)).square().mean()
    torch.testing.assert_close(loss, expected)


def test_all_intervals_of_the_grid_are_drawn_evenly() -> None:
    x0 = torch.zeros(20_000, 1)
    turn = Turn(data=Data(x0=x0), generator=torch.Generator().manual_seed(0))
    ends = LCM(source="data", num_steps=5).interval(turn, LinearPath())
    counts = (ends.t * 5).round().long().bincount(minlength=6)[1:]
    assert (counts - 4000).abs().max() < 300  # five standard deviations
    torch.testing.assert_close(ends.t - ends.s, torch.full((20_000,), 0.2))
    assert not ends.x_s.requires_grad


def test_a_draw_at_the_very_end_is_the_last_interval(known_turn: MakeTurn) -> None:
    x0 = torch.zeros(2, 1)
    turn = known_turn(x0, data=Data(x0=x0))
    object.__setattr__(turn, "uniform", lambda size, device: torch.ones(size))  # as rounding could give it
    ends = LCM(source="data", num_steps=5).interval(turn, LinearPath())
    torch.testing.assert_close(torch.stack([ends.t, ends.s]), torch.tensor([[0.2, 0.2], [0.0, 0.0]]))


@pytest.mark.parametrize("source", ["teacher", "data"])
def test_layout_changes_neither_loss_nor_gradient(
    layouts_agree: Callable[..., None], gaussian_teacher: GaussianDenoiser, source: Source
) -> None:
    student = LearntDenoiser()
    objective = LCM(source=source, num_steps=7)
    layouts_agree(
        lambda turn: objective.student_loss(turn)[0],
        parameters=[student.scale],
        student=student,
        target=LearntDenoiser(0.4),
        teacher=gaussian_teacher,
    )


def test_half_precision_samples_are_compared_in_float32() -> None:
    class Half(LearntDenoiser):
        def forward(self, x_t: Tensor, t: Tensor, condition: object) -> Tensor:
            assert x_t.dtype == torch.bfloat16
            return self.scale.bfloat16() * x_t

    student = Half()
    turn = Turn(student=student, target=Half(), data=Data(x0=torch.randn(8, 3).bfloat16()))
    loss, _ = LCM(source="data").student_loss(turn)
    assert loss.dtype == torch.float32
    loss.backward()
    assert student.scale.grad is not None


def test_needs_follow_the_source() -> None:
    assert LCM().needs == {"student", "target", "data", "teacher"}
    assert LCM(source="data").needs == {"student", "target", "data"}


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"num_steps": 0}, "num_steps=0"),
        ({"times": (0.5, 0.7)}, "descend"),
        ({"times": (0.5, 0.0)}, "above 0"),
        ({"huber": 0.0}, "huber=0.0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        LCM(**settings)


def test_roles_that_do_not_fit_are_refused_with_the_remedy(
    known_turn: MakeTurn, gaussian_teacher: GaussianDenoiser
) -> None:
    x0 = torch.randn(4, 2)
    student = LearntDenoiser(path=VPPath())
    with pytest.raises(ValueError, match="OnPath"):
        LCM().student_loss(
            known_turn(x0, student=student, target=student, teacher=gaussian_teacher, data=Data(x0=x0))
        )
    with pytest.raises(ValueError, match="LCM needs target"):
        LCM(source="data").student_loss(known_turn(x0, student=student, data=Data(x0=x0)))
