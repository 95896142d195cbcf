"""The best rigid motion of one set of points onto another (Kabsch, 1976)."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Motion:
    """Rigid motions ``x -> x @ rotation.T + translation``; a reflection never."""

    rotation: Float[Tensor, " *batch 3 3"]
    translation: Float[Tensor, " *batch 3"]

    def __call__(self, points: Float[Tensor, " *#batch point 3"]) -> Float[Tensor, " *moved point 3"]:
        return points @ self.rotation.mT + self.translation[..., None, :]

    def __getitem__(self, index: Tensor) -> "Motion":
        return Motion(self.rotation[index], self.translation[index])


def superposition(
    mobile: Float[Tensor, " *batch point 3"],
    target: Float[Tensor, " *batch point 3"],
    *,
    weights: Float[Tensor, " *batch point"] | None = None,
) -> Motion:
    """The motion of ``mobile`` with the least weighted sum of squares to ``target``, point by point.

    Points of weight 0 may hold anything finite.
    """
    if weights is None:
        weights = torch.ones_like(mobile[..., 0])
    total = weights.sum(-1, keepdim=True)[..., None].clamp_min(torch.finfo(weights.dtype).tiny)
    share = weights[..., None] / total
    from_, to = (share * mobile).sum(-2, keepdim=True), (share * target).sum(-2, keepdim=True)
    covariance = (share * (target - to)).mT @ (mobile - from_)
    rotation = nearest_rotation(covariance)
    return Motion(rotation, (to - from_ @ rotation.mT).squeeze(-2))


def nearest_rotation(matrix: Float[Tensor, " *batch 3 3"]) -> Float[Tensor, " *batch 3 3"]:
    """The proper rotation R with the greatest trace of R^T matrix."""
    u, _, vh = torch.linalg.svd(matrix)
    sign = torch.linalg.det(u) * torch.linalg.det(vh)
    flip = torch.ones_like(matrix[..., 0])
    flip[..., 2] = sign
    return (u * flip[..., None, :]) @ vh


def rmsd(
    one: Float[Tensor, " *batch point 3"], other: Float[Tensor, " *batch point 3"]
) -> Float[Tensor, " *batch"]:
    """Root mean square distance of corresponding points after the best superposition."""
    moved = superposition(one, other)(one)
    return (moved - other).square().sum(-1).mean(-1).sqrt()
