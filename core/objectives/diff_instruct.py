"""Diff-Instruct (Luo et al., 2023, arXiv 2305.18455)."""

from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.core.layouts import DENSE, Layout
from fewstep.core.objectives.contract import Diagnostics, Need, Objective, Turn, given
from fewstep.core.objectives.dmd import common_path, kl_direction, opinions
from fewstep.core.objectives.flow_matching import FlowMatching
from fewstep.core.paths import LinearPath, Path
from fewstep.core.schedules import TimeSampler

X = Float[Tensor, " *shape"]


@dataclass(frozen=True, kw_only=True)
class LogNormalSigmas(TimeSampler):
    """Times whose noise-to-signal ratio is log-normal, EDM's training distribution (Karras et al., 2022).

    On the linear path that is ``LogitNormalTimes`` of the same numbers.
    """

    mean: float = -1.2
    std: float = 1.2
    path: Path = field(default_factory=LinearPath)

    def __post_init__(self) -> None:
        if self.std <= 0:
            raise ValueError(f"std={self.std} must be positive")

    def sample(
        self,
        batch_size: int,
        *,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
    ) -> Float[Tensor, " batch"]:
        normal = torch.randn(batch_size, generator=generator, device=device, dtype=torch.float32)
        return self.path.time_of_eta((self.mean + self.std * normal).exp())


def linear_surrogate(
    x: X, direction: X, layout: Layout = DENSE, *, weight: Tensor | None = None
) -> Float[Tensor, ""]:
    r""":math:`\langle sg[d], x \rangle` over batch size and number of elements.

    Its gradient in ``x`` is that of ``pseudo_target_loss``; its value says nothing.
    """
    product = direction.detach() * x
    return layout.mean(product if weight is None else layout.expand(weight, x) * product).mean()


@dataclass(frozen=True, kw_only=True)
class DiffInstruct(Objective):
    r"""Descend the integral KL divergence of student and teacher over all noise levels.

    .. math:: \nabla_\theta IKL
        = E_t\, w_t\, E\left[(s_{critic} - s_{teacher})\, \alpha_t \frac{\partial x}{\partial\theta}\right]
        = E_t\, w_t \frac{\alpha_t^2}{\sigma_t^2}\,
          E\left[(\hat x_0^{critic} - \hat x_0^{teacher}) \frac{\partial x}{\partial\theta}\right]

    What distinguishes it from DMD, which came later: no normaliser, so that the gradient vanishes with the
    gap; one log-normal distribution of noise levels for student and critic; a loss linear in x. The released
    code also sums over elements where this is their mean, gives teacher and critic the same dropout, and
    weighs the critic's regression by EDM's lambda(sigma). Here teachers do not drop out, and ``regression``
    is flow matching: on the linear path its weight is that lambda at sigma_data = 1 within a factor of 2.

    Args:
        times: of the noise at which student and teacher are compared; one per sample.
        weighting: ``x0`` is the released code's: the bare difference of the two predictions, that is
            :math:`w_t = \sigma_t^2 / \alpha_t^2`. ``kl`` is :math:`w_t = 1`, which diverges towards t = 0.
        regression: the critic's loss.
    """

    times: TimeSampler = field(default_factory=LogNormalSigmas)
    weighting: Literal["x0", "kl"] = "x0"
    regression: FlowMatching = field(default_factory=lambda: FlowMatching(times=LogNormalSigmas()))

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset({"teacher", "critic", "sample"})

    def student_loss(self, turn: Turn) -> tuple[Float[Tensor, ""], Diagnostics]:
        """See ``Objective.student_loss``."""
        sample, path = given(turn.sample, "sample", self), common_path(turn, self)
        layout, x = sample.layout, sample.x
        t, eps = turn.times(self.times, x, layout), turn.noise_like(x)
        x_t = path.add_noise(x.detach(), eps, layout.expand(t, x))
        x0_teacher, x0_critic = opinions(turn, x_t, t, self)
        direction = x0_critic - x0_teacher
        if self.weighting == "kl":
            direction = kl_direction(x0_teacher, x0_critic, path, t, layout)
        loss = linear_surrogate(x.to(direction.dtype), direction, layout, weight=sample.weight)
        return loss, {
            "gap_rms": layout.mean((x0_critic - x0_teacher).square()).mean().sqrt(),
            "direction_rms": layout.mean(direction.square()).mean().sqrt(),
        }

    def critic_loss(self, turn: Turn) -> tuple[Float[Tensor, ""], Diagnostics]:
        """See ``Objective.critic_loss``."""
        sample, critic = given(turn.sample, "sample", self), given(turn.critic, "critic", self)
        return self.regression.loss_in(
            turn, critic, sample.x, condition=sample.condition, layout=sample.layout
        )
