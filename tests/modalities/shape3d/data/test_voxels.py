"""Surfaces as active voxels with features, and corner targets."""

from dataclasses import dataclass, replace

import numpy as np
import pytest

from fewstep.modalities.objects.captions import CATEGORIES, Attributes
from fewstep.modalities.objects.scene import Scene, draw_scene
from fewstep.modalities.shape3d.data.voxels import (
    BAND,
    CELLS_PER_VOXEL,
    SceneSurface,
    Surface,
    active_voxels,
    corner_mask,
    srgb,
    voxelised,
)

R = 16
CELLS = CELLS_PER_VOXEL * R
HALF_BITS = 2e-3  # of 16-bit floats of size 1 to 2, twice


@dataclass(frozen=True)
class Ball:
    """A ball around the origin, red above and blue below."""

    radius: float = 0.35

    def lattice(self, cells: int) -> np.ndarray:
        axis = (np.arange(cells + 1) / cells - 0.5).astype(np.float32)
        return np.linalg.norm(np.stack(np.meshgrid(axis, axis, axis, indexing="ij")), axis=0) - np.float32(
            self.radius
        )

    def nearest(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        normal = points / np.maximum(np.linalg.norm(points, axis=1, keepdims=True), 1e-9)
        return (self.radius * normal).astype(np.float32), normal.astype(np.float32)

    def colour(self, points: np.ndarray) -> np.ndarray:
        above = points[:, 2:] > 0
        return np.where(above, [[255, 0, 0]], [[0, 0, 255]]).astype(np.uint8)


def scene(category: str, seed: int = 0) -> Scene:
    return draw_scene(Attributes(category=category, colour="green"), np.random.default_rng(seed))


def centres(coords: np.ndarray) -> np.ndarray:
    return ((coords + 0.5) / R - 0.5).astype(np.float32)


def test_the_voxels_of_a_ball_are_those_that_its_surface_enters_deeply_enough():
    ball = Ball()
    assert isinstance(ball, Surface)
    away = np.linalg.norm(np.maximum(np.abs(centres(np.argwhere(np.ones([R] * 3)))) - 0.5 / R, 0), axis=1)
    reach = np.linalg.norm(np.abs(centres(np.argwhere(np.ones([R] * 3)))) + 0.5 / R, axis=1)
    crossed = (away < ball.radius) & (reach > ball.radius)
    active = np.zeros([R] * 3, bool)
    active[tuple(voxelised(ball, resolution=R).coords.T)] = True
    assert not (active.ravel() & ~crossed).any()
    # what is missed is cut by less than a cell
    assert (crossed & ~active.ravel()).sum() < 0.05 * active.sum()


def test_features_of_a_ball_are_what_geometry_says():
    ball = Ball()
    voxels = voxelised(ball, resolution=R)
    centre, features = centres(voxels.coords), voxels.features.astype(np.float64)
    length = np.linalg.norm(centre, axis=1, keepdims=True)
    np.testing.assert_allclose(features[:, :3], centre / length * (ball.radius - length) * R, atol=HALF_BITS)
    np.testing.assert_allclose(features[:, 3:6], centre / length, atol=HALF_BITS)
    np.testing.assert_array_equal(features[:, 6] == 1, centre[:, 2] > 0)
    np.testing.assert_allclose(features[:, [9]], (length - ball.radius) * R, atol=HALF_BITS)
    for column, step in enumerate(np.ndindex(2, 2, 2)):
        eighth = centre + (np.array(step) - 0.5) / (2 * R)
        np.testing.assert_array_equal(features[:, 10 + column], np.linalg.norm(eighth, axis=1) < ball.radius)


def test_corner_targets_are_the_distances_colours_and_normals_of_a_ball():
    ball = Ball()
    voxels = voxelised(ball, resolution=R)
    corners = np.argwhere(corner_mask(voxels.coords.astype(np.int64), R)) / CELLS - 0.5
    length = np.linalg.norm(corners, axis=1)
    assert len(voxels.distance) == len(corners)
    expected = np.clip((length - ball.radius) * CELLS, -BAND, BAND)
    np.testing.assert_allclose(voxels.distance, expected, atol=2 * HALF_BITS)
    np.testing.assert_allclose(voxels.normal / 127, corners / length[:, None], atol=1 / 127)
    np.testing.assert_array_equal(voxels.colour[:, 2] == 255, corners[:, 2] <= 0)


def test_every_cell_that_the_surface_cuts_lies_in_an_active_voxel():
    inside = SceneSurface(scene("teapot")).lattice(CELLS) < 0
    cut = np.zeros([CELLS] * 3, int)
    for x, y, z in np.ndindex(2, 2, 2):
        cut += inside[x : x + CELLS, y : y + CELLS, z : z + CELLS]
    voxels = np.unique(np.argwhere((cut > 0) & (cut < 8)) // CELLS_PER_VOXEL, axis=0)
    np.testing.assert_array_equal(voxels, active_voxels(inside))


@pytest.mark.parametrize("category", CATEGORIES)
def test_features_of_every_category_point_to_its_surface(category: str):
    drawn = scene(category)
    voxels = voxelised(SceneSurface(drawn), resolution=R)
    found = centres(voxels.coords) + voxels.features[:, :3].astype(np.float32) / R
    residual = np.abs(drawn.shape.distance(found)) * CELLS
    # hard edges inside a union leave a few points a part of a cell away
    assert np.quantile(residual, 0.97) < 0.05
    assert np.abs(voxels.features[:, :3].astype(np.float32)).max() < 1
    expected = srgb(drawn.albedo(found)) / 255
    assert np.abs(voxels.features[:, 6:9] - expected).mean() < 0.01


def steepness(distance: np.ndarray) -> np.ndarray:
    """Lengths of gradients, in cells per cell, at corners within a cell of the surface."""
    slope = np.sqrt(sum(part**2 for part in np.gradient(distance * CELLS)))
    return slope[np.abs(distance * CELLS) < 1]


def test_distances_are_true_ones_where_the_solid_underestimates_them():
    drawn = scene("bottle")  # its slanted shoulder makes the raw distance half the true one
    axis = (np.arange(CELLS + 1) / CELLS - 0.5).astype(np.float32)
    points = np.stack(np.meshgrid(axis, axis, axis, indexing="ij")).reshape(3, -1)
    raw = drawn.shape.rows_distance(points).reshape([CELLS + 1] * 3)
    corrected = SceneSurface(drawn).lattice(CELLS)
    np.testing.assert_array_equal(raw < 0, corrected < 0)
    assert np.median(steepness(raw)) < 0.85
    assert np.median(steepness(corrected)) == pytest.approx(1, abs=0.05)


def test_equal_scenes_give_equal_voxels_and_others_do_not():
    one, again, other = (voxelised(SceneSurface(scene("car", seed))) for seed in (0, 0, 1))
    for name in ("coords", "features", "distance", "colour", "normal"):
        np.testing.assert_array_equal(getattr(one, name), getattr(again, name))
    assert len(one.coords) != len(other.coords) or (one.coords != other.coords).any()


def test_empty_space_and_absurd_resolutions_are_refused():
    with pytest.raises(ValueError, match="encloses no corner"):
        voxelised(replace(Ball(), radius=1e-4 - 1), resolution=8)
    with pytest.raises(ValueError, match="resolution=1 must be"):
        voxelised(Ball(), resolution=1)
