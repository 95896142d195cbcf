"""A small distillation that pauses at every batch, to be interrupted: slow_run.py FOLDER PAUSE_SECONDS."""

import sys
import time
from pathlib import Path
from runpy import run_path

from lightning.pytorch import Callback, LightningModule, Trainer

from fewstep.core.objectives.dmd import DMD
from fewstep.core.training.randomness import SeedEveryBatch
from fewstep.core.training.run_folder import JsonLines, SaveLast, last_checkpoint

STEPS = 20
SAVE_EVERY = 3


class Pause(Callback):
    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: object, batch_idx: int
    ) -> None:
        time.sleep(self.seconds)


def main(folder: Path, pause: float) -> None:
    tiny = run_path(str(Path(__file__).with_name("conftest.py")))
    settings = {"student_lr": 1e-2, "critic_lr": 1e-2, "critic_updates": 3, "accumulate_batches": 2}
    distiller = tiny["NumberedModule"](tiny["GaussianRoles"](dropout=0.2), DMD(), **settings)
    trainer = Trainer(
        accelerator="cpu",
        max_steps=STEPS,
        max_epochs=-1,
        default_root_dir=folder,
        logger=JsonLines(folder),
        log_every_n_steps=1,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        callbacks=[SaveLast(every_steps=SAVE_EVERY), SeedEveryBatch(), Pause(pause)],
    )
    trainer.fit(distiller, ckpt_path=last_checkpoint(folder), weights_only=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), float(sys.argv[2]))
