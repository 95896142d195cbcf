"""LightningCLI as this project runs it: the run's folder resumes, logs and reports by itself."""

from pathlib import Path
from typing import Any

from jsonargparse import ArgumentError
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.cli import LightningCLI

from fewstep.core.training.randomness import SeedEveryBatch
from fewstep.core.training.report import Progress, Report
from fewstep.core.training.run_folder import JsonLines, SaveLast, last_checkpoint

DEFAULT_FOLDER = "runs/unnamed"


class TrainCLI(LightningCLI):
    """Subcommands fit and validate for any LightningModule and LightningDataModule named by class path."""

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        chosen = ("fit", "validate")
        return {name: skip for name, skip in LightningCLI.subcommands().items() if name in chosen}

    def parse_arguments(self, parser: Any, args: Any) -> None:
        self.config = parser.parse_args(args)

    def add_arguments_to_parser(self, parser: Any) -> None:
        parser.add_lightning_class_args(SaveLast, "save")
        parser.add_lightning_class_args(Report, "report")
        parser.add_lightning_class_args(Progress, "progress")

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        config = self._get(self.config_init, "trainer")
        kwargs["callbacks"] = [*(config["callbacks"] or []), SeedEveryBatch(seed=self._seed())]
        if config["logger"] is None:
            kwargs["logger"] = JsonLines(config["default_root_dir"])
        return super().instantiate_trainer(**kwargs)

    def _seed(self) -> int:
        return int(self._get(self.config, "seed_everything"))

    def before_fit(self) -> None:
        folder = Path(self.trainer.default_root_dir)
        last = last_checkpoint(folder)
        arguments = self.config_init["fit"]
        if arguments.get("ckpt_path") is None and last is not None:
            print(f"Resuming from {last}; delete it or change trainer.default_root_dir to start anew.")
            arguments["ckpt_path"] = str(last)
        else:
            print(f"Training in {folder}.")
        arguments["weights_only"] = True


def train(argv: list[str]) -> None:
    """Run one subcommand; configuration errors are a one-line ValueError."""
    quiet = {"exit_on_error": False}
    try:
        TrainCLI(
            LightningModule,
            LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            seed_everything_default=0,
            trainer_defaults={
                "default_root_dir": DEFAULT_FOLDER,
                "enable_progress_bar": False,
                "enable_checkpointing": False,
                "log_every_n_steps": 10,
            },
            save_config_kwargs={"overwrite": True},
            parser_kwargs={**quiet, "fit": quiet, "validate": quiet},
            args=argv,
        )
    except ArgumentError as error:
        raise ValueError(_one_line(str(error))) from error


def _one_line(message: str) -> str:
    # a wrong class or option is reported once per member of a Union; the first says what is wrong
    text = " ".join(message.split())
    _, found, reason = text.partition("- Problem with ")
    return reason.partition(" - Expected ")[0] if found else text
