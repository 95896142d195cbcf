"""Batches of 3D objects, and the numbers of their corners."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from fewstep.modalities.objects.scene import numbered_scene
from fewstep.modalities.shape3d.data.corners import CORNERS, cell_corners, corner_numbers
from fewstep.modalities.shape3d.data.latents import cached_latents
from fewstep.modalities.shape3d.data.shapes import Batch, Latents, Shapes, in_its_studio, matted
from fewstep.modalities.shape3d.data.shards import StoredObject, write_shard
from fewstep.modalities.shape3d.data.voxels import CELLS_PER_VOXEL, SceneSurface, corner_mask

R = 8
CELLS = CELLS_PER_VOXEL * R


def test_a_batch_joins_its_objects_in_the_order_of_the_picks(shapes_root: Path):
    shapes = Shapes.of(shapes_root / "train", "occupancy", "voxels", "corners", "pictures")
    picks = [(4, 0), (1, 3)]
    batch = shapes.__getitems__(picks)
    assert batch["numbers"].tolist() == [4, 1]
    stored = [shapes.shards[0].voxels(number) for number, _ in picks]
    np.testing.assert_array_equal(batch["coords"][:, 1:], np.concatenate([one.coords for one in stored]))
    np.testing.assert_array_equal(batch["features"], np.concatenate([one.features for one in stored]))
    assert batch["coords"][:, 0].tolist() == [0] * len(stored[0].coords) + [1] * len(stored[1].coords)
    assert batch["coords"].dtype == torch.int32
    np.testing.assert_array_equal(batch["corner_distance"], np.concatenate([one.distance for one in stored]))
    assert torch.equal(batch["occupancy"][:, 0].nonzero().int(), batch["coords"])
    assert batch["occupancy"].sum() == len(batch["coords"])


def test_picks_choose_views_and_whether_their_background_is_black(shapes_root: Path):
    shapes = Shapes.of(shapes_root / "train", "pictures")
    shard = shapes.shards[0]
    views = [shard.view(2, view) for view in range(2)]
    pictures = shapes.__getitems__([(2, draw) for draw in range(6)])["pictures"]
    for draw, (view, cut) in enumerate([(0, in_its_studio), (0, matted), (1, in_its_studio), (1, matted)]):
        assert torch.equal(pictures[draw], cut(views[view]))
    assert torch.equal(pictures[4], pictures[0])
    uncovered = views[0][..., 3] == 0
    assert pictures[1][:, uncovered].max() == 0
    assert pictures[0][:, uncovered].max() > 0


def test_pictures_of_objects_without_views_are_refused(shapes_root: Path, tmp_path: Path):
    voxels = Shapes.of(shapes_root / "train").shards[0].voxels(0)
    unseen = StoredObject(voxels=voxels, views=np.zeros((0, 8, 8, 4), np.uint8), record={"name": "a"})
    write_shard(tmp_path / "one.safetensors", [unseen])
    assert len(Shapes.of(tmp_path, "voxels")) == 1
    with pytest.raises(ValueError, match="some objects have no views"):
        Shapes.of(tmp_path, "pictures")


def test_corner_numbers_point_at_the_targets_of_each_cell(shapes_root: Path):
    """A must-fail control for the order of corners: distances looked up must be those of the scene."""
    shapes = Shapes.of(shapes_root / "train", "voxels", "corners")
    batch = shapes.__getitems__([(3, 0), (5, 0)])
    numbers = corner_numbers(batch["coords"], 2, R)
    assert int(numbers.max()) + 1 == len(batch["corner_distance"])
    np.testing.assert_array_equal(
        (numbers[1] >= 0).numpy(), corner_mask(shapes.shards[0].voxels(5).coords.astype(np.int64), R)
    )
    voxels = batch["coords"][batch["coords"][:, 0] == 1][:5]
    cells = torch.cat([voxels[:, :1], CELLS_PER_VOXEL * voxels[:, 1:] + torch.tensor([3, 0, 2])], 1)
    found = batch["corner_distance"][cell_corners(cells, numbers)]
    lattice = SceneSurface(numbered_scene(5)).lattice(CELLS) * CELLS
    for column, step in enumerate(CORNERS):
        x, y, z = (cells[:, 1:] + torch.tensor(step)).T.numpy()
        np.testing.assert_allclose(found[:, column], lattice[x, y, z].clip(-3, 3), atol=2e-3)
    swapped = batch["corner_distance"][cell_corners(cells, numbers)][:, [0, 4, 2, 6, 1, 5, 3, 7]]
    assert not torch.allclose(swapped, found, atol=0.05)


CERTAIN = -100.0  # log variance of a posterior that is a point


def dense(batch: Batch) -> tuple[Tensor, Tensor]:
    """Two channels on a grid of 2: the number of the object, and how full the object is."""
    full = batch["occupancy"].mean(dim=(1, 2, 3, 4))
    mean = torch.stack([batch["numbers"].float(), full], 1)[..., None, None, None].expand(-1, -1, 2, 2, 2)
    return mean, torch.full_like(mean, CERTAIN)


def test_structure_latents_are_encoded_once_and_kept(shapes_root: Path, tmp_path: Path):
    shapes = Shapes.of(shapes_root / "train", "occupancy")
    found = cached_latents(shapes, dense, name="train", weights="a", cache=tmp_path, batch_size=4)
    assert found.values.shape == (6, 2, 2, 2, 2)
    assert found.values[:, 0, 0, 0, 0].tolist() == [0, 1, 2, 3, 4, 5]
    assert found.mean[0] == pytest.approx(2.5)
    assert found.std[0] == pytest.approx(np.std(range(6)))

    def refuse(batch: Batch) -> tuple[Tensor, Tensor]:
        raise AssertionError("encoded again")

    again = cached_latents(shapes, refuse, name="train", weights="a", cache=tmp_path)
    assert torch.equal(again.values, found.values)
    with pytest.raises(AssertionError, match="encoded again"):
        cached_latents(shapes, refuse, name="train", weights="b", cache=tmp_path)


def test_latents_of_voxels_weigh_objects_alike_and_come_back_normalised(shapes_root: Path, tmp_path: Path):
    shapes = Shapes.of(shapes_root / "train", "voxels")

    def encode(batch: Batch) -> tuple[Tensor, Tensor]:
        mean = batch["numbers"][batch["coords"][:, 0].long()].float()[:, None]
        return mean, torch.full_like(mean, CERTAIN)

    found = cached_latents(shapes, encode, name="train", weights="a", cache=tmp_path, batch_size=4)
    assert found.values.shape == (shapes.voxel_starts[-1], 1)
    # by voxels it would be another number, as objects differ in theirs
    assert float(found.mean) == pytest.approx(2.5)
    assert float(found.values.mean()) != pytest.approx(2.5, abs=0.01)
    latents = Latents(values=found.values, mean=found.mean, std=found.std)
    batch = Shapes(shards=shapes.shards, parts=("latents",), latents={"latents": latents}).__getitems__(
        [(5, 0), (2, 0)]
    )
    expected = (torch.tensor([5.0, 2.0])[batch["coords"][:, 0].long()] - 2.5) / float(np.std(range(6)))
    assert torch.allclose(batch["latents"][:, 0], expected)


def test_a_channel_that_tells_nothing_is_not_blown_up(shapes_root: Path, tmp_path: Path):
    shapes = Shapes.of(shapes_root / "train", "voxels")

    def encode(batch: Batch) -> tuple[Tensor, Tensor]:
        told = batch["numbers"][batch["coords"][:, 0].long()].float()
        mean = torch.stack([told, 1e-3 * told], 1)
        return mean, torch.stack([torch.full_like(told, CERTAIN), torch.zeros_like(told)], 1)

    found = cached_latents(shapes, encode, name="train", weights="a", cache=tmp_path, batch_size=4)
    assert found.std[0] == pytest.approx(np.std(range(6)))
    assert found.std[1] == pytest.approx(1, abs=1e-4)  # by its means it would be 1.7e-3
