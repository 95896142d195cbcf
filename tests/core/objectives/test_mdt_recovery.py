"""MDT-dist: where students end, trained by matching, by both losses, and by a normalised derivative."""

import pytest
import torch
from torch import Tensor, nn

from fewstep.core.denoisers import NetworkDenoiser
from fewstep.core.layouts import append_dims
from fewstep.core.objectives.contract import Data, Turn
from fewstep.core.objectives.mdt import MDT
from fewstep.core.schedules import UniformTimes
from tests.core.objectives.legendre import legendre
from tests.core.objectives.mdt_turns import MEAN, STD, TEACHER, Derivative, every_derivative

EVERYWHERE = UniformTimes(low=1e-3)


class Affine(nn.Module):
    """A velocity a(t) x + b(t): Legendre polynomials of t, and x in units of the width of the data's x_t."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.zeros(5))
        self.b = nn.Parameter(torch.zeros(5))

    def forward(self, x_t: Tensor, t: Tensor, condition: object) -> Tensor:
        time = append_dims(t, x_t)
        basis = legendre(t, 4)
        scaled = (x_t - (1 - time) * MEAN) / TEACHER.variance(time).sqrt()
        return (basis @ self.a)[:, None] * scaled + (basis @ self.b)[:, None]


def recovered(objective: MDT, *, steps: int = 150, lr: float = 0.1) -> tuple[float, float]:
    """Mean and width of the one-step samples of a student that starts at the velocity 0."""
    network = Affine()
    student, generator = NetworkDenoiser(network), torch.Generator().manual_seed(0)
    for step in range(steps):
        x0 = MEAN + STD * torch.randn(256, 1, generator=generator)
        turn = Turn(student=student, teacher=TEACHER, data=Data(x0=x0), generator=generator)
        loss, _ = objective.student_loss(turn)
        loss.backward()
        with torch.no_grad():
            for weights in (network.a, network.b):
                assert weights.grad is not None
                weights -= lr * (1 - step / steps) * weights.grad
                weights.grad = None
    samples = student(torch.randn(20_000, 1, generator=generator), torch.ones(20_000), None)
    return samples.mean().item(), samples.std().item()


@every_derivative
def test_velocity_matching_recovers_the_teacher_in_one_step(derivative: Derivative) -> None:
    """T-MDT-3: the width to 2 percent."""
    objective = MDT(derivative=derivative, lambda_vd=0.0, times=EVERYWHERE)
    assert recovered(objective) == pytest.approx((MEAN, STD), rel=0.02)


def test_matching_with_distillation_recovers_it_too() -> None:
    found = recovered(
        MDT(times=EVERYWHERE), steps=500, lr=0.02
    )  # more overshoots: twice the gradient at t = 1
    assert found == pytest.approx((MEAN, STD), rel=0.02)


def test_d_norm_ends_elsewhere() -> None:
    """The control: a student that d_norm takes away from the average velocity."""
    objective = MDT(d_norm=True, lambda_vd=0.0, times=EVERYWHERE)
    assert abs(recovered(objective)[1] - STD) > 0.1 * STD
