"""Two students, each with half of a ring, against one of the same size with all of it."""

import copy
import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fewstep.core.analytic import MixtureDenoiser
from fewstep.core.denoisers import NetworkDenoiser
from fewstep.core.objectives.contract import Data, Sample, Turn
from fewstep.core.objectives.dmd import DMD
from fewstep.core.objectives.multi_student import ClassRouter, MultiStudent, TeacherScoreMatching
from fewstep.core.paths import LinearPath
from fewstep.core.rollouts import FewStep

ANGLES = torch.arange(8) * (2 * math.pi / 8)
CENTRES = 1.5 * torch.stack([ANGLES.cos(), ANGLES.sin()], dim=1)
STD = 0.15
ONE_STEP = FewStep((1.0,))

WIDTH = 24
BATCH = 256
MATCHING_STEPS = 400
STUDENT_STEPS = 250
CRITIC_STEPS = 3


class HalfRings(nn.Module):
    """The exact denoiser of the modes of one half of the ring, by its label."""

    def __init__(self) -> None:
        super().__init__()
        self.path = LinearPath()
        self.halves = [MixtureDenoiser(centres=half, std=STD) for half in CENTRES.split(4)]

    def forward(self, x_t: Tensor, t: Tensor, condition: object) -> Tensor:
        assert isinstance(condition, Tensor)
        first, second = (half(x_t, t, None) for half in self.halves)
        return torch.where(condition[:, None] == 0, first, second)


class LabelledMLP(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        widths = [2 + 9 + 2, WIDTH, WIDTH, WIDTH]
        layers = [layer for i, o in pairwise(widths) for layer in (nn.Linear(i, o), nn.SiLU())]
        self.layers = nn.Sequential(*layers, nn.Linear(WIDTH, 2))

    def forward(self, x_t: Tensor, t: Tensor, condition: object) -> Tensor:
        assert isinstance(condition, Tensor)
        phases = t[:, None] * (math.pi / 2) * 2 ** torch.arange(4)
        label = F.one_hot(condition, 2)
        return self.layers(torch.cat([x_t, t[:, None], phases.sin(), phases.cos(), label], dim=1))


Students = NetworkDenoiser | MultiStudent


def one() -> NetworkDenoiser:
    return NetworkDenoiser(LabelledMLP())


def two() -> MultiStudent:
    return MultiStudent([one(), one()], ClassRouter([[0], [1]]))


def half_rings(labels: Tensor, generator: torch.Generator) -> Tensor:
    modes = 4 * labels + torch.randint(4, (len(labels),), generator=generator)
    return CENTRES[modes] + STD * torch.randn(len(labels), 2, generator=generator)


def update(optimiser: torch.optim.Optimizer, loss: Tensor) -> None:
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()


def match_teacher(student: Students, generator: torch.Generator) -> None:
    optimiser = torch.optim.Adam(student.parameters(), lr=2e-3)
    for step in range(MATCHING_STEPS):
        optimiser.param_groups[0]["lr"] = 2e-3 * max(0.01, 1 - step / MATCHING_STEPS)
        labels = torch.randint(2, (2 * BATCH,), generator=generator)
        data = Data(x0=half_rings(labels, generator), condition=labels)
        turn = Turn(student=student, teacher=HalfRings(), data=data, generator=generator)
        update(optimiser, TeacherScoreMatching().student_loss(turn)[0])


def distil(student: Students, generator: torch.Generator) -> Students:
    """The average of the student's weights after DMD, all critics and students in one loop."""
    critic, average, objective = copy.deepcopy(student), copy.deepcopy(student), DMD()
    of_student = torch.optim.Adam(student.parameters(), lr=3e-4, betas=(0.0, 0.999))
    of_critic = torch.optim.Adam(critic.parameters(), lr=7.5e-4, betas=(0.0, 0.999))

    def turn(with_grad: bool) -> Turn:
        labels = torch.randint(2, (BATCH,), generator=generator)
        with torch.set_grad_enabled(with_grad):
            x = ONE_STEP.rollout(student, torch.randn(BATCH, 2, generator=generator), labels)
        sample = Sample(x=x, condition=labels)
        return Turn(sample=sample, teacher=HalfRings(), critic=critic, generator=generator)

    for _ in range(STUDENT_STEPS):
        for _ in range(CRITIC_STEPS):
            update(of_critic, objective.critic_loss(turn(with_grad=False))[0])
        update(of_student, objective.student_loss(turn(with_grad=True))[0])
        with torch.no_grad():
            for kept, new in zip(average.parameters(), student.parameters(), strict=True):
                kept.lerp_(new, 0.02)
    return average


def distance(student: Students) -> float:
    """Sliced Wasserstein distance between the student's ring and the teacher's."""
    labels = torch.arange(20_000) % 2
    noise = torch.randn(20_000, 2, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        x = ONE_STEP.rollout(student, noise, labels)
    angle = torch.arange(256) * (math.pi / 256)
    projections = torch.stack([angle.cos(), angle.sin()])
    real = half_rings(labels, torch.Generator().manual_seed(3))
    gap = (x @ projections).sort(0).values - (real @ projections).sort(0).values
    return gap.square().mean().sqrt().item()


def result(make: Callable[[], Students], seed: int, *, matching: bool = True) -> float:
    torch.manual_seed(seed)
    student, generator = make(), torch.Generator().manual_seed(seed + 10)
    if matching:
        match_teacher(student, generator)
    return distance(distil(student, generator))


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_two_students_with_half_a_ring_each_beat_one_of_their_size(seed: int) -> None:
    """T-MSD-3."""
    assert result(two, seed) < result(one, seed) - 0.015


@pytest.mark.slow
def test_students_that_were_never_matched_to_the_teacher_stay_behind() -> None:
    assert result(two, 0, matching=False) > result(two, 0) + 0.05
