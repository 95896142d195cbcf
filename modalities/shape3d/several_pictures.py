"""One object from several pictures of it, by a flow that was trained on one at a time."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fewstep.core.denoisers import Condition, Denoiser
from fewstep.core.paths import Path
from fewstep.core.samplers import Times


@dataclass(frozen=True, eq=False)
class Several:
    """Conditions of which a sample is to fit all.

    Args:
        conditions: each as the denoiser takes it.
        how: "mean" averages what the denoiser says to each, at its cost for each; "turns" asks about one at
            every step, one after another, at the cost of one.
    """

    conditions: tuple[Condition, ...]
    how: Literal["mean", "turns"] = "mean"

    def __post_init__(self) -> None:
        if not self.conditions:
            raise ValueError("conditions=() says nothing; give at least one")

    @property
    def per_step(self) -> int:
        """Conditions that are asked about at every step."""
        return len(self.conditions) if self.how == "mean" else 1

    def map(self, function: Callable[[Condition], Condition]) -> "Several":
        """What a function makes of each."""
        return Several(tuple(function(one) for one in self.conditions), self.how)


class OverSeveral(nn.Module):
    """A denoiser that also takes `Several`; any other condition, such as that of nothing, passes as it is.

    Args:
        denoiser: of one condition.
        times: of the sampler's steps, by which turns are counted.
    """

    times: Tensor

    def __init__(self, denoiser: Denoiser, times: Times) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.register_buffer("times", torch.as_tensor(times, dtype=torch.float64), persistent=False)

    @property
    def path(self) -> Path:
        return self.denoiser.path

    def forward(
        self, x_t: Float[Tensor, " row *event"], t: Float[Tensor, " row"], condition: Condition
    ) -> Float[Tensor, " row *event"]:
        if not isinstance(condition, Several):
            return self.denoiser(x_t, t, condition)
        if condition.how == "turns":
            step = int((self.times - t.flatten()[0]).abs().argmin())
            return self.denoiser(x_t, t, condition.conditions[step % len(condition.conditions)])
        return torch.stack([self.denoiser(x_t, t, one) for one in condition.conditions]).mean(0)
