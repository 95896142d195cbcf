"""Embeddings of times and of places on a grid."""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

TIME_SCALE = 1000.0  # TRELLIS embeds 1000 t
TIME_FREQUENCIES = 128
WAVELENGTH = 10_000.0


class TimestepEmbedder(nn.Module):
    """A sinusoid of 1000 t through a small network."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(2 * TIME_FREQUENCIES, channels), nn.SiLU(), nn.Linear(channels, channels)
        )

    def forward(self, t: Float[Tensor, " batch"]) -> Float[Tensor, " batch dim"]:
        weight = self.mlp.get_parameter("0.weight")
        exponents = torch.arange(TIME_FREQUENCIES, dtype=torch.float32, device=t.device) / TIME_FREQUENCIES
        # a time in half precision is already wrong
        precise = t.to(torch.promote_types(weight.dtype, torch.float32))
        angles = TIME_SCALE * precise[:, None] * torch.exp(-math.log(WAVELENGTH) * exponents)
        return self.mlp(torch.cat([angles.cos(), angles.sin()], 1).to(weight.dtype))


def absolute_positions(
    coords: Int[Tensor, " *place 3"], resolution: int, channels: int
) -> Float[Tensor, " *place dim"]:
    """Sines, then cosines, of each coordinate, axis after axis; zeros where ``channels`` is no multiple of 6.

    Args:
        coords: below ``resolution``.
        resolution: of the grid.
        channels: of the result, which is float32.
    """
    frequencies = channels // 3 // 2
    exponents = torch.arange(frequencies, dtype=torch.float32, device=coords.device) / frequencies
    places = torch.arange(resolution, dtype=torch.float32, device=coords.device)
    angles = places[:, None] / WAVELENGTH**exponents
    table = torch.cat([angles.sin(), angles.cos()], 1)
    embedded = F.embedding(coords.long(), table).flatten(-2)
    return F.pad(embedded, (0, channels - embedded.shape[-1]))


def grid_places(resolution: int) -> Int[Tensor, " place 3"]:
    """All places of a dense grid, z fastest."""
    return torch.cartesian_prod(*[torch.arange(resolution)] * 3)
