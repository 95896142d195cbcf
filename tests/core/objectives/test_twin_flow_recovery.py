"""TwinFlow: where affine students end, and how far the twins are apart there."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from fewstep.core.analytic import GaussianDenoiser
from fewstep.core.denoisers import NetworkFlowMap
from fewstep.core.objectives.contract import Data, Turn
from fewstep.core.objectives.twin_flow import TwinFlow, twin_gap
from tests.core.objectives.legendre import legendre

MEAN, STD = 1.3, 0.7
REAL = GaussianDenoiser(mean=MEAN, std=STD)


class AffineTwins(nn.Module):
    """An average velocity a(t, r) x + b(t, r) for each sign, with x in units of its width."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.zeros(2, 16, 2))

    def forward(self, x_t: Tensor, t: Tensor, condition: object, r: Tensor) -> Tensor:
        start, end = t.abs(), r.abs()
        basis = (legendre(start, 3)[:, :, None] * legendre(start - end, 3)[:, None]).flatten(1)
        a, b = torch.einsum("nk, nkc -> nc", basis, self.weights[(t < 0).long()]).unbind(1)
        scaled = (x_t - (1 - start[:, None]) * MEAN) / REAL.variance(start[:, None]).sqrt()
        return a[:, None] * scaled + b[:, None]


@dataclass(frozen=True)
class Trained:
    student: NetworkFlowMap

    def samples(self) -> Tensor:
        z = torch.randn(20_000, 1, generator=torch.Generator().manual_seed(1))
        return self.student(z, torch.ones(20_000), None).detach()

    def gap(self) -> float:
        """The largest difference of the two branches at three points."""
        x_t, t = torch.tensor([[0.3], [1.0], [-0.5]]), torch.tensor([0.2, 0.5, 0.9])
        return twin_gap(self.student, x_t, t, None).abs().max().item()


def trained(objective: TwinFlow, *, steps: int, only_twin: bool = False) -> Trained:
    """A student that starts at the velocity 0, or with ``only_twin`` one whose jumps stay there."""
    network, average = AffineTwins(), AffineTwins()
    student, target = NetworkFlowMap(network), NetworkFlowMap(average)
    generator = torch.Generator().manual_seed(0)
    optimiser = torch.optim.Adam(network.parameters(), lr=2e-2, betas=(0.9, 0.99))
    for step in range(steps):
        optimiser.param_groups[0]["lr"] = 2e-2 * (1 - step / steps)
        x0 = MEAN + STD * torch.randn(384, 1, generator=generator)
        turn = Turn(student=student, target=target, teacher=REAL, data=Data(x0=x0), generator=generator)
        optimiser.zero_grad()
        objective.student_loss(turn)[0].backward()
        if only_twin:
            assert network.weights.grad is not None
            network.weights.grad[0] = 0
        optimiser.step()
        with torch.no_grad():
            average.weights.lerp_(network.weights, 0.1)
    return Trained(student)


def test_an_affine_student_recovers_the_data_in_one_step() -> None:
    student = trained(TwinFlow(), steps=400)
    samples = student.samples()
    assert (samples.mean().item(), samples.std().item()) == pytest.approx((MEAN, STD), rel=0.07)
    assert student.gap() < 0.15


@pytest.mark.slow
def test_an_affine_student_recovers_the_data_closely_with_time() -> None:
    samples = trained(TwinFlow(), steps=1200).samples()
    assert (samples.mean().item(), samples.std().item()) == pytest.approx((MEAN, STD), rel=0.02)


def test_the_twins_differ_where_the_samples_are_not_the_data() -> None:
    """T-TW-4: a student whose samples stay noise, and a twin that has learnt so."""
    untaught = trained(TwinFlow(weight=0.0), steps=150, only_twin=True)
    assert untaught.samples().std().item() == pytest.approx(1, rel=0.02)
    assert untaught.gap() > 0.3
