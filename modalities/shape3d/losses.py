"""What the two autoencoders of 3D objects minimise."""

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn import functional as F

SMOOTH = 1.0  # keeps Dice finite on empty grids; TRELLIS's value
SURFACE = 1.5  # cells from the surface within which corners have colours and normals to learn


def dice_loss(
    logits: Float[Tensor, " batch *grid"], target: Float[Tensor, " batch *grid"]
) -> Float[Tensor, ""]:
    r"""Over the whole batch, as TRELLIS trains its structure autoencoder (Xiang et al., 2024).

    .. math:: 1 - \frac{2 \sum p y + 1}{\sum p + \sum y + 1}, \quad p = \sigma(logits)
    """
    p = logits.float().sigmoid()
    return 1 - (2 * (p * target).sum() + SMOOTH) / (p.sum() + target.sum() + SMOOTH)


def kl_loss(mean: Float[Tensor, " *shape"], logvar: Float[Tensor, " *shape"]) -> Float[Tensor, ""]:
    """Divergence of the posterior from a standard Gaussian, a mean over all elements."""
    return 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()


def sampled(mean: Float[Tensor, " *shape"], logvar: Float[Tensor, " *shape"]) -> Float[Tensor, " *shape"]:
    """One draw from the posterior, with the gradient of both."""
    return mean + (0.5 * logvar).exp() * torch.randn_like(mean)


def grid_iou(
    predicted: Bool[Tensor, " batch *grid"], target: Bool[Tensor, " batch *grid"]
) -> Float[Tensor, " batch"]:
    """Intersection over union of each object's active voxels; 1 where both are empty."""
    both, either = (predicted & target).flatten(1).sum(1), (predicted | target).flatten(1).sum(1)
    return torch.where(either > 0, both / either.clamp(min=1), 1.0)


def distance_loss(
    distance: Float[Tensor, " cell 8"], target: Float[Tensor, " corner"], rows: Int64[Tensor, " cell 8"]
) -> Float[Tensor, ""]:
    """Absolute error of signed distances in cells; corners near the surface count double.

    Args:
        rows: of the corners' targets for each cell.
    """
    wanted = target[rows]
    weight = 1 + (wanted.abs() < SURFACE).float()
    return (weight * (distance - wanted).abs()).sum() / weight.sum()


def appearance_loss(
    colour: Float[Tensor, " cell 8 6"],
    distance: Float[Tensor, " corner"],
    target_colour: Float[Tensor, " corner 3"],
    target_normal: Float[Tensor, " corner 3"],
    rows: Int64[Tensor, " cell 8"],
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Absolute errors of colours and of normals, both 0 to 1, at the corners within ``SURFACE``.

    Args:
        colour: logits, as the mesh decoder gives them: RGB and the normal (n + 1) / 2.
    """
    near = (distance.abs() < SURFACE)[rows].float()[..., None]
    found, wanted = colour.sigmoid(), torch.cat([target_colour, (target_normal + 1) / 2], dim=1)[rows]
    errors = (near * (found - wanted).abs()).sum((0, 1)) / near.sum().clamp(min=1)
    return errors[:3].mean(), errors[3:].mean()


def consistency_loss(
    values: Float[Tensor, " cell 8 channel"], rows: Int64[Tensor, " cell 8"]
) -> Float[Tensor, ""]:
    """Mean squared deviation of the cells that meet at a corner from their average there."""
    flat, index = values.flatten(0, 1), rows.flatten()
    size = int(index.max()) + 1
    total = flat.new_zeros(size, flat.shape[-1]).index_add(0, index, flat)
    count = flat.new_zeros(size).index_add(0, index, flat.new_ones(len(index)))
    return F.mse_loss(flat, (total / count.clamp(min=1)[:, None])[index])


def distance_at(
    points: Float[Tensor, " point 3"], field: Float[Tensor, " corner corner corner"]
) -> Float[Tensor, " point"]:
    """A field given at the corners of cells, at points of [-0.5, 0.5]^3; linear within each cell."""
    # the last axis of a volume is the first of a sampling point
    places = (2 * points).flip(-1)[None, None, None]
    return F.grid_sample(field[None, None], places, align_corners=True)[0, 0, 0, 0]
