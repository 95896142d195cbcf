import json
import logging
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from fewstep.core.training.report import Progress, Report, duration, final_value, read_series, running_mean
from fewstep.core.training.run_folder import JsonLines

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*is deprecated"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:You defined a `validation_step`"),
]


def test_a_run_leaves_curves_a_summary_and_lines_of_progress(
    make_distiller: Callable, fit: Callable, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    distiller = make_distiller()
    with caplog.at_level(logging.INFO):
        fit(distiller, 6, extra_callbacks=[Report(), Progress(every_seconds=1e-9)])
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["steps"] == 6
    assert summary["complete"] is True
    assert summary["trainable_parameters"] == 4
    values = read_series(tmp_path)["loss/critic"][1]
    assert summary["metrics"]["loss/critic"] == pytest.approx(sum(values) / 6)
    with Image.open(tmp_path / "curves.png") as picture:
        assert len(picture.convert("RGB").getcolors(maxcolors=10**6) or []) > 10
    lines = [line for line in caplog.messages if line.startswith("step ")]
    assert lines[2].startswith("step 3 of 6, 0:00:0")
    assert "loss/critic=" in lines[2]


def test_time_is_added_up_over_resumes() -> None:
    report = Report()
    report.load_state_dict({"seconds": 1000.0})
    assert 1000.0 <= report.state_dict()["seconds"] < 1100.0


def test_curves_leave_out_what_is_not_finite(tmp_path: Path) -> None:
    logger = JsonLines(tmp_path)
    for step, value in enumerate([1.0, float("nan"), float("inf"), 3.0]):
        logger.log_metrics({"b": value, "a": 2.0}, step)
    assert read_series(tmp_path) == {"a": ([0, 1, 2, 3], [2.0] * 4), "b": ([0, 3], [1.0, 3.0])}


def test_the_running_mean_is_causal_and_the_final_value_forgets_the_start() -> None:
    values = [0.0] * 20 + [1.0] * 20
    assert running_mean(values) == [0.0] * 20 + [0.5] + [1.0] * 19
    assert final_value([7.0] + [1.0] * 100) == 1.0


@pytest.mark.parametrize(("seconds", "text"), [(0.0, "0:00:00"), (61.4, "0:01:01"), (36_000.0, "10:00:00")])
def test_durations_read_as_a_clock(seconds: float, text: str) -> None:
    assert duration(seconds) == text
