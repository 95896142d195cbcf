"""RCGM: its residual at the exact flow and written out, its loss, and its parts of a batch."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn

from fewstep.core.analytic import GaussianDenoiser
from fewstep.core.denoisers import FlowMap, NetworkFlowMap, velocity_of
from fewstep.core.layouts import DENSE, append_dims
from fewstep.core.objectives.contract import Data, Turn
from fewstep.core.objectives.rcgm import (
    RCGM,
    barron_losses,
    displacement,
    draw_parts,
    interval_weight,
    rcgm_residual,
)
from fewstep.core.paths import LinearPath, Path, VPPath
from fewstep.core.schedules import TimeSampler, UniformTimes

MEAN, STD = 1.3, 0.7
TEACHER = GaussianDenoiser(mean=MEAN, std=STD)


def scalar(value: float) -> Tensor:
    return torch.tensor([value], dtype=torch.float64)


@dataclass(frozen=True)
class ExactFlow:
    """The flow map of a Gaussian; r = t is its velocity."""

    gaussian: GaussianDenoiser = TEACHER
    path: Path = field(default_factory=LinearPath)

    def average_velocity(self, x_t: Tensor, t: Tensor, r: Tensor, condition: object) -> Tensor:
        start, end = append_dims(t, x_t), append_dims(r, x_t)
        moved = x_t - self.gaussian.transport(x_t, start, end)
        velocity = velocity_of(self.gaussian, x_t, t.clamp(min=1e-9), condition)
        return torch.where(start == end, velocity, moved / torch.where(start == end, 1.0, start - end))

    def __call__(self, x_t: Tensor, t: Tensor, condition: object) -> Tensor:
        return x_t - append_dims(t, x_t) * self.average_velocity(x_t, t, torch.zeros_like(t), condition)


class Curved(nn.Module):
    """A velocity of two times, elementwise, that no jump composes to exactly."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.weights = nn.Parameter(torch.randn(4, generator=generator, dtype=torch.float64))

    def forward(self, x_t: Tensor, t: Tensor, condition: object, r: Tensor) -> Tensor:
        a, b, c, d = self.weights
        start, end = append_dims(t, x_t), append_dims(r, x_t)
        shift = 0.0 if condition is None else append_dims(condition, x_t)  # pyright: ignore[reportArgumentType]
        return torch.sin(a * x_t + b * start + shift) + c * end * x_t + d * start * end


def golden(**settings: Any) -> float:
    """The residual of the exact flow at x = 0.37, t = 0.8, r = 0.3."""
    flow, x_t, t, r = ExactFlow(), scalar(0.37)[:, None], scalar(0.8), scalar(0.3)
    average, velocity = flow.average_velocity(x_t, t, r, None), velocity_of(TEACHER, x_t, t, None)
    return rcgm_residual(average, velocity, flow, x_t, t, r, None, **settings).item()


def test_the_flow_is_asked_for_jumps_inside_the_interval_alone() -> None:
    """Also where it is shorter than the step, at whose end a time may be negative."""
    asked: list[Tensor] = []

    class Listening(ExactFlow):
        def average_velocity(self, x_t: Tensor, t: Tensor, r: Tensor, condition: object) -> Tensor:
            asked.extend((t, r))
            return super().average_velocity(x_t, t, r, condition)

    t = torch.tensor([0.8, 0.8, 0.05], dtype=torch.float64)
    r = torch.tensor([0.3, 0.75, 0.01], dtype=torch.float64)
    x_t = torch.zeros(3, 1, dtype=torch.float64)
    rcgm_residual(x_t, x_t, Listening(), x_t, t, r, None, step=0.1)
    assert len(asked) == 4
    for time in asked:
        assert ((r <= time) & (time <= t)).all()


def test_the_exact_flow_has_a_residual_of_the_order_of_the_step() -> None:
    """T-RC-1, and the golden average velocity behind it."""
    average = ExactFlow().average_velocity(scalar(0.37)[:, None], scalar(0.8), scalar(0.3), None)
    assert average.item() == pytest.approx(-1.2356342293, abs=1e-10)
    assert golden() == pytest.approx(-4.5e-4, abs=5e-6)
    assert golden(step=0.005) == pytest.approx(golden() / 2, rel=0.02)
    assert golden(step=1e-5) == pytest.approx(0, abs=1e-6)


def test_the_order_makes_no_difference_to_an_exact_flow() -> None:
    assert golden(order=1) == pytest.approx(golden(order=5), abs=1e-12)


@pytest.mark.parametrize("t", [0.7, 0.703, 0.7099])
def test_an_interval_shorter_than_the_step_asks_for_the_velocity(t: float) -> None:
    flow = NetworkFlowMap(Curved())
    average, velocity, x_t = torch.randn(3, 4, 2, dtype=torch.float64)
    start, end = scalar(t).expand(4), scalar(0.7).expand(4)
    residual = rcgm_residual(average, velocity, flow, x_t, start, end, None)
    torch.testing.assert_close(residual, average - velocity)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_the_residual_is_the_formula_written_out(order: int) -> None:
    network = Curved()
    average, velocity, x_t = torch.randn(3, 4, 2, dtype=torch.float64)
    t, r = torch.tensor([[1.0, 0.9, 0.5, 0.4], [0.0, 0.3, 0.45, 0.0]], dtype=torch.float64)
    found = rcgm_residual(average, velocity, NetworkFlowMap(network), x_t, t, r, None, order=order, step=0.02)
    for i in range(4):
        x, start, integral = x_t[i : i + 1] - 0.02 * velocity[i : i + 1], t[i] - 0.02, 0.0
        length = (start - r[i]) / order
        for _ in range(order):
            jump = network(x, start[None], None, (start - length)[None]) * length
            x, start, integral = x - jump, start - length, integral + jump
        expected = ((t[i] - r[i]) * average[i] - integral) / 0.02 - velocity[i]
        torch.testing.assert_close(found[i : i + 1], expected)


def test_order_1_is_split_mean_flow_with_its_first_part_along_the_velocity() -> None:
    """Identity 7: the residual is the distance from that target over the share of the first part."""
    network = Curved()
    average, velocity, x_t = torch.randn(3, 4, 2, dtype=torch.float64)
    t, r = torch.tensor([[1.0, 0.9, 0.5, 0.4], [0.0, 0.3, 0.45, 0.0]], dtype=torch.float64)
    residual = rcgm_residual(average, velocity, NetworkFlowMap(network), x_t, t, r, None, order=1)
    s = t - 0.01
    share = (0.01 / (t - r))[:, None]
    split = share * velocity + (1 - share) * network(x_t - 0.01 * velocity, s, None, r)
    torch.testing.assert_close(residual, (average - split) / share)


def test_equal_jumps_cover_the_interval() -> None:
    class Constant(nn.Module):
        def forward(self, x_t: Tensor, t: Tensor, condition: object, r: Tensor) -> Tensor:
            return 2 * torch.ones_like(x_t)

    x_t, t, r = torch.zeros(2, 1), torch.tensor([1.0, 0.6]), torch.tensor([0.0, 0.5])
    moved = displacement(NetworkFlowMap(Constant()), x_t, t, r, None, order=3, layout=DENSE)
    torch.testing.assert_close(moved, torch.tensor([[2.0], [0.2]]))


def test_short_intervals_weigh_more() -> None:
    """T-TW-1."""
    t = torch.tensor([0.3, 0.8, 1.0], dtype=torch.float64)
    r = torch.tensor([0.3, 0.3, 0.0], dtype=torch.float64)
    expected = torch.tensor([4.078, 1.727, 1.0], dtype=torch.float64)
    torch.testing.assert_close(interval_weight(t, r), expected, atol=5e-4, rtol=0)


def test_the_loss_is_the_mean_square_over_its_root_held_constant() -> None:
    errors = torch.tensor([0.0, 1e-7, 1e-6, 4.0], dtype=torch.float64, requires_grad=True)
    losses = barron_losses(errors)
    weights = 1e3 / (errors.detach() / 1e-6 + 1).sqrt()
    torch.testing.assert_close(losses, errors * weights)
    torch.testing.assert_close(torch.autograd.grad(losses.sum(), errors)[0], weights)
    assert losses[3].item() == pytest.approx(2, rel=1e-5)


def test_blocks_cut_a_batch_in_order_and_miss_nobody() -> None:
    parts = draw_parts(Turn(), torch.zeros(7, 2), DENSE, 3, "blocks")
    assert parts.tolist() == [0, 0, 0, 1, 1, 2, 2]
    assert draw_parts(Turn(), torch.zeros(8, 2), DENSE, 4, "blocks").tolist() == [0, 0, 1, 1, 2, 2, 3, 3]


def test_random_parts_are_equally_likely_and_allow_a_batch_of_one() -> None:
    parts = draw_parts(
        Turn(generator=torch.Generator().manual_seed(0)), torch.zeros(4000, 1), DENSE, 4, "random"
    )
    assert parts.bincount(minlength=4).sub(1000).abs().max() < 150  # five standard deviations
    assert draw_parts(Turn(), torch.zeros(1, 1), DENSE, 4, "random").shape == (1,)


def test_a_batch_with_too_few_samples_for_blocks_is_refused_with_the_remedy() -> None:
    with pytest.raises(ValueError, match="split='random'"):
        draw_parts(Turn(), torch.zeros(2, 1), DENSE, 3, "blocks")


def test_a_third_each_trains_whole_short_and_any_intervals() -> None:
    x, objective = torch.zeros(3000, 1), RCGM(times=UniformTimes(low=0.5))
    turn = Turn(generator=torch.Generator().manual_seed(0))
    t, r = objective.intervals(turn, x, DENSE, draw_parts(turn, x, DENSE, 3, "blocks"))
    lengths = ((t - r) / t).view(3, 1000)
    assert (t[:1000] == 1).all()
    assert (r[:1000] == 0).all()
    assert (t[1000:] < 1).all()
    for part, longest in ((1, 0.05), (2, 1.0)):
        assert lengths[part].mean().item() == pytest.approx(longest / 2, rel=0.06)
        assert 0 <= lengths[part].min() < 0.02 * longest
        assert 0.98 * longest < lengths[part].max() <= longest


def evaluate(objective: RCGM, turn: Turn, network: nn.Module) -> tuple[float, Tensor]:
    """The loss, and its gradient in the network's weights."""
    loss, _ = objective.student_loss(turn)
    (grad,) = torch.autograd.grad(loss, network.get_parameter("weights"))
    return loss.item(), grad


@pytest.mark.parametrize("loss", ["barron", "squared"])
@pytest.mark.parametrize("clamp", [1.0, None])
@pytest.mark.parametrize("enhancement", [0.0, 0.5])
def test_the_loss_is_the_formula_written_out(
    known_turn: Callable[..., Any],
    loss: Literal["barron", "squared"],
    clamp: float | None,
    enhancement: float,
) -> None:
    """Sample by sample, with the student's average another network than the student."""
    student, target = Curved(0), Curved(1)
    x0, condition = torch.randn(6, 3, dtype=torch.float64), torch.randn(6, dtype=torch.float64)
    null = torch.tensor([0.25], dtype=torch.float64)
    objective = RCGM(loss=loss, clamp=clamp, enhancement=enhancement)
    make = lambda: known_turn(  # noqa: E731
        x0,
        student=NetworkFlowMap(student),
        target=NetworkFlowMap(target),
        data=Data(x0=x0, condition=condition),
        null_condition=null,
    )
    found = evaluate(objective, make(), student)

    turn = make()
    t = turn.times(UniformTimes(low=1e-3), x0, DENSE)
    u, eps = turn.uniform(6, x0.device), turn.noise_like(x0)
    total = torch.zeros((), dtype=torch.float64)
    for i in range(6):
        length = 0.05 * u[i] * t[i] if i in (2, 3) else u[i] * t[i]
        start, end = (1.0, 0.0) if i < 2 else (t[i].item(), (t[i] - length).item())
        c, x_t = condition[i : i + 1], (1 - start) * x0[i : i + 1] + start * eps[i : i + 1]
        velocity = eps[i : i + 1] - x0[i : i + 1]
        if 0 < start < 1:
            own, other = (target(x_t, scalar(start), y, scalar(start)) for y in (c, null))
            velocity = velocity + enhancement * (own - other)
        average = student(x_t, scalar(start), c, scalar(end))
        if start - end < 0.01:
            residual = average - velocity
        else:
            middle = (start - 0.01 + end) / 2
            x = x_t - 0.01 * velocity
            first = target(x, scalar(start - 0.01), c, scalar(middle)) * (start - 0.01 - middle)
            second = target(x - first, scalar(middle), c, scalar(end)) * (middle - end)
            residual = ((start - end) * average - first - second) / 0.01 - velocity
        residual = residual.detach()
        bounded = residual if clamp is None else residual.clamp(-clamp, clamp)
        error = (average - (average.detach() - bounded)).square().mean()
        weight = math.tan((1 - (start - end)) * math.pi / 2.5) + 1
        if loss == "barron":
            weight *= 1e3 / math.sqrt(error.item() / 1e-6 + 1)
        total = total + weight * error / 6
    (gradient,) = torch.autograd.grad(total, student.weights)
    assert found[0] == pytest.approx(total.item(), rel=1e-9)
    torch.testing.assert_close(found[1], gradient, rtol=1e-9, atol=1e-12)


def test_a_teacher_takes_the_place_of_the_data_and_of_the_enhancement(
    known_turn: Callable[..., Any], fixed_times: Callable[..., TimeSampler]
) -> None:
    """At r = t the residual is the distance from the velocity itself."""
    x0, network = torch.randn(6, 3, dtype=torch.float64), Curved()
    flow = NetworkFlowMap(network)
    turn = known_turn(
        x0,
        student=flow,
        target=flow,
        teacher=TEACHER,
        data=Data(x0=x0, condition=torch.zeros(6, dtype=torch.float64)),
        null_condition=torch.ones(1, dtype=torch.float64),
    )
    t, eps = torch.full((6,), 0.6, dtype=torch.float64), torch.randn(6, 3, dtype=torch.float64)
    x_t = 0.4 * x0 + 0.6 * eps
    average = flow.average_velocity(x_t, t, t, None)
    target = RCGM(source="teacher", clamp=None).target(turn, average, x_t, eps, t, t)
    torch.testing.assert_close(target, velocity_of(TEACHER, x_t, t, None))
    assert "teacher" in RCGM(source="teacher").needs


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Tensor, Tensor]] = []

    def forward(self, x_t: Tensor, t: Tensor, condition: object, r: Tensor) -> Tensor:
        self.calls.append((t, r))
        return torch.zeros_like(x_t)


@pytest.mark.parametrize(("condition", "calls"), [(None, 2), (torch.zeros(6), 4)])
def test_without_conditions_nothing_is_called_for_the_enhancement(
    condition: Tensor | None, calls: int
) -> None:
    network, x0 = Counting(), torch.randn(6, 3)
    turn = Turn(
        student=NetworkFlowMap(Counting()),
        target=NetworkFlowMap(network),
        data=Data(x0=x0, condition=condition),
    )
    RCGM().student_loss(turn)
    assert len(network.calls) == calls


def test_the_target_has_no_gradient_and_no_weight_of_the_average() -> None:
    student, target, x0 = Curved(0), Curved(1), torch.randn(6, 3, dtype=torch.float64)
    turn = Turn(student=NetworkFlowMap(student), target=NetworkFlowMap(target), data=Data(x0=x0))
    RCGM().student_loss(turn)[0].backward()
    assert target.weights.grad is None
    assert student.weights.grad is not None


@pytest.mark.parametrize("loss", ["barron", "squared"])
@pytest.mark.parametrize("source", ["data", "teacher"])
def test_the_layout_makes_no_difference(
    layouts_agree: Callable[..., None],
    loss: Literal["barron", "squared"],
    source: Literal["data", "teacher"],
) -> None:
    student, objective = Curved(0), RCGM(loss=loss, source=source, split="random")
    layouts_agree(
        lambda turn: objective.student_loss(turn)[0],
        parameters=[student.weights],
        student=NetworkFlowMap(student),
        target=NetworkFlowMap(Curved(1)),
        teacher=TEACHER,
    )


def test_the_layout_makes_no_difference_to_blocks(layouts_agree: Callable[..., None]) -> None:
    student = Curved(0)
    layouts_agree(
        lambda turn: RCGM().student_loss(turn)[0],
        parameters=[student.weights],
        alone=False,
        student=NetworkFlowMap(student),
        target=NetworkFlowMap(Curved(1)),
    )


def test_half_precision_samples_are_compared_in_float32() -> None:
    student, x0 = NetworkFlowMap(HalfNetwork()), torch.randn(6, 3).bfloat16()
    loss, diagnostics = RCGM().student_loss(Turn(student=student, target=student, data=Data(x0=x0)))
    assert loss.dtype == torch.float32
    assert diagnostics["residual_rms"].item() <= 1  # each element is clamped to 1


class HalfNetwork(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3).bfloat16()

    def forward(self, x_t: Tensor, t: Tensor, condition: object, r: Tensor) -> Tensor:
        return self.layer(x_t)


@pytest.mark.parametrize(
    "settings", [{"order": 0}, {"step": 0.0}, {"step": 1.0}, {"clamp": 0.0}, {"clamp": -1.0}]
)
def test_settings_without_a_meaning_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(settings))}="):
        RCGM(**settings)


def test_students_of_one_time_or_of_another_path_are_refused() -> None:
    data = Data(x0=torch.randn(6, 3))
    with pytest.raises(ValueError, match="two times"):
        RCGM().student_loss(Turn(student=TEACHER, target=TEACHER, data=data))
    elsewhere = ExactFlow(path=VPPath())
    assert isinstance(elsewhere, FlowMap)
    with pytest.raises(ValueError, match="linear path"):
        RCGM().student_loss(Turn(student=elsewhere, target=elsewhere, data=data))


def test_it_needs_a_running_average_and_no_teacher() -> None:
    assert RCGM().needs == {"student", "two_times", "target", "data"}
