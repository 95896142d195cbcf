"""Turns of MDT at given points, the student that it asks for, and one whose derivatives are known."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn

from fewstep.core.analytic import GaussianDenoiser
from fewstep.core.denoisers import Denoiser
from fewstep.core.layouts import append_dims
from fewstep.core.objectives.contract import Data, Turn
from fewstep.core.objectives.mdt import MDT
from fewstep.core.paths import Path
from tests.core.objectives.known_numbers import FixedTimes

MEAN, STD = 1.3, 0.7
TEACHER = GaussianDenoiser(mean=MEAN, std=STD)

Derivative = Literal["jvp", "difference"]
every_derivative = pytest.mark.parametrize("derivative", ["jvp", "difference"])


@dataclass(frozen=True)
class ExactAverage:
    """The student that velocity matching asks for: its velocity leads to the end of the teacher's flow."""

    gaussian: GaussianDenoiser = TEACHER

    @property
    def path(self) -> Path:
        return self.gaussian.path

    def __call__(self, x_t: Tensor, t: Tensor, condition: object) -> Tensor:
        time = append_dims(t, x_t)
        average = (x_t - self.gaussian.transport(x_t, time, torch.zeros_like(time))) / time
        return self.path.x0_from_velocity(average, x_t, time)


@dataclass(frozen=True, kw_only=True)
class GivenTurn(Turn):
    """A turn whose noises are known, one after another."""

    noises: Sequence[Tensor]
    drawn: list[int] = field(default_factory=list)

    def noise_like(self, x: Tensor) -> Tensor:
        self.drawn.append(1)
        return self.noises[len(self.drawn) - 1]


def turn_at(
    x_t: Tensor, t: float, *, student: Denoiser, teacher: Denoiser = TEACHER, z: Tensor | None = None
) -> GivenTurn:
    """A turn whose data, once noised to t, is ``x_t``; ``z`` is the noise of one-step samples."""
    x0 = torch.full_like(x_t, 0.2)
    time = torch.full_like(x_t, t)
    eps = (x_t - teacher.path.alpha(time) * x0) / teacher.path.sigma(time)
    noises = [eps] if z is None else [eps, z]
    return GivenTurn(student=student, teacher=teacher, data=Data(x0=x0), noises=noises)


def matching(t: float, derivative: Derivative = "jvp", *, low: float = 0.0, **settings: Any) -> MDT:
    """Velocity matching alone, at the one time ``t``."""
    low = low + (0.01 if derivative == "difference" else 0.0)
    settings = {"lambda_vd": 0.0, **settings}
    return MDT(derivative=derivative, times=FixedTimes(((t - low) / (1 - low),)), **settings)


class Polynomial(nn.Module):
    """A velocity whose derivatives are known: (a + b t + c t^2) x + d t."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.tensor([0.4, -0.7, 0.3, 0.9], dtype=torch.float64))

    def forward(self, x_t: Tensor, t: Tensor, condition: object) -> Tensor:
        a, b, c, d = self.weights
        time = append_dims(t, x_t)
        return (a + b * time + c * time**2) * x_t + d * time


def by_hand(network: Polynomial, x_t: Tensor, t: float, velocity: Tensor) -> tuple[Tensor, Tensor]:
    """The average velocity with its gradient, and the residual, from the paper's formula."""
    a, b, c, d = network.weights.tolist()
    average = network(x_t, torch.full((len(x_t),), t, dtype=torch.float64), None)
    d_dx, d_dt = a + b * t + c * t**2, (b + 2 * c * t) * x_t + d
    return average, average.detach() - (velocity - t * (d_dx * velocity + d_dt))
