"""SLAM: sub-path linear approximation of consistency models (Xu et al., 2024, arXiv 2404.13903)."""

from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.core.denoisers import Denoiser, FlowMap
from fewstep.core.layouts import DENSE, Layout
from fewstep.core.objectives.contract import Diagnostics, Need, Objective, Turn, given
from fewstep.core.objectives.lcm import LCM, Interval
from fewstep.core.paths import Path

Noise = Literal["independent", "linear"]

X = Float[Tensor, " *shape"]
PerSample = Float[Tensor, " batch"]


def sub_path_point(ends: Interval, gamma: PerSample, path: Path, layout: Layout = DENSE) -> X:
    r"""The point :math:`x_\gamma = \gamma x_t + (1 - \gamma) \frac{\alpha_t}{\alpha_s} \hat x_s`.

    It holds :math:`\alpha_t x_0` whatever gamma is: only the noise shrinks from t (gamma = 1) to s.
    """
    precise = torch.promote_types(ends.x_t.dtype, torch.float32)
    ratio = layout.expand(path.alpha(ends.t) / path.alpha(ends.s), ends.x_t)
    weight = layout.expand(gamma, ends.x_t)
    point = weight * ends.x_t.to(precise) + (1 - weight) * ratio * ends.x_s.to(precise)
    return point.to(ends.x_t.dtype)


def sub_path_sigma(ends: Interval, gamma: PerSample, path: Path, *, noise: Noise) -> PerSample:
    r"""The noise in :math:`x_\gamma`.

    ``independent`` is the paper's, which adds variances as if that from s to t had been drawn anew:

    .. math:: \sigma_\gamma^2 = (\alpha_t \sigma_s / \alpha_s)^2
        + \gamma^2\, (\sigma_t^2 - (\alpha_t \sigma_s / \alpha_s)^2)

    (on a variance-preserving path the last bracket is :math:`1 - \alpha_t^2 / \alpha_s^2`). ``linear`` is
    what a DDIM step leaves, whose ends share their noise. The two agree at gamma = 0 and 1.
    """
    carried, sigma = path.alpha(ends.t) * path.eta(ends.s), path.sigma(ends.t)
    if noise == "linear":
        return gamma * sigma + (1 - gamma) * carried
    return (carried.square() + gamma.square() * (sigma - carried) * (sigma + carried)).sqrt()


def x0_at(velocity: X, x: X, path: Path, t: PerSample, sigma: PerSample, layout: Layout = DENSE) -> X:
    r"""x0 from a velocity :math:`\dot\alpha x_0 + \dot\sigma \epsilon` at a point with noise ``sigma``.

    With the path's own sigma this is ``Path.x0_from_velocity``.
    """
    precise = torch.promote_types(x.dtype, torch.float32)
    time, noise = layout.expand(t, x), layout.expand(sigma, x)
    wronskian = path.alpha(time) * path.sigma_dot(time) - noise * path.alpha_dot(time)
    x0 = (path.sigma_dot(time) * x.to(precise) - noise * velocity.to(precise)) / wronskian
    return x0.to(x.dtype)


@dataclass(frozen=True, kw_only=True)
class SLAM(Objective):
    r"""LCM with the student started anywhere on the line between the two ends of the teacher's step.

    .. math:: L = d\big(c_{skip}(t)\, x_\gamma + c_{out}(t)\, \hat x_0(x_\gamma, t, \gamma),\
        f_{\theta^-}(\hat x_s, s)\big), \quad \gamma \sim U(0, 1]

    With gamma = 1, which is what generation uses, this is LCM.

    Args:
        lcm: the teacher's step, the scalings, the distance.
        gamma_input: how the student learns of gamma. ``second_time`` is the paper's embedding of 1 - gamma:
            a ``FlowMap`` gets (1 - gamma) t as its second time, 0 being the plain call of generation. What
            it returns is read as the velocity :math:`\dot\alpha \hat x_0 + \dot\sigma \hat\epsilon` at the
            paper's noise; the paper's own network predicts eps. ``noise_level`` works with any denoiser:
            the point is scaled to the time on the path that has its noise-to-signal ratio, the linear one.
        lowest_gamma: 0 in the paper; 1 is LCM.
    """

    lcm: LCM = field(default_factory=LCM)
    gamma_input: Literal["second_time", "noise_level"] = "second_time"
    lowest_gamma: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.lowest_gamma <= 1:
            raise ValueError(f"lowest_gamma={self.lowest_gamma} must be in [0, 1]; 0 is the paper's")

    @property
    def needs(self) -> frozenset[Need]:
        needs: set[Need] = set(self.lcm.needs)
        if self.gamma_input == "second_time":
            needs.add("two_times")
        return frozenset(needs)

    def student_loss(self, turn: Turn) -> tuple[Float[Tensor, ""], Diagnostics]:
        """See ``Objective.student_loss``."""
        student, data = given(turn.student, "student", self), given(turn.data, "data", self)
        layout, ends = data.layout, self.lcm.interval(turn, student.path)
        share = turn.uniform(layout.batch_size(data.x0), data.x0.device)
        gamma = 1 - (1 - self.lowest_gamma) * share
        x_gamma = sub_path_point(ends, gamma, student.path, layout)
        x0_hat = self._x0(student, turn, x_gamma, ends, gamma)
        prediction = self.lcm.consistency(x0_hat, x_gamma, ends.t, layout)
        return self.lcm.compare(turn, prediction, ends)

    def _x0(self, student: Denoiser, turn: Turn, x_gamma: X, ends: Interval, gamma: PerSample) -> X:
        data, path = given(turn.data, "data", self), student.path
        layout = data.layout
        if self.gamma_input == "noise_level":
            sigma = sub_path_sigma(ends, gamma, path, noise="linear")
            level = path.time_of_eta(sigma / path.alpha(ends.t))
            scale = layout.expand(path.sigma(level) / sigma, x_gamma)
            return student((scale * x_gamma).to(x_gamma.dtype), layout.times(level), data.condition)
        if not isinstance(student, FlowMap):
            raise ValueError(
                "SLAM needs a student of two times for gamma_input='second_time'; wrap its network in "
                "NetworkFlowMap or set gamma_input='noise_level'"
            )
        t, second = layout.times(ends.t), layout.times((1 - gamma) * ends.t)
        velocity = student.average_velocity(x_gamma, t, second, data.condition)
        sigma = sub_path_sigma(ends, gamma, path, noise="independent")
        return x0_at(velocity, x_gamma, path, ends.t, sigma, layout)
