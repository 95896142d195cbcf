"""Times and noises that a test gives."""

from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.core.objectives.contract import Turn
from fewstep.core.schedules import TimeSampler


@dataclass(frozen=True)
class FixedTimes(TimeSampler):
    """The given times over and over, in float64."""

    values: tuple[float, ...]

    def sample(
        self,
        batch_size: int,
        *,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
    ) -> Tensor:
        values = torch.tensor(self.values, dtype=torch.float64)
        return values.repeat(-(-batch_size // len(values)))[:batch_size]


@dataclass(frozen=True, kw_only=True)
class GivenNoise(Turn):
    """A turn whose noise is known."""

    eps: Tensor

    def noise_like(self, x: Tensor) -> Tensor:
        return self.eps
