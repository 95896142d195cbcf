"""The distilled student as a model folder, while training goes on."""

from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from fewstep.core.training.distiller import Distiller
from fewstep.core.training.run_folder import export_record
from fewstep.core.training.sharding import gathered


class ExportStudent(Callback):
    """Write the averaged student as a model folder ``model`` in the run's folder, now and then and at the
    end.
    """

    def __init__(self, every_steps: int = 200) -> None:
        if every_steps < 1:
            raise ValueError(f"every_steps={every_steps} must be at least 1")
        self.every_steps = every_steps
        self._seen_step = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._seen_step = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step, seen, self._seen_step = trainer.global_step, self._seen_step, trainer.global_step
        if step != seen and step % self.every_steps == 0:
            self._export(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._export(trainer, pl_module)

    def _export(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not isinstance(pl_module, Distiller):
            raise ValueError(f"ExportStudent needs a Distiller, not a {type(pl_module).__name__}")
        training, metrics = export_record(trainer)
        student = pl_module.roles.student
        with pl_module.ema.swapped(student), gathered(student):
            if trainer.is_global_zero:
                folder = Path(trainer.default_root_dir) / "model"
                pl_module.roles.save_student(folder, training=training, metrics=metrics)
