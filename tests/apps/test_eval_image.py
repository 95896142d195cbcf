import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from fewstep.apps import eval_image
from fewstep.apps.cli import main
from fewstep.apps.contact_sheet import GAP, GROUP_GAP, HEADING_HEIGHT, LABEL_WIDTH
from fewstep.modalities.image import pipeline
from tests import tiny_image

TINY = eval_image.Plan(
    pictures={("train", "train"): 6, ("heldout", "train"): 4, ("train", "heldout"): 4}, captions=2, seeds=2
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_image.write_pictures(tmp_path_factory.mktemp("data"), {"val": 60, "heldout": 30})


@pytest.fixture(scope="module")
def folder(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tiny_image.build(tmp_path_factory.mktemp("tiny"))
    assert main(["eval", "image", "--model", str(folder), "--data", str(data), "--write-reference"]) == 0
    return folder


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "TextEncoder", tiny_image.WordFeatures)
    monkeypatch.setattr(eval_image, "QUICK", TINY)


def test_teacher_students_and_real_pictures_are_scored_side_by_side_and_pictured(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, sheet, out = tmp_path / "eval.json", tmp_path / "sheet.png", tmp_path / "out"
    arguments = ["--json", str(path), "--sheet", str(sheet), "--out", str(out), "--seed", "3"]
    assert main(["eval", "image", "--model", str(folder), "--quick", *arguments]) == 0
    rows: dict[tuple[Any, ...], dict[str, float]] = {}
    for one in json.loads(path.read_text()):
        key = (one["phrasing"], one["pairs"], one["source"], one["steps"])
        rows.setdefault(key, {})[one["name"]] = one["value"]
        assert (one["seed"], one["resolution"]) == (3, "64x64")
    expected = {(None, pairs, "real", None) for pairs in ("train", "heldout")}
    for phrasing, pairs in TINY.pictures:
        expected |= {(phrasing, pairs, "teacher", steps) for steps in (1, 2, 3)}
        for student in ("dmd2", "tdm", "split_mean_flow"):
            expected |= {(phrasing, pairs, student, steps) for steps in (1, 2)}
    assert set(rows) == expected

    own = rows["train", "train", "teacher", 3]
    assert own["speed_ratio"] == 1
    fast = rows["train", "train", "tdm", 1]
    assert fast["speed_ratio"] == pytest.approx(own["seconds_per_image"] / fast["seconds_per_image"])
    assert fast["diversity"] > 0
    for scores in rows.values():
        assert {"colour_accuracy", "category_accuracy", "frechet_classifier"} <= set(scores)
    assert rows[None, "train", "real", None]["colour_accuracy"] > 70
    assert "undistilled" in capsys.readouterr().out
    with Image.open(sheet) as picture:
        columns = 3 + 3 * 2  # teacher at 3, 2 and 1 steps, three students at 2 and 1
        assert picture.size[0] == LABEL_WIDTH + columns * (64 + GAP + GROUP_GAP)
        assert (picture.size[1] - HEADING_HEIGHT) % (64 + GAP) == 0
    assert len(list((out / "heldout-phrasing-train-pairs" / "tdm-2-steps").glob("*.png"))) == 4


def test_a_reference_of_another_classifier_is_refused(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = shutil.copytree(folder, tmp_path / "model")
    record = json.loads((model / "reference.json").read_text())
    (model / "reference.json").write_text(json.dumps(record | {"classifier": "other"}))
    assert main(["eval", "image", "--model", str(model), "--quick"]) == 2
    assert "is of another classifier" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("removed", "arguments", "message"),
    [
        ("reference.json", [], "has no reference.json: give --data DIR"),
        ("classifier", [], "has no classifier; train image/objects/classifier"),
        (None, ["--write-reference"], "--write-reference needs --data DIR"),
        (None, ["--data", "nowhere"], "no folder nowhere/val"),
        (None, ["--sheet", "sheet.jpg"], "--sheet must end in .png"),
        (None, ["--sheet", "none/sheet.png"], "--sheet: no folder none"),
        (None, ["--out", __file__], "is a file; name a folder"),
        (None, ["--out", f"{__file__}/below"], "is a file; name a folder"),
        (None, ["--threads", "0"], "--threads must be at least 1"),
    ],
)
def test_what_is_missing_is_named_in_one_line(
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    removed: str | None,
    arguments: list[str],
    message: str,
) -> None:
    model = shutil.copytree(folder, tmp_path / "model")
    if removed is not None:
        target = model / removed
        shutil.rmtree(target) if target.is_dir() else target.unlink()
    assert main(["eval", "image", "--model", str(model), "--quick", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
