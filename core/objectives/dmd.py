"""Distribution matching distillation, DMD (Yin et al., 2024, arXiv 2311.18828)."""

from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.core.layouts import DENSE, Layout
from fewstep.core.objectives.contract import Diagnostics, Need, Objective, Sample, Turn, given
from fewstep.core.objectives.flow_matching import FlowMatching
from fewstep.core.paths import Path
from fewstep.core.rollouts import Call
from fewstep.core.schedules import TimeSampler, UniformTimes

NORMALISER_EPS = 1e-6  # DMD2 has none; this keeps 0 / 0 at a perfect student finite (FastGen's value)

X = Float[Tensor, " *shape"]
PerSample = Float[Tensor, " batch"]


def dmd_normaliser(x: X, x0_teacher: X, layout: Layout) -> PerSample:
    r"""DMD's gradient scale :math:`\langle |x - \hat x_0^{teacher}| \rangle` per sample (DMD, eq. 8)."""
    return layout.mean((x - x0_teacher).abs()) + NORMALISER_EPS


def dmd_direction(x: X, x0_teacher: X, x0_critic: X, layout: Layout = DENSE) -> X:
    r"""Normalised ascent direction of the reverse KL at the student's samples; the student moves against it.

    .. math:: d = \frac{\hat x_0^{critic} - \hat x_0^{teacher}}{\langle |x - \hat x_0^{teacher}| \rangle}
    """
    return (x0_critic - x0_teacher) / layout.expand(dmd_normaliser(x, x0_teacher, layout), x)


def kl_direction(x0_teacher: X, x0_critic: X, path: Path, t: PerSample, layout: Layout = DENSE) -> X:
    r"""The exact gradient of :math:`KL(p_{student,t} \| p_{teacher,t})` with respect to the samples.

    .. math:: d = \frac{\alpha_t^2}{\sigma_t^2} (\hat x_0^{critic} - \hat x_0^{teacher})
    """
    time = layout.expand(t, x0_teacher)
    return path.eta(time).square().reciprocal() * (x0_critic - x0_teacher)


def pseudo_target_losses(
    x: X, direction: X, layout: Layout = DENSE, *, weight: Tensor | None = None
) -> PerSample:
    """Per sample, half the mean squared distance to ``x - direction`` held constant; see the scalar below.

    ``weight`` has a leading shape of ``x`` and multiplies that gradient element by element.
    """
    target = (x - direction).detach()
    losses = 0.5 * (x - target).square()
    return layout.mean(losses if weight is None else layout.expand(weight, x) * losses)


def pseudo_target_loss(
    x: X, direction: X, layout: Layout = DENSE, *, weight: Tensor | None = None
) -> Float[Tensor, ""]:
    """A scalar whose gradient in ``x`` is ``weight * direction`` over batch size and number of elements."""
    return pseudo_target_losses(x, direction, layout, weight=weight).mean()


def weight_of(sample: Sample, per_sample: PerSample) -> Tensor:
    """The sample's own weight times one per sample, for ``pseudo_target_losses``."""
    if sample.weight is None or sample.weight.shape == per_sample.shape:
        return per_sample if sample.weight is None else per_sample * sample.weight
    return sample.layout.expand(per_sample, sample.weight) * sample.weight


def last_call(sample: Sample, objective: Objective) -> Call:
    """The sample's last call, or a ValueError that says how to have one."""
    if sample.call is None:
        raise ValueError(
            f"{type(objective).__name__} needs sample.call, the student's last call, which this modality's "
            "roles do not give; generate with FewStep.rollout_and_call"
        )
    return sample.call


def common_path(turn: Turn, objective: Objective) -> Path:
    """The path of teacher and critic, which must be one."""
    teacher, critic = given(turn.teacher, "teacher", objective), given(turn.critic, "critic", objective)
    if teacher.path != critic.path:
        raise ValueError(
            f"teacher.path={teacher.path} and critic.path={critic.path} differ; wrap one in OnPath"
        )
    return teacher.path


@torch.no_grad()
def opinions(turn: Turn, x_t: X, t: PerSample, objective: Objective) -> tuple[X, X]:
    """The teacher's and the critic's ``x0_hat`` of noised samples, in float32 or better, without gradient."""
    sample = given(turn.sample, "sample", objective)
    teacher, critic = given(turn.teacher, "teacher", objective), given(turn.critic, "critic", objective)
    precise = torch.promote_types(x_t.dtype, torch.float32)
    time = sample.layout.times(t)
    return teacher(x_t, time, sample.condition).to(precise), critic(x_t, time, sample.condition).to(precise)


@dataclass(frozen=True, kw_only=True)
class DMD(Objective):
    r"""Move the student's samples from where its critic sees them to where the teacher does.

    At :math:`x_t = \alpha_t x + \sigma_t \epsilon` the difference of the critic's and the teacher's
    :math:`\hat x_0`, weighted, is the gradient of a KL divergence on x. Teacher and critic see a detached
    :math:`x_t` and get no gradient.

    Args:
        times: of the noise at which student and teacher are compared; one per sample.
        weighting: ``normalised`` is DMD's (``dmd_direction``), ``kl`` the exact gradient (``kl_direction``),
            which diverges towards t = 0, ``none`` the bare difference (``DiffInstruct`` is that).
        regression: the critic's loss. DMD2 uses ``eps`` for Stable Diffusion; flow models use the velocity.
    """

    times: TimeSampler = field(default_factory=lambda: UniformTimes(low=0.02, high=0.98))
    weighting: Literal["normalised", "kl", "none"] = "normalised"
    regression: FlowMatching = field(
        default_factory=lambda: FlowMatching(times=UniformTimes(low=0.02, high=0.98))
    )

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset({"teacher", "critic", "sample"})

    def student_loss(self, turn: Turn) -> tuple[Float[Tensor, ""], Diagnostics]:
        """See ``Objective.student_loss``."""
        return self.weighted_student_loss(turn, given(turn.sample, "sample", self).weight)

    def weighted_student_loss(
        self, turn: Turn, weight: Tensor | None
    ) -> tuple[Float[Tensor, ""], Diagnostics]:
        """The loss with another ``weight`` in place of the sample's."""
        sample = given(turn.sample, "sample", self)
        path = common_path(turn, self)
        layout, x = sample.layout, sample.x.to(torch.promote_types(sample.x.dtype, torch.float32))
        t, eps = turn.times(self.times, sample.x, layout), turn.noise_like(sample.x)
        with torch.no_grad():
            x_t = path.add_noise(sample.x, eps, layout.expand(t, x))
            x0_teacher, x0_critic = opinions(turn, x_t, t, self)
            direction = self._direction(x, x0_teacher, x0_critic, path, t, layout)
            diagnostics = {
                "gap_rms": layout.mean((x0_critic - x0_teacher).square()).mean().sqrt(),
                "normaliser": dmd_normaliser(x, x0_teacher, layout).mean(),
                "direction_rms": layout.mean(direction.square()).mean().sqrt(),
            }
        return pseudo_target_loss(x, direction, layout, weight=weight), diagnostics

    def _direction(self, x: X, x0_teacher: X, x0_critic: X, path: Path, t: PerSample, layout: Layout) -> X:
        match self.weighting:
            case "normalised":
                return dmd_direction(x, x0_teacher, x0_critic, layout)
            case "kl":
                return kl_direction(x0_teacher, x0_critic, path, t, layout)
            case "none":
                return x0_critic - x0_teacher

    def critic_loss(self, turn: Turn) -> tuple[Float[Tensor, ""], Diagnostics]:
        """See ``Objective.critic_loss``."""
        sample, critic = given(turn.sample, "sample", self), given(turn.critic, "critic", self)
        return self.regression.loss_in(
            turn, critic, sample.x, condition=sample.condition, layout=sample.layout
        )
