import base64
import json
import re
from pathlib import Path

import pytest
import torch
from PIL import Image

from fewstep.core.training.health import Alarm, write_alarms
from fewstep.core.training.page import evenly, picture_steps, write_page
from fewstep.core.training.report import draw_curves, save_picture


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run's folder with everything in it."""
    metrics = {"loss/student": 0.25, "health/gap": 0.5}
    summary = {
        "steps": 12,
        "complete": False,
        "seconds": 3.5,
        "device": "cpu",
        "precision": "32-true",
        "trainable_parameters": 4,
        "metrics": metrics,
    }
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    (tmp_path / "config.yaml").write_text("name: <b>&\n")
    for step in range(0, 100, 10):
        save_picture(torch.full((3, 4, 6), step / 100), tmp_path / "pictures" / f"student-{step:07d}.png")
    alarms = [
        Alarm(name="collapses", since=3, until=8, message="the samples collapse; lower it"),
        Alarm(name="clipped", since=9, until=None, message="clipped <often>; raise it"),
    ]
    write_alarms(tmp_path, alarms)
    draw_curves({"health/gap": ([0, 4, 12], [1.0, 0.7, 0.5])}, tmp_path / "curves.png", alarms=alarms)
    return tmp_path


def test_the_page_holds_alarms_curves_samples_and_configuration_and_needs_nothing_else(folder: Path) -> None:
    page = write_page(folder).read_text()
    assert "12 steps, not complete; 3.5 s on cpu" in page
    assert "<b>collapses</b>, from step 3, over at step 8: the samples collapse; lower it" in page
    assert '<li class="ill"><b>clipped</b>, from step 9, still on: clipped &lt;often&gt;; raise it' in page
    assert "name: &lt;b&gt;&amp;" in page
    assert "<td>loss/student</td><td>0.25</td>" in page
    assert not re.search(r"(src|href)=\"(?!data:)", page)
    images = re.findall(r'src="data:image/png;base64,([^"]+)" alt="([^"]+)"', page)
    captions = [alternative for _, alternative in images]
    assert captions[0] == "every metric against the step"
    assert captions[1:] == [f"student, step {step}" for step in (0, 20, 40, 50, 70, 90)]
    assert base64.b64decode(images[0][0]) == (folder / "curves.png").read_bytes()


def test_a_run_that_nobody_measured_is_not_called_healthy(folder: Path) -> None:
    summary = json.loads((folder / "summary.json").read_text())
    (folder / "health.json").unlink()
    assert "No alarm was raised." in write_page(folder).read_text()
    summary["metrics"] = {"loss/student": 1.0}
    (folder / "summary.json").write_text(json.dumps(summary))
    page = write_page(folder).read_text()
    assert "Not measured." in page
    assert "No alarm was raised." not in page


def test_a_page_is_written_of_a_summary_alone(folder: Path) -> None:
    for name in ("config.yaml", "curves.png", "health.json"):
        (folder / name).unlink()
    for path in (folder / "pictures").iterdir():
        path.unlink()
    page = write_page(folder).read_text()
    assert "<img" not in page
    assert "Configuration" not in page


def test_pictures_are_shown_in_order_and_evenly(folder: Path) -> None:
    steps = [step for step, _ in picture_steps(folder / "pictures", "student")]
    assert steps == list(range(0, 100, 10))
    items = [(step, folder) for step in range(5)]
    assert evenly(items, 6) == items
    assert [step for step, _ in evenly(items, 3)] == [0, 2, 4]


def test_pictures_are_eight_bit_and_clamped(tmp_path: Path) -> None:
    picture = torch.tensor([[-1.0, 0.5], [1.0, 2.0]]).expand(3, 2, 2)
    save_picture(picture, tmp_path / "a" / "b.png")
    with Image.open(tmp_path / "a" / "b.png") as image:
        assert image.mode == "RGB"
        assert [image.getpixel((x, y)) for y in range(2) for x in range(2)] == [
            (value,) * 3 for value in (0, 128, 255, 255)
        ]


def test_an_alarm_colours_the_curves_of_health_alone(tmp_path: Path) -> None:
    alarms = [Alarm(name="clipped", since=2, until=8, message="m")]
    series = {"loss/student": ([0, 10], [0.0, 1.0])}
    for name in ("loss/student", "health/gap"):
        series = {name: ([0, 10], [0.0, 1.0])}
        draw_curves(series, tmp_path / "with.png", alarms=alarms)
        draw_curves(series, tmp_path / "without.png")
        same = (tmp_path / "with.png").read_bytes() == (tmp_path / "without.png").read_bytes()
        assert same == name.startswith("loss")
