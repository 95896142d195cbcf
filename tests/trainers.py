"""Short runs on a CPU, as the recipes' tests want them: silent, resuming, with every step logged."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer

from fewstep.core.training.run_folder import JsonLines, last_checkpoint


def quiet_trainer(folder: Path, steps: int, callbacks: Sequence[Callback], **settings: Any) -> Trainer:
    """Of a run in `folder`; `settings` go before what is given here."""
    given = {
        "accelerator": "cpu",
        "max_steps": steps,
        "max_epochs": -1,
        "default_root_dir": folder,
        "logger": JsonLines(folder),
        "log_every_n_steps": 1,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "use_distributed_sampler": False,
        "callbacks": list(callbacks),
    }
    return Trainer(**{**given, **settings})


def fitted(
    folder: Path,
    module: LightningModule,
    data: LightningDataModule,
    steps: int,
    callbacks: Sequence[Callback],
    **settings: Any,
) -> Path:
    """Train up to `steps`, from the folder's last checkpoint on, and validate once at the end."""
    validation = {"check_val_every_n_epoch": None, "val_check_interval": steps, "num_sanity_val_steps": 0}
    trainer = quiet_trainer(folder, steps, callbacks, **{**validation, **settings})
    trainer.fit(module, datamodule=data, ckpt_path=last_checkpoint(folder), weights_only=True)
    assert trainer.global_step == steps
    return folder
