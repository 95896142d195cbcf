"""What a training run leaves in its folder while it runs: `last.ckpt` and `metrics.jsonl`."""

import json
import os
import time
from argparse import Namespace
from collections.abc import Mapping
from itertools import chain
from pathlib import Path

import yaml
from filelock import FileLock, Timeout
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers.logger import Logger
from torch import Tensor

LAST = "last.ckpt"
METRICS = "metrics.jsonl"
LOCK = ".lock"
EPOCH = "epoch"  # Lightning adds it to every row; it means nothing for endless data

Row = dict[str, int | float]


def last_checkpoint(folder: Path) -> Path | None:
    """The checkpoint from which a run in this folder continues, or None for a fresh run."""
    path = folder / LAST
    return path if path.is_file() else None


class SaveLast(Callback):
    """Keep `last.ckpt` in the run's folder up to date; a crash at any moment leaves a whole file.

    Saves only right after an optimizer step, when no accumulated gradient would be lost. A second training in
    the same folder, which would overwrite what the first one saves, is refused.

    Args:
        every_minutes: wall-clock time between saves.
        every_steps: if set, save also whenever the optimizer step count is a multiple of this.
    """

    def __init__(self, *, every_minutes: float = 5.0, every_steps: int | None = None) -> None:
        if every_minutes <= 0:
            raise ValueError(f"every_minutes must be positive, got {every_minutes}")
        if every_steps is not None and every_steps < 1:
            raise ValueError(f"every_steps must be at least 1, got {every_steps}")
        self.every_minutes = every_minutes
        self.every_steps = every_steps
        self._saved_at = time.monotonic()
        self._seen_step = 0
        self._lock: FileLock | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit" and trainer.is_global_zero:
            self._lock = _locked(Path(trainer.default_root_dir))

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._release()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._release()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._saved_at = time.monotonic()
        self._seen_step = trainer.global_step
        for logger in trainer.loggers:
            if isinstance(logger, JsonLines):
                logger.follow(trainer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: object, batch: object, batch_idx: int
    ) -> None:
        step = trainer.global_step
        if step == self._seen_step:
            return
        self._seen_step = step
        due = time.monotonic() - self._saved_at >= 60 * self.every_minutes
        due = trainer.strategy.broadcast(due)
        if due or (self.every_steps is not None and step % self.every_steps == 0):
            self._save(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._save(trainer)

    def _save(self, trainer: Trainer) -> None:
        path = Path(trainer.default_root_dir) / LAST
        partial = path.with_suffix(".partial")
        try:
            trainer.save_checkpoint(partial, weights_only=False)
            if trainer.is_global_zero:
                os.replace(partial, path)
        finally:  # what a full disk cut short would keep it full
            if trainer.is_global_zero:
                partial.unlink(missing_ok=True)
        self._saved_at = time.monotonic()

    def _release(self) -> None:
        if self._lock is not None:
            self._lock.release()


def _locked(folder: Path) -> FileLock:
    """Held until it is released or the process ends, however that happens."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout as taken:
        raise ValueError(
            f"another process trains in {folder}; wait for it, or set another trainer.default_root_dir"
        ) from taken
    return lock


class JsonLines(Logger):
    """Append every logged metric to `metrics.jsonl`, one JSON object a line with the optimizer steps taken.

    A resumed run drops the lines of the steps that it is about to repeat, so that each step stands once.
    """

    _trainer: Trainer | None = None

    def __init__(self, folder: str | Path) -> None:
        super().__init__()
        self.path = Path(folder) / METRICS
        self._last_row: Row = {}

    @property
    def name(self) -> str:
        return ""

    @property
    def version(self) -> str:
        return ""

    @property
    def save_dir(self) -> str:
        return str(self.path.parent)

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, object] | Namespace, *args: object, **kwargs: object) -> None:
        """Hyper-parameters are in the resolved configuration beside the metrics, nothing to do."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float | Tensor], step: int | None = None) -> None:
        values = {name: float(value) for name, value in metrics.items() if name != EPOCH}
        # Lightning's own count for loggers is off by one after some resumes
        steps = step if self._trainer is None else self._trainer.global_step
        row: Row = {"step": steps or 0, **values}
        known = self._last_row if self._last_row.get("step") == row["step"] else {}
        if row.items() <= known.items():
            # Lightning repeats the last values for batches that logged none, as while gradients accumulate
            return
        self._last_row = {**known, **row}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")

    @rank_zero_only
    def follow(self, trainer: Trainer) -> None:
        """Count steps as this trainer does, and forget lines of later steps or cut short by a crash."""
        self._trainer = trainer
        if self.path.is_file():
            kept = [row for row in read_metrics(self.path.parent) if row["step"] <= trainer.global_step]
            partial = self.path.with_suffix(".partial")
            partial.write_text("".join(json.dumps(row) + "\n" for row in kept))
            os.replace(partial, self.path)


def read_metrics(folder: Path) -> list[Row]:
    """All logged rows of a run in the order of their steps; empty before the first."""
    path = folder / METRICS
    if not path.is_file():
        return []
    rows = [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]
    return sorted(rows, key=lambda row: row["step"])


def export_record(trainer: Trainer) -> tuple[dict[str, object], dict[str, int | float]]:
    """What a model card says of its training: the run's resolved configuration and its last validation."""
    config = Path(trainer.default_root_dir) / "config.yaml"
    training = yaml.safe_load(config.read_text()) if config.is_file() else {}
    # a run that goes on may export before it validates again
    written = ((name, value) for row in read_metrics(config.parent) for name, value in row.items())
    logged = ((name, float(value)) for name, value in trainer.callback_metrics.items())
    metrics = {name: value for name, value in chain(written, logged) if name.startswith("val/")}
    return training, {"steps": trainer.global_step, **metrics}
