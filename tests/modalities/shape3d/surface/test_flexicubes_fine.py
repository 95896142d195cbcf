"""FlexiCubes on fine grids, and beside marching cubes."""

import math

import numpy as np
import pytest
import torch

from fewstep.modalities.shape3d.mesh_file import Mesh
from fewstep.modalities.shape3d.surface.cleaning import health
from fewstep.modalities.shape3d.surface.dense import cells_of_grid
from fewstep.modalities.shape3d.surface.flexicubes import Cells, Surface, extract_surface
from fewstep.modalities.shape3d.surface.tables import CORNERS

RADIUS = 0.35
VOLUME = 4 / 3 * math.pi * RADIUS**3


def shell(resolution: int) -> Cells:
    """Only the cells near a ball's surface."""
    every = torch.cartesian_prod(*[torch.arange(resolution)] * 3)
    coords = every[(((every + 0.5) / resolution - 0.5).norm(dim=-1) - RADIUS).abs() < 1.8 / resolution]
    sdf = ((coords[:, None] + CORNERS).double() / resolution - 0.5).norm(dim=-1) - RADIUS
    count = len(coords)
    return Cells(coords, sdf, sdf.new_zeros(count, 8, 3), sdf.new_zeros(count, 21), resolution)


def mesh_of(surface: Surface) -> Mesh:
    return Mesh(surface.vertices.numpy().astype(np.float32), surface.faces.numpy())


def test_a_shell_of_cells_has_the_whole_ball_and_a_wall_within() -> None:
    """Corners that no cell knows lie outside, and so does what is enclosed by the shell."""
    found = health(mesh_of(extract_surface(shell(32))))
    assert (found.watertight, found.components, found.euler) == (True, 2, 4)
    assert 0.3 * VOLUME < found.volume < 0.7 * VOLUME


@pytest.mark.slow
def test_a_ball_of_128_cells_has_the_known_size() -> None:
    line = torch.linspace(-0.5, 0.5, 129, dtype=torch.float64)
    grid = torch.stack(torch.meshgrid(line, line, line, indexing="ij"), -1).norm(dim=-1) - RADIUS
    surface = extract_surface(cells_of_grid(grid))
    assert (len(surface.vertices), len(surface.faces)) == (37856, 75708)
    found = health(mesh_of(surface))
    assert (found.watertight, found.components, found.euler) == (True, 1, 2)
    assert 100 * (found.volume / VOLUME - 1) == pytest.approx(-0.0570, abs=2e-4)
    assert float((surface.vertices.norm(dim=-1) - RADIUS).abs().max()) * 128 < 0.0082


def test_marching_cubes_agree_on_the_volume() -> None:
    measure = pytest.importorskip("skimage.measure", reason="needs scikit-image")
    line = torch.linspace(-0.5, 0.5, 33, dtype=torch.float64)
    grid = torch.stack(torch.meshgrid(line, line, line, indexing="ij"), -1).norm(dim=-1) - RADIUS
    vertices, faces, _, _ = measure.marching_cubes(grid.numpy(), 0.0, spacing=(1 / 32,) * 3)
    marched = health(Mesh((vertices - 0.5).astype(np.float32), faces.astype(np.int64)))
    dual = health(mesh_of(extract_surface(cells_of_grid(grid))))
    # both lie within the ball: vertices of marching cubes are on it, those of dual ones below it
    assert 100 * (abs(marched.volume) / VOLUME - 1) == pytest.approx(-0.471, abs=2e-3)
    assert 100 * (dual.volume / VOLUME - 1) == pytest.approx(-0.908, abs=2e-3)
