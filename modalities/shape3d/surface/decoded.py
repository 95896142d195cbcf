"""From the channels of a mesh decoder to meshes."""

import numpy as np
import torch

from fewstep.modalities.shape3d.mesh_file import Mesh
from fewstep.modalities.shape3d.sparse.tensor import SparseTensor
from fewstep.modalities.shape3d.surface.flexicubes import Cells, extract_surface

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
    """The mesh of every sample, with vertex colours where the decoder gives them; it may have no face."""
    meshes = []
    for sample in range(decoded.batch_size):
        surface = extract_surface(cells_of(decoded, sample))
        colours = None if surface.colours is None else surface.colours[:, :3].cpu().numpy()
        meshes.append(
            Mesh(
                surface.vertices.cpu().numpy().astype(np.float32),
                surface.faces.cpu().numpy().astype(np.int64),
                colours,
            )
        )
    return meshes
