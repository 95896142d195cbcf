"""Objects in other colours: the same change in the voxels' features as at the corners, and none elsewhere."""

from pathlib import Path

import torch

from fewstep.modalities.shape3d.data.corners import corner_numbers
from fewstep.modalities.shape3d.data.recolouring import COLOUR_FEATURES, SHIFT, SLOPE, recoloured
from fewstep.modalities.shape3d.data.shapes import Batch, Shapes
from fewstep.modalities.shape3d.data.voxels import CELLS_PER_VOXEL


def batch_of(shapes_root: Path) -> tuple[Batch, int]:
    shapes = Shapes.of(shapes_root / "train", "voxels", "corners")
    batch = shapes.__getitems__([(0, 0), (1, 0), (2, 0)])
    grey = {
        "features": batch["features"].clone(),
        "corner_colour": torch.full_like(batch["corner_colour"], 0.5),
    }
    grey["features"][:, COLOUR_FEATURES] = 0.5
    return {**batch, **grey}, shapes.resolution


def changed(batch: Batch, resolution: int, share: float) -> Batch:
    return recoloured(batch, resolution, share=share, generator=torch.Generator().manual_seed(3))


def test_without_a_share_nothing_changes(shapes_root: Path) -> None:
    batch, resolution = batch_of(shapes_root)
    same = changed(batch, resolution, 0.0)
    assert all(torch.equal(same[name], batch[name]) for name in batch)


def test_only_colours_change_and_stay_colours(shapes_root: Path) -> None:
    batch, resolution = batch_of(shapes_root)
    other = changed(batch, resolution, 1.0)
    for name in set(batch) - {"features", "corner_colour"}:
        assert torch.equal(other[name], batch[name]), name
    rest = [column for column in range(18) if column not in range(*COLOUR_FEATURES.indices(18))]
    assert torch.equal(other["features"][:, rest], batch["features"][:, rest])
    for colours in (other["features"][:, COLOUR_FEATURES], other["corner_colour"]):
        assert colours.min() >= 0
        assert colours.max() <= 1
        assert (colours - 0.5).abs().max() > 0.1


def test_voxels_and_corners_get_one_field_per_object(shapes_root: Path) -> None:
    batch, resolution = batch_of(shapes_root)
    other = changed(batch, resolution, 1.0)
    numbers = corner_numbers(batch["coords"], len(batch["numbers"]), resolution)
    middle = CELLS_PER_VOXEL * batch["coords"][:, 1:].long() + CELLS_PER_VOXEL // 2  # a corner in the centre
    rows = numbers[batch["coords"][:, 0].long(), middle[:, 0], middle[:, 1], middle[:, 2]]
    assert torch.allclose(other["corner_colour"][rows], other["features"][:, COLOUR_FEATURES], atol=1e-5)
    means = [other["corner_colour"][rows][batch["coords"][:, 0] == item].mean(0) for item in range(3)]
    assert (means[0] - means[1]).abs().max() > 0.02


def test_a_field_is_linear_and_within_its_bounds(shapes_root: Path) -> None:
    batch, resolution = batch_of(shapes_root)
    field = changed(batch, resolution, 1.0)["features"][:, COLOUR_FEATURES] - 0.5
    mine = batch["coords"][:, 0] == 0
    inside = mine & (field.abs() < 0.499).all(1)  # where nothing was cut
    places = (batch["coords"][inside, 1:] + 0.5) / resolution - 0.5
    design = torch.cat([places, torch.ones(len(places), 1)], 1)
    fitted = torch.linalg.lstsq(design, field[inside]).solution
    assert torch.allclose(design @ fitted, field[inside], atol=1e-4)
    assert fitted[:3].abs().max() <= SLOPE
    assert fitted[3].abs().max() <= SHIFT + 1e-4
