"""Points on surfaces and distances from them, against Open3D's."""

import importlib
from typing import Any

import numpy as np
import pytest

from fewstep.modalities.shape3d.mesh_file import Mesh
from fewstep.modalities.shape3d.metrics import SurfacePoints, closeness, inside, surface_points

KDTree = pytest.importorskip("scipy.spatial", reason="needs SciPy: pip install 'fewstep[three-d]'").KDTree

COUNT = 20_000
TILE = 0.1


@pytest.fixture(scope="module")
def o3d() -> Any:
    try:
        return importlib.import_module("open3d")
    except (ImportError, OSError) as error:  # the latter where libusb is missing
        pytest.skip(f"needs open3d: pip install open3d-cpu, apt-get install libusb-1.0-0 ({error})")


@pytest.fixture(scope="module")
def mesh() -> Mesh:
    """A tapered, leaning prism, closed, whose faces differ in area by far more than noise can hide."""
    corners = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]])
    low, high = (np.column_stack([size * corners, np.full(4, z)]) for size, z in ((0.4, -0.3), (0.1, 0.35)))
    high[:, 0] += 0.2
    sides = [face for k, j in ((0, 1), (1, 2), (2, 3), (3, 0)) for face in ((k, j, k + 4), (j, j + 4, k + 4))]
    faces = np.array([(0, 2, 1), (0, 3, 2), (4, 5, 6), (4, 6, 7), *sides])
    return Mesh(np.concatenate([low, high]).astype(np.float32), faces.astype(np.int64))


@pytest.fixture(scope="module")
def scene(o3d: Any, mesh: Mesh) -> Any:
    made = o3d.t.geometry.RaycastingScene()
    made.add_triangles(o3d.core.Tensor(mesh.vertices), o3d.core.Tensor(mesh.faces.astype(np.uint32)))
    return made


@pytest.fixture(scope="module")
def theirs(o3d: Any, mesh: Mesh) -> SurfacePoints:
    whole = o3d.geometry.TriangleMesh(
        o3d.utility.Vector3dVector(mesh.vertices.astype(np.float64)),
        o3d.utility.Vector3iVector(mesh.faces.astype(np.int32)),
    )
    o3d.utility.random.seed(0)
    cloud = whole.sample_points_uniformly(COUNT, use_triangle_normal=True)
    return SurfacePoints(np.asarray(cloud.points, np.float32), np.asarray(cloud.normals, np.float32))


def share_of_faces(scene: Any, points: np.ndarray, faces: int) -> np.ndarray:
    nearest = scene.compute_closest_points(points.astype(np.float32))["primitive_ids"].numpy()
    return np.bincount(nearest, minlength=faces) / len(points)


def test_points_lie_on_the_surface_with_the_normals_of_the_faces_that_are_there(
    scene: Any, mesh: Mesh
) -> None:
    ours = surface_points(mesh, COUNT)
    assert scene.compute_distance(ours.points).numpy().max() < 1e-6
    there = scene.compute_closest_points(ours.points)["primitive_normals"].numpy()
    there /= np.linalg.norm(there, axis=1, keepdims=True)
    agree = np.abs((there * ours.normals).sum(1) - 1) < 1e-4
    assert agree.mean() > 0.999  # on an edge the other face is as near


def test_points_are_as_even_over_faces_and_within_them(scene: Any, mesh: Mesh, theirs: SurfacePoints) -> None:
    ours = surface_points(mesh, COUNT, seed=1)
    noise = 5 * 0.5 * np.sqrt(2 / COUNT)  # five standard deviations of a difference of shares, at the most
    shares = [share_of_faces(scene, one.points, len(mesh.faces)) for one in (ours, theirs)]
    assert np.abs(shares[0] - shares[1]).max() < noise
    edges = [np.arange(-0.5, 0.51, TILE)] * 3
    tiles = [np.histogramdd(one.points, bins=edges)[0] / COUNT for one in (ours, theirs)]
    assert np.abs(tiles[0] - tiles[1]).max() < noise
    uneven = np.random.default_rng(0).random((COUNT, 2, 1))  # without the root: crowded at a corner
    a, b, c = (mesh.vertices[mesh.faces[0, corner]] for corner in range(3))
    crowded = a + uneven[:, 0] * ((1 - uneven[:, 1]) * (b - a) + uneven[:, 1] * (c - a))
    even = ours.points[np.isclose(ours.points[:, 2], -0.3)]
    assert np.abs(crowded.mean(0) - (a + b + c) / 3).max() > noise > np.abs(even.mean(0)[:2]).max()


def test_distances_between_points_are_theirs(o3d: Any, mesh: Mesh, theirs: SurfacePoints) -> None:
    moved = Mesh(mesh.vertices + np.float32(0.03), mesh.faces)
    ours = surface_points(moved, COUNT)
    clouds = [
        o3d.geometry.PointCloud(o3d.utility.Vector3dVector(one.points.astype(np.float64)))
        for one in (ours, theirs)
    ]
    there = np.asarray(clouds[0].compute_point_cloud_distance(clouds[1]))
    back = np.asarray(clouds[1].compute_point_cloud_distance(clouds[0]))
    found = closeness(ours, theirs)
    assert found.chamfer_l1 == pytest.approx((there.mean() + back.mean()) / 2, rel=1e-6)
    assert found.chamfer_l2 == pytest.approx((there**2).mean() + (back**2).mean(), rel=1e-6)
    precision, recall = (there < 0.02).mean(), (back < 0.02).mean()
    assert found.f_scores[0.02] == pytest.approx(2 * precision * recall / (precision + recall), abs=1e-9)


def test_points_stand_for_the_surface(scene: Any, mesh: Mesh) -> None:
    """Point to mesh, by `RaycastingScene`: the nearest point is never nearer, and hardly further."""
    tree = KDTree(surface_points(mesh, COUNT).points)
    asked = np.random.default_rng(0).uniform(-0.5, 0.5, (500, 3)).astype(np.float32)
    feet = scene.compute_closest_points(asked)["points"].numpy()
    true, (found, _), (gap, _) = scene.compute_distance(asked).numpy(), tree.query(asked), tree.query(feet)
    assert (found - true).min() > -1e-6
    assert (found - true - gap).max() < 1e-6
    assert gap.max() < 0.05  # even a corner has a dozen points as near
    assert np.median(found - true) < 1e-3


def test_what_is_inside_is_inside_for_both(scene: Any, mesh: Mesh) -> None:
    asked = np.random.default_rng(1).uniform(-0.5, 0.5, (2000, 3)).astype(np.float32)
    clear = scene.compute_distance(asked).numpy() > 1e-4
    theirs = scene.compute_occupancy(asked).numpy() > 0.5
    assert 100 < theirs.sum() < 1900
    assert np.array_equal(inside(mesh, asked)[clear], theirs[clear])
