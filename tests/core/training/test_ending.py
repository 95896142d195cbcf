"""What comes after the last step is made once, and made up for where it failed."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.utils.data import DataLoader

from fewstep.core.training.batches import StepKeyedBatches, consumed_batches
from fewstep.core.training.ending import EndOnce
from fewstep.core.training.report import Report
from fewstep.core.training.run_folder import SaveLast, export_record, last_checkpoint, read_metrics
from tests.trainers import quiet_trainer

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*is deprecated"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
]


class Exporting(LightningModule):
    """One weight that is written at the end, where the disk is not full."""

    def __init__(self, *, full: bool = False) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.full = full
        self.trained = 0

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        self.trained += 1
        self.log("val/weight", self.weight.detach().clone())
        return (self.weight - batch).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def train_dataloader(self) -> DataLoader[Tensor]:
        batches = StepKeyedBatches(8, 2, first_batch=consumed_batches(self._trainer))
        return DataLoader(torch.arange(8.0)[:, None], batch_sampler=batches)  # pyright: ignore[reportArgumentType]

    def on_train_end(self) -> None:
        if self.full:
            raise OSError(28, "No space left on device")
        _, metrics = export_record(self.trainer)
        folder = Path(self.trainer.default_root_dir) / "model"
        folder.mkdir(exist_ok=True)
        torch.save({"weight": self.weight.detach(), "metrics": metrics}, folder / "weights.pt")


class Ends(Callback):
    def __init__(self) -> None:
        self.count = 0

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.count += 1


Run = Callable[..., tuple[Exporting, int]]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Train to a number of steps; returns the module and how often the end was called."""

    def run(steps: int = 3, *, full: bool = False) -> tuple[Exporting, int]:
        module, ends = Exporting(full=full), Ends()
        trainer = quiet_trainer(tmp_path, steps, [ends, SaveLast(), Report(), EndOnce()])
        trainer.fit(module, ckpt_path=last_checkpoint(tmp_path), weights_only=True)
        return module, ends.count

    return run


def test_an_export_that_failed_is_made_up_for_without_training(run: Run, tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No space left"):
        run(full=True)
    saved = torch.load(tmp_path / "last.ckpt")
    before = (tmp_path / "last.ckpt").read_bytes()
    module, ends = run()
    assert (module.trained, ends) == (0, 1)
    written = torch.load(tmp_path / "model" / "weights.pt")
    assert torch.equal(written["weight"], saved["state_dict"]["weight"])
    assert written["metrics"] == {"steps": 3, "val/weight": read_metrics(tmp_path)[-1]["val/weight"]}
    assert (tmp_path / "last.ckpt").read_bytes() == before


@pytest.mark.parametrize("lost", ["model/weights.pt", "summary.json"])
def test_what_was_deleted_is_written_again(lost: str, run: Run, tmp_path: Path) -> None:
    run()
    (tmp_path / lost).unlink()
    if lost.startswith("model/"):
        (tmp_path / "model").rmdir()
    assert run()[1] == 1
    assert (tmp_path / lost).is_file()


def test_a_run_that_is_complete_is_left_as_it_is(run: Run, tmp_path: Path) -> None:
    run()
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    module, ends = run()
    assert (module.trained, ends) == (0, 0)
    run(2)  # fewer steps than it has
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_a_longer_run_ends_anew(run: Run, tmp_path: Path) -> None:
    run()
    with pytest.raises(OSError, match="No space left"):
        run(5, full=True)
    assert torch.load(tmp_path / "model" / "weights.pt")["metrics"]["steps"] == 3
    assert run(5)[1] == 1
    assert torch.load(tmp_path / "model" / "weights.pt")["metrics"]["steps"] == 5


def test_a_mark_that_cannot_be_read_is_none(run: Run, tmp_path: Path) -> None:
    run()
    (tmp_path / ".ended").write_text("{")
    assert run()[1] == 1


def test_an_untrained_model_is_not_exported(run: Run, tmp_path: Path) -> None:
    assert run(0)[1] == 0
    assert not (tmp_path / "model").exists()
