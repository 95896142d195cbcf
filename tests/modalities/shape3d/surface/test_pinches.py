"""Edges of more than two faces: two boxes that touch along one, a fold, and what a face budget leaves."""

import numpy as np
import pytest

from fewstep.modalities.shape3d.mesh_file import Mesh
from fewstep.modalities.shape3d.surface.cleaning import health
from fewstep.modalities.shape3d.surface.pinches import pinched_edges, without_pinches
from fewstep.modalities.shape3d.surface.simplification import simplified

trimesh = pytest.importorskip("trimesh", reason="needs trimesh: pip install 'fewstep[three-d]'")


def touching_boxes() -> Mesh:
    """Unit boxes at the diagonal of four places: they share the edge along z at the middle."""
    boxes = [trimesh.creation.box(), trimesh.creation.box().apply_translation([1, 1, 0])]
    both = trimesh.util.concatenate(boxes)
    colours = (both.vertices - both.vertices.min(0)) / np.ptp(both.vertices, axis=0)
    return Mesh(both.vertices.astype(np.float32), both.faces.astype(np.int64), colours.astype(np.float32))


def test_boxes_that_touch_along_an_edge_come_apart_at_its_middle() -> None:
    mesh = touching_boxes()
    assert not health(mesh).watertight
    apart = without_pinches(mesh)
    found = health(apart)
    assert found.watertight
    assert found.volume == pytest.approx(2, rel=0.01)
    assert found.faces == 24 + 4
    middles = apart.vertices[16:]
    np.testing.assert_allclose(middles, [[0.5, 0.5, 0]] * 2, atol=0.0101)
    # each into its own box, the lower one's to the lower side
    assert sorted(np.sign(np.round(middles[:, :2] - 0.5, 6)).tolist()) == [[-1, -1], [1, 1]]
    assert apart.colours is not None
    np.testing.assert_allclose(apart.colours[16:], [[0.5, 0.5, 0.5]] * 2, atol=1e-6)


def test_faces_on_each_others_backs_go() -> None:
    box = trimesh.creation.box()
    vertices = np.concatenate([box.vertices, [[2, 2, 2]]]).astype(np.float32)
    low, high = box.faces[0, :2]
    folded = np.concatenate([box.faces, [[low, high, 8], [high, low, 8]]]).astype(np.int64)
    mesh = Mesh(vertices, folded)
    assert not health(mesh).watertight
    assert health(without_pinches(mesh)).watertight
    assert len(without_pinches(mesh).faces) == 12


def test_a_mesh_without_pinches_is_returned_as_it_is_and_open_ones_are_left() -> None:
    box = trimesh.creation.box()
    whole = Mesh(box.vertices.astype(np.float32), box.faces.astype(np.int64))
    assert without_pinches(whole) is whole
    empty = Mesh(whole.vertices[:0], whole.faces[:0])
    assert without_pinches(empty) is empty
    fan = np.array([[0, 1, 2], [0, 1, 3], [1, 0, 4]])  # three faces at an edge, two of which run forth
    assert len(pinched_edges(fan)) == 0


@pytest.mark.parametrize("faces", [400, 150, 60])
def test_a_budget_far_below_is_kept_and_closed_surfaces_stay_closed(faces: int) -> None:
    pytest.importorskip("fast_simplification", reason="needs fast-simplification")
    rng = np.random.default_rng(0)
    ball = trimesh.creation.icosphere(subdivisions=5)
    rough = (
        ball.vertices
        * (0.3 + 0.1 * np.sin(9 * ball.vertices).prod(1) + 0.01 * rng.random(len(ball.vertices)))[:, None]
    )
    # thin, where collapsing edges makes sides meet
    rough[:, 2] *= 0.1
    fine = Mesh(rough.astype(np.float32), ball.faces.astype(np.int64))
    assert health(fine).watertight
    coarse = health(simplified(fine, faces=faces))
    assert coarse.faces <= faces
    assert coarse.watertight
