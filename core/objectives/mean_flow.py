"""MeanFlow: learn average velocities from instantaneous ones (Geng et al., 2025, arXiv 2505.13447)."""

from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.core.denoisers import FlowMap
from fewstep.core.layouts import DENSE, Layout
from fewstep.core.objectives.contract import Diagnostics, Need, Objective, Turn, given
from fewstep.core.objectives.trajectories import (
    Derivative,
    Source,
    TimePairs,
    flow_map,
    null_for,
    total_derivative,
    velocity_from,
)

X = Float[Tensor, " *shape"]
PerSample = Float[Tensor, " batch"]


def mean_flow_target(velocity: X, derivative: X, t: PerSample, r: PerSample, layout: Layout = DENSE) -> X:
    r"""The average velocity that the MeanFlow identity (eq. 6) asks for.

    .. math:: \bar u(x_t, t, r) = u(x_t, t) - (t - r)\, \frac{d}{dt} \bar u(x_t, t, r)
    """
    return velocity - layout.expand(t - r, velocity) * derivative


def adaptive_losses(squared_error: PerSample, *, power: float, offset: float) -> PerSample:
    r"""Each sample's error over a constant power of itself: :math:`e / \mathrm{sg}(e + c)^p`."""
    return squared_error / (squared_error + offset).detach() ** power


@dataclass(frozen=True, kw_only=True)
class MeanFlow(Objective):
    r"""Regress the student's average velocity on the identity that its own derivative must satisfy.

    .. math:: L = \frac{e}{\mathrm{sg}(e + c)^p}, \quad
        e = \| u_\theta(x_t, t, r) - \mathrm{sg}[\tilde u - (t - r) \tfrac{d}{dt} u_\theta] \|^2

    with :math:`\tfrac{d}{dt} u_\theta = \partial_x u_\theta\, \tilde u + \partial_t u_\theta`. Where r = t
    this is flow matching. Guidance is in the target, so that generation calls the student once per step:

    .. math:: \tilde u = \omega u + \kappa u_\theta(x_t, t, t | c)
        + (1 - \omega - \kappa) u_\theta(x_t, t, t | \varnothing)

    Its effective scale is :math:`\omega / (1 - \kappa)`. The null condition is learnt from samples whose
    data module dropped the condition (10% in the paper): what the same target asks of them has the unguided
    flow as its only solution.

    Args:
        source: ``data`` needs no teacher; ``teacher`` distils its (guided) velocity, whose targets have no
            variance.
        pairs: t and r; a quarter of the pairs has r < t, in the paper.
        power: p; 1 in the paper, 0.75 in its code for CIFAR-10, 0 is the squared error.
        offset: c. The error is a mean over elements, not the paper's sum, so that samples of different sizes
            weigh the same; with p = 1 only the meaning of c differs.
        omega: weight of the velocity in the guided one; 1 with ``kappa`` 0 is off.
        kappa: weight of the student's own conditional velocity.
        interval: times (low, high), ends included, in which the target is guided.
        derivative: see ``total_derivative``.
        difference_step: of the derivative ``difference``; None is by precision.
    """

    source: Source = "data"
    pairs: TimePairs = field(default_factory=TimePairs)
    power: float = 1.0
    offset: float = 1e-3
    omega: float = 1.0
    kappa: float = 0.0
    interval: tuple[float, float] = (0.0, 1.0)
    derivative: Derivative = "jvp"
    difference_step: float | None = None

    def __post_init__(self) -> None:
        if self.source == "teacher" and self._guided:
            raise ValueError(
                f"omega={self.omega}, kappa={self.kappa} guide a target that the teacher already guides; "
                "leave them at 1 and 0 and set the teacher's guidance_scale"
            )
        if self.omega <= 0 or not 0 <= self.kappa < 1:
            raise ValueError(
                f"omega={self.omega} must be above 0 and kappa={self.kappa} in [0, 1): the guidance scale is "
                "omega / (1 - kappa)"
            )

    @property
    def needs(self) -> frozenset[Need]:
        needs: set[Need] = {"student", "two_times", "data"}
        if self.source == "teacher":
            needs.add("teacher")
        return frozenset(needs)

    def student_loss(self, turn: Turn) -> tuple[Float[Tensor, ""], Diagnostics]:
        """See ``Objective.student_loss``."""
        student, data = flow_map(given(turn.student, "student", self), self), given(turn.data, "data", self)
        x0, layout, condition = data.x0, data.layout, data.condition
        t, r = self.pairs.sample(turn, x0, layout)
        eps = turn.noise_like(x0)
        x_t = student.path.add_noise(x0, eps, layout.expand(t, x0))
        with torch.no_grad():
            velocity = velocity_from(self.source, turn, self, student.path, x_t=x_t, eps=eps, t=t)
            velocity = self._guide(velocity, student, turn, x_t, t)
            derivative = total_derivative(
                lambda x, time: student.average_velocity(x, time, layout.times(r), condition),
                x_t,
                layout.times(t),
                velocity,
                derivative=self.derivative,
                step=self.difference_step,
            )
            target = mean_flow_target(velocity, derivative, t, r, layout)
        average = student.average_velocity(x_t, layout.times(t), layout.times(r), condition)
        squared_error = layout.mean((average.to(target.dtype) - target).square())
        diagnostics = {
            "residual_rms": squared_error.detach().mean().sqrt(),
            "velocity_rms": layout.mean(velocity.square()).mean().sqrt(),
            "correction_rms": layout.mean((target - velocity).square()).mean().sqrt(),
        }
        return adaptive_losses(squared_error, power=self.power, offset=self.offset).mean(), diagnostics

    @property
    def _guided(self) -> bool:
        return (self.omega, self.kappa) != (1.0, 0.0)

    def _guide(self, velocity: X, student: FlowMap, turn: Turn, x_t: X, t: PerSample) -> X:
        """The student's own instantaneous velocities mixed into ``velocity``; nothing is called where off."""
        if not self._guided:
            return velocity
        data = given(turn.data, "data", self)
        time, null = data.layout.times(t), null_for(turn, data.condition)
        guided = self.omega * velocity
        for weight, condition in ((self.kappa, data.condition), (1 - self.omega - self.kappa, null)):
            if weight != 0:
                own = student.average_velocity(x_t, time, time, condition)
                guided = guided + weight * own.to(velocity.dtype)
        inside = (t >= self.interval[0]) & (t <= self.interval[1])
        return torch.where(data.layout.expand(inside, x_t), guided, velocity)
