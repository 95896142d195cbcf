"""Turning faces to one side and filling holes, on meshes broken on purpose."""

from typing import Any

import numpy as np
import pytest

from fewstep.modalities.shape3d.mesh_file import Mesh, Texture
from fewstep.modalities.shape3d.surface.cleaning import health, with_faces
from fewstep.modalities.shape3d.surface.closing import filled, oriented

trimesh = pytest.importorskip("trimesh", reason="needs trimesh: pip install 'fewstep[three-d]'")


def made(shape: Any) -> Mesh:
    vertices = np.asarray(shape.vertices, np.float32)
    return Mesh(vertices, np.asarray(shape.faces, np.int64), np.clip(vertices + 0.5, 0, 1))


def ball(radius: float = 0.4, at: float = 0.0) -> Mesh:
    shape = trimesh.creation.icosphere(subdivisions=3, radius=radius)
    return made(shape.apply_translation([at, 0, 0]))


def turned(mesh: Mesh, which: np.ndarray) -> Mesh:
    return Mesh(mesh.vertices, np.where(which[:, None], mesh.faces[:, ::-1], mesh.faces), mesh.colours)


def outwards(mesh: Mesh) -> np.ndarray:
    a, b, c = (mesh.vertices[mesh.faces[:, corner]] for corner in range(3))
    return (np.cross(b - a, c - a) * (a + b + c)).sum(-1) > 0


def test_faces_turned_at_random_turn_back() -> None:
    mesh = ball()
    which = np.random.default_rng(0).random(len(mesh.faces)) < 0.7
    assert not health(turned(mesh, which)).watertight
    found = oriented(turned(mesh, which))
    assert health(found).watertight
    assert outwards(found).all()


def test_each_closed_piece_turns_outwards_by_itself() -> None:
    one, other = ball(0.2, -0.25), turned(ball(0.2, 0.25), np.ones(len(ball().faces), bool))
    both = Mesh(
        np.concatenate([one.vertices, other.vertices]),
        np.concatenate([one.faces, other.faces + len(one.vertices)]),
    )
    assert health(both).volume == pytest.approx(0, abs=1e-6)
    assert health(oriented(both)).volume == pytest.approx(2 * health(one).volume)


def test_an_open_piece_keeps_the_side_of_most_of_its_area() -> None:
    mesh = ball()
    half = with_faces(mesh, mesh.vertices[mesh.faces, 2].mean(1) > 0)
    for share, side in ((0.3, True), (0.7, False)):
        which = np.random.default_rng(1).random(len(half.faces)) < share
        assert (outwards(oriented(turned(half, which))) == side).all()


def test_a_strip_with_one_side_is_left_as_it_is() -> None:
    angle = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    across = np.array([-0.1, 0.1])
    half = angle[:, None] / 2
    reach = 0.35 + across * np.cos(half)
    vertices = np.stack(
        [reach * np.cos(angle)[:, None], reach * np.sin(angle)[:, None], across * np.sin(half)], -1
    ).reshape(-1, 3)
    quads = [(2 * i, 2 * i + 1, 2 * i + 3, 2 * i + 2) for i in range(23)] + [(46, 47, 0, 1)]
    faces = np.array([[*f] for a, b, c, d in quads for f in ((a, b, c), (a, c, d))])
    strip = Mesh(vertices.astype(np.float32), faces)
    assert np.array_equal(oriented(strip).faces, faces)


def test_holes_are_filled_and_openings_are_not() -> None:
    mesh = ball()
    small = np.linalg.norm(mesh.vertices[mesh.faces].mean(1) - [0, 0, 0.4], axis=1) > 0.1
    large = mesh.vertices[mesh.faces, 2].mean(1) > -0.2
    one = np.arange(len(mesh.faces)) != np.argmin(mesh.vertices[mesh.faces, 0].mean(1) + ~large)
    broken = with_faces(mesh, small & large & one)
    assert not health(broken).watertight
    whole = filled(with_faces(mesh, small & one))
    assert health(whole).watertight
    assert health(whole).euler == 2
    assert health(whole).volume == pytest.approx(health(mesh).volume, rel=0.01)
    assert outwards(whole).all()
    assert not health(filled(broken, most_edges=30)).watertight
    assert health(filled(broken)).watertight
    assert filled(mesh).faces.tolist() == mesh.faces.tolist()


def test_a_filling_has_the_colour_of_its_rim() -> None:
    mesh = ball()
    hole = np.linalg.norm(mesh.vertices[mesh.faces].mean(1) - [0, 0, 0.4], axis=1) > 0.1
    whole = filled(with_faces(mesh, hole))
    assert whole.colours is not None
    # colours here are places, and a middle is the mean of both
    np.testing.assert_allclose(whole.colours, np.clip(whole.vertices + 0.5, 0, 1), atol=1e-6)


def test_seams_are_no_holes() -> None:
    mesh = ball()
    apart = Mesh(mesh.vertices[mesh.faces].reshape(-1, 3), np.arange(3 * len(mesh.faces)).reshape(-1, 3))
    assert len(filled(apart).faces) == len(mesh.faces)
    which = np.random.default_rng(0).random(len(mesh.faces)) < 0.4
    assert health(oriented(turned(apart, which))).watertight


def test_rims_that_meet_stay_open() -> None:
    mesh = ball()
    at = int(mesh.faces[0, 0])
    around = np.flatnonzero((mesh.faces == at).any(1))
    ring = [f for f in around if not set(mesh.faces[f]) & (set(mesh.faces[around[0]]) - {at})]
    broken = with_faces(mesh, ~np.isin(np.arange(len(mesh.faces)), [around[0], ring[0]]))
    found = health(filled(broken))
    assert (found.faces, found.watertight) == (len(mesh.faces) - 2, False)


def test_what_cannot_be_filled_is_named() -> None:
    mesh = ball()
    with pytest.raises(ValueError, match="most_edges=2"):
        filled(mesh, most_edges=2)
    picture = Texture(np.zeros((len(mesh.vertices), 2), np.float32), np.zeros((2, 2, 3), np.uint8))
    with pytest.raises(ValueError, match="before it gets a texture"):
        filled(Mesh(mesh.vertices, mesh.faces, texture=picture))
    empty = Mesh(mesh.vertices, np.zeros((0, 3), np.int64))
    assert oriented(empty) is empty
    assert filled(empty) is empty
