"""`fewstep render --world objects`."""

from pathlib import Path

import numpy as np
import pytest

from fewstep.apps import render_objects
from fewstep.apps.cli import main
from fewstep.modalities.image.files import load_pictures
from fewstep.modalities.objects.captions import HELDOUT_PAIRS
from fewstep.modalities.objects.scene import numbered_scene, render


def run(out: Path, *arguments: str) -> int:
    return main(["render", str(out), "--world", "objects", "--size", "16", "--workers", "1", *arguments])


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(render_objects, "SHARD_PICTURES", 3)


def test_pictures_load_with_captions_and_attributes(tmp_path: Path):
    assert run(tmp_path, "--count", "4") == 0
    pictures = load_pictures(tmp_path / "train", size=16)
    assert pictures.pixels.shape == (4, 16, 16, 3)
    for number, label in enumerate(pictures.labels):
        scene = numbered_scene(number, seed=0, split="train")
        assert np.array_equal(pictures.pixels[number], render(scene, size=16))
        assert label.attributes == scene.attributes.as_dict()
        assert len(label.captions) == 6
        assert len(label.heldout_captions) == 3
        assert scene.attributes.colour in label.captions[0]


def test_rendering_again_adds_only_what_is_missing(tmp_path: Path):
    run(tmp_path, "--count", "3")
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "train").iterdir()}
    run(tmp_path, "--count", "6")
    assert len(list((tmp_path / "train").iterdir())) == 2
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in written.items())


def test_the_same_command_writes_the_same_bytes(tmp_path: Path):
    for name in ("a", "b"):
        run(tmp_path / name, "--count", "2", "--split", "val", "--seed", "7")
    one, two = (next((tmp_path / name / "val").iterdir()) for name in ("a", "b"))
    assert one.name == two.name
    assert one.read_bytes() == two.read_bytes()


def test_the_heldout_split_shows_heldout_pairs(tmp_path: Path):
    run(tmp_path, "--count", "4", "--split", "heldout")
    for label in load_pictures(tmp_path / "heldout", size=16).labels:
        assert (label.attributes["category"], label.attributes["colour"]) in HELDOUT_PAIRS


@pytest.mark.slow  # starts processes
def test_two_workers_write_what_one_does(tmp_path: Path):
    run(tmp_path / "one", "--count", "6")
    run(tmp_path / "two", "--count", "6", "--workers", "2")
    for one, two in zip(
        sorted((tmp_path / "one/train").iterdir()), sorted((tmp_path / "two/train").iterdir()), strict=True
    ):
        assert one.read_bytes() == two.read_bytes()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--count", "0"), "--count 0 is out of range; use 1 to"),
        (("--size", "4"), "--size 4 is out of range; use 8 to"),
        (("--workers", "0"), "--workers 0 is out of range"),
    ],
)
def test_an_impossible_number_is_one_line_and_an_exit_code(
    tmp_path: Path, capsys: pytest.CaptureFixture, arguments: tuple[str, str], message: str
):
    assert run(tmp_path, *arguments) == 2
    assert message in capsys.readouterr().err


def test_the_driving_world_has_no_heldout_split(tmp_path: Path, capsys: pytest.CaptureFixture):
    assert main(["render", str(tmp_path), "--split", "heldout", "--clips", "1"]) == 2
    assert "--split heldout is not of the driving world; use train or val" in capsys.readouterr().err
