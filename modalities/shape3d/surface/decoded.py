"""From the channels of a mesh decoder to meshes."""

from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from fewstep.modalities.shape3d.mesh_file import Mesh
from fewstep.modalities.shape3d.networks.latent_vae import CELLS_PER_VOXEL
from fewstep.modalities.shape3d.sparse.tensor import SparseTensor
from fewstep.modalities.shape3d.surface.flexicubes import Cells, extract_surface
from fewstep.modalities.shape3d.surface.tables import CORNERS

# channels of a cell: signed distance 8, deformation 8 x 3, weights 21, colour 8 x 6
DISTANCE, DEFORM, WEIGHTS, COLOUR = slice(0, 8), slice(8, 32), slice(32, 53), slice(53, 101)


def cells_of(decoded: SparseTensor, sample: int) -> Cells:
    """What a decoder says of one sample; distances less 1 / R, R cells per axis, as TRELLIS takes them."""
    size, rows = decoded.resolution, decoded.layout[sample]
    feats = decoded.feats[rows].float()
    coloured = feats.shape[1] > WEIGHTS.stop
    return Cells(
        coords=decoded.coords[rows, 1:].long(),
        sdf=feats[:, DISTANCE] - 1 / size,
        deform=feats[:, DEFORM].unflatten(1, (8, 3)),
        weights=feats[:, WEIGHTS],
        resolution=size,
        colours=feats[:, COLOUR].unflatten(1, (8, 6)) if coloured else None,
    )


@torch.no_grad()
def extracted(decoded: SparseTensor) -> list[Mesh]:
    """The mesh of every sample, with vertex colours where the decoder gives them; it may have no face.

    Objects are solid where active voxels close around a space, of which a decoder says nothing, and closed
    where they reach the faces of the grid; the original leaves a wall in the former and a hole in the latter.
    """
    meshes = []
    for sample in range(decoded.batch_size):
        cells = _without_normals(closed_at_faces(cells_of(decoded, sample)))
        surface = extract_surface(cells, solid=enclosed_cells(cells), deviation=False)
        colours = None if surface.colours is None else surface.colours.cpu().numpy()
        meshes.append(
            Mesh(
                surface.vertices.cpu().numpy().astype(np.float32),
                surface.faces.cpu().numpy().astype(np.int64),
                colours,
            )
        )
    return meshes


def _without_normals(cells: Cells) -> Cells:
    return cells if cells.colours is None else replace(cells, colours=cells.colours[..., :3])


def closed_at_faces(cells: Cells) -> Cells:
    """The same with all corners on the faces of the grid outside, half a cell away from the surface."""
    lowest, highest = cells.coords == 0, cells.coords == cells.resolution - 1
    row = torch.nonzero((lowest | highest).any(1)).flatten()
    if not len(row):
        return cells
    upper = CORNERS.to(cells.coords.device) == 1
    on_face = torch.where(upper, highest[row, None], lowest[row, None]).any(-1)
    sdf = cells.sdf.clone()
    sdf[row] = torch.where(on_face, sdf[row].clamp_min(0.5 / cells.resolution), sdf[row])
    return replace(cells, sdf=sdf)


def enclosed_cells(cells: Cells, *, per_voxel: int = CELLS_PER_VOXEL) -> Int64[Tensor, " cell 3"]:
    """Cells of inactive voxels that cannot be reached from the grid's faces past active ones."""
    from scipy.ndimage import label

    size = cells.resolution // per_voxel
    # with an empty layer around the grid: what is reached from there is outside
    free = np.ones((size + 2,) * 3, bool)
    free[tuple((cells.coords // per_voxel + 1).T.cpu().numpy())] = False
    place = np.zeros(free.shape, np.int32)
    label(free, output=place)
    voxels = np.argwhere((free & (place != place[0, 0, 0]))[1:-1, 1:-1, 1:-1])
    steps = torch.cartesian_prod(*[torch.arange(per_voxel)] * 3)
    found = (per_voxel * torch.from_numpy(voxels)[:, None] + steps).flatten(0, 1)
    return found.to(cells.coords.device)
