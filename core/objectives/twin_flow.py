"""TwinFlow: a flow that is its own critic, at negative times (Cheng et al., 2025, arXiv 2512.05150)."""

from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.core.denoisers import Condition, FlowMap
from fewstep.core.layouts import DENSE, Layout
from fewstep.core.objectives.contract import Diagnostics, Need, Objective, Turn, given
from fewstep.core.objectives.rcgm import END_TO_END, RCGM, draw_parts, interval_weight
from fewstep.core.objectives.trajectories import flow_map, velocity_from
from fewstep.core.schedules import TimeSampler, UniformTimes

FAKE = 3  # the part of the batch that trains the twin, after RCGM's three
PARTS = 4

X = Float[Tensor, " *shape"]
PerSample = Float[Tensor, " batch"]


@torch.no_grad()
def twin_gap(flow: FlowMap, x_t: X, t: PerSample, condition: Condition, layout: Layout = DENSE) -> X:
    r"""The twin's velocity, of the student's samples, less that of the data; in float32 or better.

    .. math:: \bar u(x_t, -t, -t) - \bar u(x_t, t, t) = -\tfrac{1}{t} (\hat x_0^{fake} - \hat x_0^{real})
    """
    precise = torch.promote_types(x_t.dtype, torch.float32)
    time = layout.times(t)
    fake = flow.average_velocity(x_t, -time, -time, condition).to(precise)
    return fake - flow.average_velocity(x_t, time, time, condition).to(precise)


@dataclass(frozen=True, kw_only=True)
class TwinFlow(Objective):
    r"""RCGM whose network also learns the flow of its own one-step samples, at times with a minus sign.

    With :math:`u = \bar u_\theta`, a quarter of the batch each:

    * three quarters are ``RCGM``: whole, short and any intervals of real data;
    * *fake*: :math:`x_f = \mathrm{sg}[z - u(z, 1, 0)]` is noised to t and :math:`u(x_t, -t, -t)` regressed
      on :math:`\epsilon - x_f`. This is the critic of the student's samples, in the student's weights.

    The whole intervals also give one-step samples :math:`\hat x_0 = z - u(z, 1, 0)`. Noised to s, they are
    where the two branches are compared (*rectification*):

    .. math:: \Delta u = u(\hat x_s, -s, -s) - u(\hat x_s, s, s), \quad
        L_{rect} = \lambda\, d\big(u(z, 1, 0),\ \mathrm{sg}[u(z, 1, 0) - \mathrm{clamp}(\Delta u, \pm 1)]\big)

    which moves :math:`\hat x_0` by :math:`+\Delta u = -\frac{1}{s}(\hat x_0^{fake} - \hat x_0^{real})`, the
    direction of DMD with weight 1 / s. One optimizer, no teacher, no second network.

    The student is called with times in [-1, 1]: its time embedding must tell signs apart. Every branch is
    computed for the whole batch and chosen per sample, as neither conditions nor packed samples can be cut;
    that is three calls without gradient on four quarters instead of on one.

    Args:
        any_step: of the three quarters; its ``split`` and ``loss`` hold for all.
        weight: lambda; 0 leaves out the rectification, but not the twin.
        times: of s.
        clamp: bound on the elements of the velocity difference, None for none.
    """

    any_step: RCGM = field(default_factory=RCGM)
    weight: float = 0.5
    times: TimeSampler = field(default_factory=UniformTimes)
    clamp: float | None = 1.0

    def __post_init__(self) -> None:
        if self.weight < 0 or (self.clamp is not None and self.clamp <= 0):
            raise ValueError(
                f"weight={self.weight} must not be negative and clamp={self.clamp} positive or None"
            )

    @property
    def needs(self) -> frozenset[Need]:
        return self.any_step.needs

    def student_loss(self, turn: Turn) -> tuple[Float[Tensor, ""], Diagnostics]:
        """See ``Objective.student_loss``."""
        student, data = flow_map(given(turn.student, "student", self), self), given(turn.data, "data", self)
        layout, condition = data.layout, data.condition
        part = draw_parts(turn, data.x0, layout, PARTS, self.any_step.split)
        t, r = self.any_step.intervals(turn, data.x0, layout, part)
        is_fake = part == FAKE
        sign, r = torch.where(is_fake, -1.0, 1.0), torch.where(is_fake, t, r)
        x0 = torch.where(layout.expand(is_fake, data.x0), self._one_step(turn, student), data.x0)
        eps = turn.noise_like(x0)
        x_t = student.path.add_noise(x0, eps, layout.expand(t, x0))
        average = student.average_velocity(x_t, layout.times(sign * t), layout.times(sign * r), condition)

        mixed = replace(turn, data=replace(data, x0=x0))
        real = self.any_step.target(mixed, average, x_t, eps, t, r)
        fake = velocity_from("data", mixed, self, student.path, x_t=x_t, eps=eps, t=t)
        target = torch.where(layout.expand(is_fake, x_t), fake, real)
        squared_error = layout.mean((average.to(target.dtype) - target).square())
        weight = torch.where(is_fake, 1.0, interval_weight(t, r))
        loss = (self.any_step.losses(squared_error) * weight).mean()
        diagnostics = {
            "residual_rms": _mean(squared_error.detach(), ~is_fake).sqrt(),
            "fake_error_rms": _mean(squared_error.detach(), is_fake).sqrt(),
        }
        if self.weight == 0:
            return loss, diagnostics
        whole = part == END_TO_END
        rectification, gap = self._rectification(turn, student, average, x_t)
        # a random split may miss a part in a batch: divide by how many there are in the mean
        count = layout.batch_size(x0) / PARTS if self.any_step.split == "random" else whole.sum()
        loss = loss + self.weight * torch.where(whole, rectification, 0.0).sum() / count
        return loss, diagnostics | {"twin_gap_rms": _mean(gap, whole).sqrt()}

    @torch.no_grad()
    def _one_step(self, turn: Turn, student: FlowMap) -> X:
        data = given(turn.data, "data", self)
        x0, layout = data.x0, data.layout
        ones = x0.new_ones(layout.batch_size(x0), dtype=torch.promote_types(x0.dtype, torch.float32))
        fake = student(turn.noise_like(x0), layout.times(ones), data.condition)
        # Weights cast under no_grad may otherwise serve the call with a gradient.
        torch.clear_autocast_cache()
        return fake

    def _rectification(self, turn: Turn, student: FlowMap, average: X, z: X) -> tuple[PerSample, PerSample]:
        """The loss of each sample as if its interval were (1, 0), and the mean square of its gap."""
        data = given(turn.data, "data", self)
        layout = data.layout
        s, eps = turn.times(self.times, z, layout), turn.noise_like(z)
        with torch.no_grad():
            x0_hat = (z - average).to(z.dtype)
            x_s = student.path.add_noise(x0_hat, eps, layout.expand(s, z))
            gap = twin_gap(student, x_s, s, data.condition, layout)
            clamped = gap if self.clamp is None else gap.clamp(-self.clamp, self.clamp)
        average = average.to(gap.dtype)
        error = layout.mean((average - (average - clamped).detach()).square())
        return self.any_step.losses(error), layout.mean(gap.square())


def _mean(values: PerSample, chosen: Tensor) -> Float[Tensor, ""]:
    """Of the chosen ones, 0 where there is none."""
    return torch.where(chosen, values, 0.0).sum() / chosen.sum().clamp(min=1)
