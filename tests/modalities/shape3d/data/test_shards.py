"""Shards of objects: what is written is what is read."""

import pickle
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from fewstep.modalities.objects.scene import numbered_scene
from fewstep.modalities.shape3d.data.shards import Shard, StoredObject, open_shards, write_shard
from fewstep.modalities.shape3d.data.voxels import SceneSurface, voxelised

NAMES = ("coords", "features", "distance", "colour", "normal")


def stored(number: int, *, resolution: int = 8, views: int = 2) -> StoredObject:
    voxels = voxelised(SceneSurface(numbered_scene(number)), resolution=resolution)
    pictures = np.random.default_rng(number).integers(0, 256, (views, 8, 8, 4), np.uint8)
    return StoredObject(voxels=voxels, views=pictures, record={"name": str(number), "captions": ["a mug"]})


def test_objects_come_back_as_they_were_written(tmp_path: Path):
    objects = [stored(number) for number in range(3)]
    write_shard(tmp_path / "one.safetensors", objects)
    shard = Shard(tmp_path / "one.safetensors")
    assert len(shard) == 3
    for number, one in enumerate(objects):
        read = shard.voxels(number)
        assert read.resolution == 8
        assert shard.num_voxels(number) == len(one.voxels.coords)
        for name in NAMES:
            np.testing.assert_array_equal(getattr(read, name), getattr(one.voxels, name))
        for view in range(2):
            np.testing.assert_array_equal(shard.view(number, view).numpy(), one.views[view])
        assert shard.records[number] == one.record


def test_a_shard_travels_to_another_process(tmp_path: Path):
    write_shard(tmp_path / "one.safetensors", [stored(0)])
    shard = Shard(tmp_path / "one.safetensors")
    again = pickle.loads(pickle.dumps(shard))
    np.testing.assert_array_equal(again.voxels(0).features, shard.voxels(0).features)


def test_a_failed_write_leaves_nothing_behind(tmp_path: Path):
    with pytest.raises(ValueError, match="differ in resolution or views"):
        write_shard(tmp_path / "one.safetensors", [stored(0), stored(1, resolution=4)])
    assert list(tmp_path.iterdir()) == []


def test_folders_without_shards_and_files_that_are_none_are_named(tmp_path: Path):
    with pytest.raises(ValueError, match="holds no shard"):
        open_shards(tmp_path)
    (tmp_path / "bad.safetensors").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"bad\.safetensors is not a whole shard"):
        open_shards(tmp_path)
    save_file({"coords": np.zeros(3)}, tmp_path / "bad.safetensors")
    with pytest.raises(ValueError, match="has format None"):
        open_shards(tmp_path)


def test_a_folder_of_two_resolutions_is_refused(tmp_path: Path):
    write_shard(tmp_path / "one.safetensors", [stored(0)])
    write_shard(tmp_path / "two.safetensors", [stored(0, resolution=4)])
    with pytest.raises(ValueError, match="mixes resolutions"):
        open_shards(tmp_path)
