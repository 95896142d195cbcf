"""`fewstep render --world shapes`."""

from pathlib import Path

import numpy as np
import pytest

from fewstep.apps.cli import main
from fewstep.modalities.objects.captions import HELDOUT_PAIRS
from fewstep.modalities.objects.scene import numbered_scene
from fewstep.modalities.objects.scene import render as picture
from fewstep.modalities.shape3d.data.shards import open_shards


def render(out: Path, *arguments: str, count: int = 3) -> int:
    sizes = ("--size", "16", "--resolution", "8", "--views", "2", "--count", str(count))
    return main(["render", str(out), "--world", "shapes", "--workers", "1", *sizes, *arguments])


def test_the_first_view_is_the_picture_of_the_world_of_objects_and_shows_the_object(tmp_path: Path):
    assert render(tmp_path) == 0
    (shard,) = open_shards(tmp_path / "train")
    scene = numbered_scene(1)
    view = shard.view(1, 0).numpy()
    np.testing.assert_array_equal(view[..., :3], picture(scene, size=16))
    assert 0.05 < (view[..., 3] > 127).mean() < 0.8
    assert shard.records[1]["attributes"] == scene.attributes.as_dict()
    assert shard.records[1]["captions"]


def test_rendering_again_gives_the_same_bytes_and_skips_what_is_there(tmp_path: Path):
    render(tmp_path / "a")
    render(tmp_path / "b")
    (one,), (two,) = (list((tmp_path / name / "train").iterdir()) for name in "ab")
    assert one.read_bytes() == two.read_bytes()
    written = one.stat().st_mtime_ns
    render(tmp_path / "a")
    assert one.stat().st_mtime_ns == written


def test_heldout_shapes_have_heldout_pairs(tmp_path: Path):
    render(tmp_path, "--split", "heldout")
    (shard,) = open_shards(tmp_path / "heldout")
    for record in shard.records:
        attributes = record["attributes"]
        assert (attributes["category"], attributes["colour"]) in HELDOUT_PAIRS


@pytest.mark.parametrize(("name", "value"), [("resolution", "1"), ("views", "-1"), ("size", "4")])
def test_numbers_out_of_range_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, value: str
):
    assert render(tmp_path, f"--{name}", value) != 0
    assert f"--{name} {value} is out of range" in capsys.readouterr().err
