"""Comparison of meshes whose differences are known."""

import math
from dataclasses import replace

import numpy as np
import pytest

from fewstep.modalities.objects.scene import Camera
from fewstep.modalities.shape3d.comparison import likeness, surface_iou, volume_iou
from fewstep.modalities.shape3d.mesh_file import Mesh
from fewstep.modalities.shape3d.surface.cleaning import with_faces

trimesh = pytest.importorskip("trimesh", reason="needs trimesh: pip install 'fewstep[three-d]'")

FRONT = (Camera(azimuth=0.0, elevation=0.0),)


def box(*extents: float, at: tuple[float, float, float] = (0, 0, 0)) -> Mesh:
    made = trimesh.creation.box(extents).apply_translation(at)
    return Mesh(np.asarray(made.vertices, np.float32), np.asarray(made.faces, np.int64))


def ball(radius: float) -> Mesh:
    made = trimesh.creation.icosphere(subdivisions=3, radius=radius)
    return Mesh(np.asarray(made.vertices, np.float32), np.asarray(made.faces, np.int64))


def board(*, away: float = 0.0, turn: float = 0.0, grey: float = 0.5) -> Mesh:
    """A square upright before the camera, further away or turned about its vertical middle."""
    across, up = np.array([math.cos(turn), math.sin(turn), 0]), np.array([0, 0, 1])
    corners = [0.3 * (a * across + b * up) for a, b in ((-1, -1), (1, -1), (1, 1), (-1, 1))]
    axis = FRONT[0].axes[2]  # to the eye
    vertices = (np.array(corners) - away * axis).astype(np.float32)
    return Mesh(vertices, np.array([[0, 1, 2], [0, 2, 3]]), np.full((4, 3), grey, np.float32))


def test_boxes_overlap_by_known_shares() -> None:
    one, other = box(0.5, 0.5, 0.5), box(0.5, 0.5, 0.5, at=(0.25, 0, 0))
    assert volume_iou(one, one) == 1.0
    assert volume_iou(one, other) == pytest.approx(1 / 3)
    assert volume_iou(one, box(0.25, 0.5, 0.5)) == pytest.approx(0.5)
    assert volume_iou(ball(0.2), ball(0.4)) == pytest.approx(1 / 8, rel=0.02)


def test_a_broken_mesh_is_compared_by_its_surface() -> None:
    one = ball(0.4)
    broken = with_faces(one, np.arange(len(one.faces)) > 3)
    with pytest.raises(ValueError, match="found is not watertight"):
        volume_iou(broken, one)
    with pytest.raises(ValueError, match="true is not watertight"):
        volume_iou(one, broken)
    assert surface_iou(one, one) == 1.0
    assert surface_iou(broken, one) > 0.98
    assert surface_iou(ball(0.3), one) == 0.0


def test_a_mesh_looks_like_itself() -> None:
    mesh = replace(ball(0.4), colours=ball(0.4).vertices + 0.5)
    found = likeness(mesh, mesh)
    assert (found.mask_iou, found.depth_l1, found.colour_psnr) == (1.0, 0.0, math.inf)
    assert found.normal_degrees < 0.05
    assert likeness(ball(0.4), mesh).colour_psnr is None


def test_a_board_further_away_is_as_much_deeper() -> None:
    found = likeness(board(away=0.1, grey=0.6), board(), views=FRONT)
    assert found.depth_l1 == pytest.approx(0.1, abs=1e-5)
    assert found.normal_degrees == pytest.approx(0, abs=0.05)
    assert found.colour_psnr == pytest.approx(20, abs=1e-3)
    assert found.mask_iou == pytest.approx((2.6 / 2.7) ** 2, abs=0.03)


def test_a_turned_board_has_turned_normals() -> None:
    found = likeness(board(turn=math.radians(30)), board(), views=FRONT)
    assert found.normal_degrees == pytest.approx(30, abs=0.05)


def test_what_is_never_seen_together_has_no_depth() -> None:
    found = likeness(box(0.1, 0.1, 0.1, at=(0, 0, 0.4)), box(0.1, 0.1, 0.1, at=(0, 0, -0.4)), views=FRONT)
    assert found.mask_iou == 0.0
    assert math.isnan(found.depth_l1)
    assert math.isnan(found.normal_degrees)
