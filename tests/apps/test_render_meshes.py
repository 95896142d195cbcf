"""`fewstep render --world meshes`."""

from pathlib import Path

import pytest

from fewstep.apps.cli import main
from fewstep.modalities.shape3d.data.shards import open_shards

pytest.importorskip("scipy.spatial")
trimesh = pytest.importorskip("trimesh")


def test_a_folder_of_meshes_becomes_shards_without_the_open_ones(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    folder = tmp_path / "meshes" / "deep"
    folder.mkdir(parents=True)
    trimesh.creation.icosphere().export(folder / "ball.ply")
    trimesh.creation.box().export(folder / "box.obj")
    trimesh.Trimesh([[0, 0, 0], [1, 0, 0], [0, 1, 0]], [[0, 1, 2]]).export(folder / "sheet.ply")
    arguments = ["render", str(tmp_path / "out"), "--world", "meshes", "--workers", "1", "--resolution", "8"]
    assert main([*arguments, "--meshes", str(tmp_path / "meshes")]) == 0
    (shard,) = open_shards(tmp_path / "out" / "train")
    assert [record["name"] for record in shard.records] == ["ball", "box"]
    assert "sheet.ply" in capsys.readouterr().err


def test_the_folder_must_be_given(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["render", str(tmp_path), "--world", "meshes"]) != 0
    assert "needs --meshes FOLDER" in capsys.readouterr().err
