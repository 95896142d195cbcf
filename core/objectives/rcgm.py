"""RCGM: average velocities of any interval by recursion, N-th order (Sun & Lin, 2025, LINs-lab/RCGM)."""

import math
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fewstep.core.denoisers import Condition, FlowMap
from fewstep.core.layouts import DENSE, Layout
from fewstep.core.objectives.contract import Diagnostics, Need, Objective, Turn, given
from fewstep.core.objectives.flow_matching import LOWEST_TIME
from fewstep.core.objectives.trajectories import Source, flow_map, null_for, velocity_from
from fewstep.core.schedules import TimeSampler, UniformTimes

END_TO_END, LOCAL, ANY = range(3)  # kinds of intervals: (1, 0); short ones; all
LOCAL_SHARE = 0.05  # of t, the longest local interval
BARRON_SCALE = 1e-3  # c of the loss
STEEPNESS = math.pi / 2.5  # of the weight of short intervals

X = Float[Tensor, " *shape"]
PerSample = Float[Tensor, " batch"]
Split = Literal["blocks", "random"]


def displacement(
    flow: FlowMap, x_t: X, t: PerSample, r: PerSample, condition: Condition, *, order: int, layout: Layout
) -> X:
    r"""How far ``flow`` moves ``x_t`` from t to r in ``order`` equal jumps, in float32 or better."""
    precise = torch.promote_types(x_t.dtype, torch.float32)
    total = torch.zeros_like(x_t, dtype=precise)
    for i in range(order):
        start, end = (t + (r - t) * (place / order) for place in (i, i + 1))
        x = (x_t.to(precise) - total).to(x_t.dtype)
        jump = flow.average_velocity(x, layout.times(start), layout.times(end), condition)
        total = total + layout.expand(start - end, x_t) * jump.to(precise)
    return total


def rcgm_residual(
    average: X,
    velocity: X,
    flow: FlowMap,
    x_t: X,
    t: PerSample,
    r: PerSample,
    condition: Condition,
    *,
    order: int = 2,
    step: float = 0.01,
    layout: Layout = DENSE,
) -> X:
    r"""What the first ``step`` along the velocity and ``flow`` for the rest miss of ``average``.

    .. math:: \rho = \frac{(t - r)\, \bar u(x_t, t, r) - I}{\Delta} - u, \quad
        I = \sum_{i=1}^N \bar u(x_{t_i}, t_i, t_{i+1})\, (t_i - t_{i+1})

    where I goes on from :math:`x_t - \Delta u` at :math:`t - \Delta` to r. An interval shorter than the step
    has :math:`\rho = \bar u - u`.
    """
    middle = torch.maximum(t - step, r)
    x_middle = (x_t.to(velocity.dtype) - step * velocity).to(x_t.dtype)
    rest = displacement(flow, x_middle, middle, r, condition, order=order, layout=layout)
    short = t < r + step
    whole = layout.expand(torch.where(short, 1.0, (t - r) / step), x_t)
    share = layout.expand(torch.where(short, 0.0, 1 / step), x_t)
    return whole * average - share * rest - velocity


def barron_losses(squared_error: PerSample) -> PerSample:
    r"""Each sample's mean square e over about its root, held constant.

    .. math:: \frac{e}{c}\, \mathrm{sg}[e / c^2 + 1]^{-1/2}

    The weight is that of Barron's loss with alpha = 1; c = 1e-3. Far above c the gradient has a norm that
    does not depend on the error.
    """
    scaled = squared_error / BARRON_SCALE**2
    return squared_error / BARRON_SCALE * (scaled + 1).rsqrt().detach()


def interval_weight(t: PerSample, r: PerSample) -> PerSample:
    r""":math:`1 + \tan((1 - (t - r))\, \pi / 2.5)`: 1 for the whole interval, 4.08 for none."""
    return torch.tan((1 - (t - r)) * STEEPNESS) + 1


def draw_parts(turn: Turn, x: Tensor, layout: Layout, count: int, split: Split) -> Int[Tensor, " batch"]:
    """Which of ``count`` equal parts of the batch each sample belongs to."""
    batch = layout.batch_size(x)
    if split == "random":
        return (turn.uniform(batch, x.device) * count).long().clamp(max=count - 1)
    if batch < count:
        raise ValueError(
            f"split='blocks' needs at least {count} samples per batch, got {batch}; use split='random'"
        )
    return torch.arange(batch, device=x.device) * count // batch


@dataclass(frozen=True, kw_only=True)
class RCGM(Objective):
    r"""Regress the student's jump on one small step of the flow and N jumps of its own average.

    .. math:: L = w(t, r)\, d\big(\bar u_\theta(x_t, t, r),\
        \mathrm{sg}[\bar u_\theta - \mathrm{clamp}(\rho, \pm 1)]\big)

    with ``rcgm_residual`` and, by default, ``barron_losses``. The fixed point splits the interval after its
    first step, :math:`(t - r)\, \bar u = \Delta u + I`. A third of the batch trains (t, r) = (1, 0), a third
    intervals of at most 5% of t, a third any r below t: the split of TwinFlow's code without its fake part,
    as RCGM's own code is not public.

    Args:
        source: of the velocity u: ``data`` (no teacher) or the ``teacher``, already guided.
        times: of t; above 0.
        order: N, jumps of the running average after the first step.
        step: of the flow, in t. A network in half precision needs a larger one, as rounding is divided by it.
        clamp: bound on the residual's elements, None for none.
        enhancement: guidance of u from data, :math:`u + \rho_e\, [\bar u(x_t, t, t | c) -
            \bar u(x_t, t, t | \varnothing)]` with the running average; 0.5 to 0.8 in TwinFlow, 0 is off.
            Nothing is called without conditions.
        enhanced: times (low, high), ends excluded, of that guidance. The released code thus leaves out
            t = 1, all of the whole intervals.
        loss: of the distance to the target.
        split: ``blocks`` cuts the batch in order; ``random`` draws each sample's part, for batches too small.
    """

    source: Source = "data"
    times: TimeSampler = field(default_factory=lambda: UniformTimes(low=LOWEST_TIME))
    order: int = 2
    step: float = 0.01
    clamp: float | None = 1.0
    enhancement: float = 0.5
    enhanced: tuple[float, float] = (0.0, 1.0)
    loss: Literal["barron", "squared"] = "barron"
    split: Split = "blocks"

    def __post_init__(self) -> None:
        if self.order < 1 or not 0 < self.step < 1:
            raise ValueError(f"order={self.order} must be at least 1 and step={self.step} in (0, 1)")
        if self.clamp is not None and self.clamp <= 0:
            raise ValueError(f"clamp={self.clamp} must be positive, or None for no bound")

    @property
    def needs(self) -> frozenset[Need]:
        teacher: set[Need] = {"teacher"} if self.source == "teacher" else set()
        return frozenset({"student", "two_times", "target", "data", *teacher})

    def student_loss(self, turn: Turn) -> tuple[Float[Tensor, ""], Diagnostics]:
        """See ``Objective.student_loss``."""
        student, data = flow_map(given(turn.student, "student", self), self), given(turn.data, "data", self)
        x0, layout = data.x0, data.layout
        part = draw_parts(turn, x0, layout, 3, self.split)
        t, r = self.intervals(turn, x0, layout, part)
        eps = turn.noise_like(x0)
        x_t = student.path.add_noise(x0, eps, layout.expand(t, x0))
        average = student.average_velocity(x_t, layout.times(t), layout.times(r), data.condition)
        target = self.target(turn, average, x_t, eps, t, r)
        squared_error = layout.mean((average.to(target.dtype) - target).square())
        loss = (self.losses(squared_error) * interval_weight(t, r)).mean()
        return loss, {"residual_rms": squared_error.detach().mean().sqrt()}

    def intervals(
        self, turn: Turn, x: Tensor, layout: Layout, part: Int[Tensor, " batch"]
    ) -> tuple[PerSample, PerSample]:
        """t and r of each sample; parts beyond ``LOCAL`` may get any interval."""
        t = turn.times(self.times, x, layout)
        share = turn.uniform(layout.batch_size(x), x.device)
        reach = torch.where(part == LOCAL, LOCAL_SHARE * share, share)
        whole = part == END_TO_END
        return torch.where(whole, 1.0, t), torch.where(whole, 0.0, t - reach * t)

    @torch.no_grad()
    def target(self, turn: Turn, average: X, x_t: X, eps: X, t: PerSample, r: PerSample) -> X:
        """What ``average``, the student's own at (x_t, t, r), is regressed on; in float32 or better."""
        student, data = flow_map(given(turn.student, "student", self), self), given(turn.data, "data", self)
        flow, layout = flow_map(given(turn.target, "target", self), self), data.layout
        velocity = velocity_from(self.source, turn, self, student.path, x_t=x_t, eps=eps, t=t)
        velocity = self._enhance(velocity, flow, turn, x_t, t)
        average = average.detach().to(velocity.dtype)
        residual = rcgm_residual(
            average,
            velocity,
            flow,
            x_t,
            t,
            r,
            data.condition,
            order=self.order,
            step=self.step,
            layout=layout,
        )
        return average - (residual if self.clamp is None else residual.clamp(-self.clamp, self.clamp))

    def losses(self, squared_error: PerSample) -> PerSample:
        """Of each sample, from its mean squared error."""
        return barron_losses(squared_error) if self.loss == "barron" else squared_error

    def _enhance(self, velocity: X, flow: FlowMap, turn: Turn, x_t: X, t: PerSample) -> X:
        data = given(turn.data, "data", self)
        unconditional = data.condition is None and turn.null_condition is None
        if self.source == "teacher" or self.enhancement == 0 or unconditional:
            return velocity
        time = data.layout.times(t)
        own, null = (
            flow.average_velocity(x_t, time, time, condition).to(velocity.dtype)
            for condition in (data.condition, null_for(turn, data.condition))
        )
        inside = (t > self.enhanced[0]) & (t < self.enhanced[1])
        guided = velocity + self.enhancement * (own - null)
        return torch.where(data.layout.expand(inside, x_t), guided, velocity)
