"""MDT-dist: velocity matching and velocity distillation of 3D flows (arXiv 2509.04406)."""

from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.core.denoisers import Condition, Denoiser, velocity_of
from fewstep.core.layouts import DENSE, Layout
from fewstep.core.objectives.contract import Data, Diagnostics, Need, Objective, Sample, Turn, given
from fewstep.core.objectives.gradient_weights import weigh_gradient
from fewstep.core.objectives.trajectories import teacher_on, total_derivative
from fewstep.core.paths import LinearPath
from fewstep.core.schedules import LogitNormalTimes, TimeSampler

D_NORM_OFFSET = 0.1  # of the released code's normaliser

X = Float[Tensor, " *shape"]
PerSample = Float[Tensor, " batch"]


def velocity_matching_target(velocity: X, derivative: X, t: PerSample, layout: Layout = DENSE) -> X:
    r"""The average velocity to data that the flow asks for: :math:`u_\phi - t\, \frac{d}{dt} \bar u`."""
    return velocity - layout.expand(t, velocity) * derivative


@torch.no_grad()
def velocity_before(
    student: Denoiser,
    x_t: X,
    t: PerSample,
    velocity: X,
    condition: Condition,
    *,
    step: float,
    layout: Layout = DENSE,
) -> X:
    r"""The student's average velocity one step closer to the data.

    .. math:: \bar u(x_t - \Delta u_\phi, t - \Delta)

    ``t`` must be above ``step``. Dropout is that of the next ordinary call, since their difference is divided
    by the step.
    """
    before = (x_t.to(velocity.dtype) - step * velocity).to(x_t.dtype)
    with torch.random.fork_rng(devices=[x_t.device] if x_t.is_cuda else []):
        average = velocity_of(student, before, layout.times(t - step), condition)
    # Weights cast under no_grad may otherwise serve the ordinary call too, which then has no gradient.
    torch.clear_autocast_cache()
    return average.to(velocity.dtype)


def d_normalised(derivative: X, layout: Layout = DENSE) -> X:
    r"""The released code's :math:`d / (\|d\| + 0.1)`, with the norm of a whole sample."""
    norm = (layout.mean(derivative.square()) * _num_elements(derivative, layout)).sqrt()
    return derivative / layout.expand(norm + D_NORM_OFFSET, derivative)


def _num_elements(x: X, layout: Layout) -> PerSample:
    """Real elements per sample: layouts only average, and the gradient of an average is 1 / n."""
    with torch.enable_grad():
        leaf = torch.zeros_like(x).requires_grad_()
        (share,) = torch.autograd.grad(layout.mean(leaf).sum(), leaf)
    return layout.mean(share).reciprocal()


@dataclass(frozen=True, kw_only=True)
class MDT(Objective):
    r"""Teach a network of one time the average velocity from where it stands to the data.

    The student's velocity stands for :math:`\bar u(x_t, t) = \frac{1}{t} \int_0^t u_\phi\, d\tau`, so that
    :math:`x_0 = x_t - t \bar u`; it can be a copy of the teacher, with the same inputs. Along the teacher's
    flow :math:`\bar u + t \frac{d}{dt} \bar u = u_\phi`. What misses from it is the residual

    .. math:: \rho(x_t, t) = \bar u_\theta - \mathrm{sg}[u_\phi - t \tfrac{d}{dt} \bar u_\theta]

    *Velocity matching* is :math:`\|\rho\|^2` on noised data. *Velocity distillation* noises the student's own
    one-step sample :math:`x_f = z - \bar u_\theta(z, 1)` with the same t and noise and moves it by
    :math:`+\rho`: its loss is :math:`\|\mathrm{sg}[\rho] + \bar u_\theta - \mathrm{sg}[\bar u_\theta]\|^2`
    at (z, 1). As :math:`\bar u_\theta + t \frac{d}{dt} \bar u_\theta` is the velocity that the student
    implies, this is DMD with weight 1 / t and the student as its own critic, and is right only as far as
    velocity matching is: :math:`\rho` holds matching's own error as well, which on the ring is 10 to 80 times
    the difference of the two flows from t = 0.4 on, and hardly correlated with it. Distillation is from t = 1
    alone: two steps rely on matching.

    Guidance is the teacher's; the released configurations use 41 for matching and 101 for distillation
    (40 and 100 where 0 is off), which is not explained, so give it what generation would use.

    Args:
        lambda_vm: weight of velocity matching. At 0 no data is needed: x_f is then the rollout's sample.
        lambda_vd: weight of velocity distillation.
        derivative: ``difference`` is the released default, one more call; its error is of the order of
            ``step``. ``jvp`` is exact but needs forward mode, which fused attention kernels lack.
        step: of the difference, in t. Under autocast, or with a network in half precision, rounding divided
            by the default is as large as the derivative: use 0.1, or ``jvp``.
        d_norm: divide the derivative by its norm plus 0.1, as released. Off, as it moves the fixed point: at
            the exact average velocity the residual is no longer 0, and with many elements the correction
            becomes so small that the target is nearly the instantaneous velocity.
        times: r in t = low + (1 - low) r, where low is the path's ``sigma_min``, plus ``step`` for the
            difference; r = 0 must not occur. What is known of :math:`\bar u` spreads from t = 0 upwards, and
            the released times come below 0.25 once in 50 draws: on the ring ``UniformTimes(low=1e-3)`` is at
            a seventh of their distance after as many updates.
    """

    lambda_vm: float = 1.0
    lambda_vd: float = 1.0
    derivative: Literal["jvp", "difference"] = "difference"
    step: float = 0.01
    d_norm: bool = False
    times: TimeSampler = field(default_factory=lambda: LogitNormalTimes(mean=1.0, std=1.0))

    def __post_init__(self) -> None:
        if min(self.lambda_vm, self.lambda_vd) < 0 or self.lambda_vm + self.lambda_vd == 0:
            raise ValueError(
                f"lambda_vm={self.lambda_vm}, lambda_vd={self.lambda_vd} must not be negative nor both 0"
            )
        if not 0 < self.step < 1:
            raise ValueError(f"step={self.step} must be in (0, 1); the released code uses 0.01")

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset({"student", "teacher", "data" if self.lambda_vm else "sample"})

    def student_loss(self, turn: Turn) -> tuple[Float[Tensor, ""], Diagnostics]:
        """See ``Objective.student_loss``."""
        source: Data | Sample
        if self.lambda_vm:
            source = given(turn.data, "data", self)
            x = source.x0
        else:
            source = given(turn.sample, "sample", self)
            x = source.x
        layout = source.layout
        t, eps = self._times(turn, x, layout), turn.noise_like(x)
        losses: dict[str, Tensor] = {}
        if self.lambda_vm:
            residual = self._residual(turn, x, eps, t, source)
            losses["vm"] = layout.mean(residual.square()).mean()
        if self.lambda_vd:
            x_f = self._one_step(turn, x, source)
            with torch.no_grad():
                residual = self._residual(turn, x_f, eps, t, source)
            x_f = x_f.to(residual.dtype)
            losses["vd"] = layout.mean((residual - (x_f - x_f.detach())).square()).mean()
        loss = torch.stack([getattr(self, f"lambda_{name}") * value for name, value in losses.items()]).sum()
        return loss, {f"{name}_residual_rms": value.detach().sqrt() for name, value in losses.items()}

    def _one_step(self, turn: Turn, x: X, source: Data | Sample) -> X:
        """A sample with the student's graph."""
        if isinstance(source, Sample):
            return weigh_gradient(x, source.weight, source.layout)
        student, layout = given(turn.student, "student", self), source.layout
        ones = x.new_ones(layout.batch_size(x), dtype=torch.promote_types(x.dtype, torch.float32))
        return student(turn.noise_like(x), layout.times(ones), source.condition)

    def _residual(self, turn: Turn, x0: X, eps: X, t: PerSample, source: Data | Sample) -> X:
        r""":math:`\rho` at the noised ``x0``, in float32 or better; only its first term has a gradient."""
        student, layout = given(turn.student, "student", self), source.layout
        teacher = teacher_on(student.path, turn, self)
        x_t = student.path.add_noise(x0.detach(), eps, layout.expand(t, x0))
        precise = torch.promote_types(x0.dtype, torch.float32)
        with torch.no_grad():
            velocity = velocity_of(teacher, x_t, layout.times(t), source.condition).to(precise)
        average, slope = self._average(student, x_t, t, velocity, source.condition, layout)
        with torch.no_grad():
            slope = d_normalised(slope, layout) if self.d_norm else slope
            target = velocity_matching_target(velocity, slope, t, layout)
        return average - target

    def _average(
        self, student: Denoiser, x_t: X, t: PerSample, velocity: X, condition: Condition, layout: Layout
    ) -> tuple[X, X]:
        """The student's average velocity, with its gradient, and the derivative of it along the flow."""
        time = layout.times(t)
        if self.derivative == "jvp":
            slope = total_derivative(
                lambda x, at: velocity_of(student, x, at, condition), x_t, time, velocity, derivative="jvp"
            )
            return velocity_of(student, x_t, time, condition).to(velocity.dtype), slope
        before = velocity_before(student, x_t, t, velocity, condition, step=self.step, layout=layout)
        average = velocity_of(student, x_t, time, condition).to(velocity.dtype)
        return average, (average.detach() - before) / self.step

    def _times(self, turn: Turn, x: Tensor, layout: Layout) -> PerSample:
        path = given(turn.student, "student", self).path
        if not isinstance(path, LinearPath):
            raise ValueError(f"MDT needs a student on a linear path, got {path}; wrap the teacher in OnPath")
        low = path.sigma_min + (self.step if self.derivative == "difference" else 0.0)
        return low + (1 - low) * turn.times(self.times, x, layout)
