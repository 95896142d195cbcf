"""Uniformly random rotations: a network without equivariance learns of it by seeing chains turned."""

import torch
from jaxtyping import Float
from torch import Tensor


def random_rotations(
    count: int, generator: torch.Generator | None = None, device: torch.device | None = None
) -> Float[Tensor, " count 3 3"]:
    """Rotation matrices, uniform over SO(3): those of unit quaternions of Gaussian direction."""
    quaternions = torch.randn(count, 4, generator=generator, device=device)
    w, x, y, z = (quaternions / quaternions.norm(dim=1, keepdim=True)).unbind(1)
    rows = (
        (1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)),
        (2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)),
        (2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)),
    )
    return torch.stack([torch.stack(row, 1) for row in rows], 1)


def rotated_at_random(
    x: Float[Tensor, " batch residue 3"], generator: torch.Generator | None = None
) -> Float[Tensor, " batch residue 3"]:
    """Each chain turned by a rotation of its own about the origin."""
    return x @ random_rotations(len(x), generator, x.device).to(x.dtype).mT
