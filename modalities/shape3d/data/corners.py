"""Where the targets of each corner of each cell stand among a batch's rows."""

import torch
from jaxtyping import Int, Int64
from torch import Tensor

from fewstep.modalities.shape3d.data.voxels import CELLS_PER_VOXEL

# of a cell, x fastest, as the mesh decoder's channels have them: 000, 100, 010, 110, 001, ...
CORNERS = tuple((bits & 1, bits >> 1 & 1, bits >> 2 & 1) for bits in range(8))


def corner_numbers(
    coords: Int[Tensor, " voxel 4"], batch_size: int, resolution: int
) -> Int64[Tensor, " batch corner corner corner"]:
    """For every lattice corner of every object the row of its targets, -1 where it has none.

    Rows stand as `Voxels` has them: the corners of the cells of the active voxels, object after object,
    row-major within each.
    """
    size = CELLS_PER_VOXEL * resolution + 1
    mask = torch.zeros(batch_size, size, size, size, dtype=torch.bool, device=coords.device)
    along = torch.arange(CELLS_PER_VOXEL + 1, device=coords.device)
    steps = torch.cartesian_prod(along, along, along)
    b, xyz = coords[:, 0].long(), coords[:, 1:].long()
    x, y, z = (CELLS_PER_VOXEL * xyz[:, None] + steps).unbind(-1)
    mask[b[:, None].expand_as(x), x, y, z] = True
    return torch.where(mask, mask.flatten().cumsum(0).view(mask.shape) - 1, -1)


def cell_corners(
    cells: Int[Tensor, " cell 4"], numbers: Int64[Tensor, " batch corner corner corner"]
) -> Int64[Tensor, " cell 8"]:
    """The rows of the eight corners of cells (object, x, y, z) of the mesh grid, as `CORNERS` orders them."""
    steps = torch.tensor(CORNERS, device=cells.device)
    x, y, z = (cells[:, None, 1:].long() + steps).unbind(-1)
    return numbers[cells[:, :1].long().expand_as(x), x, y, z]
