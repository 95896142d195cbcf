"""Cells in and on meshes whose cells can be counted, and against winding numbers."""

from typing import Any

import numpy as np
import pytest

from fewstep.modalities.shape3d.mesh_file import Mesh
from fewstep.modalities.shape3d.metrics import grid_points, inside
from fewstep.modalities.shape3d.surface.cleaning import with_faces
from fewstep.modalities.shape3d.surface.occupancy import occupied, passed

trimesh = pytest.importorskip("trimesh", reason="needs trimesh: pip install 'fewstep[three-d]'")


def made(shape: Any) -> Mesh:
    return Mesh(np.asarray(shape.vertices, np.float32), np.asarray(shape.faces, np.int64))


def ball(radius: float, at: tuple[float, float, float] = (0, 0, 0)) -> Mesh:
    return made(trimesh.creation.icosphere(subdivisions=3, radius=radius).apply_translation(at))


def both(one: Mesh, other: Mesh) -> Mesh:
    return Mesh(
        np.concatenate([one.vertices, other.vertices]),
        np.concatenate([one.faces, other.faces + len(one.vertices)]),
    )


def test_a_box_holds_its_cells_and_no_others() -> None:
    """Its faces and the diagonals between their triangles run through middles of cells, too."""
    for extents in ((0.5, 0.25, 0.75), (0.5625, 0.5625, 0.5)):
        found = occupied(made(trimesh.creation.box(extents)), 16)
        lines = [np.abs((np.arange(16) + 0.5) / 16 - 0.5) < extent / 2 for extent in extents]
        sure = [np.abs(np.abs((np.arange(16) + 0.5) / 16 - 0.5) - extent / 2) > 1e-6 for extent in extents]
        expected = lines[0][:, None, None] & lines[1][:, None] & lines[2]
        clear = sure[0][:, None, None] & sure[1][:, None] & sure[2]
        assert np.array_equal(found[clear], expected[clear])
    assert occupied(made(trimesh.creation.box((0.5, 0.25, 0.75))), 16).sum() == 8 * 4 * 12


def test_winding_numbers_agree() -> None:
    ring = trimesh.creation.torus(0.3, 0.12, major_sections=24, minor_sections=12)
    tilted = made(ring.apply_transform(trimesh.transformations.rotation_matrix(0.7, [1.0, 2.0, 0.5])))
    for mesh in (tilted, both(ball(0.3), ball(0.25, at=(0.2, 0.1, 0.05)))):
        expected = inside(mesh, grid_points(12).astype(np.float64)).reshape(12, 12, 12)
        assert expected.sum() > 50
        assert np.array_equal(occupied(mesh, 12), expected)


def test_a_hollow_ball_is_hollow() -> None:
    core = ball(0.2)
    found = occupied(both(ball(0.4), Mesh(core.vertices, np.ascontiguousarray(core.faces[:, ::-1]))), 32)
    radius = np.linalg.norm(grid_points(32), axis=1).reshape(32, 32, 32)
    assert found.sum() == pytest.approx(((radius < 0.4) & (radius > 0.2)).sum(), rel=0.02)
    assert not found[15, 15, 15]


def test_what_lies_beyond_the_grid_does_not_matter() -> None:
    assert occupied(made(trimesh.creation.box((3.0, 3.0, 3.0))), 8).all()
    assert not occupied(ball(0.3, at=(2.0, 0, 0)), 8).any()
    assert not passed(ball(0.3, at=(2.0, 0, 0)), 8).any()


def test_the_surface_passes_a_shell() -> None:
    mesh = ball(0.4)
    found = passed(mesh, 24)
    radius = np.linalg.norm(grid_points(24), axis=1).reshape(24, 24, 24)
    reach = np.sqrt(3) / 2 / 24
    assert not found[np.abs(radius - 0.397) > reach + 0.004].any()
    assert found[np.abs(radius - 0.397) < 0.25 / 24].mean() > 0.98
    upper = passed(with_faces(mesh, mesh.vertices[mesh.faces, 2].min(1) > 0), 24)
    assert not upper[:, :, :11].any()
    assert 0.4 < upper.sum() / found.sum() < 0.5


def test_a_large_face_has_no_gaps() -> None:
    square = Mesh(
        np.array([[-0.5, -0.5, 0.01], [0.5, -0.5, 0.01], [0.5, 0.5, 0.01], [-0.5, 0.5, 0.01]], np.float32),
        np.array([[0, 1, 2], [0, 2, 3]]),
    )
    found = passed(square, 32)
    assert found[:, :, 16].all()
    assert found.sum() == 32 * 32
