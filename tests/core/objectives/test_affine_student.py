"""End to end: G(z) = mu + v z must become N(1.3, 0.7^2), and faulty training must not get there."""

from collections.abc import Callable
from typing import Literal

import pytest
import torch
from torch import Tensor, nn

from fewstep.core.analytic import GaussianDenoiser
from fewstep.core.denoisers import Denoiser
from fewstep.core.objectives.contract import Sample, Turn
from fewstep.core.objectives.dmd import DMD
from fewstep.core.objectives.re_dmd import ReDMD
from fewstep.core.rewards.contract import Reward

Weighting = Literal["normalised", "kl", "none"]
MEAN, STD = 1.3, 0.7
TEACHER = GaussianDenoiser(mean=MEAN, std=STD)
BATCH, COPIES = 512, 8  # each sample holds independent copies, so that the normaliser is a mean of several
STEPS = 600

every_weighting = pytest.mark.parametrize("weighting", ["normalised", "kl", "none"])


class GaussianCritic(nn.Module):
    """The closed-form denoiser of a Gaussian whose mean and width are learnt."""

    def __init__(self) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.tensor(0.4))
        self.std = nn.Parameter(torch.tensor(1.1))
        self.path = TEACHER.path

    def forward(self, x_t: Tensor, t: Tensor, condition: object) -> Tensor:
        return GaussianDenoiser(mean=self.mean, std=self.std)(x_t, t, condition)


class AffineStudent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mu = nn.Parameter(torch.tensor(0.4))
        self.v = nn.Parameter(torch.tensor(1.1))

    def forward(self) -> Tensor:
        return self.mu + self.v * torch.randn(BATCH, COPIES)

    def distance(self) -> float:
        """The larger error of mean and width; the sign of v is free."""
        return max(abs(self.mu.item() - MEAN), abs(abs(self.v.item()) - STD))


def train(
    objective: DMD | ReDMD,
    critic_of: Callable[[AffineStudent], Denoiser],
    *,
    sign: float = 1.0,
    critic: GaussianCritic | None = None,
) -> float:
    """The student's distance from the teacher in the end; ``critic`` is trained along where one is given."""
    student = AffineStudent()
    student_optimiser = torch.optim.Adam(student.parameters(), lr=1e-2, betas=(0.0, 0.999))
    critic_optimiser = critic and torch.optim.Adam(critic.parameters(), lr=2e-2, betas=(0.0, 0.999))
    optimisers = [optimiser for optimiser in (student_optimiser, critic_optimiser) if optimiser]
    initial = [optimiser.param_groups[0]["lr"] for optimiser in optimisers]
    for step in range(STEPS):
        for optimiser, lr in zip(optimisers, initial, strict=True):
            optimiser.param_groups[0]["lr"] = lr * max(0.01, 1 - step / STEPS)
        for _ in range(2 if critic_optimiser else 0):
            loss, _ = objective.critic_loss(Turn(sample=Sample(x=student()), critic=critic_of(student)))
            update(critic_optimiser, loss)
        turn = Turn(
            sample=Sample(x=student()), teacher=TEACHER, critic=critic_of(student), decode=torch.clone
        )
        loss, _ = objective.student_loss(turn)
        update(student_optimiser, sign * loss)
    return student.distance()


def update(optimiser: torch.optim.Optimizer | None, loss: Tensor) -> None:
    assert optimiser is not None
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()


def exact_critic(student: AffineStudent) -> Denoiser:
    return GaussianDenoiser(mean=student.mu.detach(), std=student.v.detach())


def fitted_critic(student: AffineStudent) -> Denoiser:
    with torch.no_grad():
        x = student()
    return GaussianDenoiser(mean=x.mean(), std=x.std())


@every_weighting
@pytest.mark.parametrize("critic_of", [exact_critic, fitted_critic])
def test_an_affine_student_finds_the_teacher(
    weighting: Weighting, critic_of: Callable[[AffineStudent], Denoiser]
) -> None:
    assert train(DMD(weighting=weighting), critic_of) < 0.01


@every_weighting
def test_alternating_with_a_learnt_critic_finds_it_too(weighting: Weighting) -> None:
    critic = GaussianCritic()
    assert train(DMD(weighting=weighting), lambda _: critic, critic=critic) < 0.01


class BrightReward(Reward):
    """Likes large samples."""

    name = "bright"
    differentiable = False

    def score(self, pixels: Tensor, condition: object = None) -> Tensor:
        return pixels.mean(1)


def test_re_dmd_has_the_fixed_point_of_dmd() -> None:
    assert train(ReDMD(BrightReward()), exact_critic) < 0.01


@every_weighting
def test_a_flipped_sign_diverges(weighting: Weighting) -> None:
    assert train(DMD(weighting=weighting), exact_critic, sign=-1.0) > 1


@every_weighting
def test_a_critic_that_is_never_updated_misses(weighting: Weighting) -> None:
    stale = GaussianDenoiser(mean=0.4, std=1.1)
    assert train(DMD(weighting=weighting), lambda _: stale) > 0.3


@every_weighting
def test_a_teacher_mistaken_for_the_critic_never_moves(weighting: Weighting) -> None:
    assert train(DMD(weighting=weighting), lambda _: TEACHER) == pytest.approx(0.9, abs=1e-6)
