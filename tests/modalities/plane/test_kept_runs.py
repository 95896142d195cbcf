"""Finished runs of the benchmark are kept whole and are not made again."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from fewstep.modalities.plane.benchmark import Run
from fewstep.modalities.plane.kept_runs import kept_or_made

RUN = Run(samples={1: torch.randn(3, 2), 4: torch.randn(3, 2)}, seconds=1.5, updates=7, passes=2.25)


def fails() -> Run:
    raise AssertionError("a kept run was made again")


def test_a_kept_run_comes_back_whole(tmp_path: Path) -> None:
    assert kept_or_made(tmp_path, "DMD (1, 4) seed 0", lambda: RUN) is RUN
    again = kept_or_made(tmp_path, "DMD (1, 4) seed 0", fails)
    assert (again.seconds, again.updates, again.passes) == (1.5, 7, 2.25)
    assert sorted(again.samples) == [1, 4]
    for steps, x in RUN.samples.items():
        torch.testing.assert_close(again.samples[steps], x, rtol=0, atol=0)


def test_another_name_is_another_run(tmp_path: Path) -> None:
    kept_or_made(tmp_path, "DMD (1,) seed 0", lambda: RUN)
    with pytest.raises(AssertionError):
        kept_or_made(tmp_path, "DMD (1,) seed 1", fails)


def test_an_interrupted_run_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(AssertionError):
        kept_or_made(tmp_path, "DMD", fails)
    assert not list(tmp_path.iterdir())


def test_a_file_of_something_else_is_refused_by_name(tmp_path: Path) -> None:
    save_file({"1": torch.zeros(2, 2)}, tmp_path / "dmd.safetensors")
    with pytest.raises(ValueError, match=r"dmd\.safetensors is not a run"):
        kept_or_made(tmp_path, "DMD", fails)


def test_nothing_is_kept_without_a_folder() -> None:
    assert kept_or_made(None, "DMD", lambda: RUN) is RUN
