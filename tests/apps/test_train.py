import json
import logging
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from filelock import FileLock

from fewstep.apps.train import packaged_recipes, recipe_path, run, with_recipe_paths
from fewstep.apps.train_cli import _one_line
from fewstep.core.training.run_folder import read_metrics

pytestmark = [
    # Lightning 2.6 calls what jsonargparse 4.49 deprecates
    pytest.mark.filterwarnings(r"ignore:\s*By default only one JsonargparseDeprecationWarning"),
    pytest.mark.filterwarnings(r"ignore:\s*.*was deprecated in v4\.49\.0"),
]

MODULES = """
import time

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from torch.utils.data import DataLoader

from fewstep.core.training.batches import StepKeyedBatches, consumed_batches


class Line(LightningModule):
    def __init__(self, lr: float = 0.1, pause: float = 0.0) -> None:
        super().__init__()
        self.net = torch.nn.Linear(1, 1)
        self.lr = lr
        self.pause = pause

    def training_step(self, batch, batch_idx):
        time.sleep(self.pause)
        loss = (self.net(batch) - 2 * batch + torch.randn_like(batch)).square().mean()
        self.log("loss/student", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val/weight", self.net.weight.mean())

    def configure_optimizers(self):
        return torch.optim.AdamW(self.net.parameters(), lr=self.lr)


class Wider(Line):
    def __init__(self) -> None:
        super().__init__()
        self.net = torch.nn.Linear(1, 2)


class Points(LightningDataModule):
    def train_dataloader(self):
        points = torch.arange(16.0)[:, None] / 16
        batches = StepKeyedBatches(16, 4, first_batch=consumed_batches(self.trainer))
        return DataLoader(points, batch_sampler=batches)

    def val_dataloader(self):
        return DataLoader(torch.zeros(4, 1))
"""


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Writes a recipe for a line fitted to points, in a module of its own."""
    (tmp_path / "line_recipe.py").write_text(textwrap.dedent(MODULES))
    monkeypatch.syspath_prepend(tmp_path)

    def write(folder: str, **model: float) -> Path:
        settings = {
            "trainer": {
                "default_root_dir": str(tmp_path / folder),
                "max_steps": 8,
                "max_epochs": -1,
                "accelerator": "cpu",
                "log_every_n_steps": 1,
                "enable_model_summary": False,
                "val_check_interval": 4,
                "check_val_every_n_epoch": None,
            },
            "save": {"every_steps": 2},
            "model": {"class_path": "line_recipe.Line", "init_args": model},
            "data": {"class_path": "line_recipe.Points"},
        }
        path = tmp_path / f"{folder}.yaml"
        path.write_text(yaml.safe_dump(settings))
        return path

    return write


def test_a_recipe_trains_and_a_second_call_resumes_and_says_so(
    recipe: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["fit", "--config", str(recipe("halves")), "--trainer.max_steps", "4"]) == 0
    assert "Resuming" not in capsys.readouterr().out
    assert run(["fit", "--config", str(recipe("halves"))]) == 0
    assert f"Resuming from {tmp_path / 'halves' / 'last.ckpt'}" in capsys.readouterr().out
    assert run(["fit", "--config", str(recipe("whole"))]) == 0

    halves, whole = (torch.load(tmp_path / name / "last.ckpt") for name in ("halves", "whole"))
    for name, value in whole["state_dict"].items():
        assert torch.equal(value, halves["state_dict"][name])
    assert read_metrics(tmp_path / "halves") == read_metrics(tmp_path / "whole")


def test_the_resolved_configuration_alone_repeats_the_run(
    recipe: Callable[..., Path], tmp_path: Path
) -> None:
    run(["fit", "--config", str(recipe("first")), "--model.init_args.lr", "0.03"])
    resolved = yaml.safe_load((tmp_path / "first" / "config.yaml").read_text())
    assert resolved["model"]["init_args"]["lr"] == 0.03
    again = str(tmp_path / "again")
    run(["fit", "--config", str(tmp_path / "first" / "config.yaml"), "--trainer.default_root_dir", again])
    assert read_metrics(tmp_path / "again") == read_metrics(tmp_path / "first")


def test_validation_uses_the_last_checkpoint_and_leaves_the_run_as_it_was(
    recipe: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(["fit", "--config", str(recipe("run"))])
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    weight = torch.load(tmp_path / "run" / "last.ckpt")["state_dict"]["net.weight"].item()
    assert run(["validate", "--config", str(recipe("run")), "--model.init_args.lr", "9"]) == 0
    out = capsys.readouterr().out
    assert f"Validating {tmp_path / 'run' / 'last.ckpt'}" in out
    assert f"{weight:.6f}" in out
    assert {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before


def test_a_distillation_is_measured_and_reported_without_being_asked(tmp_path: Path) -> None:
    settings = {
        "trainer": {
            "default_root_dir": str(tmp_path / "run"),
            "max_steps": 6,
            "max_epochs": -1,
            "accelerator": "cpu",
            "log_every_n_steps": 1,
            "limit_val_batches": 0,
            "enable_model_summary": False,
        },
        "health": {"every_steps": 3},
        "model": {
            "class_path": "fewstep.core.training.distiller.Distiller",
            "init_args": {
                "roles": {"class_path": "fewstep.core.training.clusters.ClusterRoles"},
                "objective": {"class_path": "fewstep.core.objectives.dmd.DMD"},
                "critic_updates": 2,
            },
        },
        "data": {
            "class_path": "fewstep.core.training.clusters.ClusterData",
            "init_args": {"batch_size": 64},
        },
    }
    (tmp_path / "clusters.yaml").write_text(yaml.safe_dump(settings))
    assert run(["fit", "--config", str(tmp_path / "clusters.yaml")]) == 0
    measured = [row["step"] for row in read_metrics(tmp_path / "run") if "health/coverage" in row]
    assert measured == [3, 6]
    page = (tmp_path / "run" / "report.html").read_text()
    assert "No alarm was raised." in page
    assert "student, step 6" in page
    assert "ClusterRoles" in page
    assert {path.name for path in (tmp_path / "run" / "pictures").iterdir()} == {
        "student-0000006.png",
        "real-0000006.png",
    }


@pytest.mark.slow
def test_a_killed_process_resumes_to_the_same_end(recipe: Callable[..., Path], tmp_path: Path) -> None:
    command = "import sys; from fewstep.apps.train import run; run(sys.argv[1:])"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    arguments = ["fit", "--config", str(recipe("killed", pause=0.2))]
    process = subprocess.Popen([sys.executable, "-P", "-c", command, *arguments], env=environment)
    deadline = time.monotonic() + 60
    while not (tmp_path / "killed" / "last.ckpt").is_file() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert torch.load(tmp_path / "killed" / "last.ckpt")["global_step"] < 8
    run(["fit", "--config", str(recipe("killed"))])
    run(["fit", "--config", str(recipe("whole"))])
    assert read_metrics(tmp_path / "killed") == read_metrics(tmp_path / "whole")
    assert json.loads((tmp_path / "killed" / "summary.json").read_text())["complete"] is True


def test_a_folder_that_another_process_trains_in_is_left_alone(
    recipe: Callable[..., Path], tmp_path: Path
) -> None:
    assert run(["fit", "--config", str(recipe("shared")), "--trainer.max_steps", "4"]) == 0
    before = {path: path.read_bytes() for path in (tmp_path / "shared").iterdir()}
    with FileLock(tmp_path / "shared" / ".lock"):
        with pytest.raises(ValueError, match=r"another process trains in .*shared; wait for it, or set"):
            run(["fit", "--config", str(recipe("shared", lr=0.2))])
        assert {path: path.read_bytes() for path in (tmp_path / "shared").iterdir()} == before
    assert run(["fit", "--config", str(recipe("shared"))]) == 0


@pytest.mark.slow
@pytest.mark.parametrize(("how", "says"), [(signal.SIGTERM, "Terminated"), (signal.SIGINT, "Interrupted")])
def test_a_run_that_was_stopped_is_no_success_and_goes_on(
    how: signal.Signals, says: str, recipe: Callable[..., Path], tmp_path: Path
) -> None:
    # a test run in the background has it ignored
    listen = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    command = f"{listen}; import sys; from fewstep.apps.train import run; sys.exit(run(sys.argv[1:]))"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    arguments = ["fit", "--config", str(recipe("stopped", pause=0.2))]
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", command, *arguments], env=environment, stdout=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 60
    while not (tmp_path / "stopped" / "last.ckpt").is_file() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(how)
    said = process.communicate(timeout=60)[0]
    assert process.returncode == 128 + how
    assert said.splitlines()[-1].startswith(f"{says} before the end; the same command goes on")
    assert run(["fit", "--config", str(recipe("stopped"))]) == 0
    assert json.loads((tmp_path / "stopped" / "summary.json").read_text())["complete"] is True


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (["--model.class_path", "line_recipe.Curve"], "module 'line_recipe' has no attribute 'Curve'"),
        (["--model.class_path", "nowhere.Line"], "No module named 'nowhere'"),
        (["--model.init_args.rate", "1"], "Option 'rate' is not accepted"),
        (["--trainer.max_stepps", "1"], "max_stepps"),
        (["--trainer.max_steps", "many"], "max_steps"),
    ],
)
def test_a_wrong_configuration_is_one_line_that_names_it(
    override: list[str], message: str, recipe: Callable[..., Path]
) -> None:
    with pytest.raises(ValueError, match=message) as error:
        run(["fit", "--config", str(recipe("wrong")), *override])
    assert "\n" not in str(error.value)


NESTED = """\
Parser key "model":
  Does not validate against any of the Union subtypes
  Subtypes: [<class 'lightning.pytorch.core.module.LightningModule'>, <class 'NoneType'>]
  Errors:
    - Problem with given class_path 'a.Distiller':
        Parser key "objective":

          - Expected a path but own.Mine either not accessible or invalid
          - {reason}
    - Expected a <class 'NoneType'>
  Given value type: <class 'jsonargparse._util.NestedArg'>
  Given value: NestedArg(key='objective', val='own.Mine')"""


@pytest.mark.parametrize(
    "reason",
    [
        "Problem with given class_path 'own.Mine':\n            No module named 'own'",
        "Import path own.Mine does not correspond to a subclass of Objective",
    ],
)
def test_what_is_wrong_with_a_nested_class_is_not_cut_off(reason: str) -> None:
    told = _one_line(NESTED.format(reason=reason))
    prefix = 'Parser key "model": Problem with given class_path \'a.Distiller\': Parser key "objective":'
    assert told == f"{prefix} {' '.join(reason.split())}"


def test_what_a_class_says_of_its_arguments_stands_alone() -> None:
    message = """Does not validate against any of the Union subtypes
  Subtypes: [<class 'lightning.pytorch.core.module.LightningModule'>, <class 'NoneType'>]
  Errors:
    - decay must be in [0, 1), got 1.5
    - Expected a <class 'NoneType'>
  Given value type: <class 'jsonargparse._namespace.Namespace'>
  Given value: Namespace(class_path='a.Distiller', init_args=Namespace(decay=1.5))"""
    assert _one_line(message) == "decay must be in [0, 1), got 1.5"


def test_a_value_that_is_no_choice_is_told_with_the_choices() -> None:
    message = """Parser key "trainer.precision":
  Does not validate against any of the Union subtypes
  Subtypes: [typing.Literal['16', 'bf16'], <class 'NoneType'>]
  Errors:
    - Expected a typing.Literal['16', 'bf16']
    - Expected a <class 'NoneType'>
  Given value type: <class 'str'>
  Given value: bf17"""
    expected = "Parser key \"trainer.precision\": Expected a typing.Literal['16', 'bf16'] Given value: bf17"
    assert _one_line(message) == expected


def test_an_unknown_key_in_the_file_is_one_line_that_names_it(recipe: Callable[..., Path]) -> None:
    path = recipe("wrong")
    path.write_text(path.read_text() + "trainr: {max_steps: 3}\n")
    with pytest.raises(ValueError, match="trainr") as error:
        run(["fit", "--config", str(path)])
    assert "\n" not in str(error.value)


def test_a_recipe_may_be_named_without_its_folder_and_suffix(tmp_path: Path) -> None:
    recipes = packaged_recipes()
    assert recipes
    for name, path in recipes.items():
        assert recipe_path(name) == path
        assert with_recipe_paths(["fit", f"--config={name}"]) == ["fit", f"--config={path}"]
        assert with_recipe_paths(["fit", "-c", name, "--x", name]) == ["fit", "-c", str(path), "--x", name]


def test_an_unknown_recipe_is_named_with_the_ones_there_are() -> None:
    with pytest.raises(
        FileNotFoundError, match="config 'nope' is neither a file nor a packaged recipe"
    ) as error:
        run(["fit", "--config", "nope"])
    assert all(name in str(error.value) for name in packaged_recipes())


def test_help_lists_the_recipes(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--help"]) == 0
    assert set(packaged_recipes()) <= set(capsys.readouterr().out.split())


def test_a_complete_run_whose_report_is_gone_writes_it_again(
    recipe: Callable[..., Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    assert run(["fit", "--config", str(recipe("lost"))]) == 0
    (tmp_path / "lost" / "report.html").unlink()
    assert run(["fit", "--config", str(recipe("lost"))]) == 0
    assert "step 8: the training is complete; what is missing of its end is written" in caplog.text
    assert (tmp_path / "lost" / "report.html").is_file()


def test_another_logger_writes_besides_what_the_run_keeps_of_itself(
    recipe: Callable[..., Path], tmp_path: Path
) -> None:
    path = recipe("logged")
    logger = {"class_path": "CSVLogger", "init_args": {"save_dir": str(tmp_path / "csv")}}
    settings = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump({**settings, "trainer": {**settings["trainer"], "logger": logger}}))
    assert run(["fit", "--config", str(path), "--trainer.max_steps", "2"]) == 0
    assert [row["step"] for row in read_metrics(tmp_path / "logged")] == [1, 2]
    kept = {path.name for path in (tmp_path / "logged").iterdir()}
    assert {"config.yaml", "metrics.jsonl", "report.html"} <= kept
    assert "loss/student" in next((tmp_path / "csv").rglob("metrics.csv")).read_text()


def test_a_recipe_of_other_networks_is_refused_and_leaves_the_configuration(
    recipe: Callable[..., Path], tmp_path: Path
) -> None:
    path = recipe("other")
    assert run(["fit", "--config", str(path), "--trainer.max_steps", "2"]) == 0
    before = (tmp_path / "other" / "config.yaml").read_bytes()
    settings = yaml.safe_load(path.read_text())
    settings["model"] = {"class_path": "line_recipe.Wider"}
    path.write_text(yaml.safe_dump(settings))
    with pytest.raises(ValueError, match="networks are not those of the checkpoint; go back to the config"):
        run(["fit", "--config", str(path)])
    assert (tmp_path / "other" / "config.yaml").read_bytes() == before


def test_a_damaged_checkpoint_is_named(recipe: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "last.ckpt").write_bytes(b"PK half a checkpoint")
    with pytest.raises(ValueError, match=r"last.ckpt is damaged; put a copy in its place, or delete it"):
        run(["fit", "--config", str(recipe("damaged"))])


def test_what_the_trainer_refuses_is_one_line(recipe: Callable[..., Path]) -> None:
    with pytest.raises(ValueError, match="fast_dev_run"):
        run(["fit", "--config", str(recipe("refused")), "--trainer.fast_dev_run", "-1"])


def test_what_changed_since_the_run_began_is_said(
    recipe: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["fit", "--config", str(recipe("changed")), "--trainer.max_steps", "2"]) == 0
    changed = recipe("changed", lr=0.2)
    assert run(["fit", "--config", str(changed), "--trainer.max_steps", "2"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Changed")]
    assert lines == ["Changed since then: model.init_args.lr is 0.2, was 0.1."]
