"""Signed distances of the primitives and of every category."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fewstep.modalities.objects.captions import CATEGORIES as CAPTIONED
from fewstep.modalities.objects.parts import SLOTS, Part
from fewstep.modalities.objects.primitives import (
    Below,
    Blend,
    Box,
    Capsule,
    Cut,
    Cylinder,
    Ellipsoid,
    Mirrored,
    Moved,
    Revolved,
    Solid,
    Torus,
    prism,
    turned,
)
from fewstep.modalities.objects.shapes import CATEGORIES, LONGEST_EDGE, Shape, draw_shape

SOLIDS: dict[str, Solid] = {
    "box": Box((0.3, 0.2, 0.1), 0.05),
    "capsule": Capsule((-0.2, 0.1, 0.0), (0.3, 0.0, 0.2), 0.1),
    "cylinder": Cylinder(0.3, 0.2, 0.05),
    "ellipsoid": Ellipsoid((0.4, 0.1, 0.2)),
    "torus": Torus(0.3, 0.1),
    "revolved": Revolved(np.array([-0.3, 0.0, 0.3]), np.array([0.1, 0.3, 0.2])),
    "vessel": Revolved(np.array([-0.3, 0.3]), np.array([0.2, 0.35]), wall=0.05, floor=-0.2),
    "prism": prism([(-0.3, -0.2), (0.3, -0.2), (0.0, 0.3)], 0.1, axis=1),
    "blend": Blend((Ellipsoid((0.2, 0.2, 0.2)), Box((0.3, 0.1, 0.1))), 0.1),
    "cut": Cut(Box((0.3, 0.3, 0.3)), Cylinder(0.2, 0.4)),
    "below": Below(Ellipsoid((0.3, 0.3, 0.3)), 0.1),
    "mirrored": Mirrored(Moved(Box((0.1, 0.1, 0.2)), (0.25, 0.25, 0)), (0, 1)),
    "moved": Moved(Box((0.3, 0.1, 0.2)), (0.1, -0.1, 0.05), turned(2, 30)),
}
solids = pytest.mark.parametrize("solid", SOLIDS.values(), ids=SOLIDS.keys())
categories = pytest.mark.parametrize("category", CATEGORIES)


def rows(points: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(points.T, dtype=np.float32)


def cloud(count: int, reach: float = 0.6, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-reach, reach, (count, 3)).astype(np.float32)


def steepest(solid: Solid, one: np.ndarray, two: np.ndarray) -> float:
    """The largest change of distance per length between paired points."""
    change = np.abs(solid.distance(rows(one)) - solid.distance(rows(two)))
    return float((change / np.maximum(np.linalg.norm(one - two, axis=1), 1e-2)).max())


@solids
@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), step=st.floats(0.02, 1.0))
def test_no_solid_changes_faster_than_the_way_between_two_points(solid: Solid, seed: int, step: float):
    one = cloud(200, seed=seed)
    assert steepest(solid, one, one + step * cloud(200, seed=seed + 1)) <= 1 + 1e-4


def test_a_distance_that_is_too_large_would_be_found():
    class Stretched:
        def bounds(self) -> tuple[np.ndarray, np.ndarray]:
            return SOLIDS["torus"].bounds()

        def distance(self, points: np.ndarray) -> np.ndarray:
            return 1.05 * SOLIDS["torus"].distance(points)

    one = cloud(200)
    assert steepest(Stretched(), one, one + 0.1 * cloud(200, seed=1)) > 1 + 1e-4


@solids
def test_the_inside_of_a_solid_fills_its_box_and_nothing_else(solid: Solid):
    points = cloud(60_000)
    inside = points[solid.distance(rows(points)) < 0]
    low, high = solid.bounds()
    assert (inside >= low - 1e-6).all()
    assert (inside <= high + 1e-6).all()
    assert np.abs(inside.min(0) - low).max() < 0.06
    assert np.abs(inside.max(0) - high).max() < 0.06


def test_known_distances():
    axis = rows(np.array([[0.5, 0, 0], [0, 0.5, 0], [0, 0, 0.5], [0, 0, 0]]))
    for solid, expected in (
        (Box((0.3, 0.2, 0.1)), (0.2, 0.3, 0.4, -0.1)),
        (Box((0.3, 0.2, 0.1), 0.05), (0.2, 0.3, 0.4, -0.1)),
        (Ellipsoid((0.3, 0.3, 0.3)), (0.2, 0.2, 0.2, -0.3)),
        (Cylinder(0.3, 0.2), (0.2, 0.2, 0.3, -0.2)),
        (Torus(0.3, 0.1), (0.1, np.hypot(0.5, 0.3) - 0.1, 0.1, 0.2)),
        (Capsule((-0.2, 0, 0), (0.2, 0, 0), 0.1), (0.2, 0.4, 0.4, -0.1)),
        (prism([(-0.3, -0.2), (0.3, -0.2), (0.3, 0.2), (-0.3, 0.2)], 0.1, axis=2), (0.2, 0.3, 0.4, -0.1)),
        (
            Mirrored(Moved(Box((0.1, 0.1, 0.1)), (0.3, 0, 0))),
            (0.1, np.hypot(0.2, 0.4), np.hypot(0.2, 0.4), 0.2),
        ),
    ):
        np.testing.assert_allclose(solid.distance(axis), expected, atol=1e-6)


def test_a_vessel_is_hollow_and_open_at_the_top():
    vessel = Revolved(np.array([0.0, 1.0]), np.array([0.4, 0.4]), wall=0.1, floor=0.2)
    column = rows(np.array([[0, 0, 0.1], [0, 0, 0.5], [0, 0, 1.1], [0.35, 0, 0.5], [0.5, 0, 0.5]]))
    distances = vessel.distance(column)
    assert (distances[[0, 3]] < 0).all()
    assert (distances[[1, 2, 4]] > 0).all()
    np.testing.assert_allclose(distances[[1, 4]], [0.3, 0.1], atol=1e-6)


def test_a_blend_melts_the_seam_and_leaves_the_rest():
    one, two = Ellipsoid((0.2, 0.2, 0.2)), Moved(Ellipsoid((0.2, 0.2, 0.2)), (0.35, 0, 0))
    melted, plain = Blend((one, two), 0.1), Blend((one, two))
    points = rows(np.array([[0.175, 0.12, 0.0], [-0.25, 0.0, 0.0]]))
    seam, rest = melted.distance(points) - plain.distance(points)
    assert seam == pytest.approx(-0.1 / 4, abs=1e-6)
    assert rest == 0


@categories
@pytest.mark.parametrize("seed", range(3))
def test_a_ball_as_large_as_the_distance_meets_no_surface(category: str, seed: int):
    shape = draw_shape(category, np.random.default_rng(seed))
    centres = cloud(2000, seed=seed)
    distance = shape.distance(centres)
    ways = np.random.default_rng(seed + 1).normal(size=centres.shape)
    ways /= np.linalg.norm(ways, axis=1, keepdims=True)
    rim = centres + ways * (0.999 * np.abs(distance))[:, None]
    reached = shape.distance(rim)
    assert (np.sign(reached) * np.sign(distance) >= 0)[np.abs(reached) > 1e-4].all()


@categories
@pytest.mark.parametrize("seed", range(3))
def test_every_object_stands_in_its_frame(category: str, seed: int):
    shape = draw_shape(category, np.random.default_rng(seed))
    low, high = shape.bounds
    np.testing.assert_allclose(low, -high)
    assert (high - low).max() == pytest.approx(LONGEST_EDGE)
    points = cloud(60_000, 0.55)
    inside = points[shape.distance(points) < 0]
    assert len(inside) > 100
    assert (inside > low - 0.01).all()
    assert (inside < high + 0.01).all()
    assert inside[:, 2].min() < low[2] + 0.06  # it stands on the floor and does not float


@categories
def test_material_slots_are_known_and_one_takes_the_objects_colour(category: str):
    for seed in range(5):
        shape = draw_shape(category, np.random.default_rng(seed))
        assert set(shape.slots) <= set(SLOTS)
        assert {"main", "shade"} & set(shape.slots)
        material = shape.material(cloud(500))
        assert material.min() >= 0
        assert material.max() < len(shape.slots)


def test_material_is_that_of_the_nearest_part():
    ball = Ellipsoid((0.2, 0.2, 0.2))
    shape = Shape("pair", (Part("main", Moved(ball, (-0.3, 0, 0))), Part("wood", Moved(ball, (0.3, 0, 0)))))
    assert shape.slots == ("main", "wood")
    assert shape.material(np.array([[-0.2, 0, 0], [0.2, 0, 0], [0.4, 0.1, 0]])).tolist() == [0, 1, 1]


def test_the_front_of_a_plane_points_to_minus_y_and_a_mug_has_its_handle_at_plus_x():
    nose = draw_shape("plane", np.random.default_rng(0))
    assert nose.distance(np.array([[0, -0.44, 0.0]], np.float32))[0] < 0.05
    mug = draw_shape("mug", np.random.default_rng(0))
    points = cloud(40_000, 0.5)
    inside = points[mug.distance(points) < 0]
    handle = inside[np.abs(inside[:, 0]) > 0.95 * np.abs(inside[:, 0]).max()]
    assert (handle[:, 0] > 0).any()
    assert np.abs(handle[handle[:, 0] > 0][:, 1]).max() < 0.12


def test_objects_of_a_category_differ_and_a_seed_repeats():
    one, again, other = (draw_shape("vase", np.random.default_rng(seed)) for seed in (1, 1, 2))
    points = cloud(100)
    assert np.array_equal(one.distance(points), again.distance(points))
    assert not np.allclose(one.distance(points), other.distance(points), atol=1e-3)


def test_captions_and_shapes_name_the_same_categories():
    assert set(CAPTIONED) == set(CATEGORIES)
    assert len(CATEGORIES) >= 10


def test_an_unknown_category_is_refused():
    with pytest.raises(ValueError, match="category='tree' is unknown; use one of chair, table"):
        draw_shape("tree", np.random.default_rng(0))
