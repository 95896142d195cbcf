"""Which cells of a grid lie in a mesh, and which its surface passes."""

import numpy as np
from jaxtyping import Bool, Float, Int64

from fewstep.modalities.shape3d.mesh_file import Mesh
from fewstep.modalities.shape3d.surface.texture import barycentric

# columns stand a little beside the middles of cells: faces of boxes end exactly at these
ASIDE = np.array([1.9e-7, 3.1e-7])
SAMPLES_PER_CELL = 4  # along an axis of a face, where it is looked for cells that it passes

Occupied = Bool[np.ndarray, " x y z"]


def occupied(mesh: Mesh, resolution: int) -> Occupied:
    """Cells of a grid over [-0.5, 0.5]^3 whose middle lies in a closed mesh.

    A column of cells is entered and left where it passes faces, each with its sign: exact for closed meshes
    with faces turned outwards, also where pieces overlap. Time grows with faces and with R^2, and not with
    their product. The mesh may reach beyond the grid.
    """
    size = resolution
    corners = (mesh.vertices[mesh.faces].astype(np.float64) + 0.5) * size - 0.5  # middles at whole numbers
    plane = corners[:, :, :2] - ASIDE
    face, column = _whole_points(plane, size)
    weights = barycentric(plane[face], column)
    hit = (weights >= 0).all(-1)
    face, column, weights = face[hit], column[hit], weights[hit]
    height = np.einsum("hc,hc->h", weights, corners[face][:, :, 2])
    u, v = plane[:, 1] - plane[:, 0], plane[:, 2] - plane[:, 0]
    upwards = (u[:, 0] * v[:, 1] - u[:, 1] * v[:, 0])[face] > 0
    # cells above a face that looks down are entered, above one that looks up left
    first = np.clip(np.ceil(height), 0, size).astype(np.int64)
    steps = np.zeros((size, size, size + 1), np.int64)
    np.add.at(steps, (column[:, 0], column[:, 1], first), np.where(upwards, -1, 1))
    return steps.cumsum(-1)[:, :, :size] > 0


def passed(mesh: Mesh, resolution: int) -> Occupied:
    """Cells of a grid over [-0.5, 0.5]^3 that points of the surface, closer than a quarter cell, lie in.

    For meshes with holes, which hold no volume; a cell that the surface only grazes can be missed.
    """
    found = np.zeros((resolution,) * 3, bool)
    corners = (mesh.vertices[mesh.faces].astype(np.float64) + 0.5) * resolution
    edges = corners - np.roll(corners, 1, axis=1)
    longest = np.linalg.norm(edges, axis=-1).max(1, initial=0)
    count = np.maximum(np.ceil(longest * SAMPLES_PER_CELL), 1).astype(np.int64)
    for steps in np.unique(count):
        line = np.arange(steps + 1) / steps
        u, v = np.meshgrid(line, line, indexing="ij")
        weights = np.stack([u, v, 1 - u - v], -1)[u + v <= 1 + 1e-9]
        points = np.einsum("sc,fcd->fsd", weights, corners[count == steps]).reshape(-1, 3)
        cells = np.floor(points).astype(np.int64)
        cells = cells[((cells >= 0) & (cells < resolution)).all(1)]
        found[tuple(cells.T)] = True
    return found


def _whole_points(
    corners: Float[np.ndarray, " face 3 2"], size: int
) -> tuple[Int64[np.ndarray, " point"], Int64[np.ndarray, " point 2"]]:
    """Points with whole coordinates from 0 to size - 1 in the box around each triangle, and its number."""
    low = np.clip(np.ceil(corners.min(1)), 0, size).astype(np.int64)
    high = np.clip(np.floor(corners.max(1)), -1, size - 1).astype(np.int64)
    extent = np.maximum(high - low + 1, 0)
    count = extent.prod(1)
    face = np.repeat(np.arange(len(corners)), count)
    offset = np.arange(len(face)) - np.repeat(np.cumsum(count) - count, count)
    width = np.maximum(extent[face, 0], 1)
    return face, low[face] + np.stack([offset % width, offset // width], -1)
