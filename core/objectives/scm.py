"""sCM: continuous-time consistency models (Lu & Song, 2024, arXiv 2410.11081)."""

from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.core.layouts import DENSE, Layout
from fewstep.core.objectives.contract import Diagnostics, Need, Objective, Turn, given
from fewstep.core.objectives.trajectories import (
    Derivative,
    Source,
    teacher_on,
    total_derivative,
)
from fewstep.core.paths import LinearPath, Path, match_time
from fewstep.core.schedules import LogitNormalTimes, TimeSampler

X = Float[Tensor, " *shape"]
PerSample = Float[Tensor, " batch"]


@dataclass(frozen=True)
class Angle:
    r"""TrigFlow's angle at times of any path: :math:`\tan\tau = \sigma_t / (\alpha_t \sigma_d)`.

    The same point, scaled by ``scale``, is :math:`\cos\tau x_0 + \sin\tau \sigma_d \epsilon`.
    """

    path: Path
    t: Tensor
    sigma_data: float

    @property
    def _radius(self) -> Tensor:
        return (
            (self.path.alpha(self.t) * self.sigma_data).square() + self.path.sigma(self.t).square()
        ).sqrt()

    @property
    def cos(self) -> Tensor:
        return self.path.alpha(self.t) * self.sigma_data / self._radius

    @property
    def sin(self) -> Tensor:
        return self.path.sigma(self.t) / self._radius

    @property
    def scale(self) -> Tensor:
        return self.sigma_data / self._radius

    @property
    def dot(self) -> Tensor:
        r""":math:`d\tau / dt`."""
        return self.sigma_data * self.path.wronskian(self.t) / self._radius.square()


def network_output(x0: X, x_t: X, angle: Angle) -> X:
    r"""TrigFlow's F, which stands for ``x0`` by :math:`x_0 = \cos\tau\, x_\tau - \sin\tau\, \sigma_d F`."""
    return (angle.cos * angle.scale * x_t - x0) / (angle.sin * angle.sigma_data)


def tangent(x0_hat: X, x0: X, derivative: X, angle: Angle, *, warmup: float) -> X:
    r"""What moves F, in the student's own units; algorithm 1 of the paper.

    .. math:: g = -\cos^2\tau\, \big(\sigma_d F - \tfrac{dx_\tau}{d\tau}\big)
        - \rho \cos\tau \sin\tau\, \big(x_\tau + \sigma_d \tfrac{dF}{d\tau}\big)

    With :math:`f = \cos\tau x_\tau - \sin\tau \sigma_d F` the student's ``x0_hat`` and
    :math:`dx_\tau/d\tau = (\cos\tau x_\tau - x_0) / \sin\tau` this is :math:`\cos\tau\, df/d\tau` with all of
    it but the first term, :math:`\cos\tau (f - x_0) / \sin\tau`, times the warm-up factor rho.

    Args:
        x0: what the trajectory's direction stands for: the teacher's estimate or the real sample.
        derivative: of ``x0_hat`` along the flow, by the path's t.
    """
    first = angle.cos / angle.sin * (x0_hat - x0)
    return angle.cos * (first + warmup * (derivative / angle.dot - first))


def normalised(g: X, *, offset: float, layout: Layout = DENSE) -> X:
    r""":math:`g / (\|g\| + c)` with the root mean square of a sample as its norm."""
    norm = layout.mean(g.square()).sqrt()
    return g / layout.expand(norm + offset, g)


@dataclass(frozen=True, kw_only=True)
class SCM(Objective):
    r"""A consistency model whose two times lie infinitely close together.

    .. math:: L = \| F_\theta - \mathrm{sg}[F_\theta + g / (\|g\| + c)] \|^2

    TrigFlow is a change of variables here: student and teacher stay on whatever path they are, and x0, the
    derivative along the flow and the angle are what the paper's formula needs. The paper's learnt weight
    of each time is left out; after the normalisation every tangent has about the same size.

    Args:
        source: ``teacher`` is distillation (sCD), ``data`` training (sCT).
        times: on the linear path, matched to the student's by noise-to-signal ratio: a logit-normal t is the
            paper's log-normal noise of the same mean and deviation.
        sigma_data: of the data, which defines the angle.
        warmup: updates over which the unstable part of the tangent fades in; 0 has all of it at once.
        offset: c. The paper writes a plain norm; with the root mean square samples of any size weigh alike.
        derivative: see ``total_derivative``.
        difference_step: of the derivative ``difference``; None is by precision.
    """

    source: Source = "teacher"
    times: TimeSampler = field(default_factory=lambda: LogitNormalTimes(mean=-1.0, std=1.4))
    sigma_data: float = 0.5
    warmup: int = 10_000
    offset: float = 0.1
    derivative: Derivative = "jvp"
    difference_step: float | None = None

    def __post_init__(self) -> None:
        if self.sigma_data <= 0 or self.warmup < 0 or self.offset <= 0:
            raise ValueError(
                f"sigma_data={self.sigma_data} and offset={self.offset} must be above 0, "
                f"warmup={self.warmup} at least 0"
            )

    @property
    def needs(self) -> frozenset[Need]:
        needs: set[Need] = {"student", "data"}
        if self.source == "teacher":
            needs.add("teacher")
        return frozenset(needs)

    def student_loss(self, turn: Turn) -> tuple[Float[Tensor, ""], Diagnostics]:
        """See ``Objective.student_loss``."""
        student, data = given(turn.student, "student", self), given(turn.data, "data", self)
        path, x0, layout, condition = student.path, data.x0, data.layout, data.condition
        precise = torch.promote_types(x0.dtype, torch.float32)
        t, _ = match_time(turn.times(self.times, x0, layout), LinearPath(), path)
        eps = turn.noise_like(x0).to(precise)
        x = path.add_noise(x0.to(precise), eps, layout.expand(t, x0))
        x_t = x.to(x0.dtype)
        time, angle = layout.times(t), Angle(path, layout.expand(t, x0).to(precise), self.sigma_data)
        with torch.no_grad():
            if self.source == "teacher":
                x0 = teacher_on(path, turn, self)(x_t, time, condition)
            derivative = total_derivative(
                lambda point, at: student(point, at, condition),
                x_t,
                time,
                path.velocity_from_x0(x0.to(precise), x, angle.t),
                derivative=self.derivative,
                step=self.difference_step,
            )
        x0_hat = student(x_t, time, condition).to(precise)
        with torch.no_grad():
            warmup = min(1.0, turn.update / self.warmup) if self.warmup else 1.0
            g = tangent(x0_hat, x0.to(precise), derivative, angle, warmup=warmup)
            step = normalised(g, offset=self.offset, layout=layout)
            target = network_output(x0_hat, x, angle) + step
        error = network_output(x0_hat, x, angle) - target
        diagnostics = {
            "tangent_rms": layout.mean(g.square()).mean().sqrt(),
            "derivative_rms": layout.mean(derivative.square()).mean().sqrt(),
        }
        return layout.mean(error.square()).mean(), diagnostics
