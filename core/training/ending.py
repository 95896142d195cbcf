"""The end of a run, made up for where the training is complete and what comes after it is not."""

import json
import logging
import os
from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer

from fewstep.core.training.report import Progress
from fewstep.core.training.run_folder import SaveLast

MARK = ".ended"

log = logging.getLogger(__name__)


class EndOnce(Callback):
    """Call every ``on_train_end`` again where a run that has no steps left was not ended.

    Models and reports are written after the last checkpoint. Where that failed (a full disk, a killed
    process), or what was written is gone, Lightning finds nothing to train when the command is given again,
    and would leave it so. `.ended` in the run's folder says at which step the run ended and what was there.
    """

    def __init__(self) -> None:
        self._trained = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._trained = True

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        folder, step = Path(trainer.default_root_dir), trainer.global_step
        if not self._trained:
            if step == 0:
                return
            if trainer.strategy.broadcast(_is_ended(folder, step)):
                log.info("step %d: the training is complete, and so is what it left in %s", step, folder)
                return
            log.info("step %d: the training is complete; what is missing of its end is written", step)
            self._end(trainer, pl_module)
        if trainer.is_global_zero:
            _mark(folder, step)

    def _end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        pl_module.to(trainer.strategy.root_device)  # Lightning has taken it to the CPU by now
        for callback in trainer.callbacks:  # pyright: ignore[reportAttributeAccessIssue]
            if not isinstance(callback, (SaveLast, Progress)):  # there is nothing new to save, nor any speed
                callback.on_train_end(trainer, pl_module)
        pl_module.on_train_end()


def _is_ended(folder: Path, step: int) -> bool:
    try:
        mark = json.loads((folder / MARK).read_text())
    except (FileNotFoundError, ValueError):
        return False
    return mark["step"] == step and all((folder / name).exists() for name in mark["left"])


def _mark(folder: Path, step: int) -> None:
    left = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    partial = folder / (MARK + ".partial")
    partial.write_text(json.dumps({"step": step, "left": left}) + "\n")
    os.replace(partial, folder / MARK)
