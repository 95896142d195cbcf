"""Diffusion-GAN on the critic's own features, as in adversarial SiD (Zhou et al., 2410.14919, 2505.12674)."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import softplus

from fewstep.core.denoisers import Condition, Denoiser, FeatureDenoiser
from fewstep.core.layouts import Layout
from fewstep.core.objectives.contract import Diagnostics, Turn
from fewstep.core.schedules import TimeSampler

LOGIT_LIMIT = 10.0  # of the released code; beyond it there is no gradient

PerSample = Float[Tensor, " batch"]


@dataclass(frozen=True, kw_only=True)
class DiffusionGAN:
    r"""A discriminator without parameters of its own: the channel mean of the critic's features.

    With l the logits at :math:`x_t`, one per token and positive for real, and means over tokens:

    .. math:: L_{critic} = \tfrac12 \langle \mathrm{softplus}(-l_{real}) \rangle
        + \tfrac12 \langle \mathrm{softplus}(l_{fake}) \rangle, \qquad
        L_{student} = \langle \mathrm{softplus}(-l_{fake}) \rangle

    Its authors advise it only where real samples are better than the student's.

    Args:
        share: of the adversarial loss in the student's, once it begins; the other loss has the rest.
        start: updates of the student before that. The critic learns to discriminate from the beginning.
    """

    share: float = 0.5
    start: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise ValueError(f"share={self.share} must be between 0 and 1; gan=None is without")

    def logits(
        self,
        critic: Denoiser,
        x_t: Float[Tensor, " *shape"],
        t: Float[Tensor, " *leading"],
        condition: Condition,
    ) -> Float[Tensor, " *tokens"]:
        """How real the critic finds each token, in float32 or better; ``t`` as denoisers take it."""
        if not isinstance(critic, FeatureDenoiser):
            raise ValueError(
                f"critic {type(critic).__name__} shows no features to discriminate by; "
                "give it a method features(x_t, t, condition), or set gan to None"
            )
        features = critic.features(x_t, t, condition)
        precise = torch.promote_types(features.dtype, torch.float32)
        return features.to(precise).mean(-1).clamp(-LOGIT_LIMIT, LOGIT_LIMIT)

    def student_losses(
        self,
        critic: Denoiser,
        x_t: Float[Tensor, " *shape"],
        t: Float[Tensor, " *leading"],
        condition: Condition,
        layout: Layout,
    ) -> PerSample:
        """How unreal the critic finds the student's noised samples, per sample."""
        return layout.mean(softplus(-self.logits(critic, x_t, t, condition)))

    def critic_loss(
        self, turn: Turn, critic: Denoiser, times: TimeSampler
    ) -> tuple[Float[Tensor, ""], Diagnostics]:
        """Data against the student's detached samples, each noised to times of its own."""
        assert turn.sample is not None
        assert turn.data is not None
        sample, data = turn.sample, turn.data
        fake = self._noised_logits(turn, critic, times, sample.x.detach(), sample.condition, sample.layout)
        real = self._noised_logits(turn, critic, times, data.x0, data.condition, data.layout)
        on_real, on_fake = data.layout.mean(softplus(-real)), sample.layout.mean(softplus(fake))
        loss = 0.5 * (on_real.mean() + on_fake.mean())
        gap = data.layout.mean(real).mean() - sample.layout.mean(fake).mean()
        return loss, {"discrimination": loss.detach(), "logit_gap": gap.detach()}

    def _noised_logits(
        self,
        turn: Turn,
        critic: Denoiser,
        times: TimeSampler,
        x: Tensor,
        condition: Condition,
        layout: Layout,
    ) -> Float[Tensor, " *tokens"]:
        t, eps = turn.times(times, x, layout), turn.noise_like(x)
        return self.logits(
            critic, critic.path.add_noise(x, eps, layout.expand(t, x)), layout.times(t), condition
        )
