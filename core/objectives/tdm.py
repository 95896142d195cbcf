"""Trajectory distribution matching, TDM (Luo et al., 2025, arXiv 2503.06674)."""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.core.layouts import DENSE, Layout
from fewstep.core.objectives.contract import Diagnostics, Need, Objective, Sample, Turn, given
from fewstep.core.objectives.dmd import common_path, dmd_normaliser, last_call, opinions
from fewstep.core.paths import Path

X = Float[Tensor, " *shape"]
PerSample = Float[Tensor, " batch"]
Time = Float[Tensor, " *#shape"]


def pseudo_huber(x: X, target: X, c: float) -> X:
    r""":math:`\sqrt{(x - y)^2 + c^2} - c` for each element; its gradient is at most 1 in size."""
    return ((x - target).square() + c**2).sqrt() - c


def transition_std(path: Path, s: Time, t: Time) -> Tensor:
    r"""The scale :math:`\beta` of the noise that ``path.renoise`` adds from time ``s`` on to ``t``.

    .. math:: \beta^2 = \sigma_t^2 - (\alpha_t / \alpha_s)^2 \sigma_s^2
    """
    carried = path.alpha(t) / path.alpha(s) * path.sigma(s)
    return ((path.sigma(t) - carried) * (path.sigma(t) + carried)).sqrt()


def interval_errors(x0_critic: X, x_t: X, xi: X, path: Path, s: Time, t: Time) -> X:
    r"""Denoising score matching of the step from ``s`` to ``t``: :math:`\beta\, s_{critic}(x_t) + \xi`.

    Its square is that of :math:`\hat x_0 - y`, :math:`y = (x_t - \sigma_t^2 \xi / \beta) / \alpha_t`, times
    :math:`\beta^2 \alpha_t^2 / \sigma_t^4`, written so that nothing diverges as beta goes to 0.
    """
    return transition_std(path, s, t) * path.score_from_x0(x0_critic, x_t, t) + xi


def importance_weights(eps: X, xi: X, path: Path, s: Time, t: Time, layout: Layout = DENSE) -> PerSample:
    r""":math:`e^{-\langle n^2 \rangle / 2} / e^{-\langle \xi^2 \rangle / 2}`, where n is all noise in x_t.

    .. math:: n = \left(\tfrac{\alpha_t}{\alpha_s} \sigma_s \hat\epsilon + \beta \xi\right) / \sigma_t

    The exponents are means over elements, so that this is a tempered ratio of densities.
    """
    carried = path.alpha(t) / path.alpha(s) * path.sigma(s)
    noise = (carried * eps + transition_std(path, s, t) * xi) / path.sigma(t)
    return (0.5 * (layout.mean(xi.square()) - layout.mean(noise.square()))).exp()


@dataclass(frozen=True)
class Transition:
    """A student's step to :math:`x_s`, diffused on to t in (s, end of its interval); no gradient.

    ``s`` and ``t`` are [B]; ``eps`` is the noise that the student's prediction implies, ``xi`` the fresh one.
    """

    x_t: Tensor
    s: PerSample
    t: PerSample
    eps: Tensor
    xi: Tensor


@dataclass(frozen=True, kw_only=True)
class TDM(Objective):
    r"""Match the student's distribution at every step of its trajectory, each on an interval of its own.

    A step from :math:`t_k` predicts :math:`\hat x_0` and implies :math:`\hat\epsilon`; its end is
    :math:`x_s = \alpha_s \hat x_0 + \sigma_s \hat\epsilon` at the next time s, which is diffused on to
    :math:`t \in (s, t_k)`. There critic and teacher differ, and :math:`\hat x_0` moves by that:

    .. math:: L = \left\langle \sqrt{(\hat x_0 - sg[\hat x_0 + D_{teacher} - D_{critic}])^2 + c^2} - c
        \right\rangle

    with a guided teacher (the paper's extra guidance term is what ``Guided`` adds). The intervals are
    disjoint, so that one critic without a step condition serves all steps. Meant for rollouts that are
    deterministic, ``FewStep(renoise="ddim")``, and for a critic updated once per update of the student.

    Args:
        distance: ``huber`` is the paper's, by element; ``mse`` the squared distance without its factor 1/2.
        c: of the Huber distance; the paper's is 0.00054 times the square root of a sample's size, the
            released code's this constant; its authors found the choice not to matter.
        normalise: divide by DMD's normaliser, as the released code does; ``mse`` needs it.
        target: what the critic regresses on. ``official`` is the paper's :math:`\hat x_0`, with weight
            min(SNR, ``max_snr``). Its minimiser :math:`E[\hat x_0 | x_t]` is the denoiser of :math:`p_t` only
            where the noise of x_s is independent of x_0, which it is not in a deterministic chain: except on
            the last interval, that critic is biased. ``corrected`` regresses on the score of the known step
            from s to t (``interval_errors``), whose minimiser is exact.
        importance: multiply the ``official`` weights by ``importance_weights``.
        max_snr: of the ``official`` weights.
        intervals: ``separate`` draws t below :math:`t_k`; ``nested`` below ``end`` for every step, for a
            critic whose condition tells the step.
        low: the least t. 20 of 1000 in the released code.
        margin: how far t stays below its upper end. 10 of 1000 in the released code.
        end: the student's first time. 0.9 in the released README.
    """

    distance: Literal["huber", "mse"] = "huber"
    c: float = 1e-3
    normalise: bool = False
    target: Literal["corrected", "official"] = "corrected"
    importance: bool = True
    max_snr: float = 5.0
    intervals: Literal["separate", "nested"] = "separate"
    low: float = 0.02
    margin: float = 0.01
    end: float = 1.0

    def __post_init__(self) -> None:
        if self.c <= 0 or self.max_snr <= 0 or self.margin < 0 or not 0 < self.low < self.end <= 1:
            raise ValueError(
                f"c={self.c} and max_snr={self.max_snr} must be positive, margin={self.margin} at least 0, "
                f"and 0 < low={self.low} < end={self.end} <= 1"
            )

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset({"teacher", "critic", "sample"})

    def student_loss(self, turn: Turn) -> tuple[Float[Tensor, ""], Diagnostics]:
        """See ``Objective.student_loss``; needs the sample's last call."""
        sample, path = given(turn.sample, "sample", self), common_path(turn, self)
        layout, x = sample.layout, sample.x.to(torch.promote_types(sample.x.dtype, torch.float32))
        step = self.transition(turn, sample, path)
        x0_teacher, x0_critic = opinions(turn, step.x_t, step.t, self)
        gap = x0_critic - x0_teacher
        target = (x - gap).detach()
        errors = (x - target).square() if self.distance == "mse" else pseudo_huber(x, target, self.c)
        losses = layout.mean(errors if sample.weight is None else layout.expand(sample.weight, x) * errors)
        normaliser = dmd_normaliser(x.detach(), x0_teacher, layout)
        if self.normalise:
            losses = losses / normaliser
        return losses.mean(), {
            "gap_rms": layout.mean(gap.square()).mean().sqrt(),
            "normaliser": normaliser.mean(),
        }

    def critic_loss(self, turn: Turn) -> tuple[Float[Tensor, ""], Diagnostics]:
        """See ``Objective.critic_loss``; needs the sample's last call."""
        sample, critic = given(turn.sample, "sample", self), given(turn.critic, "critic", self)
        layout, path = sample.layout, critic.path
        step = self.transition(turn, sample, path)
        x0 = critic(step.x_t, layout.times(step.t), sample.condition)
        precise = torch.promote_types(x0.dtype, torch.float32)
        x0, x, x_t, xi = (value.to(precise) for value in (x0, sample.x.detach(), step.x_t, step.xi))
        s, t = layout.expand(step.s, x), layout.expand(step.t, x)
        diagnostics = {"x0_error_rms": layout.mean((x0.detach() - x).square()).mean().sqrt()}
        if self.target == "corrected":
            errors = interval_errors(x0, x_t, xi, path, s, t)
            return layout.mean(errors.square()).mean(), diagnostics
        weight = path.eta(step.t).pow(-2).clamp(max=self.max_snr)
        if self.importance:
            weight = weight * importance_weights(step.eps, xi, path, s, t, layout)
        return (weight * layout.mean((x0 - x).square())).mean(), diagnostics

    @torch.no_grad()
    def transition(self, turn: Turn, sample: Sample, path: Path) -> Transition:
        """The end of the sample's last step, diffused to a random time of its interval."""
        layout, x, call = sample.layout, sample.x.detach(), last_call(sample, self)
        upper = call.t if self.intervals == "separate" else torch.full_like(call.t, self.end)
        low, high = call.t_next.clamp(min=self.low), upper - self.margin
        if not bool((low < high).all()):
            raise ValueError(
                f"no time lies between {low.max():.3g} and {high.min():.3g}; lower margin={self.margin} or "
                f"low={self.low}, or space the student's times further apart"
            )
        t = low + (high - low) * turn.uniform(layout.batch_size(x), x.device).to(call.t.dtype)
        s = call.t_next
        eps = path.eps_from_x0(x, call.x_t, layout.expand(call.t, x))
        x_s = path.add_noise(x, eps, layout.expand(s, x))
        xi = turn.noise_like(x)
        x_t = path.renoise(x_s, layout.expand(s, x), layout.expand(t, x), xi)
        return Transition(x_t=x_t, s=s, t=t, eps=eps, xi=xi)
