"""What a decoder leaves is made fit for a file."""

import numpy as np
import pytest

from fewstep.modalities.shape3d.mesh_file import Mesh
from fewstep.modalities.shape3d.surface.cleaning import health
from fewstep.modalities.shape3d.surface.finishing import finished

trimesh = pytest.importorskip("trimesh", reason="needs trimesh: pip install 'fewstep[three-d]'")


def ball(radius: float, *, inwards: bool = False) -> tuple[np.ndarray, np.ndarray]:
    made = trimesh.creation.icosphere(subdivisions=3, radius=radius)
    return made.vertices, made.faces[:, ::-1] if inwards else made.faces


def joined(*parts: tuple[np.ndarray, np.ndarray]) -> Mesh:
    starts = np.cumsum([0, *(len(vertices) for vertices, _ in parts)])
    vertices = np.concatenate([vertices for vertices, _ in parts]).astype(np.float32)
    faces = np.concatenate([faces + start for (_, faces), start in zip(parts, starts, strict=False)])
    return Mesh(vertices, faces.astype(np.int64), np.full_like(vertices, 0.5))


@pytest.fixture
def rough() -> Mesh:
    """A ball with a hole, with a wall within it and a speck beside it."""
    outer, faces = ball(0.4)
    speck, specks = ball(0.01)
    return joined((outer, faces[1:]), ball(0.3, inwards=True), (speck + 0.45, specks))


def test_walls_within_specks_and_holes_are_gone(rough: Mesh) -> None:
    before, after = health(rough), health(finished(rough))
    assert (before.watertight, before.components) == (False, 3)
    assert (after.watertight, after.components, after.euler) == (True, 1, 2)
    assert after.volume == pytest.approx(4 / 3 * np.pi * 0.4**3, rel=0.02)


def test_what_is_small_stays_where_nothing_counts_as_floating(rough: Mesh) -> None:
    assert health(finished(rough, floaters=0.0)).components == 2


def test_a_budget_and_a_texture_come_last(rough: Mesh) -> None:
    pytest.importorskip("xatlas", reason="needs xatlas")
    pytest.importorskip("fast_simplification", reason="needs fast-simplification")
    made = finished(rough, faces=300, texture=32)
    assert len(made.faces) <= 300
    assert made.texture is not None
    assert made.texture.picture.shape == (32, 32, 3)
    assert abs(int(made.texture.picture.mean()) - 128) <= 1
