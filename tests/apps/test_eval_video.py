import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from fewstep.apps import eval_pictures, eval_video
from fewstep.apps.cli import main
from fewstep.apps.contact_sheet import GAP, GROUP_GAP, HEADING_HEIGHT, LABEL_WIDTH, Row, save_sheet, tiled
from fewstep.core.frechet import Moments
from fewstep.modalities.video import evaluation, generation, parts
from fewstep.modalities.video.captions import PALETTES
from fewstep.modalities.video.data import write_clip
from fewstep.modalities.video.evaluation import Expected, Reference, combination
from fewstep.modalities.video.generation import balanced_attributes
from fewstep.modalities.video.metrics import FrameStatistics

TINY = eval_video.Plan(combinations=4, segments=2, teacher_splits=("train",), streams=4, frames=48)


@pytest.fixture(scope="module")
def folder(tiny_video: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tiny_video.build(tmp_path_factory.mktemp("tiny"))
    real = Expected(offset=1.0, spread=2.0, speed=3.0, samples=1)
    Reference(
        expected={combination(one): real for one in balanced_attributes(4)},
        moments=Moments(np.zeros(99), np.eye(99)),
        statistics=FrameStatistics(
            {name: np.full(8, 60.0) for name in PALETTES}, {name: np.full(8, 9.0) for name in PALETTES}
        ),
        floor={"lane_offset_error": 0.4, "drift": 0.1},
        source="a test",
    ).save(folder / "reference.json")
    return folder


@pytest.fixture(autouse=True)
def small(tiny_video: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Few words for the text encoder, few samples, and measurements that cost nothing."""
    monkeypatch.setattr(parts, "TextEncoder", tiny_video.WordFeatures)
    monkeypatch.setattr(eval_video, "QUICK", TINY)
    monkeypatch.setattr(generation, "DRIFT_FRAMES", 12)
    monkeypatch.setattr(evaluation, "speed", lambda frames: np.full(len(frames) - 1, 4.0))
    monkeypatch.setattr(evaluation, "lane_offset", lambda frames: np.full(len(frames), 1.5))


def test_students_and_teacher_are_scored_side_by_side_and_pictured(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    frames = np.full((24, 96, 96, 3), 200, np.uint8)
    monkeypatch.setattr(eval_pictures, "film", lambda *_, **__: frames)
    path, out = tmp_path / "eval.json", tmp_path / "out"
    arguments = ["--model", str(folder), "--quick", "--json", str(path), "--out", str(out)]
    assert main(["eval", "video", *arguments, "--seed", "3"]) == 0
    records = json.loads(path.read_text())

    rows: dict[tuple[Any, ...], dict[str, float]] = {}
    for one in records:
        key = (one["part"], one["phrasing"], one["source"], one["steps"], one["sink"])
        rows.setdefault(key, {})[one["name"]] = one["value"]
        assert (one["seed"], one["reference"], one["resolution"]) == (3, "a test", "96x96")
    expected = {("first", None, "real", None, None), ("long", None, "real", None, None)}
    expected |= {("first", "train", "teacher", steps, None) for steps in (1, 2, 3)}
    for phrasing in ("train", "heldout"):
        expected |= {
            (part, phrasing, "student", steps, "ema") for part in ("first", "switched") for steps in (1, 2)
        }
    expected |= {("long", "train", "student", 2, sink) for sink in ("none", "first", "ema")}
    expected |= {("long", "train", "student", 1, "ema")}
    assert set(rows) == expected

    own = rows["first", "train", "teacher", 3, None]
    assert own["high_frequency_energy_ratio"] == 100
    assert (own["speed_error"], own["lane_offset_error"], own["weave_error"]) == (1.0, 0.5, 2.0)
    assert own["lane_offset_gap"] == 0
    ratio = rows["first", "train", "student", 2, "ema"]["high_frequency_energy_ratio"]
    student = rows["first", "train", "student", 2, "ema"]["high_frequency_energy"]
    assert ratio == pytest.approx(100 * student / own["high_frequency_energy"])
    assert {"drift", "frame_distance", "motion", "palette_error"} <= set(
        rows["long", "train", "student", 2, "ema"]
    )
    assert rows["long", None, "real", None, None] == {"drift": 0.1}

    shown = capsys.readouterr().out
    assert "part=switched: 24 frames" in shown
    assert "took " in shown
    with Image.open(out / "prompts.png") as sheet:
        groups = 1 + 3 + 2  # real, teacher at 3, 2 and 1 steps, student at 1 and 2
        width = LABEL_WIDTH + groups * (eval_pictures.SHEET_COLUMNS * (96 + GAP) + GROUP_GAP)
        assert sheet.size == (width, HEADING_HEIGHT + 4 * (96 + GAP))
        assert sheet.convert("RGB").getpixel((LABEL_WIDTH + 5, HEADING_HEIGHT + 5)) == (200, 200, 200)
    with Image.open(out / "drift.png") as sheet:
        assert sheet.size[1] == HEADING_HEIGHT + 4 * 3 * (96 + GAP)
    videos = {video.name for video in out.glob("*.mp4")}
    assert videos == {
        "student-1-steps.mp4",
        "student-2-steps.mp4",
        "teacher-1-steps.mp4",
        "teacher-2-steps.mp4",
        "teacher-3-steps.mp4",
    }
    with av.open(str(out / "teacher-3-steps.mp4")) as container:
        decoded = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert np.stack(decoded).shape == (24, 96, 4 * 96, 3)


def test_a_folder_that_lacks_combinations_is_refused_before_anything_is_generated(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    frames = np.full((30, 96, 96, 3), 100, np.uint8)
    attributes = balanced_attributes(4)[0]
    segments = [{"start": 0, "captions": ["drive"], "attributes": attributes.as_dict()}]
    write_clip(tmp_path / "val", "drive", frames, {"segments": segments}, fps=12.0)
    assert main(["eval", "video", "--model", str(folder), "--quick", "--data", str(tmp_path)]) == 2
    assert "centre|fast|desert" in capsys.readouterr().err


def test_a_reference_is_written_beside_the_model(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    kept = (folder / "reference.json").read_text()
    model = shutil.copytree(folder, tmp_path / "model")
    (model / "reference.json").unlink()
    loaded = Reference.load(folder / "reference.json")
    monkeypatch.setattr("fewstep.modalities.video.held_out.rendered_reference", lambda: loaded)
    assert main(["eval", "video", "--model", str(model), "--write-reference"]) == 0
    assert (model / "reference.json").read_text() == kept


def test_without_reference_and_renderer_the_remedies_are_named(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    model = shutil.copytree(folder, tmp_path / "model")
    (model / "reference.json").unlink()

    def missing() -> Reference:
        raise ImportError("rendering needs gymnasium: pip install 'fewstep[data]'")

    monkeypatch.setattr("fewstep.modalities.video.held_out.rendered_reference", missing)
    assert main(["eval", "video", "--model", str(model), "--quick"]) == 2
    error = capsys.readouterr().err
    assert "has no reference.json: give --data DIR, or" in error
    assert "fewstep[data]" in error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--threads", "0"], "--threads must be at least 1"),
        (["--sheet", "sheet.jpg"], "--sheet must end in .png"),
        (["--sheet", "none/sheet.png"], "--sheet: no folder none"),
        (["--out", __file__], "is a file; name a folder"),
        (["--out", f"{__file__}/below"], "is a file; name a folder"),
        (["--data", "nowhere"], "no folder nowhere/val; fewstep render makes one"),
    ],
)
def test_bad_arguments_are_refused(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]):
    assert main(["eval", "video", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_a_sheet_leaves_a_gap_where_a_group_is_missing(tmp_path: Path):
    red = np.zeros((2, 4, 6, 3), np.uint8)
    red[..., 0] = 255
    save_sheet(
        tmp_path / "sheet.png",
        ["one", "two"],
        [Row(label="full", groups=[red[:1], red]), Row(label="half", groups=[None, red])],
    )
    with Image.open(tmp_path / "sheet.png") as file:
        sheet = file.convert("RGB")
        second = LABEL_WIDTH + 6 + GAP + GROUP_GAP
        below = HEADING_HEIGHT + 4 + GAP
        assert sheet.size == (second + 2 * (6 + GAP) + GROUP_GAP, HEADING_HEIGHT + 2 * (4 + GAP))
        # near the true colours: the file has a palette
        assert sheet.getpixel((LABEL_WIDTH, HEADING_HEIGHT)) == pytest.approx((255, 0, 0), abs=6)
        assert sheet.getpixel((LABEL_WIDTH, below)) == pytest.approx((255, 255, 255), abs=6)
        assert sheet.getpixel((second + 6 + GAP, below)) == pytest.approx((255, 0, 0), abs=6)


def test_tiles_fill_rows_and_leave_the_rest_black():
    videos = np.stack([np.full((2, 3, 5, 3), level, np.uint8) for level in (10, 20, 30)])
    wall = tiled(videos, columns=2)
    assert wall.shape == (2, 6, 10, 3)
    assert [wall[0, 0, 0, 0], wall[0, 0, 9, 0], wall[0, 5, 0, 0], wall[0, 5, 9, 0]] == [10, 20, 30, 0]


def test_decays_compares_long_streams_alone(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(eval_video, "QUICK", replace(TINY, streams=2))
    path = tmp_path / "decays.json"
    arguments = ["--model", str(folder), "--quick", "--json", str(path), "--decays", "0", "0.5", "1"]
    assert main(["eval", "video", *arguments]) == 0
    records = json.loads(path.read_text())
    rows = {(one["sink"], one["decay"]): one["value"] for one in records if one["name"] == "drift"}
    assert set(rows) == {("none", None), ("first", None), ("ema", 0.0), ("ema", 0.5), ("ema", 1.0)}
    assert rows["ema", 1.0] == rows["first", None]  # a sink that keeps everything is a static one
    assert rows["ema", 0.5] != rows["first", None]
    assert {one["samples"] for one in records} == {2 * 2 * 2}  # two streams, doubled, two samples each


@pytest.mark.parametrize("wrong", [["--decays", "1.5"], ["--decays", "0.5", "--out", "sheets"]])
def test_decays_that_cannot_be_are_refused(
    folder: Path, wrong: list[str], capsys: pytest.CaptureFixture[str]
):
    assert main(["eval", "video", "--model", str(folder), "--quick", *wrong]) == 2
    assert "--decays" in capsys.readouterr().err
