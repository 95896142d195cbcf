"""Denoising regression: flow matching (Lipman et al., 2023), eps- and x0-matching."""

import math
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.core.denoisers import Condition, Denoiser
from fewstep.core.layouts import DENSE, Layout
from fewstep.core.objectives.contract import Diagnostics, Turn
from fewstep.core.schedules import TimeSampler, UniformTimes

Space = Literal["velocity", "eps", "x0"]

LOWEST_TIME = (
    1e-3  # at t = 0 a velocity or an eps cannot be told from x_t; 1 / 1000 is the finest discrete step
)


@dataclass(frozen=True, kw_only=True)
class FlowMatching:
    r"""Regress a denoiser on samples noised to random times; trains teachers on data and critics on students.

    .. math:: L = E_{t, \epsilon} \| \hat y(x_t, t) - y \|^2, \quad x_t = \alpha_t x_0 + \sigma_t \epsilon

    with y in ``space``: the velocity :math:`\dot\alpha x_0 + \dot\sigma \epsilon`, ``eps`` or ``x0``. All are
    read off one :math:`\hat x_0` at the same :math:`x_t`, so the error is that of :math:`\hat x_0` times the
    factor between the spaces: 1 / t for velocities on the linear path.

    Args:
        block: None for one time per sample, t [B]. A number gives every so many entries of the second axis
            (frames) a time of their own, t [B, F], as in diffusion forcing (Chen et al., 2024).
    """

    times: TimeSampler = field(default_factory=lambda: UniformTimes(low=LOWEST_TIME))
    space: Space = "velocity"
    block: int | None = None

    def __post_init__(self) -> None:
        if self.block is not None and self.block < 1:
            raise ValueError(f"block={self.block} must be at least 1, or None for one time per sample")

    def loss(
        self,
        denoiser: Denoiser,
        x0: Float[Tensor, " *shape"],
        *,
        condition: Condition,
        generator: torch.Generator | None = None,
        layout: Layout = DENSE,
    ) -> tuple[Float[Tensor, ""], Diagnostics]:
        """``loss_in`` a turn that holds no more than a source of random numbers."""
        return self.loss_in(Turn(generator=generator), denoiser, x0, condition=condition, layout=layout)

    def loss_in(
        self,
        turn: Turn,
        denoiser: Denoiser,
        x0: Float[Tensor, " *shape"],
        *,
        condition: Condition,
        layout: Layout = DENSE,
    ) -> tuple[Float[Tensor, ""], Diagnostics]:
        """The mean over batch and elements, with the times and noise of ``turn``; ``x0`` is detached."""
        x0 = x0.detach()
        t, eps = self._times(turn, x0, layout), turn.noise_like(x0)
        error = denoising_error(denoiser, x0, eps, t, condition, layout=layout)
        scale = layout.expand(denoiser.path.error_scale(t, self.space), x0)
        loss = layout.mean((scale * error).square()).mean()
        return loss, {"x0_error_rms": layout.mean(error.detach().square()).mean().sqrt()}

    def _times(self, turn: Turn, x0: Tensor, layout: Layout) -> Tensor:
        if self.block is None:
            return turn.times(self.times, x0, layout)
        if layout.batch_size(x0) != len(x0):
            raise ValueError(
                f"block={self.block} gives frames times of their own, and packed samples of shape "
                f"{tuple(x0.shape)} have none; set block to None"
            )
        batch, frames = x0.shape[:2]
        blocks = math.ceil(frames / self.block)
        t = self.times.sample(batch * blocks, generator=turn.generator, device=x0.device)
        return t.view(batch, blocks).repeat_interleave(self.block, dim=1)[:, :frames]


def denoising_error(
    denoiser: Denoiser,
    x0: Float[Tensor, " *shape"],
    eps: Float[Tensor, " *shape"],
    t: Float[Tensor, " batch *leading"],
    condition: Condition,
    *,
    layout: Layout = DENSE,
) -> Float[Tensor, " *shape"]:
    """The denoiser's ``x0_hat - x0`` for given noise and times, in float32 or better."""
    x_t = denoiser.path.add_noise(x0, eps, layout.expand(t, x0))
    # a time per frame already has the shape in which denoisers take it
    x0_hat = denoiser(x_t, layout.times(t) if t.ndim == 1 else t, condition)
    precise = torch.promote_types(x0.dtype, torch.float32)
    return x0_hat.to(precise) - x0.to(precise)
