"""`fewstep render`."""

import json
from pathlib import Path

import pytest

pytest.importorskip("gymnasium.envs.box2d.car_racing", exc_type=ImportError)

import numpy as np

from fewstep.apps.cli import main
from fewstep.modalities.video.captions import PALETTES
from fewstep.modalities.video.data import Clip, load_clips


def render(out: Path, *arguments: str) -> int:
    return main(["render", str(out), "--frames", "50", "--workers", "1", *arguments])


def assert_same(one: Clip, two: Clip) -> None:
    assert one.segments == two.segments
    assert one.speed is not None
    assert two.speed is not None
    assert np.array_equal(one.speed, two.speed)
    assert np.array_equal(one.frames, two.frames)


def test_rendered_clips_load_with_captions_attributes_and_truth(tmp_path: Path):
    assert render(tmp_path, "--clips", "2") == 0
    for clip in load_clips(tmp_path / "train"):
        assert clip.frames.shape == (50, 96, 96, 3)
        assert clip.fps == 12.0
        assert clip.lane_offset is not None
        assert clip.speed is not None
        assert clip.speed.min() > 5
        for segment in clip.segments:
            assert len(segment.captions) == len(segment.heldout_captions) == 4
            assert set(segment.attributes) == {"palette", "manoeuvre", "speed"}


def test_rendering_again_adds_only_the_missing_clips(tmp_path: Path):
    render(tmp_path, "--clips", "1")
    first = tmp_path / "train" / "00000.mp4"
    written = first.stat().st_mtime_ns
    render(tmp_path, "--clips", "2")
    assert first.stat().st_mtime_ns == written
    assert (tmp_path / "train" / "00001.mp4").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--frames", "2"], "of 50 frames, not 2"),
        (["--seed", "1"], "of another --seed"),
        ([], "is not of this"),
    ],
)
def test_clips_of_another_command_do_not_pass_for_this_ones(
    tmp_path: Path, capsys: pytest.CaptureFixture, flags: list[str], message: str
):
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "00000.mp4").touch()
    record = {"lane_offset": [0.0] * 50, "seed": 0} if flags else {"captions": ["somebody's own"]}
    (tmp_path / "train" / "00000.json").write_text(json.dumps(record))
    assert render(tmp_path, "--clips", "2", *flags) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert len(list((tmp_path / "train").iterdir())) == 2


def test_the_same_command_renders_the_same_clip_and_val_another(tmp_path: Path):
    for name in ("a", "b"):
        render(tmp_path / name, "--clips", "1")
    render(tmp_path / "a", "--clips", "1", "--split", "val")
    train, again, val = (load_clips(tmp_path / folder)[0] for folder in ("a/train", "b/train", "a/val"))
    assert_same(train, again)
    assert train.segments != val.segments
    assert not np.array_equal(train.frames, val.frames)


def test_few_clips_begin_in_every_world(tmp_path: Path):
    render(tmp_path, "--clips", "5", "--frames", "2")
    worlds = {clip.attributes[0]["palette"] for clip in load_clips(tmp_path / "train")}
    assert worlds == set(PALETTES)


@pytest.mark.slow  # each worker imports torch
def test_two_workers_render_what_one_does(tmp_path: Path):
    render(tmp_path / "one", "--clips", "2")
    main(["render", str(tmp_path / "two"), "--frames", "50", "--workers", "2", "--clips", "2"])
    for one, two in zip(load_clips(tmp_path / "one/train"), load_clips(tmp_path / "two/train"), strict=True):
        assert_same(one, two)


def test_a_file_in_the_folders_place_is_named_before_anything_is_rendered(
    tmp_path: Path, capsys: pytest.CaptureFixture
):
    (tmp_path / "file").touch()
    for world in ("driving", "objects", "shapes"):
        assert render(tmp_path / "file", "--world", world) == 2
        assert (
            capsys.readouterr().err == f"fewstep: error: OUT: {tmp_path / 'file'} is a file; name a folder\n"
        )


def test_an_impossible_number_of_clips_is_one_line_and_an_exit_code(
    tmp_path: Path, capsys: pytest.CaptureFixture
):
    assert render(tmp_path, "--clips", "0") == 2
    assert "--clips 0 is out of range; use 1 to 100000" in capsys.readouterr().err
