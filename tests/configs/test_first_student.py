"""The recipe image/first_student on what ships: it makes one step useful, and survives what interrupts it."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from fewstep.core.training.run_folder import read_metrics

pytestmark = pytest.mark.slow

UPDATES = 60
SAVE_EVERY = 5
BEFORE, AFTER = (f"{when}/frechet_classifier_1_steps" for when in ("before", "after"))
CATEGORY = "category_accuracy_1_steps"
SECONDS = 300


def fewstep(*arguments: str, **settings: Any) -> subprocess.Popen[Any]:
    """The command in a process of its own, in one thread."""
    command = [sys.executable, "-P", "-W", "ignore", "-m", "fewstep.apps.cli", *arguments]
    return subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, **settings)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few rendered pictures; their captions are all that the recipe uses."""
    root = tmp_path_factory.mktemp("objects")
    assert fewstep("render", str(root), "--world", "objects", "--count", "100", "--workers", "1").wait() == 0
    return root


@pytest.fixture(scope="module")
def start(root: Path) -> Callable[..., subprocess.Popen[Any]]:
    """Begin or go on with a run of the recipe, shortened, in a folder."""

    def start(folder: Path, updates: int = UPDATES, *more: str) -> subprocess.Popen[Any]:
        settings = {
            "trainer.default_root_dir": folder,
            "trainer.accelerator": "cpu",
            "trainer.max_steps": updates,
            "trainer.log_every_n_steps": 1,
            "save.every_steps": SAVE_EVERY,
            "data.init_args.root": root,
        }
        arguments = [f"--{name}={value}" for name, value in settings.items()]
        # Ctrl-C has to reach the process even where the tests run in the background
        return fewstep(
            *("train", "fit", "--config", "image/first_student", *arguments, *more),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )

    return start


@pytest.fixture(scope="module")
def whole(start: Callable[..., subprocess.Popen[Any]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nobody interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    assert start(folder).wait(SECONDS) == 0
    return folder


def metrics(folder: Path) -> dict[str, float]:
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["complete"] is True
    return summary["metrics"]


def test_one_step_comes_several_times_nearer_to_real_pictures(whole: Path) -> None:
    found = metrics(whole)
    assert found[AFTER] < 0.6 * found[BEFORE]
    assert found[AFTER] > found["real/frechet_classifier"]
    assert found[f"after/{CATEGORY}"] > found[f"before/{CATEGORY}"]
    assert 10 < found["cpu_seconds"] < SECONDS


def test_without_a_learning_rate_nothing_improves(
    start: Callable[..., subprocess.Popen[Any]], tmp_path: Path
) -> None:
    """The control of the test above."""
    assert start(tmp_path, 22, "--model.init_args.student_lr=0").wait(SECONDS) == 0
    found = metrics(tmp_path)
    assert found[AFTER] == pytest.approx(found[BEFORE], rel=1e-6)
    assert found[f"after/{CATEGORY}"] == found[f"before/{CATEGORY}"]


def test_a_run_interrupted_twice_ends_with_the_very_same_student(
    whole: Path, start: Callable[..., subprocess.Popen[Any]], tmp_path: Path
) -> None:
    def saved() -> int:
        last = tmp_path / "last.ckpt"
        return torch.load(last, weights_only=False)["global_step"] if last.is_file() else 0

    for how in (signal.SIGINT, signal.SIGKILL):
        begun_at = saved()
        process = start(tmp_path)
        deadline = time.monotonic() + SECONDS
        while time.monotonic() < deadline:
            steps = [row["step"] for row in read_metrics(tmp_path)]
            if steps and steps[-1] > begun_at + SAVE_EVERY + 1 and saved() > begun_at:
                break
            time.sleep(0.1)
        process.send_signal(how)
        assert process.wait(60) != 0
        assert begun_at < saved() < UPDATES
        assert saved() % SAVE_EVERY == 0
    assert start(tmp_path).wait(SECONDS) == 0
    file = "model/model.safetensors"
    torch.testing.assert_close(load_file(tmp_path / file), load_file(whole / file), rtol=0, atol=0)
    rows = [
        [{name: value for name, value in row.items() if name != "cpu_seconds"} for row in read_metrics(run)]
        for run in (tmp_path, whole)
    ]
    assert rows[0] == rows[1]
