"""Proteina's times, in this package's direction: t = 0 is data; Proteina's own time is 1 - t."""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.core.schedules import TimeSampler

Schedule = Literal["log", "uniform", "power", "cos", "loglinear", "edm"]

LOG_STEPS, LOG_RANGE = 400, 2.0  # Proteina's default grid: t = 10^(-2 s / 400)
STUDENT_FIRST = 30  # step of that grid, where a student starts
ONE_STEP = 0.63  # where a student of one step starts; Proteina's 0.37
SNR_RANGE = 6.0  # decades on either side, of `loglinear`
SNR_LIMIT = 1e10
EDM_SIGMAS = (0.002, 80.0)
COS_EPS = 1e-5


@dataclass(frozen=True, kw_only=True)
class TrainingTimes(TimeSampler):
    r"""Proteina's ``mix_up02_beta``: 1 - t is Beta(power, 1), and uniform with probability ``uniform_share``.

    The density :math:`p (1 - t)^{p - 1}` has most of its mass near the data.
    """

    power: float = 1.9
    uniform_share: float = 0.02
    clamp: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if self.power <= 0 or not 0 <= self.uniform_share <= 1:
            raise ValueError(
                f"power={self.power} must be positive and uniform_share={self.uniform_share} in [0, 1]"
            )
        _check(self.clamp)

    def sample(
        self,
        batch_size: int,
        *,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
    ) -> Float[Tensor, " batch"]:
        value, choice = torch.rand(2, batch_size, generator=generator, device=device).unbind()
        t = torch.where(choice < self.uniform_share, value, 1 - value ** (1 / self.power))
        return t if self.clamp is None else t.clamp(*self.clamp)


@dataclass(frozen=True, kw_only=True)
class LogTimes(TimeSampler):
    """Times of Proteina's logarithmic grid, each of its steps as likely: where SiD compares its networks."""

    clamp: tuple[float, float] | None = (0.02, 0.98)

    def __post_init__(self) -> None:
        _check(self.clamp)

    def sample(
        self,
        batch_size: int,
        *,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
    ) -> Float[Tensor, " batch"]:
        steps = torch.randint(LOG_STEPS + 1, (batch_size,), generator=generator, device=device)
        t = log_grid_time(steps.float())
        return t if self.clamp is None else t.clamp(*self.clamp)


def log_grid_time(step: Float[Tensor, " *shape"]) -> Float[Tensor, " *shape"]:
    """From 1 at step 0 to 0.01 at step 400."""
    return 10 ** (-LOG_RANGE * step / LOG_STEPS)


def student_grid(num_steps: int) -> tuple[float, ...]:
    """The times at which a few-step student is called, from 0.708 to 0.01 (SiD's code for Proteina).

    One step is called at 0.63.
    """
    if num_steps < 1:
        raise ValueError(f"num_steps={num_steps} generates nothing; use at least 1")
    if num_steps == 1:
        return (ONE_STEP,)
    steps = torch.linspace(STUDENT_FIRST, LOG_STEPS, num_steps, dtype=torch.float64).round()
    return tuple(log_grid_time(steps).tolist())


def solver_grid(num_steps: int, schedule: Schedule = "log", *, power: float = 2.0) -> Float[Tensor, " steps"]:
    """``num_steps + 1`` times from 1 to 0 in float64, as Proteina's schedules place them.

    Args:
        num_steps: of the solver.
        schedule: ``log`` is the default of its samplers and gives every decade of t as many steps;
            ``power``, ``cos``, ``loglinear`` (in the signal-to-noise ratio) and ``edm`` are the others.
        power: decades of ``log``; exponent of ``power`` and ``cos``; rho of ``edm``.
    """
    if num_steps < 1 or power <= 0:
        raise ValueError(f"num_steps={num_steps} must be at least 1 and power={power} positive")
    u = torch.linspace(0, 1, num_steps + 1, dtype=torch.float64)
    match schedule:
        case "uniform":
            t = 1 - u
        case "power":
            t = 1 - u**power
        case "log":
            t = 10 ** (-power * u)
        case "cos":
            quarter = torch.pi / 2 * (1 - u)
            t = _time_of_snr(((quarter.cos() + COS_EPS) / (quarter.sin() + COS_EPS)) ** power)
        case "loglinear":
            t = _time_of_snr(10 ** (SNR_RANGE * (2 * u - 1)))
        case "edm":
            low, high = (sigma ** (1 / power) for sigma in EDM_SIGMAS)
            t = _time_of_snr((high + u * (low - high)) ** (-2 * power))
    return (t - t[-1]) / (t[0] - t[-1])


def _time_of_snr(snr: Tensor) -> Tensor:
    return 1 / (1 + snr.clamp(1 / SNR_LIMIT, SNR_LIMIT).sqrt())


def _check(clamp: tuple[float, float] | None) -> None:
    if clamp is not None and not clamp[0] < clamp[1]:
        raise ValueError(f"clamp={clamp} is empty; give (low, high) with low < high")
