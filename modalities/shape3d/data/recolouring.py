"""Objects in other colours, so that an autoencoder learns to carry colour from place to place."""

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.modalities.shape3d.data.corners import corner_numbers
from fewstep.modalities.shape3d.data.shapes import Batch
from fewstep.modalities.shape3d.data.voxels import CELLS_PER_VOXEL

COLOUR_FEATURES = slice(6, 9)  # of a voxel, see `voxelised`
SHIFT = 0.5  # largest change of a channel of a whole object
SLOPE = 1.5  # largest change of a channel from one side of the unit cube to the other, along each axis


def recoloured(batch: Batch, resolution: int, *, share: float, generator: torch.Generator) -> Batch:
    r"""The batch, in which some objects got other colours: at a place p of the unit cube

    .. math:: c'(p) = \mathrm{clip}_{[0, 1]}(c(p) + b + G p)

    with a shift b and a slope G of their own, in the voxels' features and at the corners alike. An object has
    few colours, and a batch few objects: without this a decoder finds the mean colour of all objects and the
    encoder no reason to tell it more, since within an object colours hardly differ.

    Args:
        batch: with ``coords``, ``features``, ``corner_colour`` and ``numbers``; see ``Shapes``.
        resolution: voxels per axis.
        share: part of the objects that is changed.
        generator: of the batch's device.
    """
    size, device = len(batch["numbers"]), batch["features"].device

    def uniform(*shape: int) -> Tensor:
        return torch.rand(size, *shape, generator=generator, device=device)

    changed = (uniform() < share).float()[:, None]
    shift = changed * SHIFT * (2 * uniform(3) - 1)
    slope = changed[..., None] * SLOPE * (2 * uniform(3, 3) - 1)

    def at(colour: Float[Tensor, " row 3"], sample: Tensor, place: Tensor) -> Float[Tensor, " row 3"]:
        field = shift[sample] + (slope[sample] @ place[..., None]).squeeze(-1)
        return (colour + field).clamp(0, 1)

    coords = batch["coords"]
    features = batch["features"].clone()
    centres = (coords[:, 1:] + 0.5) / resolution - 0.5
    features[:, COLOUR_FEATURES] = at(features[:, COLOUR_FEATURES], coords[:, 0].long(), centres)
    # rows of corners are in the order of the lattice, object after object
    corners = (corner_numbers(coords, size, resolution) >= 0).nonzero()
    places = corners[:, 1:] / (CELLS_PER_VOXEL * resolution) - 0.5
    colour = at(batch["corner_colour"], corners[:, 0], places)
    return {**batch, "features": features, "corner_colour": colour}
