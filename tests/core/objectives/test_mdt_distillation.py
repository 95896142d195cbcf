"""MDT-dist: velocity distillation, which is DMD with the student as its own critic."""

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from fewstep.core.denoisers import NetworkDenoiser, velocity_of
from fewstep.core.layouts import append_dims
from fewstep.core.objectives.contract import Data, Sample, Turn
from fewstep.core.objectives.dmd import DMD
from fewstep.core.objectives.mdt import MDT
from fewstep.core.paths import LinearPath, Path
from tests.core.objectives.known_numbers import FixedTimes
from tests.core.objectives.mdt_turns import (
    TEACHER,
    ExactAverage,
    GivenTurn,
    Polynomial,
    by_hand,
    matching,
    turn_at,
)


def test_velocity_distillation_moves_the_one_step_sample_by_the_residual() -> None:
    """T-MDT-2: dL / du = 2 rho / (B n) in the velocity at t = 1, at the noise and time of the matching."""
    network, z = Polynomial(), torch.randn(5, 3, dtype=torch.float64)
    x_t = torch.randn(5, 3, dtype=torch.float64)
    turn = turn_at(x_t, 0.6, student=NetworkDenoiser(network), z=z)
    loss, diagnostics = matching(0.6, lambda_vm=1e-30, lambda_vd=1.0).student_loss(turn)
    (found,) = torch.autograd.grad(loss, network.weights)

    average = network(z, torch.ones(5, dtype=torch.float64), None)
    x_f_t = 0.4 * (z - average.detach()) + 0.6 * turn.noises[0]
    velocity = velocity_of(TEACHER, x_f_t, torch.full((5,), 0.6, dtype=torch.float64), None)
    _, residual = by_hand(network, x_f_t, 0.6, velocity)
    (expected,) = torch.autograd.grad((2 * residual * average).sum() / 15, network.weights)
    torch.testing.assert_close(found, expected)
    assert diagnostics["vd_residual_rms"].item() == pytest.approx(residual.square().mean().sqrt().item())


def sample_gradient(objective: MDT | DMD, x: Tensor, **roles: Any) -> Tensor:
    leaf = x.detach().clone().requires_grad_()
    weight = roles.pop("weight", None)
    turn = Turn(sample=Sample(x=leaf, weight=weight), generator=torch.Generator().manual_seed(7), **roles)
    return torch.autograd.grad(objective.student_loss(turn)[0], leaf)[0]


@dataclass(frozen=True)
class OwnCritic:
    """The denoiser that the student implies: its velocity is u + t du/dt along the teacher's flow."""

    network: Polynomial
    path: Path = field(default_factory=LinearPath)

    def __call__(self, x_t: Tensor, t: Tensor, condition: object) -> Tensor:
        velocity = velocity_of(TEACHER, x_t, t, None)
        average, slope = torch.func.jvp(
            lambda x, time: self.network(x, time, None), (x_t, t), (velocity, torch.ones_like(t))
        )[:2]
        time = append_dims(t, x_t)
        return x_t - time * (average + time * slope)


@pytest.mark.parametrize("t", [0.15, 0.6, 0.95])
def test_velocity_distillation_is_dmd_with_the_student_as_its_own_critic(t: float) -> None:
    """T-MDT-4 and identity 4: dL_VD / dx = (2 / t) (D_f - D_r) / (B n)."""
    network, x = Polynomial(), torch.randn(6, 2, dtype=torch.float64)
    distillation = MDT(lambda_vm=0.0, derivative="jvp", times=FixedTimes((t,)))
    found = sample_gradient(distillation, x, student=NetworkDenoiser(network), teacher=TEACHER)
    dmd = sample_gradient(
        DMD(weighting="none", times=FixedTimes((t,))), x, critic=OwnCritic(network), teacher=TEACHER
    )
    torch.testing.assert_close(found, 2 / t * dmd)
    assert dmd.abs().max() > 0.01


def test_a_student_at_the_teacher_is_not_moved() -> None:
    x = torch.randn(6, 2, dtype=torch.float64)
    objective = MDT(lambda_vm=0.0, derivative="jvp", times=FixedTimes((0.6,)))
    grad = sample_gradient(objective, x, student=ExactAverage(), teacher=TEACHER)
    assert grad.abs().max() < 1e-12


def test_without_matching_the_rollouts_samples_are_distilled() -> None:
    network, z = Polynomial(), torch.randn(5, 3, dtype=torch.float64)
    student, eps = NetworkDenoiser(network), torch.randn(5, 3, dtype=torch.float64)
    data = Data(x0=torch.zeros(5, 3, dtype=torch.float64))
    both = GivenTurn(student=student, teacher=TEACHER, data=data, noises=[eps, z])
    loss, _ = matching(0.6, lambda_vm=1e-30, lambda_vd=0.3).student_loss(both)
    (expected,) = torch.autograd.grad(loss, network.weights)

    sample = Sample(x=student(z, torch.ones(5, dtype=torch.float64), None))
    alone = GivenTurn(student=student, teacher=TEACHER, sample=sample, noises=[eps])
    loss, diagnostics = matching(0.6, lambda_vm=0.0, lambda_vd=0.3).student_loss(alone)
    (found,) = torch.autograd.grad(loss, network.weights)
    torch.testing.assert_close(found, expected)
    assert set(diagnostics) == {"vd_residual_rms"}


def test_the_weights_of_a_sample_multiply_its_gradient() -> None:
    x, student = torch.randn(2, 4, 3, dtype=torch.float64), NetworkDenoiser(Polynomial())
    weight = torch.tensor([[0.0, 0.0, 1.0, 2.0]], dtype=torch.float64).expand(2, 4)
    objective, roles = MDT(lambda_vm=0.0), dict(student=student, teacher=TEACHER)
    weighted = sample_gradient(objective, x, weight=weight, **roles)
    torch.testing.assert_close(weighted, weight[..., None] * sample_gradient(objective, x, **roles))
