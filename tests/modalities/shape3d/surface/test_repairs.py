"""Cleaning, simplifying, texturing and rendering of meshes whose answers are known."""

import math

import numpy as np
import pytest

from fewstep.modalities.objects.scene import Camera
from fewstep.modalities.shape3d.mesh_file import Mesh
from fewstep.modalities.shape3d.surface.cleaning import cleaned, face_areas, health, with_faces
from fewstep.modalities.shape3d.surface.connectivity import components
from fewstep.modalities.shape3d.surface.rendering import EYE, WIDTH, rendered, seen
from fewstep.modalities.shape3d.surface.simplification import simplified
from fewstep.modalities.shape3d.surface.texture import barycentric, dilated, texel_positions, textured

trimesh = pytest.importorskip("trimesh", reason="needs trimesh: pip install 'fewstep[three-d]'")


def ball(radius: float = 0.4, subdivisions: int = 4, at: tuple[float, float, float] = (0, 0, 0)) -> Mesh:
    made = trimesh.creation.icosphere(subdivisions=subdivisions, radius=radius)
    vertices = (made.vertices + np.array(at)).astype(np.float32)
    return Mesh(
        vertices, made.faces.astype(np.int64), (vertices - vertices.min(0)) / np.ptp(vertices, axis=0)
    )


def both(one: Mesh, other: Mesh) -> Mesh:
    assert one.colours is not None
    assert other.colours is not None
    return Mesh(
        np.concatenate([one.vertices, other.vertices]),
        np.concatenate([one.faces, other.faces + len(one.vertices)]),
        np.concatenate([one.colours, other.colours]),
    )


def test_a_ball_is_healthy_and_its_measures_are_known() -> None:
    found = health(ball())
    assert (found.watertight, found.components, found.euler, found.degenerate) == (True, 1, 2, 0)
    assert found.largest_share == pytest.approx(1)
    assert found.volume == pytest.approx(4 / 3 * math.pi * 0.4**3, rel=0.01)


def test_what_is_wrong_is_seen() -> None:
    mesh = ball(subdivisions=2)
    assert not health(with_faces(mesh, np.arange(len(mesh.faces)) > 0)).watertight
    turned = Mesh(mesh.vertices, np.concatenate([mesh.faces[:1, ::-1], mesh.faces[1:]]))
    assert not health(turned).watertight
    inside_out = Mesh(mesh.vertices, np.ascontiguousarray(mesh.faces[:, ::-1]))
    assert health(inside_out).volume < 0
    empty = health(Mesh(mesh.vertices, np.zeros((0, 3), np.int64)))
    assert (empty.watertight, empty.components, empty.faces) == (False, 0, 0)


def test_seams_part_vertices_but_not_the_surface() -> None:
    mesh = ball(subdivisions=2)
    apart = Mesh(mesh.vertices[mesh.faces].reshape(-1, 3), np.arange(3 * len(mesh.faces)).reshape(-1, 3))
    assert health(apart).watertight
    assert health(apart).components == 1


def test_small_pieces_go_and_large_ones_stay() -> None:
    mesh = both(ball(0.3), ball(0.02, 2, at=(0.45, 0, 0)))
    assert health(mesh).components == 2
    one = cleaned(mesh)
    assert health(one).components == 1
    assert len(one.vertices) == len(ball(0.3).vertices)
    assert health(cleaned(mesh, smallest_share=0.0)).components == 2
    assert health(cleaned(both(ball(0.3), ball(0.1, at=(0.42, 0, 0))))).components == 2


def test_faces_with_two_corners_at_one_place_go() -> None:
    mesh = ball(subdivisions=2)
    doubled = Mesh(mesh.vertices, np.concatenate([mesh.faces, [[0, 0, 1]]]))
    assert health(doubled).degenerate == 1
    assert np.array_equal(cleaned(doubled).faces, mesh.faces)


def test_an_impossible_share_is_named() -> None:
    with pytest.raises(ValueError, match=r"smallest_share=1\.0"):
        cleaned(ball(), smallest_share=1.0)


def test_pieces_are_counted_from_zero() -> None:
    piece, count = components(np.array([[5, 6, 7], [0, 1, 2], [2, 3, 4], [6, 8, 7]]))
    assert count == 2
    assert piece[0] == piece[3] != piece[1] == piece[2]


def test_a_face_budget_is_kept_and_the_shape_nearly() -> None:
    pytest.importorskip("fast_simplification", reason="needs fast-simplification")
    fine = ball(subdivisions=5)
    coarse = simplified(fine, faces=800)
    assert len(coarse.faces) <= 800
    assert health(coarse).watertight
    assert health(coarse).volume == pytest.approx(health(fine).volume, rel=0.02)
    assert coarse.colours is not None
    expected = (coarse.vertices + 0.4) / 0.8
    np.testing.assert_allclose(coarse.colours, expected, atol=0.06)
    assert simplified(fine, faces=10**6) is fine
    with pytest.raises(ValueError, match="faces=3 is too few"):
        simplified(fine, faces=3)


def test_a_texture_shows_the_colours_of_the_finer_mesh() -> None:
    pytest.importorskip("xatlas", reason="needs xatlas")
    fine = ball(subdivisions=4)
    mesh = textured(ball(subdivisions=2), size=256, source=fine)
    assert mesh.texture is not None
    assert health(mesh).watertight
    column, row = np.clip((mesh.texture.uvs * 256).astype(int), 0, 255).T
    expected = (mesh.vertices + 0.4) / 0.8
    off = np.abs(mesh.texture.picture[row, column] / 255 - expected).max(1)
    assert np.quantile(off, 0.95) < 0.06
    with pytest.raises(ValueError, match="size=4 is too small"):
        textured(fine, size=4)
    with pytest.raises(ValueError, match="no colours to bake"):
        textured(Mesh(fine.vertices, fine.faces))


def test_a_texel_lies_where_its_face_says() -> None:
    vertices = np.array([[0, 0, 0], [1, 0, 0], [0, 2, 0]], np.float32)
    uvs = np.array([[0, 0], [1, 0], [0, 1]], np.float32)
    place, covered = texel_positions(vertices, np.array([[0, 1, 2]]), uvs, 8)
    assert covered.sum() == 36  # half of 64, and the diagonal
    np.testing.assert_allclose(place[2, 1], [1.5 / 8, 2 * 2.5 / 8, 0])


def test_barycentric_weights_of_a_triangle_without_area_are_refused() -> None:
    corners = np.array([[[0, 0], [2, 0], [0, 2]], [[0, 0], [1, 1], [2, 2]]], float)
    found = barycentric(corners, np.array([[1, 0], [1, 1]]))
    assert found.tolist() == [[0.5, 0.5, 0.0], [-1.0, -1.0, -1.0]]


def test_texels_outside_take_the_nearest_colour() -> None:
    picture, covered = np.zeros((3, 4, 3)), np.zeros((3, 4), bool)
    picture[1, 0], picture[1, 3], covered[1, [0, 3]] = 0.2, 0.8, True
    assert dilated(picture, covered)[:, :, 0].tolist() == [[0.2, 0.2, 0.8, 0.8]] * 3


def test_a_ball_is_seen_as_the_disc_that_perspective_makes_of_it() -> None:
    radius = 0.4
    view = seen(ball(radius, 5), Camera(azimuth=30.0, elevation=20.0), size=200)
    disc = radius / math.sqrt(EYE**2 - radius**2) / WIDTH * 100  # pixels
    assert view.mask.sum() == pytest.approx(math.pi * disc**2, rel=0.01)
    assert float(view.depth.min()) == pytest.approx(EYE - radius, abs=2e-3)
    np.testing.assert_allclose(view.weights[view.mask].sum(-1), 1, atol=1e-5)


def test_the_nearer_of_two_is_drawn_and_sides_are_not_swapped() -> None:
    red, blue = ball(0.2, 3, at=(0, -0.25, 0)), ball(0.2, 3, at=(0, 0.25, 0))
    one = Mesh(red.vertices, red.faces, np.tile(np.array([0.8, 0, 0], np.float32), (len(red.vertices), 1)))
    other = Mesh(
        blue.vertices, blue.faces, np.tile(np.array([0, 0, 0.8], np.float32), (len(blue.vertices), 1))
    )
    mesh = both(one, other)
    front = rendered(mesh, Camera(azimuth=0.0, elevation=0.0), size=64)[32, 32]
    back = rendered(mesh, Camera(azimuth=180.0, elevation=0.0), size=64)[32, 32]
    assert front[0] > 2 * front[2]
    assert back[2] > 2 * back[0]
    above = Mesh(one.vertices + np.array([0.3, 0.25, 0.3], np.float32), one.faces, one.colours)
    picture = rendered(above, Camera(azimuth=0.0, elevation=0.0), size=64).astype(int)
    rows, columns = np.nonzero(picture[..., 0] > picture[..., 2] + 60)
    assert rows.max() < 32
    assert columns.min() > 32  # +x is to the right of who looks at the front


def test_areas_are_those_of_triangles() -> None:
    vertices = np.array([[0, 0, 0], [2, 0, 0], [0, 3, 0]], np.float32)
    assert face_areas(Mesh(vertices, np.array([[0, 1, 2], [0, 0, 1]]))).tolist() == [3.0, 0.0]
