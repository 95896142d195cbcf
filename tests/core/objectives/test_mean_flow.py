"""MeanFlow: its identity at the exact flow, its gradient against the formula, guidance, layouts."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fewstep.core.analytic import GaussianDenoiser, GaussianFlowMap
from fewstep.core.denoisers import NetworkDenoiser, OnPath, velocity_of
from fewstep.core.layouts import append_dims
from fewstep.core.objectives.contract import Data, Turn
from fewstep.core.objectives.mean_flow import MeanFlow, adaptive_losses, mean_flow_target
from fewstep.core.objectives.trajectories import Derivative, Source, TimePairs, total_derivative
from fewstep.core.paths import LinearPath, VPPath
from fewstep.core.schedules import TimeSampler, UniformTimes

EXACT = GaussianFlowMap(mean=1.3, std=0.7)
PAIRS = TimePairs(times=UniformTimes(low=0.1), equal_fraction=0.3)
every_derivative = pytest.mark.parametrize("derivative", ["jvp", "difference"])

MakeTurn = Callable[..., Turn]


class LearntFlowMap(nn.Module):
    """u = scale (t - r / 2) (x + x^2 / 10) + t^2 - r + the mean of the condition; records conditions."""

    def __init__(self) -> None:
        super().__init__()
        self.path = LinearPath()
        self.scale = nn.Parameter(torch.tensor(0.7, dtype=torch.float64))
        self.conditions: list[object] = []

    def average_velocity(self, x_t: Tensor, t: Tensor, r: Tensor, condition: object) -> Tensor:
        self.conditions.append(condition)
        shift = append_dims(condition.mean(1), x_t) if isinstance(condition, Tensor) else 0.0
        time, end = append_dims(t, x_t), append_dims(r, x_t)
        return self.scale * (time - end / 2) * (x_t + x_t.square() / 10) + time.square() - end + shift

    def forward(self, x_t: Tensor, t: Tensor, condition: object) -> Tensor:
        raise AssertionError("MeanFlow asks for average velocities")


def double(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def data_turn(known_turn: MakeTurn, x0: Tensor, student: Any, **roles: Any) -> Turn:
    condition = roles.pop("condition", None)
    return known_turn(x0, student=student, data=Data(x0=x0, condition=condition), **roles)


def test_the_exact_average_velocity_satisfies_the_identity_at_the_golden_point() -> None:
    """T-MF-1: (m, s) = (1.3, 0.7), x = 0.37, t = 0.8, r = 0.3."""
    x, t, r = double(0.37)[:, None], double(0.8), double(0.3)
    average = EXACT.average_velocity(x, t, r, None)
    velocity = EXACT.average_velocity(x, t, t, None)
    assert average.item() == pytest.approx(-1.2356342293, abs=1e-10)
    assert velocity.item() == pytest.approx(-1.1829290, abs=1e-7)
    assert (x - 0.5 * average).item() == pytest.approx(0.9878171147, abs=1e-10)
    slope = total_derivative(
        lambda x, t: EXACT.average_velocity(x, t, r, None), x, t, velocity, derivative="jvp"
    )
    assert mean_flow_target(velocity, slope, t, r).item() == pytest.approx(average.item(), abs=1e-12)


@pytest.mark.parametrize(("derivative", "tolerance"), [("jvp", 1e-6), ("difference", 1e-4)])
def test_the_exact_flow_map_has_no_error(
    known_turn: MakeTurn, gaussian_teacher: GaussianDenoiser, derivative: Derivative, tolerance: float
) -> None:
    x0 = 1.3 + 0.7 * torch.randn(32, 4, dtype=torch.float64)
    turn = data_turn(known_turn, x0, EXACT, teacher=gaussian_teacher)
    objective = MeanFlow(source="teacher", power=0.0, pairs=PAIRS, derivative=derivative)
    loss, diagnostics = objective.student_loss(turn)
    assert loss.item() < tolerance**2
    assert diagnostics["correction_rms"] > 0.1  # the derivative matters at these times


@pytest.mark.parametrize("source", ["data", "teacher"])
@pytest.mark.parametrize("power", [0.0, 1.0])
def test_loss_and_gradient_are_those_of_the_formula_written_out(
    known_turn: MakeTurn, gaussian_teacher: GaussianDenoiser, source: Source, power: float
) -> None:
    """Derivatives by hand, targets constant, one sample after another."""
    x0, student = torch.randn(8, 3, dtype=torch.float64), LearntFlowMap()
    objective = MeanFlow(source=source, pairs=PAIRS, power=power, offset=0.2)
    loss, _ = objective.student_loss(data_turn(known_turn, x0, student, teacher=gaussian_teacher))
    (got,) = torch.autograd.grad(loss, [student.scale])

    replay = known_turn(x0)
    layout = Data(x0=x0).layout
    t, r = PAIRS.sample(replay, x0, layout)
    assert 0 < (t == r).sum() < 8
    eps = replay.noise_like(x0)
    losses, slope = [], student.scale.item()
    for i in range(8):
        x = (1 - t[i]) * x0[i] + t[i] * eps[i]
        u = eps[i] - x0[i]
        if source == "teacher":
            u = velocity_of(gaussian_teacher, x[None], t[i : i + 1], None)[0]
        by_x, by_t = slope * (t[i] - r[i] / 2) * (1 + x / 5), slope * (x + x**2 / 10) + 2 * t[i]
        target = u - (t[i] - r[i]) * (by_x * u + by_t)
        prediction = student.scale * (t[i] - r[i] / 2) * (x + x**2 / 10) + t[i] ** 2 - r[i]
        e = ((prediction - target) ** 2).mean()
        losses.append(e / (e.item() + 0.2) ** power)
    expected = torch.stack(losses).mean()
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=0)
    torch.testing.assert_close(got, torch.autograd.grad(expected, [student.scale])[0], rtol=1e-10, atol=0)


def test_where_both_times_are_equal_it_is_flow_matching(known_turn: MakeTurn) -> None:
    """T-MF-2."""
    x0, student = torch.randn(8, 3, dtype=torch.float64), LearntFlowMap()
    objective = MeanFlow(pairs=TimePairs(equal_fraction=1.0), power=0.0)
    loss, diagnostics = objective.student_loss(data_turn(known_turn, x0, student))
    replay = known_turn(x0)
    t, _ = objective.pairs.sample(replay, x0, Data(x0=x0).layout)
    eps = replay.noise_like(x0)
    x_t = (1 - t[:, None]) * x0 + t[:, None] * eps
    matching = (student.average_velocity(x_t, t, t, None) - (eps - x0)).square().mean()
    torch.testing.assert_close(loss, matching)
    torch.testing.assert_close(
        *(torch.autograd.grad(value, [student.scale])[0] for value in (loss, matching))
    )
    assert diagnostics["correction_rms"] == 0
    torch.testing.assert_close(diagnostics["residual_rms"], matching.detach().sqrt())


def test_the_weight_of_a_sample_is_a_constant_power_of_its_error() -> None:
    error = double(0.5, 2.0).requires_grad_()
    losses = adaptive_losses(error, power=1.5, offset=0.5)
    torch.testing.assert_close(losses.detach(), double(0.5, 2.0 / 2.5**1.5))
    (grad,) = torch.autograd.grad(losses.sum(), error)
    torch.testing.assert_close(grad, double(1.0, 2.5**-1.5))


CONDITIONAL = torch.linspace(-1, 1, 8, dtype=torch.float64)[:, None].repeat(1, 2)
NULL = torch.full((1, 2), 0.4, dtype=torch.float64)


def test_guidance_mixes_in_the_students_own_velocities(known_turn: MakeTurn) -> None:
    """The literal target, in which the derivative, too, is along the guided velocity."""
    x0, student = torch.randn(8, 3, dtype=torch.float64), LearntFlowMap()
    interval = (0.3, 0.8)
    objective = MeanFlow(pairs=PAIRS, power=0.0, omega=1.8, kappa=0.3, interval=interval)
    turn = data_turn(known_turn, x0, student, condition=CONDITIONAL, null_condition=NULL)
    loss, _ = objective.student_loss(turn)
    replay = known_turn(x0)
    times = PAIRS.sample(replay, x0, Data(x0=x0).layout)
    eps = replay.noise_like(x0)
    t, r = (time[:, None] for time in times)
    x = (1 - t) * x0 + t * eps
    own, null = (student.average_velocity(x, times[0], times[0], c) for c in (CONDITIONAL, NULL.repeat(8, 1)))
    inside = (t >= interval[0]) & (t <= interval[1])
    assert 0 < inside.sum() < 8
    guided = torch.where(inside, 1.8 * (eps - x0) + 0.3 * own + (1 - 1.8 - 0.3) * null, eps - x0).detach()
    slope = student.scale.item()
    by_x, by_t = slope * (t - r / 2) * (1 + x / 5), slope * (x + x**2 / 10) + 2 * t
    target = guided - (t - r) * (by_x * guided + by_t)
    expected = (student.average_velocity(x, *times, CONDITIONAL) - target).square().mean()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(
        *(torch.autograd.grad(value, [student.scale])[0] for value in (loss, expected))
    )


def test_the_ends_of_the_interval_are_guided(
    known_turn: MakeTurn, fixed_times: Callable[..., TimeSampler]
) -> None:
    x0 = torch.randn(4, 3, dtype=torch.float64)
    pairs = TimePairs(times=fixed_times(0.2, 0.25, 0.75, 0.8), equal_fraction=1.0)

    def loss(interval: tuple[float, float]) -> float:
        turn = data_turn(known_turn, x0, LearntFlowMap(), condition=CONDITIONAL[:4], null_condition=NULL)
        return MeanFlow(pairs=pairs, power=0.0, omega=1.8, interval=interval).student_loss(turn)[0].item()

    assert loss((0.25, 0.75)) == loss((0.24, 0.76)) != loss((0.26, 0.74))


@pytest.mark.parametrize(
    ("omega", "kappa", "calls"),
    [(1.0, 0.0, []), (1.5, 0.0, ["null"]), (0.6, 0.4, ["own"]), (2.0, 0.4, ["own", "null"])],
)
def test_guidance_calls_no_more_than_it_must(
    known_turn: MakeTurn, omega: float, kappa: float, calls: list[str]
) -> None:
    """T-MF-4: at omega 1 and kappa 0 the target is the velocity of the data."""
    student = LearntFlowMap()
    x0 = torch.randn(8, 3, dtype=torch.float64)
    turn = data_turn(known_turn, x0, student, condition=CONDITIONAL, null_condition=NULL)
    MeanFlow(omega=omega, kappa=kappa).student_loss(turn)
    called = ["null" if torch.equal(c, NULL.expand(8, 2)) else "own" for c in student.conditions[:-2]]  # pyright: ignore[reportArgumentType]
    assert called == calls


def test_conditions_that_are_no_tensors_are_guided_as_they_are(known_turn: MakeTurn) -> None:
    student = LearntFlowMap()
    x0 = torch.randn(4, 3, dtype=torch.float64)
    turn = data_turn(known_turn, x0, student, condition="a mug", null_condition="")
    MeanFlow(omega=2.0, kappa=0.5).student_loss(turn)
    assert student.conditions == ["a mug", "", "a mug", "a mug"]


def test_the_fixed_point_of_guidance_is_the_stated_scale(known_turn: MakeTurn) -> None:
    """u_null + omega / (1 - kappa) (u - u_null) is its own target, at equal times."""
    omega, kappa = 1.2, 0.5

    class Guided(LearntFlowMap):
        def average_velocity(self, x_t: Tensor, t: Tensor, r: Tensor, condition: object) -> Tensor:
            null = -0.3 * x_t
            return null if condition == "null" else null + omega / (1 - kappa) * (exact(x_t, t) - null)

    def exact(x_t: Tensor, t: Tensor) -> Tensor:
        return EXACT.average_velocity(x_t, t, t, None)

    objective = MeanFlow(omega=omega, kappa=kappa, pairs=TimePairs(equal_fraction=1.0), power=0.0)
    x0 = 1.3 + 0.7 * torch.randn(30, 2, dtype=torch.float64)
    turn = data_turn(known_turn, x0, Guided(), condition="a mug", null_condition="null")
    t = turn.times(UniformTimes(low=0.1), x0, Data(x0=x0).layout)
    x_t = x0 + 0 * t[:, None]
    guided = objective._guide(exact(x_t, t), Guided(), turn, x_t, t)
    torch.testing.assert_close(guided, Guided().average_velocity(x_t, t, t, "a mug"))


@every_derivative
@pytest.mark.parametrize("source", ["data", "teacher"])
def test_layout_changes_neither_loss_nor_gradient(
    layouts_agree: Callable[..., None],
    gaussian_teacher: GaussianDenoiser,
    source: Source,
    derivative: Derivative,
) -> None:
    student = LearntFlowMap()
    objective = MeanFlow(source=source, pairs=PAIRS, derivative=derivative)
    layouts_agree(
        lambda turn: objective.student_loss(turn)[0],
        parameters=[student.scale],
        student=student,
        teacher=gaussian_teacher,
    )


def test_guided_layouts_agree(layouts_agree: Callable[..., None]) -> None:
    student = LearntFlowMap()
    objective = MeanFlow(omega=1.5, kappa=0.2, interval=(0.3, 0.9), pairs=PAIRS)
    layouts_agree(
        lambda turn: objective.student_loss(turn)[0],
        parameters=[student.scale],
        student=student,
        null_condition="",
    )


def test_half_precision_samples_are_compared_in_float32() -> None:
    class Half(LearntFlowMap):
        def average_velocity(self, x_t: Tensor, t: Tensor, r: Tensor, condition: object) -> Tensor:
            assert x_t.dtype == torch.bfloat16
            return (self.scale.bfloat16() * x_t) * t[:, None].bfloat16()

    student = Half()
    turn = Turn(student=student, data=Data(x0=torch.randn(8, 3).bfloat16()))
    loss, _ = MeanFlow().student_loss(turn)
    assert loss.dtype == torch.float32
    loss.backward()
    assert student.scale.grad is not None


def test_needs_follow_the_source() -> None:
    assert MeanFlow().needs == {"student", "two_times", "data"}
    assert MeanFlow(source="teacher").needs == {"student", "two_times", "data", "teacher"}


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"source": "teacher", "omega": 2.0}, "already guides"),
        ({"kappa": 1.0}, "kappa"),
        ({"omega": 0.0}, "omega"),
    ],
)
def test_guidance_that_makes_no_sense_is_refused(settings: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        MeanFlow(**settings)


def test_roles_that_do_not_fit_are_refused_with_the_remedy(
    known_turn: MakeTurn, gaussian_teacher: GaussianDenoiser
) -> None:
    x0 = torch.randn(4, 2)
    with pytest.raises(ValueError, match="NetworkFlowMap"):
        MeanFlow().student_loss(data_turn(known_turn, x0, NetworkDenoiser(nn.Identity())))
    elsewhere = OnPath(gaussian_teacher, VPPath())
    with pytest.raises(ValueError, match="OnPath"):
        MeanFlow(source="teacher").student_loss(data_turn(known_turn, x0, EXACT, teacher=elsewhere))
    with pytest.raises(ValueError, match="MeanFlow needs teacher"):
        MeanFlow(source="teacher").student_loss(data_turn(known_turn, x0, EXACT))


@pytest.mark.parametrize("step", [0.05, 0.2])
def test_the_step_of_the_difference_is_the_given_one(known_turn: MakeTurn, step: float) -> None:
    """The distance of the times that the student is asked at, before the one that is trained."""
    times: list[Tensor] = []

    class Listening(LearntFlowMap):
        def average_velocity(self, x_t: Tensor, t: Tensor, r: Tensor, condition: object) -> Tensor:
            times.append(t)
            return super().average_velocity(x_t, t, r, condition)

    x0 = torch.randn(8, 3, dtype=torch.float64)
    pairs = TimePairs(times=UniformTimes(low=0.3, high=0.7), equal_fraction=0.0)
    objective = MeanFlow(derivative="difference", difference_step=step, pairs=pairs)
    objective.student_loss(data_turn(known_turn, x0, Listening()))
    before, after, trained = times
    torch.testing.assert_close(after - before, torch.full_like(before, 2 * step))
    torch.testing.assert_close((after + before) / 2, trained)
