"""Metrics on shapes whose distances can be worked out."""

import math

import numpy as np
import pytest

from fewstep.modalities.shape3d.mesh_file import Mesh
from fewstep.modalities.shape3d.metrics import (
    SurfacePoints,
    chamfer_distances,
    closeness,
    grid_points,
    inside,
    iou,
    mask_iou,
    set_scores,
    surface_points,
)

trimesh = pytest.importorskip("trimesh", reason="needs trimesh: pip install 'fewstep[three-d]'")


def ball(radius: float = 0.4, *, at: tuple[float, float, float] = (0, 0, 0), subdivisions: int = 4) -> Mesh:
    made = trimesh.creation.icosphere(subdivisions=subdivisions, radius=radius)
    return Mesh(np.asarray(made.vertices + np.array(at), np.float32), np.asarray(made.faces, np.int64))


def box(x: float, y: float, z: float) -> Mesh:
    made = trimesh.creation.box((x, y, z))
    return Mesh(np.asarray(made.vertices, np.float32), np.asarray(made.faces, np.int64))


def test_points_lie_on_the_surface_evenly_with_its_normals() -> None:
    found = surface_points(box(0.8, 0.4, 0.2), 40_000)
    extent = np.array([0.4, 0.2, 0.1])
    assert (np.isclose(np.abs(found.points), extent, atol=1e-6).any(1)).all()
    on_top = np.isclose(found.points[:, 2], 0.1, atol=1e-6)
    assert on_top.mean() == pytest.approx(0.8 * 0.4 / (2 * (0.32 + 0.16 + 0.08)), abs=0.01)
    assert np.allclose(found.normals[on_top], [0, 0, 1])
    assert np.array_equal(found.points, surface_points(box(0.8, 0.4, 0.2), 40_000).points)
    assert not np.array_equal(found.points, surface_points(box(0.8, 0.4, 0.2), 40_000, seed=1).points)


def test_a_larger_ball_is_as_far_as_their_radii_differ() -> None:
    found = closeness(surface_points(ball(0.415, subdivisions=5)), surface_points(ball(0.4, subdivisions=5)))
    # points are about 0.01 apart, so the nearest one is a little further than the surface
    assert found.chamfer_l1 == pytest.approx(0.015, rel=0.15)
    assert found.chamfer_l2 == pytest.approx(2 * 0.015**2, rel=0.35)
    assert found.f_scores[0.01] == 0.0
    assert found.f_scores[0.02] > 0.9
    assert found.normal_consistency > 0.99


def test_a_mesh_is_near_itself_and_half_of_it_has_full_precision_and_less_recall() -> None:
    whole = surface_points(ball())
    same = closeness(whole, surface_points(ball(), seed=1))
    assert same.chamfer_l1 < 0.01
    assert same.f_scores[0.02] > 0.99
    upper = whole.points[:, 2] > 0
    half = closeness(SurfacePoints(whole.points[upper], whole.normals[upper]), whole)
    assert half.f_scores[0.01] == pytest.approx(2 / 3, abs=0.03)  # precision 1, recall a half


def test_fewer_queries_estimate_the_same() -> None:
    found, true = surface_points(ball(), 20_000), surface_points(ball(), 20_000, seed=1)
    all_of_them, some = closeness(found, true), closeness(found, true, queries=2000)
    assert some.chamfer_l1 == pytest.approx(all_of_them.chamfer_l1, rel=0.05)
    assert some.normal_consistency == pytest.approx(all_of_them.normal_consistency, rel=0.01)
    few = closeness(surface_points(ball(), 2000), surface_points(ball(), 2000, seed=1))
    # points as the other tenth are further apart by the root of it
    assert few.chamfer_l1 == pytest.approx(math.sqrt(10) * some.chamfer_l1, rel=0.1)


def test_perpendicular_normals_are_inconsistent() -> None:
    rng = np.random.default_rng(0)
    points = rng.random((500, 3)).astype(np.float32)
    x, y = np.tile(np.eye(3, dtype=np.float32)[:2, None], (1, 500, 1))
    assert closeness(SurfacePoints(points, x), SurfacePoints(points, y)).normal_consistency == 0.0
    assert closeness(SurfacePoints(points, x), SurfacePoints(points, -x)).normal_consistency == 1.0


def test_what_is_inside_a_ball_and_a_hollow_one() -> None:
    points = np.random.default_rng(0).uniform(-0.5, 0.5, (600, 3))
    radius = np.linalg.norm(points, axis=1)
    clear = np.abs(radius - 0.4) > 0.005
    assert np.array_equal(inside(ball(subdivisions=3), points)[clear], (radius < 0.4)[clear])
    core = ball(0.2, subdivisions=3)
    hollow = Mesh(
        np.concatenate([ball(subdivisions=3).vertices, core.vertices]),
        np.concatenate(
            [ball(subdivisions=3).faces, core.faces[:, ::-1] + len(ball(subdivisions=3).vertices)]
        ),
    )
    clear &= np.abs(radius - 0.2) > 0.005
    assert np.array_equal(inside(hollow, points)[clear], ((radius < 0.4) & (radius > 0.2))[clear])


def test_the_volume_of_a_box_is_counted_from_cells() -> None:
    cells = inside(box(0.5, 0.25, 0.75), grid_points(16).astype(np.float64))
    assert cells.sum() == 8 * 4 * 12
    assert iou(cells, cells) == 1.0
    assert iou(cells, np.roll(cells.reshape(16, 16, 16), 8, axis=0).reshape(-1)) == 0.0
    assert iou(np.zeros(4, bool), np.zeros(4, bool)) == 1.0


def test_silhouettes_of_balls_overlap_like_discs() -> None:
    from fewstep.modalities.shape3d.surface.rendering import EYE

    def disc(radius: float) -> float:
        return radius**2 / (EYE**2 - radius**2)

    assert mask_iou(ball(0.3), ball(0.3)) == 1.0
    assert mask_iou(ball(0.3), ball(0.4)) == pytest.approx(disc(0.3) / disc(0.4), abs=0.02)
    assert mask_iou(ball(0.2, at=(0.3, 0, 0)), ball(0.2, at=(-0.3, 0, 0))) < 0.4


def cloud(seed: int, *, at: float = 0.0) -> SurfacePoints:
    points = (np.random.default_rng(seed).normal(size=(64, 3)) + np.array([at, 0, 0])).astype(np.float32)
    return SurfacePoints(points, np.zeros_like(points))


def test_two_sets_of_one_kind_are_not_told_apart_and_two_kinds_are() -> None:
    alike = set_scores([cloud(seed) for seed in range(30)], [cloud(seed) for seed in range(30, 60)])
    assert 0.25 < alike.nearest_neighbour_accuracy < 0.75
    assert alike.coverage > 0.3
    apart = set_scores([cloud(s, at=20) for s in range(10)], [cloud(s) for s in range(10, 20)])
    assert apart.nearest_neighbour_accuracy == 1.0
    assert apart.minimum_matching_distance == pytest.approx(18, abs=2)


def test_copies_of_one_reference_cover_only_that_one() -> None:
    references = [cloud(seed, at=5 * seed) for seed in range(8)]
    copies = set_scores([references[3]] * 8, references)
    assert copies.coverage == 1 / 8
    whole = set_scores(references, references)
    assert (whole.coverage, whole.minimum_matching_distance) == (1.0, 0.0)
    assert set_scores(references[2:5], references).nearest.tolist() == [2, 3, 4]


def test_distances_that_are_known_already_change_nothing() -> None:
    samples, references = [cloud(seed) for seed in range(4)], [cloud(seed) for seed in range(4, 9)]
    fresh = set_scores(samples, references)
    known = set_scores(samples, references, between_references=chamfer_distances(references, [*references]))
    assert np.array_equal(fresh.nearest, known.nearest)
    assert fresh.nearest_neighbour_accuracy == known.nearest_neighbour_accuracy


def test_the_distance_of_pairs_is_symmetric_and_that_of_two_points() -> None:
    one, other = (SurfacePoints(np.full((5, 3), x, np.float32), np.zeros((5, 3), np.float32)) for x in (0, 1))
    both = [one, other]
    expected = np.array([[0, math.sqrt(3)], [math.sqrt(3), 0]])
    assert chamfer_distances(both, both) == pytest.approx(expected)
    assert chamfer_distances(both, [other]) == pytest.approx(expected[:, 1:])


def test_what_has_no_answer_is_named() -> None:
    with pytest.raises(ValueError, match="has no area"):
        surface_points(Mesh(np.zeros((3, 3), np.float32), np.array([[0, 1, 2]])))
    with pytest.raises(ValueError, match="1 samples and 2 references are too few"):
        set_scores([cloud(0)], [cloud(1), cloud(2)])
