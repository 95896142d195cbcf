"""SiD: score identity distillation (Zhou et al., 2404.04057), with guidance and in few steps (2505.12674)."""

import math
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.core.denoisers import Denoiser, Guided
from fewstep.core.layouts import DENSE, Layout
from fewstep.core.objectives.contract import Diagnostics, Need, Objective, Turn, given
from fewstep.core.objectives.diffusion_gan import DiffusionGAN
from fewstep.core.objectives.dmd import common_path
from fewstep.core.objectives.flow_matching import FlowMatching
from fewstep.core.objectives.gradient_weights import weigh_gradient
from fewstep.core.paths import Path
from fewstep.core.schedules import LogitNormalTimes, TimeSampler

FLOOR = 1e-5  # of what the released code divides by

Weighting = Literal[
    "none",
    "mean_abs",
    "one_minus_t",
    "one_minus_t_squared",
    "inverse_t",
    "inverse_t_squared",
    "inverse_eta",
    "inverse_eta_squared",
]

X = Float[Tensor, " *shape"]
PerSample = Float[Tensor, " batch"]


def sid_losses(x: X, x0_teacher: X, x0_critic: X, layout: Layout = DENSE, *, alpha: float = 1.0) -> PerSample:
    r"""SiD's loss per sample, a mean over elements (2404.04057).

    .. math:: L_\alpha = (D_r - D_f) \cdot [(D_r - x) - \alpha (D_r - D_f)]

    with D_r the teacher's and D_f the critic's :math:`\hat x_0`. With F the Fisher divergence
    :math:`E|D_r - D_f|^2` and an exact critic, :math:`E[L_\alpha] = (1 - \alpha) F`, which is negative for
    alpha above 1; :math:`\nabla L_{1/2} = \nabla F / 2` exactly, and :math:`2 \nabla L_1` is the gradient
    of F at a fixed law of :math:`x_t`.
    """
    gap = x0_teacher - x0_critic
    return layout.mean(gap * ((x0_teacher - x) - alpha * gap))


def sid_weight(
    weighting: Weighting, x: X, x0_teacher: X, path: Path, t: PerSample, layout: Layout = DENSE
) -> PerSample:
    """One constant factor per sample on its loss.

    ``t`` in the names is the time of equal noise-to-signal ratio eta on the linear path, so that the path
    makes no difference.
    """
    eta = path.eta(t)
    clean, noisy = 1 / (1 + eta), 1 / (1 + 1 / eta)
    match weighting:
        case "none":
            return torch.ones_like(eta)
        case "mean_abs":
            return 1 / layout.mean((x - x0_teacher).abs()).detach().clamp(min=FLOOR)
        case "one_minus_t":
            return clean
        case "one_minus_t_squared":
            return clean.square()
        case "inverse_t":
            return 1 / noisy.clamp(min=FLOOR)
        case "inverse_t_squared":
            return 1 / noisy.square().clamp(min=FLOOR)
        case "inverse_eta":
            return 1 / eta.clamp(min=FLOOR)
        case "inverse_eta_squared":
            return 1 / eta.square().clamp(min=FLOOR)


@dataclass(frozen=True, kw_only=True)
class Compared:
    """What teacher and critic make of the same noised sample; the gradient flows through both to ``x``."""

    x: Tensor
    x_t: Tensor
    t: Tensor
    x0_teacher: Tensor
    x0_critic: Tensor


def compare(
    turn: Turn, objective: Objective, times: TimeSampler, teacher: Denoiser, critic: Denoiser
) -> Compared:
    """Noise the turn's sample and denoise it by both, the turn's own but for guidance; all but ``x_t`` in
    float32 or better.
    """
    sample, path = given(turn.sample, "sample", objective), common_path(turn, objective)
    layout = sample.layout
    x = weigh_gradient(sample.x, sample.weight, layout)
    t, eps = turn.times(times, x, layout), turn.noise_like(x)
    x_t = path.add_noise(x, eps, layout.expand(t, x))
    precise = torch.promote_types(x.dtype, torch.float32)
    return Compared(
        x=x.to(precise),
        x_t=x_t,
        t=t,
        x0_teacher=teacher(x_t, layout.times(t), sample.condition).to(precise),
        x0_critic=critic(x_t, layout.times(t), sample.condition).to(precise),
    )


@dataclass(frozen=True, kw_only=True)
class SiDGuidance:
    """Guidance scales of teacher and critic; 1 is off, 0 leaves the condition away.

    SiD-LSG (2406.01561) sets all three to one number, 1.5 to 4.5, and drops a tenth of the critic's prompts.

    Args:
        teacher: replaces the guidance that the roles gave their teacher; None keeps it.
        critic: of the critic in the student's loss.
        critic_training: of the critic in its own loss.
        null_dropout: chance of a batch of the critic's training to be without its condition. By whole
            batches, as only networks look into conditions; the released code drops sample by sample.
    """

    teacher: float | None = None
    critic: float = 1.0
    critic_training: float = 1.0
    null_dropout: float = 0.0

    @classmethod
    def zero_cfg(cls) -> "SiDGuidance":
        """Zero-CFG (2505.12674): nothing amplified in the teacher, no condition in the critic."""
        return cls(teacher=1.0, critic=0.0, critic_training=0.0)

    @classmethod
    def anti_cfg(cls, scale: float) -> "SiDGuidance":
        """Anti-CFG (2505.12674): a negative ``scale`` in the critic; which one is not published."""
        if scale >= 0:
            raise ValueError(f"scale={scale} must be negative; Zero-CFG is SiDGuidance.zero_cfg()")
        return cls(teacher=1.0, critic=scale, critic_training=scale)


@dataclass(frozen=True, kw_only=True)
class SiD(Objective):
    r"""Minimise the Fisher divergence between student and teacher, through both denoisers.

    .. math:: x_t = \alpha_t x + \sigma_t \epsilon, \quad
        L = w_t\, (D_r(x_t) - D_f(x_t)) \cdot [(D_r(x_t) - x) - \alpha\, (D_r(x_t) - D_f(x_t))]

    Unlike DMD's, the gradient passes through teacher and critic into :math:`x_t`: both keep their
    activations, and neither may run in inference mode. Without that passage the loss has DMD's gradient.

    Few steps: the student's rollout leaves at a uniformly drawn step (``FewStep`` with ``exit_step``), so
    that ``sample`` is the uniform mixture of all steps' outputs. The critic learns that mixture, and is not
    told the step. The paper alternates one to one, the critic first.

    Args:
        alpha: 1 in the few-step paper and for text to image, 1.2 for SiD's EDM models, less where the critic
            lags.
        weighting: ``sid_weight``. ``one_minus_t`` is the few-step code's default on flow models,
            ``mean_abs`` SiD's, which is biased in low dimension: it depends on x given x_t.
        gan: adversarial loss against data, on a critic that shows its features.
    """

    alpha: float = 1.0
    weighting: Weighting = "one_minus_t"
    times: TimeSampler = field(default_factory=lambda: LogitNormalTimes(mean=math.log(2), std=1.6))
    guidance: SiDGuidance = field(default_factory=SiDGuidance)
    gan: DiffusionGAN | None = None
    regression: FlowMatching = field(
        default_factory=lambda: FlowMatching(times=LogitNormalTimes(mean=math.log(2), std=1.6))
    )

    @property
    def needs(self) -> frozenset[Need]:
        if self.gan:
            return frozenset({"teacher", "critic", "sample", "data"})
        return frozenset({"teacher", "critic", "sample"})

    def student_loss(self, turn: Turn) -> tuple[Float[Tensor, ""], Diagnostics]:
        """See ``Objective.student_loss``."""
        sample = given(turn.sample, "sample", self)
        teacher, critic = given(turn.teacher, "teacher", self), given(turn.critic, "critic", self)
        layout = sample.layout
        if self.guidance.teacher is not None:
            unguided = teacher.denoiser if isinstance(teacher, Guided) else teacher
            teacher = _guided(unguided, self.guidance.teacher, turn)
        seen = compare(turn, self, self.times, teacher, _guided(critic, self.guidance.critic, turn))
        weight = sid_weight(self.weighting, seen.x, seen.x0_teacher, critic.path, seen.t, layout)
        losses = sid_losses(seen.x, seen.x0_teacher, seen.x0_critic, layout, alpha=self.alpha)
        diagnostics = {
            "gap_rms": layout.mean((seen.x0_critic - seen.x0_teacher).detach().square()).mean().sqrt(),
            "weight": weight.detach().mean(),
        }
        if self.gan and turn.update >= self.gan.start:
            adversarial = self.gan.student_losses(
                critic, seen.x_t, layout.times(seen.t), sample.condition, layout
            )
            losses = (1 - self.gan.share) * losses + self.gan.share * adversarial
            diagnostics["gan"] = adversarial.detach().mean()
        return (weight * losses).mean(), diagnostics

    def critic_loss(self, turn: Turn) -> tuple[Float[Tensor, ""], Diagnostics]:
        """See ``Objective.critic_loss``."""
        sample, critic = given(turn.sample, "sample", self), given(turn.critic, "critic", self)
        scale = self.guidance.critic_training
        if self.guidance.null_dropout and bool(turn.uniform(1, sample.x.device) < self.guidance.null_dropout):
            scale = 0.0
        guided = _guided(critic, scale, turn)
        loss, diagnostics = self.regression.loss_in(
            turn, guided, sample.x, condition=sample.condition, layout=sample.layout
        )
        if self.gan:
            given(turn.data, "data", self)
            discrimination, of_gan = self.gan.critic_loss(turn, critic, self.times)
            loss, diagnostics = loss + discrimination, diagnostics | of_gan
        return loss, diagnostics


def _guided(denoiser: Denoiser, scale: float, turn: Turn) -> Denoiser:
    return Guided(denoiser, guidance_scale=scale, null_condition=turn.null_condition)
