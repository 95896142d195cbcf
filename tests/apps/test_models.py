"""`fewstep models`: what it lists, and what it says of a model that is whole or not."""

import argparse
import json
import shutil
from pathlib import Path

import pytest

from fewstep.apps import cli, models
from fewstep.modalities.video.released.conversion import digests


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A converted model, but for its networks."""
    model = tmp_path / "mine"
    (model / "student").mkdir(parents=True)
    (model / "student" / "card.json").write_text(json.dumps({"licence": "MIT"}))
    cache = {"window": 9, "chunk": 3, "sink": 3, "sink_mode": "ema", "decay": 0.999}
    card = {"name": "mine", "width": 64, "height": 32, "fps": 16.0, "cache": cache, "step_grids": {"4": []}}
    card |= {"default_steps": 4, "default_prompt": "a red fox"}
    (model / "pipeline.json").write_text(json.dumps(card | {"files": digests(model)}))
    return model


def test_models_on_disk_and_released_students_are_listed(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["models", "list", str(folder.parent)]) == 0
    shown = capsys.readouterr().out
    rows = {line.split()[1]: line for line in shown.splitlines() if line.startswith("│")}
    assert {"driving", "mine", "self-forcing", "causvid", "reward-forcing", "longlive"} <= rows.keys()
    for part in ("64x32 at 16 a second", "9, 3 (ema)", "MIT"):
        assert part in rows["mine"]
    assert "832x480" in rows["reward-forcing"]


def test_models_of_pictures_beside_those_of_videos_are_not_called_damaged(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures = folder.parent / "pictures"
    (pictures / "students" / "dmd2").mkdir(parents=True)
    (pictures / "pipeline.json").write_text(json.dumps({"students": {"dmd2": {"rollout": "fresh"}}}))
    assert cli.main(["models", "list", str(folder.parent)]) == 0
    assert capsys.readouterr().err == ""


def test_a_whole_model_is_verified_and_a_changed_one_is_not(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["models", "verify", str(folder)]) == 0
    assert "whole, every file is as it was converted" in capsys.readouterr().out
    (folder / "student" / "card.json").write_text("{}")
    assert cli.main(["models", "verify", str(folder)]) == 1
    assert "student/card.json differs from what was converted" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["verify", "."], "is no model folder: it has no pipeline.json"),
        (["list", "gone"], "gone is no folder"),
        (["convert", "gone", "-o", "out"], "'gone' is neither on disk nor a hub id"),
        (["convert", ".", "-o", "out"], "has no transformer"),
    ],
)
def test_what_cannot_be_done_is_one_line(
    arguments: list[str],
    named: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["models", *arguments]) == 2
    error = capsys.readouterr().err
    assert named in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("{half", "pipeline.json is not JSON"),
        ("[]", "pipeline.json does not say fps, height, width, cache"),
        ('{"name": "x"}', "pipeline.json does not say fps, height, width, cache"),
    ],
)
def test_a_damaged_card_is_named(
    folder: Path, content: str, named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "pipeline.json").write_text(content)
    assert cli.main(["models", "verify", str(folder)]) == 2
    error = capsys.readouterr().err
    assert f"{folder}/{named}" in error
    assert "copy or convert the model again" in error


@pytest.mark.parametrize(
    ("file", "content", "named"),
    [
        ("pipeline.json", "{half", "pipeline.json is not JSON"),
        ("pipeline.json", "[]", "pipeline.json does not say fps, height, width, cache"),
        ("pipeline.json", '{"cache": {}}', "pipeline.json does not say fps, height"),
        ("student/card.json", "{half", "its cards are damaged (JSONDecodeError"),
        ("student/card.json", "[]", "its cards are damaged (AttributeError"),
    ],
)
def test_a_damaged_model_is_named_and_the_others_are_listed(
    folder: Path, file: str, content: str, named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    other = folder.with_name("other")  # comes after the damaged one
    shutil.copytree(folder, other)
    (other / "pipeline.json").write_text((folder / "pipeline.json").read_text().replace("mine", "other"))
    (folder / file).write_text(content)
    assert cli.main(["models", "list", str(folder.parent)]) == 1
    shown, error = capsys.readouterr()
    names = {line.split()[1] for line in shown.splitlines() if line.startswith("│")}
    assert {"driving", "other", "self-forcing"} <= names
    assert "mine" not in names
    assert f"fewstep: not listed: {folder}" in error
    assert named in error
    assert error.count("\n") == 1


def test_a_card_that_lacks_what_a_row_shows_is_named(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    card = json.loads((folder / "pipeline.json").read_text())
    (folder / "pipeline.json").write_text(json.dumps(card | {"cache": {"window": 9}}))
    assert cli.main(["models", "list", str(folder)]) == 1
    assert "its cards are damaged (KeyError: 'sink_mode')" in capsys.readouterr().err


def test_a_hub_that_is_not_reached_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["models", "convert", "nobody/nothing", "--offline", "-o", "out"]) == 2
    error = capsys.readouterr().err
    assert "'nobody/nothing' is not on disk, not in the hub's cache" in error
    assert error.count("\n") == 1


def test_sizes_are_read_as_width_by_height() -> None:
    assert models._size("832x480") == (480, 832)
    for wrong in ("832", "832x481", "x480", "8 x 16", "0x480", "832x0"):
        with pytest.raises(argparse.ArgumentTypeError, match="must be WIDTHxHEIGHT"):
            models._size(wrong)
