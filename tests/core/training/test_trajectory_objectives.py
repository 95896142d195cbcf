"""Methods on trajectories in the real Distiller: their roles are there, and a resume is exact."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn

from fewstep.core.denoisers import NetworkDenoiser, NetworkFlowMap
from fewstep.core.layouts import append_dims
from fewstep.core.objectives.contract import Data, Objective
from fewstep.core.objectives.lcm import LCM
from fewstep.core.objectives.mean_flow import MeanFlow
from fewstep.core.objectives.scm import SCM
from fewstep.core.objectives.slam import SLAM
from fewstep.core.objectives.split_mean_flow import SplitMeanFlow
from fewstep.core.training.roles import Roles

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*is deprecated"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:You defined a `validation_step`"),
    pytest.mark.filterwarnings("ignore:Found .* in eval mode"),
]

OBJECTIVES: list[Objective] = [
    MeanFlow(),
    MeanFlow(source="teacher", derivative="difference"),
    SplitMeanFlow(),
    SplitMeanFlow(source="data", targets="average"),
    LCM(),
    SLAM(),
    SCM(warmup=8),
    SCM(source="data", derivative="difference"),
]


class Velocity(nn.Module):
    """A velocity of one or two times, with dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 1)
        self.dropout = nn.Dropout(0.2)

    def forward(self, x_t: Tensor, t: Tensor, condition: object, r: Tensor | None = None) -> Tensor:
        times = torch.stack([t, torch.zeros_like(t) if r is None else r], -1)
        return self.dropout(self.linear(torch.cat([x_t, times], 1))) - append_dims(t, x_t) * x_t


class FlowRoles(Roles):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.student = NetworkFlowMap(Velocity())
        self.teacher = NetworkDenoiser(Velocity())

    def data(self, batch: object) -> Data:
        assert isinstance(batch, Tensor)
        return Data(x0=torch.sin(3 * batch))


@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda objective: type(objective).__name__)
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(
    objective: Objective,
    make_distiller: Callable[..., Any],
    fit: Callable[..., Trainer],
    assert_identical: Callable[[object, object], None],
    tmp_path: Path,
) -> None:
    def distiller() -> Any:
        return make_distiller(FlowRoles(), objective, target_decay=0.7)

    whole, resumed = distiller(), distiller()
    start = {name: value.clone() for name, value in whole.state_dict().items()}
    fit(whole, 4, tmp_path / "whole")
    fit(distiller(), 2, tmp_path / "halves")
    fit(resumed, 4, tmp_path / "halves")
    assert_identical(dict(whole.state_dict()), dict(resumed.state_dict()))
    weight = "roles.student.network.linear.weight"
    assert not torch.equal(whole.state_dict()[weight], start[weight])
    assert whole.student_steps == 4
    assert (whole.target is not None) == ("target" in objective.needs)
    assert (whole.roles.teacher is not None) == ("teacher" in objective.needs)
