"""A run that is stopped from outside loses the steps since its last checkpoint and nothing else."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from runpy import run_path

import pytest
import torch

from fewstep.core.training.run_folder import read_metrics

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*is deprecated"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:You defined a `validation_step`"),
    pytest.mark.filterwarnings("ignore:Found .* in eval mode"),
]

SCRIPT = Path(__file__).with_name("slow_run.py")


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_an_interrupted_run_continues_to_the_very_same_end(
    how: signal.Signals, tmp_path: Path, assert_identical: Callable
) -> None:
    program = run_path(str(SCRIPT))
    stopped, whole = tmp_path / "stopped", tmp_path / "whole"
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", str(SCRIPT), str(stopped), "0.3"],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 240
    while len(read_metrics(stopped)) < 5 and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(how)
    assert process.wait(timeout=60) != 0
    logged = read_metrics(stopped)[-1]["step"]
    saved = torch.load(stopped / "last.ckpt")["global_step"]
    assert 5 <= logged < program["STEPS"]
    assert saved % program["SAVE_EVERY"] == 0
    assert 0 <= logged - saved <= program["SAVE_EVERY"]

    program["main"](stopped, 0.0)
    program["main"](whole, 0.0)
    expected, found = (torch.load(folder / "last.ckpt") for folder in (whole, stopped))
    assert found["global_step"] == program["STEPS"]
    for part in ("state_dict", "optimizer_states", "latest_metrics"):
        assert_identical(expected[part], found[part])
    assert read_metrics(stopped) == read_metrics(whole)
