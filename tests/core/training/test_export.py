from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn

from fewstep.core.denoisers import Condition, NetworkDenoiser
from fewstep.core.objectives.contract import Data, Need, Objective, Turn
from fewstep.core.training.export import ExportStudent
from fewstep.core.training.roles import Roles

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*is deprecated"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:You defined a `validation_step`"),
    pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning"),
]


class Line(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList([nn.Linear(1, 3)])
        self.last = nn.Linear(3, 1)

    def forward(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        return self.last(self.blocks[0](x_t))


class LineRoles(Roles):
    def __init__(self) -> None:
        super().__init__()
        self.student = NetworkDenoiser(Line(), prediction="x0")
        self.saves = 0

    def data(self, batch: object) -> Data:
        assert isinstance(batch, Tensor)
        return Data(x0=batch / 64)

    def save_student(self, folder: Path, *, training: object, metrics: dict[str, float]) -> None:
        folder.mkdir(exist_ok=True)
        self.saves += 1
        torch.save({"weights": self.student.state_dict(), "steps": metrics["steps"]}, folder / "student.pt")


class Regression(Objective):
    @property
    def needs(self) -> frozenset[Need]:
        return frozenset({"student", "data"})

    def student_loss(self, turn: Turn) -> tuple[Tensor, dict[str, Tensor]]:
        assert turn.data is not None
        assert turn.student is not None
        x0 = turn.data.x0
        return (turn.student(x0, torch.ones(len(x0)), None) - 2 * x0).square().mean(), {}


def export(rank: int, make_distiller: Callable, fit: Callable, folder: Path, sharded: bool) -> tuple:
    settings = {}
    if sharded:
        strategy = ModelParallelStrategy(
            2, 1, save_distributed_checkpoint=False, process_group_backend="gloo"
        )
        settings = {"devices": 2, "strategy": strategy}
    module = make_distiller(LineRoles(), Regression(), ema_decay=0.5)
    fit(module, 3, folder, extra_callbacks=[ExportStudent(every_steps=2)], **settings)
    average = {
        name: getattr(p, "full_tensor", lambda p=p: p)() for name, p in module.ema.averaged_state().items()
    }
    return average, module.roles.saves


@pytest.mark.parametrize("sharded", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_the_averaged_student_is_written_whole_and_by_one_process(
    sharded: bool, make_distiller: Callable, fit: Callable, in_two_processes: Callable, tmp_path: Path
) -> None:
    run = partial(export, make_distiller=make_distiller, fit=fit, folder=tmp_path, sharded=sharded)
    results = in_two_processes(run) if sharded else [run(0)]
    assert [saves for _, saves in results] == [2, 0][: len(results)]
    saved = torch.load(tmp_path / "model" / "student.pt")
    assert saved["steps"] == 3
    for name, weight in results[0][0].items():
        assert type(saved["weights"][name]) is Tensor
        assert torch.equal(saved["weights"][name], weight)


def test_batches_whose_gradients_accumulate_export_nothing(
    make_distiller: Callable, fit: Callable, tmp_path: Path
) -> None:
    module = make_distiller(LineRoles(), Regression(), accumulate_batches=4)
    fit(module, 3, tmp_path, extra_callbacks=[ExportStudent(every_steps=2)])
    assert module.roles.saves == 2  # after the second step, and at the end
