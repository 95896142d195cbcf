"""The sphere tracer against what a ball and a plate must give."""

import numpy as np
import pytest

from fewstep.modalities.objects.parts import Part
from fewstep.modalities.objects.primitives import Blend, Box, Ellipsoid, Moved
from fewstep.modalities.objects.raycast import box_span, light_reaching, normals, openness, trace
from fewstep.modalities.objects.shapes import LONGEST_EDGE, Shape

BALL = Shape("ball", (Part("main", Ellipsoid((1, 1, 1))),))
RADIUS = LONGEST_EDGE / 2
UP = np.array([0, 0, 1], np.float32)


def rows(*points: tuple[float, ...]) -> np.ndarray:
    return np.ascontiguousarray(np.array(points, np.float32).T)


def test_rays_meet_a_ball_where_geometry_says_and_miss_it_where_they_must():
    offsets = np.linspace(-0.7, 0.7, 141, dtype=np.float32)
    origins = np.stack([offsets, np.full_like(offsets, -3), np.zeros_like(offsets)])
    directions = np.broadcast_to(rows((0, 1, 0)), origins.shape)
    lengths = trace(BALL, origins, directions)
    expected = 3 - np.sqrt(np.maximum(RADIUS**2 - offsets**2, 0))
    clear = np.abs(np.abs(offsets) - RADIUS) > 0.01  # a grazing ray may end on either side
    meets = np.abs(offsets) < RADIUS
    assert (np.isfinite(lengths) == meets)[clear].all()
    np.testing.assert_allclose(lengths[clear & meets], expected[clear & meets], atol=0.02)
    inner = np.abs(offsets) < 0.4
    np.testing.assert_allclose(lengths[inner], expected[inner], atol=0.004)


def test_one_eye_serves_all_rays():
    directions = rows((0, 1, 0), (0.6, 0.8, 0))
    lengths = trace(BALL, rows((0, -2, 0)), directions)
    assert lengths[0] == pytest.approx(2 - RADIUS, abs=0.004)
    assert lengths[1] == np.inf


def test_normals_of_a_ball_point_outwards():
    way = np.random.default_rng(0).normal(size=(3, 200)).astype(np.float32)
    way /= np.linalg.norm(way, axis=0)
    np.testing.assert_allclose(normals(BALL, way * np.float32(RADIUS)), way, atol=0.01)


def test_a_box_is_entered_before_it_is_left_only_by_rays_that_meet_it():
    box = (np.full(3, -0.5), np.full(3, 0.5))
    near, far = box_span(rows((0, -2, 0), (0, -2, 2)), rows((0, 1, 0), (0, 1, 0)), box)
    assert (near[0], far[0]) == (pytest.approx(1.5), pytest.approx(2.5))
    assert near[1] > far[1]


def test_a_plate_shades_what_lies_under_it_and_nothing_else():
    plate = Moved(Box((0.5, 0.5, 0.02)), (0, 0, 0.5))
    shape = Shape("plate", (Part("main", plate), Part("main", Moved(Box((0.02, 0.02, 0.02)), (0, 0, -0.5)))))
    lit = light_reaching(
        shape, rows((0.1, 0.1, -0.4), (0.3, 0, -0.4), (2, 2, -0.4), (0, 0, 0.9)), UP, softness=0.1
    )
    assert lit[0] < 0.01
    assert lit[1] < 0.01
    assert lit[2] == 1
    assert lit[3] == 1


def test_a_shadow_has_a_soft_edge():
    plate = Shape("plate", (Part("main", Box((0.5, 0.5, 0.02))),))
    across = np.linspace(0.3, 0.9, 61, dtype=np.float32)
    points = np.stack([across, np.zeros_like(across), np.full_like(across, -0.6)])
    lit = light_reaching(plate, points, UP, softness=0.2)
    assert lit[0] < 0.01
    assert lit[-1] == 1
    assert ((lit > 0.1) & (lit < 0.9)).sum() >= 3
    assert (np.diff(lit) >= -1e-3).all()


def test_a_corner_is_less_open_than_a_free_surface():
    step = Blend((Moved(Box((0.5, 0.5, 0.1)), (0, 0, -0.1)), Moved(Box((0.1, 0.5, 0.4)), (0.4, 0, 0.1))))
    shape = Shape("step", (Part("main", step),))
    low, high = step.bounds()
    scale = LONGEST_EDGE / float((high - low).max())
    points = (rows((0.28, 0, 0), (-0.4, 0, 0)) - ((low + high) / 2)[:, None].astype(np.float32)) * np.float32(
        scale
    )
    corner, free = openness(shape, points, np.broadcast_to(UP[:, None], points.shape))
    assert corner < free - 0.1
    assert free > 0.95
