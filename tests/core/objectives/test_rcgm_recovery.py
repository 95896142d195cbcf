"""RCGM: where affine students end, in one step and in two."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from fewstep.core.analytic import GaussianDenoiser
from fewstep.core.denoisers import NetworkFlowMap
from fewstep.core.objectives.contract import Data, Turn
from fewstep.core.objectives.rcgm import RCGM
from tests.core.objectives.legendre import legendre

MEAN, STD = 1.3, 0.7
TEACHER = GaussianDenoiser(mean=MEAN, std=STD)


class AffineFlow(nn.Module):
    """An average velocity a(t, r) x + b(t, r) with x in units of the width of the data's x_t."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.zeros(16, 2))

    def forward(self, x_t: Tensor, t: Tensor, condition: object, r: Tensor) -> Tensor:
        basis = (legendre(t, 3)[:, :, None] * legendre(t - r, 3)[:, None]).flatten(1)
        a, b = (basis @ self.weights).unbind(1)
        scaled = (x_t - (1 - t[:, None]) * MEAN) / TEACHER.variance(t[:, None]).sqrt()
        return a[:, None] * scaled + b[:, None]


def recovered(objective: RCGM, *, fault: str | None = None, steps: int = 400) -> list[tuple[float, float]]:
    """Mean and width of a student's samples in one and in two steps; it starts at the velocity 0."""
    network, average = AffineFlow(), AffineFlow()
    student, target = NetworkFlowMap(network), NetworkFlowMap(average)
    generator = torch.Generator().manual_seed(0)
    optimiser = torch.optim.Adam(network.parameters(), lr=2e-2, betas=(0.9, 0.99))
    for step in range(steps):
        optimiser.param_groups[0]["lr"] = 2e-2 * (1 - step / steps)
        x0 = MEAN + STD * torch.randn(384, 1, generator=generator)
        turn = Turn(student=student, target=target, teacher=TEACHER, data=Data(x0=x0), generator=generator)
        optimiser.zero_grad()
        objective.student_loss(turn)[0].backward()
        optimiser.step()
        with torch.no_grad():
            average.weights.lerp_(network.weights, 0.0 if fault == "stale average" else 0.1)
    found = []
    for times in ((1.0, 0.0), (1.0, 0.5, 0.0)):
        x = torch.randn(20_000, 1, generator=generator)
        for t, r in pairwise(times):
            x = x - (t - r) * student.average_velocity(
                x, torch.full((20_000,), t), torch.full((20_000,), r), None
            )
        found.append((x.mean().item(), x.std().item()))
    return found


def test_an_affine_student_recovers_the_teacher_in_one_and_in_two_steps() -> None:
    for found in recovered(RCGM(source="teacher")):
        assert found == pytest.approx((MEAN, STD), rel=0.04)


@pytest.mark.slow
def test_an_affine_student_recovers_the_data_without_a_teacher() -> None:
    for found in recovered(RCGM(), steps=1200):
        assert found == pytest.approx((MEAN, STD), rel=0.03)


def test_a_running_average_that_never_moves_does_not_get_there() -> None:
    """The control: the recursion must see what the student has learnt."""
    mean, _ = recovered(RCGM(source="teacher"), fault="stale average")[0]
    assert abs(mean - MEAN) > 0.5
