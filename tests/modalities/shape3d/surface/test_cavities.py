"""Walls within solid objects."""

import math

import numpy as np
import pytest
import torch

from fewstep.modalities.shape3d.mesh_file import Mesh
from fewstep.modalities.shape3d.surface.cavities import without_cavities
from fewstep.modalities.shape3d.surface.cleaning import health, with_faces
from fewstep.modalities.shape3d.surface.flexicubes import Cells, extract_surface
from fewstep.modalities.shape3d.surface.tables import CORNERS

RADIUS = 0.35
VOLUME = 4 / 3 * math.pi * RADIUS**3


def hollow_ball(resolution: int = 32, radius: float = RADIUS) -> Mesh:
    """What cells near a ball's surface give."""
    every = torch.cartesian_prod(*[torch.arange(resolution)] * 3)
    coords = every[(((every + 0.5) / resolution - 0.5).norm(dim=-1) - radius).abs() < 1.8 / resolution]
    sdf = ((coords[:, None] + CORNERS) / resolution - 0.5).norm(dim=-1) - radius
    count = len(coords)
    surface = extract_surface(
        Cells(coords, sdf, sdf.new_zeros(count, 8, 3), sdf.new_zeros(count, 21), resolution)
    )
    return Mesh(surface.vertices.numpy(), surface.faces.numpy(), np.abs(surface.vertices.numpy()))


def test_a_ball_becomes_solid() -> None:
    mesh = hollow_ball()
    assert health(mesh).components == 2
    assert health(mesh).volume < 0.7 * VOLUME
    solid = without_cavities(mesh)
    found = health(solid)
    assert (found.watertight, found.components, found.euler) == (True, 1, 2)
    assert found.volume == pytest.approx(VOLUME, rel=0.01)
    assert found.faces < 0.75 * len(mesh.faces)
    assert solid.colours is not None
    assert np.array_equal(solid.colours, np.abs(solid.vertices))


def test_solid_pieces_stay_wherever_they_are() -> None:
    one = without_cavities(hollow_ball(radius=0.2))
    both = Mesh(
        np.concatenate([one.vertices - 0.25, one.vertices + 0.25]).astype(np.float32),
        np.concatenate([one.faces, one.faces + len(one.vertices)]),
    )
    assert without_cavities(both) is both


def test_a_mesh_inside_out_and_one_with_a_hole_stay() -> None:
    solid = without_cavities(hollow_ball())
    inverted = Mesh(solid.vertices, np.ascontiguousarray(solid.faces[:, ::-1]))
    assert without_cavities(inverted) is inverted
    open_ball = with_faces(inverted, np.arange(len(inverted.faces)) > 0)
    around = Mesh(
        np.concatenate([1.3 * solid.vertices, open_ball.vertices]).astype(np.float32),
        np.concatenate([solid.faces, open_ball.faces + len(solid.vertices)]),
    )
    assert without_cavities(around) is around


def test_nothing_stays_nothing() -> None:
    empty = Mesh(np.zeros((0, 3), np.float32), np.zeros((0, 3), np.int64))
    assert without_cavities(empty) is empty
