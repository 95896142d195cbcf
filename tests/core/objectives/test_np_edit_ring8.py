"""A judge that likes the right of a ring: more mass there, and still the teacher's there."""

import copy
import math
from dataclasses import dataclass
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from fewstep.core.analytic import MixtureDenoiser
from fewstep.core.denoisers import NetworkDenoiser
from fewstep.core.objectives.contract import Sample, Turn
from fewstep.core.objectives.dmd import DMD
from fewstep.core.objectives.flow_matching import FlowMatching
from fewstep.core.objectives.np_edit import NPEdit
from fewstep.core.rewards.contract import Reward
from fewstep.core.rollouts import FewStep

ANGLES = torch.arange(8) * (2 * math.pi / 8)
CENTRES = 1.5 * torch.stack([ANGLES.cos(), ANGLES.sin()], dim=1)
STD = 0.15
TEACHER = MixtureDenoiser(centres=CENTRES, std=STD)
ONE_STEP = FewStep((1.0,))

BATCH = 256
CRITIC_STEPS = 3


class VelocityMLP(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        widths = [2 + 9, 96, 96, 96]
        layers = [layer for i, o in pairwise(widths) for layer in (nn.Linear(i, o), nn.SiLU())]
        self.layers = nn.Sequential(*layers, nn.Linear(96, 2))

    def forward(self, x_t: Tensor, t: Tensor, condition: object) -> Tensor:
        phases = t[:, None] * (math.pi / 2) * 2 ** torch.arange(4)
        return self.layers(torch.cat([x_t, t[:, None], phases.sin(), phases.cos()], dim=1))


@dataclass(frozen=True)
class LikesRight(Reward):
    """A logistic reward of the first coordinate."""

    name: str = "likes right"
    differentiable: bool = True

    def score(self, pixels: Tensor, condition: object = None) -> Tensor:
        return pixels[:, 0]


def ring(count: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    modes = torch.randint(8, (count,), generator=generator)
    return CENTRES[modes] + STD * torch.randn(count, 2, generator=generator)


def pretrained(steps: int) -> NetworkDenoiser:
    denoiser = NetworkDenoiser(VelocityMLP())
    optimiser = torch.optim.Adam(denoiser.parameters(), lr=1e-3)
    for step in range(steps):
        optimiser.param_groups[0]["lr"] = 1e-3 * max(0.01, 1 - step / steps)
        update(optimiser, FlowMatching().loss(denoiser, ring(512, 1000 + step), condition=None)[0])
    return denoiser


def update(optimiser: torch.optim.Optimizer, loss: Tensor) -> None:
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()


def distil(
    student: NetworkDenoiser, critic: NetworkDenoiser, objective: DMD | NPEdit, steps: int
) -> tuple[NetworkDenoiser, NetworkDenoiser]:
    """The average of the student's weights, and the critic."""
    torch.manual_seed(1)
    student, critic, average = copy.deepcopy(student), copy.deepcopy(critic), copy.deepcopy(student)
    of_student = torch.optim.Adam(student.parameters(), lr=2e-4, betas=(0.0, 0.999))
    of_critic = torch.optim.Adam(critic.parameters(), lr=5e-4, betas=(0.0, 0.999))
    for _ in range(steps):
        for _ in range(CRITIC_STEPS):
            with torch.no_grad():
                x = ONE_STEP.rollout(student, torch.randn(BATCH, 2), None)
            update(of_critic, objective.critic_loss(Turn(sample=Sample(x=x), critic=critic))[0])
        x = ONE_STEP.rollout(student, torch.randn(BATCH, 2), None)
        turn = Turn(sample=Sample(x=x), teacher=TEACHER, critic=critic, decode=lambda pixels: pixels)
        update(of_student, objective.student_loss(turn)[0])
        with torch.no_grad():
            for kept, new in zip(average.parameters(), student.parameters(), strict=True):
                kept.lerp_(new, 0.02)
    return average, critic


def right_half(x: Tensor) -> Tensor:
    return x[x[:, 0] > 0]


def sliced_wasserstein(x: Tensor, y: Tensor) -> float:
    size = min(len(x), len(y))
    angle = torch.arange(128) * (math.pi / 128)
    projections = torch.stack([angle.cos(), angle.sin()])
    gap = (x[:size] @ projections).sort(0).values - (y[:size] @ projections).sort(0).values
    return gap.square().mean().sqrt().item()


@pytest.mark.slow
def test_a_heavier_judge_moves_more_mass_to_its_side_and_keeps_the_teachers_shape_there() -> None:
    """T-NP-4."""
    torch.manual_seed(0)
    start = pretrained(1000)
    student, critic = distil(start, start, DMD(), 700)
    masses = []
    for weight in (0.02, 0.1, 0.5):
        objective = NPEdit(judge=LikesRight(), judge_weight=weight, identity_weight=0.0, soft=1.0)
        moved, _ = distil(student, critic, objective, 300)
        with torch.no_grad():
            x = ONE_STEP.rollout(moved, torch.randn(10_000, 2), None)
        right = right_half(x)
        masses.append(len(right) / len(x))
        assert sliced_wasserstein(right, right_half(ring(20_000, 3))) < 0.15
    assert masses[0] > 0.48
    assert masses[1] > masses[0] + 0.01
    assert masses[2] > masses[1] + 0.05
