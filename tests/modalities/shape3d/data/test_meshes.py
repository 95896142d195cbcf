"""Meshes as surfaces, against solids with known distances."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fewstep.modalities.objects.shapes import LONGEST_EDGE
from fewstep.modalities.shape3d.data.bodies import GREY
from fewstep.modalities.shape3d.data.meshes import imported, read_surface
from fewstep.modalities.shape3d.data.shards import Shard, write_shard
from fewstep.modalities.shape3d.data.triangles import TriangleSurface, closest_weights
from fewstep.modalities.shape3d.data.voxels import BAND, Surface, voxelised
from fewstep.modalities.shape3d.mesh_file import Mesh, Texture, write_mesh

pytest.importorskip("scipy.spatial")
trimesh = pytest.importorskip("trimesh")

R = 8
CELLS = 4 * R
GREEN = (20, 200, 40)


def saved(folder: Path, name: str, mesh: Any) -> Path:
    mesh.visual = trimesh.visual.ColorVisuals(
        mesh, vertex_colors=np.tile((*GREEN, 255), (len(mesh.vertices), 1))
    )
    mesh.export(folder / name)
    return folder / name


def box_distance(points: np.ndarray, half: np.ndarray) -> np.ndarray:
    q = np.abs(points) - half
    return np.linalg.norm(np.maximum(q, 0), axis=-1) + np.minimum(q.max(-1), 0)


def test_a_box_has_the_distances_signs_and_normals_of_a_box(tmp_path: Path):
    path = saved(tmp_path, "box.ply", trimesh.creation.box(extents=(4, 2, 1)))
    surface = read_surface(path, up="z")
    assert isinstance(surface, Surface)
    half = np.array([4, 2, 1]) / 4 * LONGEST_EDGE / 2
    axis = np.arange(CELLS + 1) / CELLS - 0.5
    points = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), -1)
    expected, lattice = box_distance(points, half), surface.lattice(CELLS)
    np.testing.assert_array_equal(lattice < 0, expected < 0)
    near = np.abs(expected) < BAND / CELLS
    np.testing.assert_allclose(lattice[near], expected[near], atol=1e-5)
    found, normal = surface.nearest(np.array([[0.1, 0.02, 0.2]], np.float32))
    np.testing.assert_allclose(found, [[0.1, 0.02, half[2]]], atol=1e-6)
    np.testing.assert_allclose(normal, [[0, 0, 1]], atol=1e-6)
    np.testing.assert_array_equal(surface.colour(found), [GREEN])


def test_y_up_files_are_turned_so_that_z_is_up(tmp_path: Path):
    path = saved(tmp_path, "tall.glb", trimesh.creation.box(extents=(1, 4, 2)))
    surface = read_surface(path)
    np.testing.assert_allclose(np.ptp(surface.vertices, axis=0) / LONGEST_EDGE, [0.25, 0.5, 1], atol=1e-6)
    front = trimesh.creation.cone(radius=0.1, height=1)  # its tip at +z is the front of a y-up object
    tip = read_surface(saved(tmp_path, "cone.glb", front)).vertices
    lowest = tip[tip[:, 1].argmin()]
    np.testing.assert_allclose(lowest[[0, 2]], 0, atol=1e-4)


def test_parity_counts_every_crossing_of_a_hollow_body(tmp_path: Path):
    outer, inner = trimesh.creation.icosphere(radius=1.0), trimesh.creation.icosphere(radius=0.5)
    inner.invert()
    surface = read_surface(saved(tmp_path, "hollow.ply", trimesh.util.concatenate([outer, inner])), up="z")
    axis = np.arange(CELLS + 1) / CELLS - 0.5
    length = np.linalg.norm(np.stack(np.meshgrid(axis, axis, axis, indexing="ij")), axis=0)
    inside = surface.lattice(CELLS) < 0
    reach = LONGEST_EDGE / 2
    assert not inside[(length < 0.48 * reach) | (length > reach)].any()
    assert inside[(length > 0.52 * reach) & (length < 0.97 * reach)].all()


def test_a_small_hole_changes_no_sign(tmp_path: Path):
    ball = trimesh.creation.icosphere(subdivisions=3)
    whole = read_surface(saved(tmp_path, "ball.ply", ball), up="z")
    torn = TriangleSurface(vertices=whole.vertices, faces=whole.faces[3:], colours=whole.colours[3:])
    np.testing.assert_array_equal(torn.lattice(CELLS) < 0, whole.lattice(CELLS) < 0)


def test_closest_weights_agree_with_a_search_over_the_triangle():
    rng = np.random.default_rng(0)
    triangles = rng.normal(size=(40, 3, 3)).astype(np.float32)
    points = rng.normal(size=(40, 3)).astype(np.float32)
    weights = closest_weights(points, triangles)
    assert weights.min() >= 0
    np.testing.assert_allclose(weights.sum(1), 1, atol=1e-5)
    grid = np.array([(a, b, 60 - a - b) for a in range(61) for b in range(61 - a)]) / 60
    searched = np.linalg.norm(np.einsum("gc,tcx->tgx", grid, triangles) - points[:, None], axis=-1).min(1)
    found = np.linalg.norm((weights[..., None] * triangles).sum(1) - points, axis=1)
    assert (found <= searched + 1e-5).all()
    assert (found > searched - 0.05).all()


def test_an_imported_ball_has_the_voxels_of_a_ball_and_goes_into_a_shard(tmp_path: Path):
    path = saved(tmp_path, "Green_Ball-01.ply", trimesh.creation.icosphere(subdivisions=4))
    one = imported(path, resolution=R)
    assert one.record["captions"] == ["green ball"]
    offset, normal = one.voxels.features[:, :3].astype(float), one.voxels.features[:, 3:6].astype(float)
    centre = (one.voxels.coords + 0.5) / R - 0.5
    np.testing.assert_allclose(np.linalg.norm(centre + offset / R, axis=1), LONGEST_EDGE / 2, atol=2e-3)
    assert ((centre + offset / R) * normal).sum(1).min() > 0.97 * LONGEST_EDGE / 2
    write_shard(tmp_path / "one.safetensors", [one])
    np.testing.assert_array_equal(Shard(tmp_path / "one.safetensors").voxels(0).coords, one.voxels.coords)


def test_captions_stand_beside_meshes_and_what_encloses_nothing_is_refused(tmp_path: Path):
    saved(tmp_path, "a.ply", trimesh.creation.icosphere())
    (tmp_path / "a.txt").write_text("a round\nball\n")
    assert imported(tmp_path / "a.ply", resolution=R).record["captions"] == ["a round ball"]
    sheet = trimesh.Trimesh([[0, 0, 0], [1, 0, 0], [0, 1, 0]], [[0, 1, 2]])
    with pytest.raises(ValueError, match="encloses no corner"):
        imported(saved(tmp_path, "b.ply", sheet), resolution=R)
    (tmp_path / "c.obj").write_text("v 0 0 0\n")
    with pytest.raises(ValueError, match=r"c\.obj"):
        imported(tmp_path / "c.obj", resolution=R)


def test_a_mesh_is_voxelised_alike_in_any_order_of_its_faces(tmp_path: Path):
    surface = read_surface(saved(tmp_path, "ring.ply", trimesh.creation.torus(0.7, 0.3)), up="z")
    order = np.random.default_rng(0).permutation(len(surface.faces))
    mixed = TriangleSurface(
        vertices=surface.vertices, faces=surface.faces[order], colours=surface.colours[order]
    )
    np.testing.assert_array_equal(
        voxelised(surface, resolution=R).coords, voxelised(mixed, resolution=R).coords
    )


def test_views_show_the_mesh_in_its_colour_and_as_large_as_asked(tmp_path: Path):
    path = saved(tmp_path, "tall.ply", trimesh.creation.box(extents=(1, 1, 3)))
    views = imported(path, resolution=R, up="z", views=3, size=32).views
    assert views.shape == (3, 32, 32, 4)
    for view in views:
        rows, columns = (np.flatnonzero((view[..., 3] > 127).any(axis)) for axis in (1, 0))
        assert np.ptp(rows) + 1 == pytest.approx(0.8 * 32, abs=2)
        assert abs(rows[0] + rows[-1] - 31) <= 1
        assert abs(columns[0] + columns[-1] - 31) <= 1
        shown = view[view[..., 3] == 255][:, :3].mean(0)
        assert shown.argmax() == 1  # green
        assert view[view[..., 3] == 0][:, :3].min() > 200  # paper
    assert not np.array_equal(views[0], views[1])
    again = imported(path, resolution=R, up="z", views=3, size=32).views
    np.testing.assert_array_equal(views, again)


def test_colours_are_those_of_the_file_in_each_format(tmp_path: Path):
    box = trimesh.creation.box()
    colours = np.full((8, 3), np.array(GREEN, np.float32) / 255, np.float32)
    mesh = Mesh(box.vertices.astype(np.float32), box.faces.astype(np.int64), colours)
    for ending in (".glb", ".ply", ".obj"):  # glTF's numbers are in linear light
        write_mesh(tmp_path / f"a{ending}", mesh)
        found = read_surface(tmp_path / f"a{ending}").colours.astype(int)
        assert np.abs(found - GREEN).max() <= 1, ending
    write_mesh(tmp_path / "a.stl", mesh)
    assert (read_surface(tmp_path / "a.stl").colours == GREY).all()


def test_materials_without_a_picture_and_several_bodies_in_their_places(tmp_path: Path):
    visuals = trimesh.visual
    red, plain = trimesh.creation.box(), trimesh.creation.box()
    red.visual = visuals.TextureVisuals(
        material=visuals.material.PBRMaterial(baseColorFactor=[55, 0, 0, 255])
    )
    mirrored = np.diag([-1.0, 1, 1, 1])
    mirrored[0, 3] = 3
    scene = trimesh.Scene()
    scene.add_geometry(red)
    scene.add_geometry(plain, transform=mirrored)
    scene.export(tmp_path / "both.glb")
    surface = read_surface(tmp_path / "both.glb")
    np.testing.assert_allclose(np.ptp(surface.vertices, axis=0) / LONGEST_EDGE, [1, 0.25, 0.25], atol=1e-6)
    of_bodies = {tuple(colour) for colour in surface.colours.reshape(-1, 3).tolist()}
    assert of_bodies == {(128, 0, 0), GREY}
    corners = surface.vertices[surface.faces]
    volume = np.einsum("fi,fi->", corners[:, 0], np.cross(corners[:, 1], corners[:, 2])) / 6
    assert volume == pytest.approx(2 * (LONGEST_EDGE / 4) ** 3)  # a mirrored body is not inside out
    (tmp_path / "b.mtl").write_text("newmtl own\nKd 0 0 1\n")
    (tmp_path / "b.obj").write_text(
        "mtllib b.mtl\nusemtl own\nv 0 0 0\nv 1 0 0\nv 0 1 0\nvt 0 0\nvt 1 0\nvt 0 1\nf 1/1 2/2 3/3\n"
    )
    assert (read_surface(tmp_path / "b.obj").colours == (0, 0, 255)).all()


def test_a_texture_is_read_where_the_corners_lie(tmp_path: Path):
    picture = np.zeros((4, 4, 3), np.uint8)
    picture[:2], picture[2:] = (200, 0, 0), (0, 0, 200)  # the upper half, the lower half
    corners = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [1, 1, 0]], np.float32)
    faces = np.array([[0, 1, 2], [2, 1, 3]], np.int64)
    uvs = np.array([[0.1, 0.1], [0.9, 0.1], [0.1, 0.9], [0.9, 0.9]], np.float32)
    write_mesh(tmp_path / "a.glb", Mesh(corners, faces, texture=Texture(uvs, picture)))
    found = read_surface(tmp_path / "a.glb").colours
    assert found[0].tolist() == [[200, 0, 0], [200, 0, 0], [0, 0, 200]]
