"""Recovery: few-step students of an analytic teacher, eight modes on a ring; controls that must fail."""

import copy
import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import pytest
import torch
from torch import Tensor, nn

from fewstep.core.analytic import MixtureDenoiser
from fewstep.core.denoisers import NetworkDenoiser
from fewstep.core.objectives.contract import Sample, Turn
from fewstep.core.objectives.dmd import DMD
from fewstep.core.objectives.flow_matching import FlowMatching
from fewstep.core.rollouts import FewStep

ANGLES = torch.arange(8) * (2 * math.pi / 8)
CENTRES = 1.5 * torch.stack([ANGLES.cos(), ANGLES.sin()], dim=1)
STD = 0.15
TEACHER = MixtureDenoiser(centres=CENTRES, std=STD)

BATCH = 512
PRETRAINING_STEPS = 1500
STUDENT_STEPS = 900
CRITIC_STEPS = 5
EMA_DECAY = 0.99

Fault = Literal["flipped", "frozen critic"]


class VelocityMLP(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        widths = [2 + 9, 128, 128, 128]
        layers = [layer for i, o in pairwise(widths) for layer in (nn.Linear(i, o), nn.SiLU())]
        self.layers = nn.Sequential(*layers, nn.Linear(128, 2))

    def forward(self, x_t: Tensor, t: Tensor, condition: object) -> Tensor:
        phases = t[:, None] * (math.pi / 2) * 2 ** torch.arange(4)
        return self.layers(torch.cat([x_t, t[:, None], phases.sin(), phases.cos()], dim=1))


def ring(count: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    modes = torch.randint(8, (count,), generator=generator)
    return CENTRES[modes] + STD * torch.randn(count, 2, generator=generator)


def linear_decay(optimiser: torch.optim.Optimizer, total: int) -> torch.optim.lr_scheduler.LambdaLR:
    return torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: max(0.01, 1 - step / total))


@pytest.fixture(scope="module")
def pretrained() -> NetworkDenoiser:
    """A network regressed on the teacher, the start of student and critic."""
    torch.manual_seed(0)
    denoiser = NetworkDenoiser(VelocityMLP())
    optimiser = torch.optim.Adam(denoiser.parameters(), lr=1e-3)
    decay = linear_decay(optimiser, PRETRAINING_STEPS)
    for step in range(PRETRAINING_STEPS):
        loss, _ = FlowMatching().loss(denoiser, ring(BATCH, 1000 + step), condition=None)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        decay.step()
    return denoiser


def distil(pretrained: NetworkDenoiser, rollout: FewStep, fault: Fault | None = None) -> NetworkDenoiser:
    """The average of a student's weights after DMD with five critic steps to one."""
    torch.manual_seed(1)
    student, critic, average = (copy.deepcopy(pretrained) for _ in range(3))
    objective = DMD()
    student_optimiser = torch.optim.Adam(student.parameters(), lr=2e-4, betas=(0.0, 0.999))
    critic_optimiser = torch.optim.Adam(critic.parameters(), lr=5e-4, betas=(0.0, 0.999))
    for _ in range(STUDENT_STEPS):
        for _ in range(0 if fault == "frozen critic" else CRITIC_STEPS):
            with torch.no_grad():
                x = rollout.rollout(student, torch.randn(BATCH, 2), None, exit_step=rollout.draw_exit_step())
            loss, _ = objective.critic_loss(Turn(sample=Sample(x=x), critic=critic))
            critic_optimiser.zero_grad()
            loss.backward()
            critic_optimiser.step()
        x = rollout.rollout(student, torch.randn(BATCH, 2), None, exit_step=rollout.draw_exit_step())
        loss, _ = objective.student_loss(Turn(sample=Sample(x=x), teacher=TEACHER, critic=critic))
        student_optimiser.zero_grad()
        (-loss if fault == "flipped" else loss).backward()
        student_optimiser.step()
        with torch.no_grad():
            for kept, new in zip(average.parameters(), student.parameters(), strict=True):
                kept.lerp_(new, 1 - EMA_DECAY)
    return average


@dataclass(frozen=True)
class Quality:
    sliced_wasserstein: float
    min_mode: float
    in_mode: float


def quality(student: NetworkDenoiser, rollout: FewStep, count: int = 20_000) -> Quality:
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        x = rollout.rollout(student, torch.randn(count, 2, generator=generator), None, generator=generator)
    angle = torch.arange(256) * (math.pi / 256)
    projections = torch.stack([angle.cos(), angle.sin()])
    gap = (x @ projections).sort(0).values - (ring(count, 3) @ projections).sort(0).values
    distance, mode = torch.cdist(x, CENTRES).min(1)
    return Quality(
        sliced_wasserstein=gap.square().mean().sqrt().item(),
        min_mode=mode.bincount(minlength=8).min().item() / count,
        in_mode=(distance < 4 * STD).double().mean().item(),
    )


ONE_STEP = FewStep((1.0,))
FOUR_STEPS = FewStep((1.0, 0.75, 0.5, 0.25))


@pytest.mark.slow
def test_one_step_from_the_teachers_weights_is_no_sample(pretrained: NetworkDenoiser) -> None:
    assert quality(pretrained, ONE_STEP).sliced_wasserstein > 0.8


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rollout", "limit"), [(ONE_STEP, 0.11), (FOUR_STEPS, 0.15)], ids=["1 step", "4 steps"]
)
def test_students_recover_all_modes(pretrained: NetworkDenoiser, rollout: FewStep, limit: float) -> None:
    result = quality(distil(pretrained, rollout), rollout)
    assert result.sliced_wasserstein < limit
    assert result.min_mode > 0.09  # 0.125 is even
    assert result.in_mode > 0.9


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["flipped", "frozen critic"])
def test_broken_distillation_does_not_pass(pretrained: NetworkDenoiser, fault: Fault) -> None:
    result = quality(distil(pretrained, ONE_STEP, fault), ONE_STEP)
    assert not result.sliced_wasserstein < 0.3
