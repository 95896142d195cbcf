"""SplitMeanFlow: average velocities of an interval from those of its two parts (Guo et al., 2025)."""

from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.core.denoisers import Condition, FlowMap
from fewstep.core.layouts import DENSE, Layout
from fewstep.core.objectives.contract import Diagnostics, Need, Objective, Turn, given
from fewstep.core.objectives.trajectories import Source, TimePairs, flow_map, velocity_from
from fewstep.core.schedules import UniformTimes

X = Float[Tensor, " *shape"]
PerSample = Float[Tensor, " batch"]


def split_target(
    flow: FlowMap,
    x_t: X,
    t: PerSample,
    r: PerSample,
    share: PerSample,
    condition: Condition,
    layout: Layout = DENSE,
) -> X:
    r"""The average velocity over [r, t] by way of a time s between; the first part is ``share`` of it.

    .. math:: (t - r)\, \bar u(x_t, t, r) = (s - r)\, \bar u(x_s, s, r) + (t - s)\, \bar u(x_t, t, s), \quad
        s = (1 - \lambda) t + \lambda r, \quad x_s = x_t - (t - s)\, \bar u(x_t, t, s)

    In float32 or better.
    """
    precise = torch.promote_types(x_t.dtype, torch.float32)
    s = (1 - share) * t + share * r
    first = flow.average_velocity(x_t, layout.times(t), layout.times(s), condition).to(precise)
    x_s = (x_t.to(precise) - layout.expand(t - s, x_t) * first).to(x_t.dtype)
    second = flow.average_velocity(x_s, layout.times(s), layout.times(r), condition).to(precise)
    weight = layout.expand(share, x_t)
    return weight * first + (1 - weight) * second


@dataclass(frozen=True, kw_only=True)
class SplitMeanFlow(Objective):
    r"""Regress the student's jump from t to r on two smaller jumps of its own; no derivative.

    .. math:: L = \| u_\theta(x_t, t, r) -
        \mathrm{sg}[(1 - \lambda)\, u(x_s, s, r) + \lambda\, u(x_t, t, s)] \|^2

    with lambda uniform on [0, 1]. Any constant field satisfies this, so pairs with r = t regress on the
    instantaneous velocity instead: without that boundary the student collapses.

    Args:
        source: of the boundary: the teacher's (guided) velocity or that of the data.
        pairs: t and r. The paper's distribution is not published; half of the pairs is the boundary, and
            ``anchor_fraction`` trains long intervals, whose targets are the last to become right, more often.
        targets: ``student``, as in the paper, is the student itself; ``average`` a running average of it.
    """

    source: Source = "teacher"
    pairs: TimePairs = field(
        default_factory=lambda: TimePairs(times=UniformTimes(low=1e-3), equal_fraction=0.5)
    )
    targets: Literal["student", "average"] = "student"

    @property
    def needs(self) -> frozenset[Need]:
        needs: set[Need] = {"student", "two_times", "data"}
        if self.source == "teacher":
            needs.add("teacher")
        if self.targets == "average":
            needs.add("target")
        return frozenset(needs)

    def student_loss(self, turn: Turn) -> tuple[Float[Tensor, ""], Diagnostics]:
        """See ``Objective.student_loss``."""
        student, data = flow_map(given(turn.student, "student", self), self), given(turn.data, "data", self)
        teaching = student
        if self.targets == "average":
            teaching = flow_map(given(turn.target, "target", self), self)
        x0, layout = data.x0, data.layout
        t, r = self.pairs.sample(turn, x0, layout)
        eps = turn.noise_like(x0)
        share = turn.uniform(layout.batch_size(x0), x0.device)
        x_t = student.path.add_noise(x0, eps, layout.expand(t, x0))
        average = student.average_velocity(x_t, layout.times(t), layout.times(r), data.condition)
        with torch.no_grad():
            velocity = velocity_from(self.source, turn, self, student.path, x_t=x_t, eps=eps, t=t)
            split = split_target(teaching, x_t, t, r, share, data.condition, layout)
            boundary = t == r
            target = torch.where(layout.expand(boundary, x0), velocity, split)
        losses = layout.mean((average.to(target.dtype) - target).square())
        diagnostics = {
            "boundary_error_rms": _rms(losses, boundary),
            "split_error_rms": _rms(losses, ~boundary),
            "velocity_rms": layout.mean(velocity.square()).mean().sqrt(),
        }
        return losses.mean(), diagnostics


def _rms(losses: PerSample, chosen: Tensor) -> Float[Tensor, ""]:
    """Root of the mean of the chosen ones, 0 where there is none."""
    return (torch.where(chosen, losses.detach(), 0).sum() / chosen.sum().clamp(min=1)).sqrt()
