"""NP-Edit's combination: distribution matching plus a judge that is differentiated through (2025)."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import softplus

from fewstep.core.denoisers import Condition
from fewstep.core.layouts import Layout
from fewstep.core.objectives.contract import Diagnostics, Need, Objective, Turn, given
from fewstep.core.objectives.dmd import DMD
from fewstep.core.objectives.gradient_weights import weigh_gradient
from fewstep.core.rewards.contract import Reward
from fewstep.core.rollouts import FewStep

PerSample = Float[Tensor, " batch"]


@runtime_checkable
class Answers(Protocol):
    """A judge that answers several questions about the same pixels, as ``VLMJudge`` does."""

    def answers(
        self, pixels: Tensor, condition: Condition
    ) -> Sequence[tuple[PerSample, PerSample, Bool[Tensor, " batch"]]]:
        """Per question: the logits of Yes and of No, and whether Yes is the good answer."""
        ...


@runtime_checkable
class EditCondition(Protocol):
    """What a condition must show for the identity term.

    * ``reference``: the sample to be edited, in the sample's own shape.
    * ``unchanged``: [B], True where the instruction asks for no change.
    """

    @property
    def reference(self) -> Tensor: ...

    @property
    def unchanged(self) -> Bool[Tensor, " batch"]: ...


def answer_losses(log_odds: PerSample, temperature: float) -> PerSample:
    r"""Cross entropy of two tokens, by the difference z of their logits, good minus bad.

    .. math:: L = -\log \mathrm{softmax}(\tau l)_{good} = \mathrm{softplus}(-\tau z)

    The temperature multiplies: a small one is soft.
    """
    return softplus(-temperature * log_odds)


def judge_losses(judge: Reward, pixels: Tensor, condition: Condition, temperature: float) -> PerSample:
    """The mean cross entropy of a judge's answers; a judge without ``answers`` scores in log-odds."""
    if not isinstance(judge, Answers):
        return answer_losses(judge.score(pixels, condition), temperature)
    losses = [
        answer_losses((yes - no) * (2 * good.to(yes.dtype) - 1), temperature)
        for yes, no, good in judge.answers(pixels, condition)
    ]
    return sum(losses[1:], losses[0]) / len(losses)


def identity_losses(x: Float[Tensor, " *shape"], condition: Condition, layout: Layout) -> PerSample:
    """Mean squared distance to the reference where nothing is to be changed, else 0; in float32 or better."""
    if not isinstance(condition, EditCondition):
        raise ValueError(
            f"condition of type {type(condition).__name__} shows no reference and unchanged for the identity "
            "term; add both, or set identity_weight to 0"
        )
    precise = torch.promote_types(x.dtype, torch.float32)
    error = x.to(precise) - condition.reference.to(precise)
    return condition.unchanged.to(precise) * layout.mean(error.square())


def two_calls(times: Sequence[float], exit_step: int) -> FewStep:
    """The rollout of NP-Edit's training: from the first of ``times`` to the drawn one, and there to x0.

    Call it with ``rollout_and_call(..., unroll=True)``, so that the gradient passes both calls. Step 0 is a
    single call.
    """
    return FewStep((times[0],) if exit_step == 0 else (times[0], times[exit_step]))


@dataclass(frozen=True, kw_only=True)
class NPEdit(Objective):
    r"""Distribution matching keeps samples likely while a judge's gradient through the pixels moves them.

    .. math:: L = \lambda_{judge} L_{judge} + \lambda_{DMD} L_{DMD} + \lambda_{id} L_{id}

    The judge's loss is the cross entropy of its yes or no answers about the decoded sample
    (``answer_losses``), under a temperature that rises from ``soft`` to 1 in ``soft_updates`` updates of the
    student. The gradient runs through ``decode``, so that a decoder that clamps stops it at saturated pixels.
    No pairs are needed: data enters only as what is to be edited.

    Args:
        judge: a differentiable reward: one with ``answers``, or one whose score is in log-odds.
        judge_weight: 0.02 in the released configuration.
        identity_weight: of the squared distance to the reference where the instruction asks for no change;
            the condition must be an ``EditCondition``, unless this is 0.
    """

    judge: Reward
    dmd: DMD = field(default_factory=DMD)
    judge_weight: float = 0.02
    dmd_weight: float = 1.0
    identity_weight: float = 1.0
    soft: float = 0.1
    soft_updates: int = 2000

    def __post_init__(self) -> None:
        if not self.judge.differentiable:
            raise ValueError(
                f"judge {self.judge.name!r} is not differentiable; ReDMD takes scores without gradient"
            )
        if not 0 < self.soft <= 1 or self.soft_updates < 1:
            raise ValueError(
                f"soft={self.soft} must be in (0, 1] and soft_updates={self.soft_updates} at least 1"
            )

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset({*self.dmd.needs, "decode"})

    def temperature(self, update: int) -> float:
        """The factor on the judge's logits at an update of the student."""
        return min(1.0, self.soft + (1 - self.soft) * update / self.soft_updates)

    def student_loss(self, turn: Turn) -> tuple[Float[Tensor, ""], Diagnostics]:
        """See ``Objective.student_loss``."""
        sample, decode = given(turn.sample, "sample", self), given(turn.decode, "decode", self)
        dmd, diagnostics = self.dmd.student_loss(turn)
        x = weigh_gradient(sample.x, sample.weight, sample.layout)
        judged = judge_losses(self.judge, decode(x), sample.condition, self.temperature(turn.update)).mean()
        loss = self.dmd_weight * dmd + self.judge_weight * judged
        diagnostics = diagnostics | {"dmd": dmd.detach(), "judge": judged.detach()}
        if self.identity_weight:
            identity = identity_losses(x, sample.condition, sample.layout).mean()
            loss = loss + self.identity_weight * identity
            diagnostics["identity"] = identity.detach()
        return loss, diagnostics

    def critic_loss(self, turn: Turn) -> tuple[Float[Tensor, ""], Diagnostics]:
        """See ``Objective.critic_loss``; the judge does not enter."""
        return self.dmd.critic_loss(turn)
