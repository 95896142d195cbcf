"""SplitMeanFlow: its identity at the exact flow, its limit, its collapse without a boundary, layouts."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn

from fewstep.core.analytic import GaussianDenoiser, GaussianFlowMap
from fewstep.core.denoisers import NetworkDenoiser, velocity_of
from fewstep.core.layouts import DENSE, append_dims
from fewstep.core.objectives.contract import Data, Turn
from fewstep.core.objectives.mean_flow import mean_flow_target
from fewstep.core.objectives.split_mean_flow import SplitMeanFlow, split_target
from fewstep.core.objectives.trajectories import Source, TimePairs, total_derivative
from fewstep.core.paths import LinearPath
from fewstep.core.schedules import UniformTimes

EXACT = GaussianFlowMap(mean=1.3, std=0.7)
PAIRS = TimePairs(times=UniformTimes(low=0.1), equal_fraction=0.3, anchor_fraction=0.2)

MakeTurn = Callable[..., Turn]


class LearntFlowMap(nn.Module):
    """u = scale (t - r / 2) x + t^2 - r; records whether it was called under no_grad."""

    def __init__(self, scale: float = 0.7) -> None:
        super().__init__()
        self.path = LinearPath()
        self.scale = nn.Parameter(torch.tensor(scale, dtype=torch.float64))
        self.calls: list[tuple[Tensor, Tensor, Tensor, bool]] = []

    def average_velocity(self, x_t: Tensor, t: Tensor, r: Tensor, condition: object) -> Tensor:
        self.calls.append((x_t, t, r, torch.is_grad_enabled()))
        time, end = append_dims(t, x_t), append_dims(r, x_t)
        return self.scale * (time - end / 2) * x_t + time.square() - end

    def forward(self, x_t: Tensor, t: Tensor, condition: object) -> Tensor:
        raise AssertionError("SplitMeanFlow asks for average velocities")


def double(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def data_turn(known_turn: MakeTurn, x0: Tensor, student: Any, **roles: Any) -> Turn:
    return known_turn(x0, student=student, data=Data(x0=x0), **roles)


def test_the_exact_average_velocity_satisfies_the_identity_at_the_golden_point() -> None:
    """T-SMF-1: (m, s) = (1.3, 0.7), x = 0.37, t = 0.8, s = 0.55, r = 0.3."""

    class Recorded(LearntFlowMap):
        def average_velocity(self, x_t: Tensor, t: Tensor, r: Tensor, condition: object) -> Tensor:
            self.calls.append((x_t, t, r, True))
            return EXACT.average_velocity(x_t, t, r, condition)

    flow = Recorded()
    target = split_target(flow, double(0.37)[:, None], double(0.8), double(0.3), double(0.5), None)
    assert target.item() == pytest.approx(-1.2356342293, abs=1e-10)
    (x_t, *_), (x_s, s, r, _) = flow.calls
    assert (x_t.item(), x_s.item()) == pytest.approx((0.37, 0.6708453531), abs=1e-10)
    assert (s.item(), r.item()) == pytest.approx((0.55, 0.3), abs=1e-15)


def test_the_first_part_of_an_interval_has_the_stated_share() -> None:
    """With u = t + 3 r both parts can be told apart: s is t at share 0 and r at share 1."""

    class Sum(LearntFlowMap):
        def average_velocity(self, x_t: Tensor, t: Tensor, r: Tensor, condition: object) -> Tensor:
            return append_dims(t + 3 * r, x_t) + 0 * x_t

    t, r, x = double(0.9, 0.9, 0.9), double(0.1, 0.1, 0.1), torch.zeros(3, 1, dtype=torch.float64)
    share = double(0.0, 0.25, 1.0)
    s = double(0.9, 0.7, 0.1)
    target = split_target(Sum(), x, t, r, share, None)
    torch.testing.assert_close(target[:, 0], share * (t + 3 * s) + (1 - share) * (s + 3 * r))


def test_the_exact_flow_map_has_no_error(known_turn: MakeTurn, gaussian_teacher: GaussianDenoiser) -> None:
    x0 = 1.3 + 0.7 * torch.randn(32, 4, dtype=torch.float64)
    turn = data_turn(known_turn, x0, EXACT, teacher=gaussian_teacher)
    loss, diagnostics = SplitMeanFlow(pairs=PAIRS).student_loss(turn)
    assert loss.item() < 1e-20
    assert diagnostics["velocity_rms"] > 0.5


def test_a_vanishing_first_part_gives_mean_flow_at_first_order() -> None:
    """T-SMF-2: (target - u) / share goes to the residual of MeanFlow with the student's own velocity."""
    flow, x = LearntFlowMap().requires_grad_(False), torch.randn(6, 2, dtype=torch.float64)
    t, r = torch.linspace(0.5, 0.9, 6, dtype=torch.float64), torch.linspace(0, 0.4, 6, dtype=torch.float64)
    average, velocity = (flow.average_velocity(x, t, end, None) for end in (r, t))
    slope = total_derivative(
        lambda x, t: flow.average_velocity(x, t, r, None), x, t, velocity, derivative="jvp"
    )
    residual = mean_flow_target(velocity, slope, t, r) - average
    errors = []
    for share in (1e-2, 1e-3, 1e-4):
        target = split_target(flow, x, t, r, torch.full_like(t, share), None)
        errors.append(((target - average) / share - residual).norm() / residual.norm())
    assert errors[-1] < 1e-3
    orders = [torch.log10(coarse / fine).item() for coarse, fine in pairwise(errors)]
    assert orders == pytest.approx([1.0, 1.0], abs=0.1)


@pytest.mark.parametrize("equal_fraction", [0.0, 0.3])
def test_a_constant_field_passes_unless_there_is_a_boundary(
    known_turn: MakeTurn, gaussian_teacher: GaussianDenoiser, equal_fraction: float
) -> None:
    """T-SMF-3."""

    class Constant(LearntFlowMap):
        def average_velocity(self, x_t: Tensor, t: Tensor, r: Tensor, condition: object) -> Tensor:
            return self.scale.expand(x_t.shape)

    turn = data_turn(
        known_turn, torch.randn(32, 2, dtype=torch.float64), Constant(), teacher=gaussian_teacher
    )
    pairs = TimePairs(times=UniformTimes(low=0.1), equal_fraction=equal_fraction)
    loss, diagnostics = SplitMeanFlow(pairs=pairs).student_loss(turn)
    assert diagnostics["split_error_rms"] < 1e-12
    assert (loss > 0.1) == (equal_fraction > 0)
    assert (diagnostics["boundary_error_rms"] > 0.1) == (equal_fraction > 0)


@pytest.mark.parametrize("source", ["data", "teacher"])
@pytest.mark.parametrize("targets", ["student", "average"])
def test_loss_and_gradient_are_those_of_the_formula_written_out(
    known_turn: MakeTurn,
    gaussian_teacher: GaussianDenoiser,
    source: Source,
    targets: Literal["student", "average"],
) -> None:
    """Targets constant, one sample after another."""
    x0, student, average = torch.randn(12, 3, dtype=torch.float64), LearntFlowMap(), LearntFlowMap(0.4)
    objective = SplitMeanFlow(source=source, pairs=PAIRS, targets=targets)
    turn = data_turn(known_turn, x0, student, teacher=gaussian_teacher, target=average)
    loss, diagnostics = objective.student_loss(turn)
    (got,) = torch.autograd.grad(loss, [student.scale])
    assert [call[3] for call in student.calls] == ([True] if targets == "average" else [True, False, False])

    replay = known_turn(x0)
    t, r = PAIRS.sample(replay, x0, DENSE)
    eps = replay.noise_like(x0)
    share = replay.uniform(12, x0.device)
    assert 0 < (t == r).sum() < 12
    scale = student.scale.item() if targets == "student" else 0.4

    def jump(x: Tensor, start: Tensor, end: Tensor, scale: Tensor | float = scale) -> Tensor:
        return scale * (start - end / 2) * x + start**2 - end

    losses = []
    for i in range(12):
        x = (1 - t[i]) * x0[i] + t[i] * eps[i]
        s = (1 - share[i]) * t[i] + share[i] * r[i]
        u2 = jump(x, t[i], s)
        u1 = jump(x - (t[i] - s) * u2, s, r[i])
        target = (1 - share[i]) * u1 + share[i] * u2
        if t[i] == r[i]:
            target = eps[i] - x0[i]
            if source == "teacher":
                target = velocity_of(gaussian_teacher, x[None], t[i : i + 1], None)[0]
        losses.append((jump(x, t[i], r[i], student.scale) - target).square().mean())
    expected, each = torch.stack(losses).mean(), torch.stack(losses).detach()
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=0)
    torch.testing.assert_close(got, torch.autograd.grad(expected, [student.scale])[0], rtol=1e-10, atol=0)
    torch.testing.assert_close(diagnostics["boundary_error_rms"], each[t == r].mean().sqrt())
    torch.testing.assert_close(diagnostics["split_error_rms"], each[t != r].mean().sqrt())


@pytest.mark.parametrize("source", ["data", "teacher"])
@pytest.mark.parametrize("targets", ["student", "average"])
def test_layout_changes_neither_loss_nor_gradient(
    layouts_agree: Callable[..., None],
    gaussian_teacher: GaussianDenoiser,
    source: Source,
    targets: Literal["student", "average"],
) -> None:
    student = LearntFlowMap()
    objective = SplitMeanFlow(source=source, pairs=PAIRS, targets=targets)
    layouts_agree(
        lambda turn: objective.student_loss(turn)[0],
        parameters=[student.scale],
        student=student,
        teacher=gaussian_teacher,
        target=LearntFlowMap(0.4),
    )


def test_half_precision_samples_are_compared_in_float32() -> None:
    class Half(LearntFlowMap):
        def average_velocity(self, x_t: Tensor, t: Tensor, r: Tensor, condition: object) -> Tensor:
            assert x_t.dtype == torch.bfloat16
            return self.scale.bfloat16() * x_t

    student = Half()
    turn = Turn(student=student, data=Data(x0=torch.randn(8, 3).bfloat16()))
    loss, _ = SplitMeanFlow(source="data").student_loss(turn)
    assert loss.dtype == torch.float32
    loss.backward()
    assert student.scale.grad is not None


def test_needs_follow_the_settings() -> None:
    assert SplitMeanFlow().needs == {"student", "two_times", "data", "teacher"}
    assert SplitMeanFlow(source="data", targets="average").needs == {"student", "two_times", "data", "target"}


def test_roles_that_do_not_fit_are_refused_with_the_remedy(known_turn: MakeTurn) -> None:
    x0 = torch.randn(4, 2)
    single = NetworkDenoiser(nn.Identity())
    with pytest.raises(ValueError, match="NetworkFlowMap"):
        SplitMeanFlow(source="data").student_loss(data_turn(known_turn, x0, single))
    with pytest.raises(ValueError, match="SplitMeanFlow needs target"):
        SplitMeanFlow(source="data", targets="average").student_loss(data_turn(known_turn, x0, EXACT))
    with pytest.raises(ValueError, match="SplitMeanFlow needs teacher"):
        SplitMeanFlow().student_loss(data_turn(known_turn, x0, EXACT))
