"""What affine students are made of."""

import torch
from torch import Tensor


def legendre(t: Tensor, degree: int) -> Tensor:
    """Orthonormal polynomials on [0, 1], those of degree 0 to ``degree`` in the last dimension."""
    z = 2 * t - 1
    waves = [torch.ones_like(z), z]
    for n in range(1, degree):
        waves.append(((2 * n + 1) * z * waves[n] - n * waves[n - 1]) / (n + 1))
    return torch.stack([(2 * n + 1) ** 0.5 * wave for n, wave in enumerate(waves)], dim=-1)
