"""What the methods on trajectories share: pairs of times, velocities, derivatives along the flow."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.core.denoisers import Condition, Denoiser, FlowMap, velocity_of
from fewstep.core.layouts import Layout, append_dims
from fewstep.core.objectives.contract import Objective, Turn, given
from fewstep.core.paths import LinearPath, Path
from fewstep.core.schedules import LogitNormalTimes, TimeSampler

Source = Literal["teacher", "data"]
"""Where the flow's direction comes from: the teacher's estimate, or one real sample and its noise."""

Derivative = Literal["jvp", "difference"]
"""How to differentiate along the flow: forward mode (``torch.func.jvp``) or a central difference."""

DIFFERENCE_STEP = 5e-3  # about the cube root of float32's epsilon, which balances truncation and rounding
HALF_DIFFERENCE_STEP = 0.1  # the same for bfloat16, whose rounding divided by 5e-3 is as large as the slope

X = Float[Tensor, " *shape"]
PerSample = Float[Tensor, " batch"]


@dataclass(frozen=True, kw_only=True)
class TimePairs:
    """Distribution of the two times of an interval, 0 <= r <= t <= 1.

    Args:
        times: of both ends, drawn independently and sorted. Its values must be above 0.
        r_times: of r alone; then t comes from ``times`` and r is the smaller of the two draws, as in
            MeanFlow's released code for CIFAR-10. None sorts.
        equal_fraction: how many pairs have r = t.
        anchor_fraction: how many pairs come from ``anchors``, evenly, to train the intervals that a few-step
            student will use more often than chance does.
        anchors: pairs (t, r).
    """

    times: TimeSampler = field(default_factory=lambda: LogitNormalTimes(mean=-0.4, std=1.0))
    r_times: TimeSampler | None = None
    equal_fraction: float = 0.75
    anchor_fraction: float = 0.0
    anchors: tuple[tuple[float, float], ...] = ((1.0, 0.0), (1.0, 0.5), (0.5, 0.0))

    def __post_init__(self) -> None:
        if (
            min(self.equal_fraction, self.anchor_fraction) < 0
            or self.equal_fraction + self.anchor_fraction > 1
        ):
            raise ValueError(
                f"equal_fraction={self.equal_fraction} and anchor_fraction={self.anchor_fraction} are shares "
                "of one batch; give values from 0 that sum to at most 1"
            )
        if not self.anchors or not all(0 <= r < t <= 1 for t, r in self.anchors):
            raise ValueError(f"anchors={self.anchors} must be one or more pairs (t, r) with 0 <= r < t <= 1")

    def sample(self, turn: Turn, x: Tensor, layout: Layout) -> tuple[PerSample, PerSample]:
        """t and r, one of each per sample of ``x``."""
        first, second = (turn.times(times, x, layout) for times in (self.times, self.r_times or self.times))
        r = torch.minimum(first, second)
        t = torch.maximum(first, second) if self.r_times is None else first
        share = turn.uniform(layout.batch_size(x), x.device)
        r = torch.where(share < self.equal_fraction, t, r)
        anchored = (share >= self.equal_fraction) & (share < self.equal_fraction + self.anchor_fraction)
        if self.anchor_fraction > 0:
            place = (share - self.equal_fraction) / self.anchor_fraction * len(self.anchors)
            chosen = t.new_tensor(self.anchors)[place.long().clamp(0, len(self.anchors) - 1)]
            t, r = (
                torch.where(anchored, end, drawn) for end, drawn in zip(chosen.unbind(1), (t, r), strict=True)
            )
        return t, r


def flow_map(denoiser: Denoiser, objective: Objective) -> FlowMap:
    """``denoiser`` as a flow map on a linear path, or a ValueError."""
    name = type(objective).__name__
    if not isinstance(denoiser, FlowMap):
        raise ValueError(f"{name} needs a student of two times; wrap its network in NetworkFlowMap")
    if not isinstance(denoiser.path, LinearPath):
        raise ValueError(f"{name} needs a linear path, got {denoiser.path}; use NetworkFlowMap")
    return denoiser


def teacher_on(path: Path, turn: Turn, objective: Objective) -> Denoiser:
    """The turn's teacher, or a ValueError where it is on another path than the student."""
    teacher = given(turn.teacher, "teacher", objective)
    if teacher.path != path:
        raise ValueError(
            f"teacher.path={teacher.path} and student.path={path} differ; wrap the teacher in OnPath"
        )
    return teacher


def null_for(turn: Turn, condition: Condition) -> Condition:
    """The null condition; a tensor of batch size 1 is repeated as often as ``condition`` has entries."""
    null = turn.null_condition
    if isinstance(null, Tensor) and isinstance(condition, Tensor) and len(null) == 1:
        return null.expand(len(condition), *null.shape[1:])
    return null


def velocity_from(
    source: Source, turn: Turn, objective: Objective, path: Path, *, x_t: X, eps: X, t: PerSample
) -> X:
    r"""The velocity at :math:`x_t`: the teacher's, or :math:`\dot\alpha x_0 + \dot\sigma \epsilon`.

    In float32 or better.
    """
    data = given(turn.data, "data", objective)
    precise = torch.promote_types(x_t.dtype, torch.float32)
    if source == "teacher":
        teacher = teacher_on(path, turn, objective)
        return velocity_of(teacher, x_t, data.layout.times(t), data.condition).to(precise)
    time = data.layout.expand(t, x_t).to(precise)
    return path.alpha_dot(time) * data.x0.to(precise) + path.sigma_dot(time) * eps.to(precise)


@torch.no_grad()
def total_derivative(
    function: Callable[[Tensor, Tensor], Tensor],
    x_t: X,
    t: Float[Tensor, " *leading"],
    velocity: X,
    *,
    derivative: Derivative,
    step: float | None = None,
) -> X:
    r"""The derivative of ``function(x_t, t)`` along the flow, :math:`\partial_x f\, u + \partial_t f`.

    The flow is ``velocity`` at ``x_t``; ``t`` is in the shape that ``function`` takes. No gradient, and the
    networks' own random numbers (dropout) are those that the next ordinary call will draw.

    Args:
        derivative: ``jvp`` is exact but needs forward mode, which fused attention kernels lack
            (``fewstep.core.attention.use_backend("matmul")`` has it). ``difference`` needs two calls, and is
            one-sided where the interval would leave [0, 1].
        step: of the difference, in t. None is 0.005, and 0.1 under autocast or for samples in half precision.
    """
    precise = torch.promote_types(x_t.dtype, torch.float32)
    tangent = velocity.to(x_t.dtype)
    if derivative == "jvp":
        with _same_dropout(x_t):
            slope = torch.func.jvp(function, (x_t, t), (tangent, torch.ones_like(t)))[1]
    else:
        reach = _difference_step(x_t) if step is None else step
        if reach <= 0:
            raise ValueError(f"step={reach} must be above 0; None chooses one by the precision")
        start, end = (t - reach).clamp(min=0), (t + reach).clamp(max=1)
        values: list[Tensor] = []
        for time in (start, end):
            moved = x_t + append_dims(time - t, x_t).to(x_t.dtype) * tangent
            with _same_dropout(x_t):
                values.append(function(moved, time).to(precise))
        slope = (values[1] - values[0]) / append_dims(end - start, x_t)
    # Weights cast under no_grad may otherwise serve the ordinary call too, which then has no gradient.
    torch.clear_autocast_cache()
    return slope.to(precise)


def _difference_step(x: Tensor) -> float:
    half = torch.finfo(x.dtype).bits < 32 or torch.is_autocast_enabled(x.device.type)
    return HALF_DIFFERENCE_STEP if half else DIFFERENCE_STEP


def _same_dropout(x: Tensor) -> AbstractContextManager[None]:
    return torch.random.fork_rng(devices=[x.device] if x.is_cuda else [])
