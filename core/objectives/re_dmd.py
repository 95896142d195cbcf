"""Re-DMD: distribution matching with samples weighted by their reward (Reward Forcing, 2025)."""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fewstep.core.objectives.contract import Diagnostics, Need, Objective, Turn, given
from fewstep.core.objectives.dmd import DMD, weight_of
from fewstep.core.rewards.contract import Reward

THREE_SIGMAS = math.exp(3)


class ReDMD(nn.Module, Objective):
    r"""DMD with the gradient of sample i multiplied by :math:`w_i = e^{\beta r_i}`.

    The reward is a constant weight: pixels are decoded and scored without gradient. As it multiplies DMD's
    gradient, which vanishes where student equals teacher, it moves effort and, in a student that cannot hold
    the whole teacher, the choice of modes; it does not tilt the teacher's distribution.

    A module only for its two buffers, so that a resumed run continues with the same running mean.

    Args:
        reward: scores decoded samples; a nan or infinite score is a ValueError, never a silent weight.
        beta: 2 in Reward Forcing, whose reward has unit variance.
        normalise: divide by the running mean of the weights, so that their mean is 1 and beta does not change
            the learning rate. The mean includes the current batch: constant rewards weigh exactly 1.
        decay: of that running mean, once 1 / (1 - decay) batches are in; before, it is the plain mean.
        max_weight: clamp to [1 / max_weight, max_weight], after normalising; None for no clamp.
            ``normalise=False, max_weight=None`` is the paper's released code.
    """

    log_mean: Tensor
    num_batches: Tensor

    def __init__(
        self,
        reward: Reward,
        *,
        dmd: DMD | None = None,
        beta: float = 2.0,
        normalise: bool = True,
        decay: float = 0.99,
        max_weight: float | None = THREE_SIGMAS,
    ) -> None:
        super().__init__()
        if not 0 <= decay < 1:
            raise ValueError(f"decay={decay} must be in [0, 1)")
        if max_weight is not None and max_weight < 1:
            raise ValueError(f"max_weight={max_weight} must be at least 1, or None for no clamp")
        self.reward = reward
        self.dmd = dmd or DMD()
        self.beta = beta
        self.normalise = normalise
        self.decay = decay
        self.max_weight = max_weight
        self.register_buffer("log_mean", torch.zeros((), dtype=torch.float64))
        self.register_buffer("num_batches", torch.zeros((), dtype=torch.int64))

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset({*self.dmd.needs, "decode"})

    @torch.no_grad()
    def weights(self, rewards: Float[Tensor, " batch"]) -> Float[Tensor, " batch"]:
        """The weights of one batch of rewards, which enters the running mean first."""
        if not bool(rewards.isfinite().all()):
            raise ValueError(
                f"reward {self.reward.name!r} returned {rewards.tolist()}; it must score every sample"
            )
        # In logarithms, so that no reward overflows before it is normalised.
        log_weights = self.beta * rewards.double()
        if self.normalise:
            self._update(log_weights.logsumexp(0) - math.log(len(rewards)))
            log_weights = log_weights - self.log_mean
        if self.max_weight is not None:
            limit = math.log(self.max_weight)
            log_weights = log_weights.clamp(-limit, limit)
        return log_weights.exp().to(rewards.dtype)

    def _update(self, log_batch_mean: Tensor) -> None:
        self.num_batches += 1
        old = torch.clamp(1 - 1 / self.num_batches.double(), max=self.decay)
        self.log_mean.copy_(torch.logaddexp(self.log_mean + old.log(), log_batch_mean + torch.log1p(-old)))

    def student_loss(self, turn: Turn) -> tuple[Float[Tensor, ""], Diagnostics]:
        """See ``Objective.student_loss``; the sample is decoded once, without gradient."""
        sample, decode = given(turn.sample, "sample", self), given(turn.decode, "decode", self)
        with torch.no_grad():
            rewards = self.reward.score(decode(sample.x), sample.condition)
            reward_weight = self.weights(rewards)
        loss, diagnostics = self.dmd.weighted_student_loss(turn, weight_of(sample, reward_weight))
        return loss, diagnostics | {
            "reward_mean": rewards.mean(),
            "reward_weight_mean": reward_weight.mean(),
            "reward_weight_max": reward_weight.max(),
        }

    def critic_loss(self, turn: Turn) -> tuple[Float[Tensor, ""], Diagnostics]:
        """See ``Objective.critic_loss``; rewards do not enter."""
        return self.dmd.critic_loss(turn)
