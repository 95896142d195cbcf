"""Meshes of what a decoder says near a surface: solid within, and closed at the faces of the grid."""

import numpy as np
import pytest
import torch
from torch import Tensor

from fewstep.modalities.shape3d.mesh_file import Mesh
from fewstep.modalities.shape3d.sparse.tensor import SparseTensor
from fewstep.modalities.shape3d.surface.cleaning import health
from fewstep.modalities.shape3d.surface.decoded import cells_of, enclosed_cells, extracted
from fewstep.modalities.shape3d.surface.flexicubes import extract_surface
from fewstep.modalities.shape3d.surface.tables import CORNERS

pytest.importorskip("scipy", reason="needs scipy: pip install 'fewstep[three-d]'")

VOXELS = 8
CELLS = 4 * VOXELS


def distance(points: Tensor, middle: tuple[float, float, float], radius: float) -> Tensor:
    return (points - torch.tensor(middle)).norm(dim=-1) - radius


def decoded(middle: tuple[float, float, float] = (0, 0, 0), radius: float = 0.4) -> SparseTensor:
    """A perfect decoder's cells of a ball, of the voxels that its surface passes."""
    voxels = torch.cartesian_prod(*[torch.arange(VOXELS)] * 3)
    fine = torch.cartesian_prod(*[torch.arange(5)] * 3)
    around = distance((4 * voxels[:, None] + fine) / CELLS - 0.5, middle, radius)
    voxels = voxels[(around.amin(1) < 0) & (around.amax(1) >= 0)]
    cells = (4 * voxels[:, None] + torch.cartesian_prod(*[torch.arange(4)] * 3)).flatten(0, 1)
    feats = torch.zeros(len(cells), 101)
    feats[:, :8] = distance((cells[:, None] + CORNERS) / CELLS - 0.5, middle, radius) + 1 / CELLS
    coords = torch.cat([torch.zeros(len(cells), 1, dtype=torch.long), cells], 1)
    return SparseTensor.of(feats, coords, batch_size=1, resolution=CELLS)


def nearest(points: Tensor, others: Tensor) -> Tensor:
    """Distances to the nearest other; not by cdist's matrix product, which rounds near pairs."""
    return torch.cdist(points, others, compute_mode="donot_use_mm_for_euclid_dist").min(1).values


def test_a_ball_of_which_only_the_shell_is_known_is_solid() -> None:
    found = health(extracted(decoded())[0])
    assert (found.watertight, found.components, found.euler) == (True, 1, 2)
    assert found.volume == pytest.approx(4 / 3 * np.pi * 0.4**3, rel=0.02)


def test_without_the_space_within_it_would_be_hollow() -> None:
    cells = cells_of(decoded(), 0)
    hollow, whole = extract_surface(cells), extract_surface(cells, solid=enclosed_cells(cells))
    assert len(hollow.faces) > 1.3 * len(whole.faces)
    # what is solid has the same outer surface, vertex for vertex
    outer = hollow.vertices[hollow.vertices.norm(dim=1) > 0.36]
    assert nearest(outer, whole.vertices).max() < 1e-6
    assert nearest(whole.vertices, outer).max() < 1e-6


def test_the_space_within_is_that_of_whole_voxels() -> None:
    cells = cells_of(decoded(), 0)
    within = enclosed_cells(cells)
    assert len(within) % 64 == 0
    middles = (within + 0.5) / CELLS - 0.5
    assert float(middles.norm(dim=1).max()) < 0.4
    active = {tuple(cell) for cell in cells.coords.tolist()}
    assert active.isdisjoint({tuple(cell) for cell in within.tolist()})


def test_a_shell_with_a_gap_encloses_nothing_and_is_left_as_it_is() -> None:
    whole = decoded()
    keep = whole.coords[:, 3] < 20  # without its top
    opened = SparseTensor.of(whole.feats[keep], whole.coords[keep], batch_size=1, resolution=CELLS)
    cells = cells_of(opened, 0)
    assert len(enclosed_cells(cells)) == 0
    assert len(extracted(opened)[0].faces) == len(extract_surface(cells).faces)


def test_what_reaches_the_faces_of_the_grid_is_closed_there() -> None:
    beyond = decoded((0.0, 0.0, 0.25), 0.3)  # up to 0.05 above the grid
    assert not health(to_mesh(beyond)).watertight
    mesh = extracted(beyond)[0]
    assert health(mesh).watertight
    assert float(mesh.vertices.max()) < 0.5


def to_mesh(given: SparseTensor) -> Mesh:
    cells = cells_of(given, 0)
    surface = extract_surface(cells, solid=enclosed_cells(cells))
    return Mesh(surface.vertices.numpy().astype(np.float32), surface.faces.numpy())
