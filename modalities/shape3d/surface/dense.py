"""FlexiCubes on every cell of a grid: what the sparse one is held against, and for small grids."""

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.modalities.shape3d.surface.flexicubes import Cells, Surface, averaged_corners, surface_of_cubes
from fewstep.modalities.shape3d.surface.tables import CORNERS


def extract_surface_densely(cells: Cells, *, fans: bool = False) -> Surface:
    """As ``extract_surface``, looking at all ``resolution``^3 cells."""
    everywhere = torch.cartesian_prod(*[torch.arange(cells.resolution, device=cells.coords.device)] * 3)
    return surface_of_cubes(cells, averaged_corners(cells), everywhere, fans=fans)


def cells_of_grid(sdf: Float[Tensor, " x y z"]) -> Cells:
    """All cells of a grid of signed distances at R + 1 points per axis, with equal weights, not displaced."""
    size = len(sdf) - 1
    coords = torch.cartesian_prod(*[torch.arange(size)] * 3)
    points = coords[:, None] + CORNERS
    cells = len(coords)
    return Cells(
        coords=coords,
        sdf=sdf[points[..., 0], points[..., 1], points[..., 2]],
        deform=sdf.new_zeros(cells, 8, 3),
        weights=sdf.new_zeros(cells, 21),
        resolution=size,
    )
