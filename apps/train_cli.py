"""LightningCLI as this project runs it: the run's folder resumes, logs and reports by itself."""

import re
import signal
import warnings
from pathlib import Path
from textwrap import shorten
from typing import Any
from zipfile import is_zipfile

import yaml
from jsonargparse import ArgumentError
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.cli import LightningCLI, SaveConfigCallback
from lightning.pytorch.utilities.exceptions import SIGTERMException

from fewstep.core.training.ending import EndOnce
from fewstep.core.training.health import Health
from fewstep.core.training.randomness import SeedEveryBatch
from fewstep.core.training.report import Progress, Report
from fewstep.core.training.run_folder import JsonLines, SaveLast, last_checkpoint

DEFAULT_FOLDER = "runs/unnamed"
TERMINATED, INTERRUPTED = 128 + signal.SIGTERM, 128 + signal.SIGINT
GOES_ON = "before the end; the same command goes on from the last checkpoint."
UNFIT, TOLD = "Error(s) in loading state_dict", 300  # how torch begins, and how much of it is told
UNWRITTEN = "PytorchStreamWriter failed"  # in what torch says of a full disk
OF_NO_USE = (
    ".*LeafSpec.*is deprecated",  # Lightning's own affair
    "Found .* in eval mode",  # teachers and codecs, which are meant to be
    "Precision .* is not supported by the model summary",
    ".*does not have many workers",  # data is in memory, and the cores are busy
)
"""Warnings that nobody who trains can act on."""
REASON = re.compile("- (?!Expected |Does not validate )|Problem with ")  # lines of jsonargparse's errors
OTHERS = re.compile("- Expected |Given value:")
NOISE = re.compile(
    "(- )?Does not validate |Subtypes:|Errors:|Given value type:|- Expected a (path but|<class 'None)"
)


class SaveTrainingConfig(SaveConfigCallback):
    """Write the resolved configuration beside the checkpoint, once training really goes on with it.

    A recipe that does not fit what the folder holds, a run that is complete, and validation leave the
    configuration there as it is.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Not yet."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().setup(trainer, pl_module, "fit")


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
        parser.add_lightning_class_args(Health, "health")
        parser.add_lightning_class_args(Report, "report")
        parser.add_lightning_class_args(Progress, "progress")

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        config = self._get(self.config_init, "trainer")
        given = config["callbacks"] or []
        given = given if isinstance(given, list) else [given]
        kwargs["callbacks"] = [*given, SeedEveryBatch(seed=self._seed()), EndOnce()]
        kwargs["logger"] = self._loggers(config["logger"], config["default_root_dir"])
        return super().instantiate_trainer(**kwargs)

    def _loggers(self, given: Any, folder: str) -> Any:
        """The run's own file comes first, beside others: curves are drawn of it, and Lightning writes the
        configuration, which model cards hold, to where the first logger writes.
        """
        if self.subcommand == "fit" and given is not False:
            others = [] if given in (None, True) else given
            return [JsonLines(folder), *(others if isinstance(others, list) else [others])]
        return False if given is None else given

    def _seed(self) -> int:
        return int(self._get(self.config, "seed_everything"))

    def before_fit(self) -> None:
        folder = self.trainer.default_root_dir
        last = self._use_last_checkpoint()
        if last is None:
            print(f"Training in {folder}.")
        else:
            print(f"Resuming from {last}; delete it or change trainer.default_root_dir to start anew.")
            for line in self._changes(Path(last).parent / "config.yaml"):
                print(line)

    def _changes(self, earlier: Path) -> list[str]:
        """What is otherwise than when the run began, where it left a configuration."""
        if not earlier.is_file():
            return []
        now = self._parser("fit").dump(self.config["fit"], skip_none=False)
        before, after = (_flat(yaml.safe_load(text)) for text in (earlier.read_text(), now))
        return [
            f"Changed since then: {name} is {after.get(name)}, was {before.get(name)}."
            for name in sorted({*before, *after})
            if before.get(name) != after.get(name)
        ]

    def before_validate(self) -> None:
        last = self._use_last_checkpoint()
        print("Validating the untrained model." if last is None else f"Validating {last}.")

    def _use_last_checkpoint(self) -> str | None:
        arguments = self.config_init[str(self.subcommand)]
        arguments["weights_only"] = True
        if arguments["ckpt_path"] is None:
            last = last_checkpoint(Path(self.trainer.default_root_dir))
            if last is not None and not is_zipfile(last):
                raise ValueError(f"{last} is damaged; put a copy in its place, or delete it to start anew")
            arguments["ckpt_path"] = last and str(last)
        return arguments["ckpt_path"]


def train(argv: list[str]) -> None:
    """Run one subcommand; configuration errors are a one-line ValueError.

    Raises:
        SystemExit: for a run that SIGTERM or Ctrl-C ended, with a status that says so: Lightning's own is 0
            for the one, with which a chain of commands would go on as if the run were complete.
    """
    quiet = {"exit_on_error": False}
    for message in OF_NO_USE:
        warnings.filterwarnings("ignore", message)
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
                "use_distributed_sampler": False,  # the batch samplers know their process
            },
            save_config_callback=SaveTrainingConfig,
            save_config_kwargs={"overwrite": True},
            parser_kwargs={**quiet, "fit": quiet, "validate": quiet},
            args=argv,
        )
    except ArgumentError as error:
        raise ValueError(_one_line(str(error))) from error
    except (FloatingPointError, MisconfigurationException) as error:
        raise ValueError(str(error)) from error
    except RuntimeError as error:
        told = shorten(str(error), TOLD, placeholder=" ...")
        if UNWRITTEN in told:
            raise OSError(f"last.ckpt cannot be written, the one before is as it was: {told}") from error
        if not told.startswith(UNFIT):
            raise
        raise ValueError(
            "this recipe's networks are not those of the checkpoint; go back to the config.yaml beside it, "
            f"or set another trainer.default_root_dir ({told})"
        ) from error
    except SIGTERMException as stopped:
        print(f"Terminated {GOES_ON}", flush=True)
        raise SystemExit(TERMINATED) from stopped
    except SystemExit as stopped:
        if not isinstance(stopped.__context__, KeyboardInterrupt):
            raise
        print(f"Interrupted {GOES_ON}", flush=True)
        raise SystemExit(INTERRUPTED) from stopped


def _flat(settings: Any, name: str = "") -> dict[str, Any]:
    """Nested settings by their dotted names; of what is empty or a list, the whole."""
    if not isinstance(settings, dict) or not settings:
        return {name: settings}
    parts = (_flat(value, f"{name}.{key}" if name else str(key)) for key, value in settings.items())
    return {key: value for part in parts for key, value in part.items()}


def _one_line(message: str) -> str:
    """What is wrong, without the other members of a Union that each say that it is not one of them."""
    lines = [line.strip() for line in message.splitlines()]
    found = any(REASON.match(line) for line in lines)
    told = (line for line in lines if not (NOISE.match(line) or (found and OTHERS.match(line))))
    return " ".join(" ".join(line.removeprefix("- ") for line in told).split())
