"""What every method's critic learns: the law of the samples that it is given, and nothing of their maker."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from fewstep.core.objectives.contract import Objective, Sample, Turn
from fewstep.core.objectives.diff_instruct import DiffInstruct
from fewstep.core.objectives.dmd import DMD
from fewstep.core.objectives.sid import SiD
from fewstep.core.objectives.sim import SIM
from fewstep.core.objectives.tdm import TDM
from fewstep.core.rollouts import Call

COUNT = 4096
METHODS: list[Callable[[], Objective]] = [
    DMD,
    DiffInstruct,
    SiD,
    SIM,
    TDM,
    lambda: TDM(target="official", importance=False),
]
every_method = pytest.mark.parametrize(
    "method", METHODS, ids=["dmd", "diff_instruct", "sid", "sim", "tdm", "tdm official"]
)


def turn_of(x: Tensor, z: Tensor, critic: Any) -> Turn:
    t = torch.ones(len(x), dtype=torch.float64)
    call = Call(x_t=z, t=t, t_next=torch.zeros_like(t))
    generator = torch.Generator().manual_seed(3)
    return Turn(sample=Sample(x=x, call=call), critic=critic, generator=generator)


@every_method
def test_the_critics_optimum_is_the_law_of_the_samples(
    method: Callable[[], Objective], learnt_gaussian: Callable[..., Any]
) -> None:
    """Of N(-0.5, 0.8^2), against critics that are wrong in one number each."""
    z = torch.randn(COUNT, 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    z = (z - z.mean()) / z.std()

    def slopes(mean: float, std: float) -> Tensor:
        critic = learnt_gaussian(mean, std)
        loss, _ = method().critic_loss(turn_of(-0.5 + 0.8 * z, z, critic))
        return torch.stack(torch.autograd.grad(loss, list(critic.parameters())))

    right, shifted, wide = slopes(-0.5, 0.8), slopes(-0.3, 0.8), slopes(-0.5, 1.0)
    assert shifted[0] > 0
    assert wide[1] > 0
    # four standard errors of 4096 draws are some hundredths of the slopes at an error of 0.2
    assert right[0].abs() < 0.25 * shifted[0]
    assert right[1].abs() < 0.25 * wide[1]


@every_method
def test_the_critics_loss_has_no_gradient_in_the_samples(
    method: Callable[[], Objective], learnt_gaussian: Callable[..., Any]
) -> None:
    z = torch.randn(8, 1, dtype=torch.float64)
    x = (0.3 * z).requires_grad_()
    critic = learnt_gaussian()
    method().critic_loss(turn_of(x, z, critic))[0].backward()
    assert x.grad is None
    assert all(weight.grad is not None for weight in critic.parameters())
