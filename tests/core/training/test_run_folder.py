from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from fewstep.core.training.batches import StepKeyedBatches, consumed_batches
from fewstep.core.training.ema import EMA
from fewstep.core.training.randomness import SeedEveryBatch
from fewstep.core.training.run_folder import SaveLast, last_checkpoint, read_metrics
from tests.trainers import quiet_trainer

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*is deprecated"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
]


class Stopped(Exception):
    """Stands for a machine that goes away."""


class Regression(LightningModule):
    """An automatically optimised module that draws from the global generator, as teachers' training does."""

    def __init__(self, stop_before: int | None = None) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.net = nn.Sequential(nn.Linear(1, 4), nn.Dropout(0.3), nn.Linear(4, 1))
        self.ema = EMA(self.net, decay=0.9)
        self.stop_before = stop_before
        self.seen: list[float] = []

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        if self.trainer.global_step == self.stop_before:
            raise Stopped
        self.seen.extend(batch.flatten().tolist())
        loss = (self.net(batch / 64) - torch.rand_like(batch)).square().mean()
        self.log("loss/student", loss)
        return loss

    def optimizer_step(self, *args: object, **kwargs: object) -> None:
        super().optimizer_step(*args, **kwargs)  # pyright: ignore[reportArgumentType]
        self.ema.update(self.net)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.net.parameters(), lr=0.05)

    def train_dataloader(self) -> DataLoader[Tensor]:
        batches = StepKeyedBatches(10, 4, first_batch=consumed_batches(self._trainer))
        return DataLoader(torch.arange(10.0)[:, None], batch_sampler=batches)  # pyright: ignore[reportArgumentType]


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., Trainer]:
    def run(module: Regression, steps: int, folder: Path = tmp_path, accumulate: int = 1) -> Trainer:
        callbacks = [SaveLast(every_steps=3), SeedEveryBatch()]
        trainer = quiet_trainer(folder, steps, callbacks, accumulate_grad_batches=accumulate)
        trainer.fit(module, ckpt_path=last_checkpoint(folder), weights_only=True)
        return trainer

    return run


@pytest.mark.parametrize("accumulate", [1, 3])
def test_a_run_that_dies_between_saves_continues_bit_for_bit(
    accumulate: int, run: Callable[..., Trainer], tmp_path: Path
) -> None:
    whole, resumed = Regression(), Regression()
    run(whole, 10, tmp_path / "whole", accumulate)
    with pytest.raises(Stopped):
        run(Regression(stop_before=8), 10, tmp_path / "died", accumulate)
    assert torch.load(tmp_path / "died" / "last.ckpt")["global_step"] == 6
    run(resumed, 10, tmp_path / "died", accumulate)

    assert resumed.seen == whole.seen[6 * accumulate * 4 :]
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    assert read_metrics(tmp_path / "died") == read_metrics(tmp_path / "whole")
    assert [row["step"] for row in read_metrics(tmp_path / "died")] == list(range(1, 11))


def test_a_save_that_is_cut_short_leaves_the_previous_checkpoint(
    run: Callable[..., Trainer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(Regression(), 3)
    before = (tmp_path / "last.ckpt").read_bytes()

    def half_written(self: Trainer, path: Path, **_: object) -> None:
        Path(path).write_bytes(before[:100])
        raise Stopped

    monkeypatch.setattr(Trainer, "save_checkpoint", half_written)
    with pytest.raises(Stopped):
        run(Regression(), 6)
    assert (tmp_path / "last.ckpt").read_bytes() == before
    assert not list(tmp_path.glob("*.partial"))


def test_a_line_cut_short_by_a_crash_is_dropped_on_resume(
    run: Callable[..., Trainer], tmp_path: Path
) -> None:
    run(Regression(), 3)
    whole = read_metrics(tmp_path)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "loss/st')
    assert read_metrics(tmp_path) == whole
    run(Regression(), 5)
    assert read_metrics(tmp_path)[:3] == whole
    assert [row["step"] for row in read_metrics(tmp_path)] == [1, 2, 3, 4, 5]


def test_a_fresh_folder_has_neither_checkpoint_nor_metrics(tmp_path: Path) -> None:
    assert last_checkpoint(tmp_path) is None
    assert read_metrics(tmp_path) == []


@pytest.mark.parametrize("arguments", [{"every_minutes": 0.0}, {"every_steps": 0}])
def test_saving_never_is_refused(arguments: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must be"):
        SaveLast(**arguments)  # pyright: ignore[reportArgumentType]
