"""Flash-DMD (2025): distribution matching on noisy steps, pixels judged on clean ones, preferences."""

from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import softplus

from fewstep.core.denoisers import Condition
from fewstep.core.discriminators import PixelDiscriminator, discriminator_losses, generator_losses
from fewstep.core.layouts import DENSE, Layout
from fewstep.core.objectives.contract import Diagnostics, Need, Objective, Sample, Turn, given
from fewstep.core.objectives.dmd import DMD, last_call, weight_of
from fewstep.core.objectives.gradient_weights import weigh_gradient

X = Float[Tensor, " *shape"]
PerSample = Float[Tensor, " batch"]


class FlashDMD(nn.Module, Objective):
    r"""Stage 1: a step of the student learns structure or detail, by the noise of its input.

    Where the student was called at :math:`t \ge \tau`, its sample gets DMD's gradient alone; below, that of a
    discriminator of pixels alone, :math:`w_s E[-\ln\sigma(l(x))]`. The critic only denoises, and after each
    step of the student its weights move there, :math:`\psi \leftarrow \lambda\psi + (1 - \lambda)\theta`,
    which is what lets it make do with one or two updates per update of the student.

    No code was published, nor these: tau, both adversarial weights, lambda, the discriminator's sizes. Its
    frozen encoder is that of a segmentation network, which is not part of this project: pass one to
    ``PixelDiscriminator``. In the paper the input of a low-noise step is a sample of the whole chain noised
    again; here it is what the chain meets on its way, as ``FewStep.rollout`` makes it.

    Args:
        threshold: tau. A choice of this project.
        student_weight: of the adversarial loss; the default is DMD2's.
        critic_weight: of the discriminator's own loss; the default is DMD2's.
        pull: lambda; 1 leaves the critic alone. The default is SenseFlow's for the same device. Student and
            critic must then be networks of one architecture that predict the same quantity.
    """

    def __init__(
        self,
        discriminator: PixelDiscriminator,
        *,
        dmd: DMD | None = None,
        threshold: float = 0.5,
        student_weight: float = 3e-3,
        critic_weight: float = 1e-2,
        pull: float = 0.97,
    ) -> None:
        super().__init__()
        if not 0 <= threshold <= 1 or not 0 <= pull <= 1:
            raise ValueError(f"threshold={threshold} and pull={pull} must be in [0, 1]")
        self.discriminator = discriminator
        self.dmd = dmd or DMD()
        self.threshold = threshold
        self.student_weight = student_weight
        self.critic_weight = critic_weight
        self.pull = pull

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset({*self.dmd.needs, "data", "decode"})

    def is_noisy(self, sample: Sample) -> PerSample:
        """1 for samples of a step at ``threshold`` or above, else 0."""
        return (last_call(sample, self).t >= self.threshold).to(sample.x.dtype)

    def student_loss(self, turn: Turn) -> tuple[Float[Tensor, ""], Diagnostics]:
        """See ``Objective.student_loss``; a loss that no sample takes part in is not computed."""
        sample, decode = given(turn.sample, "sample", self), given(turn.decode, "decode", self)
        noisy, diagnostics = self.is_noisy(sample), {}
        loss = sample.x.new_zeros((), dtype=torch.promote_types(sample.x.dtype, torch.float32))
        if bool(noisy.any()):
            loss, diagnostics = self.dmd.weighted_student_loss(turn, weight_of(sample, noisy))
        if not bool(noisy.all()):
            x = weigh_gradient(sample.x, sample.weight, sample.layout)
            losses = generator_losses(self.discriminator(decode(x))).mean(1)
            gan = ((1 - noisy) * losses).mean()
            loss, diagnostics = loss + self.student_weight * gan, diagnostics | {"gan": gan.detach()}
        return loss, diagnostics

    def critic_loss(self, turn: Turn) -> tuple[Float[Tensor, ""], Diagnostics]:
        """See ``Objective.critic_loss``; trains the discriminator where the student was called below tau."""
        sample, data = given(turn.sample, "sample", self), given(turn.data, "data", self)
        decode = given(turn.decode, "decode", self)
        loss, diagnostics = self.dmd.critic_loss(turn)
        clean = 1 - self.is_noisy(sample)
        if not bool(clean.any()):
            return loss, diagnostics
        with torch.no_grad():
            fake_pixels, real_pixels = decode(sample.x.detach()), decode(data.x0)
        real, fake = self.discriminator(real_pixels), self.discriminator(fake_pixels)
        of_real, of_fake = discriminator_losses(real, fake)
        fooled = (clean * of_fake.mean(1)).sum() / clean.sum()
        return loss + self.critic_weight * (of_real.mean() + fooled), diagnostics | {
            "logit_real": real.detach().mean(),
            "logit_fake": fake.detach().mean(),
        }

    @torch.no_grad()
    def after_student_step(self, student: nn.Module, critic: nn.Module | None) -> None:
        """Pull the critic's weights towards the student's."""
        if critic is None or self.pull == 1:
            return
        follower, leader = list(critic.parameters()), list(student.parameters())
        if [weight.shape for weight in follower] != [weight.shape for weight in leader]:
            raise ValueError(
                f"critic has {len(follower)} weights and student {len(leader)}, or of other shapes; "
                "give both one architecture, or set pull to 1"
            )
        for weight, target in zip(follower, leader, strict=True):
            weight.lerp_(target.to(weight), 1 - self.pull)


def transition_log_ratio(
    x_next: X, mean: X, reference: X, std: PerSample, layout: Layout = DENSE
) -> PerSample:
    r""":math:`\ln N(x'; \mu, \sigma^2) - \ln N(x'; \mu_{ref}, \sigma^2)`, as a mean over elements.

    .. math:: \frac{\langle (x' - \mu_{ref})^2 - (x' - \mu)^2 \rangle}{2 \sigma^2}
    """
    return layout.mean((x_next - reference).square() - (x_next - mean).square()) / (2 * std.square())


def preference_losses(better: PerSample, worse: PerSample, beta: float) -> PerSample:
    r""":math:`-\ln\sigma(\beta (\rho_w - \rho_l))` of two log ratios (DPO, Rafailov et al., 2023)."""
    return softplus(-beta * (better - worse))


@runtime_checkable
class NoisyReward(Protocol):
    """A judge of noisy latents, such as a latent reward model; higher is better."""

    def score(self, x_t: Tensor, t: PerSample, condition: Condition) -> PerSample: ...


class FlashDMDPreference(nn.Module, Objective):
    r"""Stage 2: on noisy steps, prefer the better of several next states; in between, stage 1.

    A step that renoises freshly is a Gaussian transition, from :math:`x_t` to :math:`N(\alpha_s \hat x_0,
    \sigma_s^2)` at the next time s. Of ``candidates`` draws a reward of noisy latents picks the best and the
    worst, and the loss is ``preference_losses`` of their ratios to a reference. That is ``turn.target``: set
    ``Distiller.target_decay`` to 1, and it stays the student that training began with.

    For ``ratio`` updates the preference takes the place of stage 1 at noisy steps, then stage 1 has one; at
    steps below tau, and at the last one, whose transition has no noise, stage 1 always applies. For rollouts
    with fresh noise only: a deterministic transition has no density. Not published: the number of candidates,
    beta; and the log ratio is here a mean over elements, where the paper's note has a sum.

    Args:
        stage1: the losses alternated with; its critic is trained throughout.
        reward: scores candidates, without gradient.
        candidates: draws per sample. A choice of this project.
        beta: strength of the tie to the reference. A choice of this project.
        ratio: updates of preference per update of stage 1; 5 in the paper.
    """

    def __init__(
        self,
        stage1: FlashDMD,
        reward: NoisyReward,
        *,
        candidates: int = 4,
        beta: float = 1.0,
        ratio: int = 5,
    ) -> None:
        super().__init__()
        if candidates < 2 or beta <= 0 or ratio < 1:
            raise ValueError(
                f"candidates={candidates} must be at least 2, beta={beta} above 0, ratio={ratio} at least 1"
            )
        self.stage1 = stage1
        self.reward = reward
        self.candidates = candidates
        self.beta = beta
        self.ratio = ratio

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset({*self.stage1.needs, "target"})

    def student_loss(self, turn: Turn) -> tuple[Float[Tensor, ""], Diagnostics]:
        """See ``Objective.student_loss``."""
        sample = given(turn.sample, "sample", self)
        call = last_call(sample, self)
        applies = self.stage1.is_noisy(sample) * (call.t_next > 0)
        if turn.update % (self.ratio + 1) == self.ratio or not bool(applies.all()):
            return self.stage1.student_loss(turn)
        target, layout = given(turn.target, "target", self), sample.layout
        std, alpha = target.path.sigma(call.t_next), layout.expand(target.path.alpha(call.t_next), sample.x)
        mean = alpha * weigh_gradient(sample.x, sample.weight, layout)
        with torch.no_grad():
            reference = alpha * target(call.x_t, layout.times(call.t), sample.condition)
            best, worst = self._best_and_worst(turn, sample, mean, std, call.t_next)
        better = transition_log_ratio(best, mean, reference, std, layout)
        worse = transition_log_ratio(worst, mean, reference, std, layout)
        loss = preference_losses(better, worse, self.beta).mean()
        return loss, {"preference_margin": (better - worse).detach().mean()}

    def _best_and_worst(
        self, turn: Turn, sample: Sample, mean: X, std: PerSample, t: PerSample
    ) -> tuple[X, X]:
        """Of several draws of the student's next state, the two that the reward puts first and last."""
        layout = sample.layout
        draws = torch.stack(
            [mean + layout.expand(std, mean) * turn.noise_like(mean) for _ in range(self.candidates)]
        )
        scores = torch.stack([self.reward.score(x_t, layout.times(t), sample.condition) for x_t in draws])

        def pick(number: Tensor) -> Tensor:
            return draws.gather(0, layout.expand(number, mean).expand_as(mean)[None])[0]

        return pick(scores.argmax(0)), pick(scores.argmin(0))

    def critic_loss(self, turn: Turn) -> tuple[Float[Tensor, ""], Diagnostics]:
        """See ``Objective.critic_loss``; that of stage 1."""
        return self.stage1.critic_loss(turn)

    def after_student_step(self, student: nn.Module, critic: nn.Module | None) -> None:
        """See ``FlashDMD.after_student_step``."""
        self.stage1.after_student_step(student, critic)
