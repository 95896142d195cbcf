"""DMD2: distribution matching and a GAN on the critic's features (Yin et al., 2024, arXiv 2405.14867)."""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fewstep.core.denoisers import Condition, Denoiser, FeatureDenoiser, Guided
from fewstep.core.discriminators import TokenHead, discriminator_losses, generator_losses
from fewstep.core.layouts import Layout
from fewstep.core.objectives.contract import Diagnostics, Need, Objective, Turn, given
from fewstep.core.objectives.dmd import DMD
from fewstep.core.objectives.gradient_weights import weigh_gradient
from fewstep.core.schedules import TimeSampler, UniformTimes

X = Float[Tensor, " *shape"]
PerSample = Float[Tensor, " batch"]


class DMD2(nn.Module, Objective):
    r"""DMD's gradient, and that of a discriminator which tells samples from data by the critic's features.

    With l the logit of features at :math:`\alpha_t x + \sigma_t \epsilon`, noised anew for each term:

    .. math:: L_{student} = L_{DMD} + w_s\, E[-\ln\sigma(l(x))], \quad
        L_{critic} = L_{denoising} + w_c\, E[-\ln\sigma(l(x_{real})) - \ln(1 - \sigma(l(x)))]

    The discriminator's loss trains the head and the critic below it; on the student's turn both are frozen.
    The rest of DMD2 lies elsewhere: the two time-scale rule is ``Distiller.critic_updates``, the sample that
    student and critic share ``Distiller.reuse_rollout``, backward simulation ``FewStep.rollout`` with an exit
    step. A module for the parameters of its head.

    Args:
        discriminator: the head; None leaves the adversarial terms out, and with them the need for data.
        student_weight: 3e-3 for ImageNet, 1e-3 for Stable Diffusion 1.5, 5e-3 for XL.
        critic_weight: 1e-2 throughout.
        times: at which the discriminator looks.
        features: of the trained ``critic``, or of the frozen and unguided ``teacher``: FastGen's variant.
        r1_weight: of the approximate R1 penalty :math:`(l(x_{real}) - l(x_{real} + s n))^2`, n standard
            Gaussian, at one time and noise; not in DMD2, FastGen recommends 100 to 1000. 0 is off.
        r1_noise: its s.
    """

    def __init__(
        self,
        discriminator: TokenHead | None,
        *,
        dmd: DMD | None = None,
        student_weight: float = 3e-3,
        critic_weight: float = 1e-2,
        times: TimeSampler | None = None,
        features: Literal["critic", "teacher"] = "critic",
        r1_weight: float = 0.0,
        r1_noise: float = 0.1,
    ) -> None:
        super().__init__()
        if min(student_weight, critic_weight, r1_weight) < 0 or r1_noise <= 0:
            raise ValueError(
                f"student_weight={student_weight}, critic_weight={critic_weight} and r1_weight={r1_weight} "
                f"must be at least 0 and r1_noise={r1_noise} above; discriminator=None is DMD alone"
            )
        self.discriminator = discriminator
        self.dmd = dmd or DMD()
        self.student_weight = student_weight
        self.critic_weight = critic_weight
        self.times = times or UniformTimes()
        self.features = features
        self.r1_weight = r1_weight
        self.r1_noise = r1_noise

    @property
    def needs(self) -> frozenset[Need]:
        if self.discriminator is None:
            return self.dmd.needs
        return frozenset({*self.dmd.needs, "data"})

    def student_loss(self, turn: Turn) -> tuple[Float[Tensor, ""], Diagnostics]:
        """See ``Objective.student_loss``."""
        loss, diagnostics = self.dmd.student_loss(turn)
        if self.discriminator is None:
            return loss, diagnostics
        sample = given(turn.sample, "sample", self)
        x = weigh_gradient(sample.x, sample.weight, sample.layout)
        t, eps = turn.times(self.times, x, sample.layout), turn.noise_like(x)
        logits = self.logits(turn, x, eps, t, sample.condition, sample.layout)
        gan = generator_losses(logits).mean()
        return loss + self.student_weight * gan, diagnostics | {"gan": gan.detach()}

    def critic_loss(self, turn: Turn) -> tuple[Float[Tensor, ""], Diagnostics]:
        """See ``Objective.critic_loss``; trains the head as well."""
        loss, diagnostics = self.dmd.critic_loss(turn)
        if self.discriminator is None:
            return loss, diagnostics
        sample, data = given(turn.sample, "sample", self), given(turn.data, "data", self)
        x, x0 = sample.x.detach(), data.x0
        t, eps = turn.times(self.times, x, sample.layout), turn.noise_like(x)
        fake = self.logits(turn, x, eps, t, sample.condition, sample.layout)
        t, eps = turn.times(self.times, x0, data.layout), turn.noise_like(x0)
        real = self.logits(turn, x0, eps, t, data.condition, data.layout)
        of_real, of_fake = discriminator_losses(real, fake)
        loss = loss + self.critic_weight * (of_real.mean() + of_fake.mean())
        if self.r1_weight:
            nearby = x0 + self.r1_noise * turn.noise_like(x0)
            moved = self.logits(turn, nearby, eps, t, data.condition, data.layout)
            loss = loss + self.r1_weight * (real - moved).square().mean()
        return loss, diagnostics | {
            "logit_real": real.detach().mean(),
            "logit_fake": fake.detach().mean(),
        }

    def logits(
        self, turn: Turn, x: X, eps: X, t: PerSample, condition: Condition, layout: Layout
    ) -> PerSample:
        """How real each sample looks at time ``t``: the mean logit over its tokens."""
        assert self.discriminator is not None
        denoiser = self._featured(turn)
        x_t = denoiser.path.add_noise(x, eps, layout.expand(t, x))
        logits = self.discriminator(denoiser.features(x_t, layout.times(t), condition))
        return layout.mean(logits.to(torch.promote_types(logits.dtype, torch.float32)))

    def _featured(self, turn: Turn) -> FeatureDenoiser:
        if self.features == "critic":
            denoiser: Denoiser = given(turn.critic, "critic", self)
        else:
            denoiser = given(turn.teacher, "teacher", self)
            denoiser = denoiser.denoiser if isinstance(denoiser, Guided) else denoiser
        if not isinstance(denoiser, FeatureDenoiser):
            raise ValueError(
                f"{self.features} {type(denoiser).__name__} shows no features to discriminate by; "
                "give it a method features(x_t, t, condition), or set discriminator to None"
            )
        return denoiser
