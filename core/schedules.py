"""Time grids for solvers and students, and distributions of training times."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.core.paths import LinearPath, Path

Number = TypeVar("Number", float, Tensor)


def shift(t: Number, scale: float) -> Number:
    r"""Time shift :math:`S t / (1 + (S - 1) t)` (Esser et al., 2024): on the linear path eta becomes S eta.

    Keeps 0 and 1; ``scale`` 1 is the identity. Wan and Stable Diffusion 3 use 3 to 8.
    """
    _check_shift(scale)
    return scale * t / (1 + (scale - 1) * t)


def uniform_grid(num_steps: int, *, scale: float = 1.0) -> Float[Tensor, " steps"]:
    """``num_steps + 1`` solver times from 1 to 0 in float64, evenly spaced and then shifted by ``scale``."""
    return shift(torch.linspace(1, 0, num_steps + 1, dtype=torch.float64), scale)


def karras_grid(
    num_steps: int,
    *,
    path: Path | None = None,
    eta_min: float = 0.002,
    eta_max: float = 80.0,
    rho: float = 7.0,
) -> Float[Tensor, " steps"]:
    """``num_steps + 1`` solver times whose noise-to-signal ratios follow Karras et al. (2022, eq. 5), then 0.

    Starts at ``eta_max``, which on the linear path is the time 80 / 81 and not 1.
    """
    if num_steps < 2:
        raise ValueError(f"num_steps={num_steps} does not span eta_max to eta_min; use at least 2")
    ramp = torch.linspace(0, 1, num_steps, dtype=torch.float64)
    eta = (eta_max ** (1 / rho) + ramp * (eta_min ** (1 / rho) - eta_max ** (1 / rho))) ** rho
    times = (path or LinearPath()).time_of_eta(eta)
    return torch.cat([times, times.new_zeros(1)])


def step_grid(num_steps: int, shift_scale: float = 1.0) -> tuple[float, ...]:
    """The times at which a student of ``num_steps`` steps is called: descending from 1.0, no trailing 0.

    ``step_grid(4, 5.0)`` is Self-Forcing's warped list [1000, 937.5, 833.3, 625] over 1000.
    """
    if num_steps < 1:
        raise ValueError(f"num_steps={num_steps} generates nothing; use at least 1")
    return tuple(shift(1 - step / num_steps, shift_scale) for step in range(num_steps))


def table_time(t: Float[Tensor, " *shape"], *, scale: float, size: int = 1000) -> Float[Tensor, " *shape"]:
    """The nearest entry of the shifted table that Self-Forcing's released code looks times up in.

    For parity with that code only: the table ends above 0, so t = 0 becomes 0.00498 at scale 5.
    """
    table = shift(1 - torch.arange(size, dtype=torch.float64, device=t.device) / size, scale)
    nearest = (table - t.double()[..., None]).abs().argmin(-1)
    return table[nearest].to(t.dtype)


class TimeSampler(ABC):
    """A distribution of training times."""

    @abstractmethod
    def sample(
        self,
        batch_size: int,
        *,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
    ) -> Float[Tensor, " batch"]:
        """Independent times, float32, on ``device``, which must be the generator's."""


def _check_shift(scale: float) -> None:
    if scale <= 0:
        raise ValueError(f"shift={scale} must be positive; 1 leaves times as they are")


def _check(scale: float, clamp: tuple[float, float] | None) -> None:
    _check_shift(scale)
    if clamp is not None and not clamp[0] < clamp[1]:
        raise ValueError(f"clamp={clamp} is empty; give (low, high) with low < high")


def _shift_and_clamp(t: Tensor, scale: float, clamp: tuple[float, float] | None) -> Tensor:
    shifted = shift(t, scale)
    return shifted if clamp is None else shifted.clamp(*clamp)


@dataclass(frozen=True, kw_only=True)
class UniformTimes(TimeSampler):
    """Uniform on [low, high), then shifted, then clamped.

    DMD2 draws on (0.02, 0.98) without a shift; Self-Forcing draws on (0, 1), shifts by 5 and clamps to
    (0.02, 0.98), so that a tenth of its times is 0.98 exactly.
    """

    low: float = 0.0
    high: float = 1.0
    shift: float = 1.0
    clamp: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.low < self.high <= 1:
            raise ValueError(f"low={self.low}, high={self.high} must satisfy 0 <= low < high <= 1")
        _check(self.shift, self.clamp)

    def sample(
        self,
        batch_size: int,
        *,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
    ) -> Float[Tensor, " batch"]:
        uniform = torch.rand(batch_size, generator=generator, device=device, dtype=torch.float32)
        return _shift_and_clamp(self.low + (self.high - self.low) * uniform, self.shift, self.clamp)


@dataclass(frozen=True, kw_only=True)
class LogitNormalTimes(TimeSampler):
    """The sigmoid of a normal variable (Esser et al., 2024), then shifted, then clamped."""

    mean: float = 0.0
    std: float = 1.0
    shift: float = 1.0
    clamp: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if self.std <= 0:
            raise ValueError(f"std={self.std} must be positive")
        _check(self.shift, self.clamp)

    def sample(
        self,
        batch_size: int,
        *,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
    ) -> Float[Tensor, " batch"]:
        normal = torch.randn(batch_size, generator=generator, device=device, dtype=torch.float32)
        return _shift_and_clamp((self.mean + self.std * normal).sigmoid(), self.shift, self.clamp)
