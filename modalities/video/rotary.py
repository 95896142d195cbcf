"""Rotary position embeddings over frames, rows and columns (Su et al., 2021), split as Wan 2.1 does it."""

import torch
from jaxtyping import Complex, Float, Int
from torch import Tensor

ROPE_THETA = 10_000.0  # Su et al., 2021; the value Wan 2.1 uses on all three axes

Rotation = Complex[Tensor, " *#batch pairs"] | Float[Tensor, " *#batch pairs 2"]
"""Of pairs of numbers: complex, or cosine and sine, which compilers understand."""


class RotaryEmbedding:
    """Rotations for (frame, row, column) positions: interleaved pairs, each axis with its own base.

    Half the head dimension is split as Wan does it: a third (rounded down) for rows, as much for columns,
    the rest for frames.
    """

    def __init__(self, head_dim: int) -> None:
        pairs = head_dim // 2
        spatial = pairs // 3
        self.sizes = (pairs - 2 * spatial, spatial, spatial)
        self._known: dict[tuple, Tensor] = {}

    def __call__(
        self, frames: range, height: int, width: int, *, dtype: torch.dtype, device: torch.device
    ) -> Complex[Tensor, " tokens 1 pairs"]:
        """Rotations of all tokens of ``frames`` in row-major (frame, row, column) order; remembered, a
        stream asks for few.
        """
        key = (frames, height, width, dtype, device)
        if key not in self._known:
            self._known[key] = self._compute(frames, height, width, dtype, device)
        return self._known[key]

    def at(
        self, position: Int[Tensor, ""], frames: int, height: int, width: int, *, dtype: torch.dtype
    ) -> Float[Tensor, " tokens 1 pairs 2"]:
        """Cosines and sines of the same rotations, of ``frames`` frames from ``position`` on, made where that
        tensor lies: a graph captured once serves every position.
        """
        device, wide = position.device, torch.float64
        axes = [torch.arange(size, device=device, dtype=wide) for size in (frames, height, width)]
        axes[0] = axes[0] + position
        grids = []
        for axis, (positions, size) in enumerate(zip(axes, self.sizes, strict=True)):
            inverse = ROPE_THETA ** (-torch.arange(size, dtype=wide, device=device) / size)
            shape = [1, 1, 1, size]
            shape[axis] = len(positions)
            angles = (positions[:, None] * inverse).view(shape)
            grids.append(angles.expand(frames, height, width, size))
        angles = torch.cat(grids, dim=-1).reshape(-1, 1, sum(self.sizes))
        return torch.stack([angles.cos(), angles.sin()], dim=-1).to(
            torch.float64 if dtype == torch.float64 else torch.float32
        )

    @torch.inference_mode(False)  # remembered, so a training step may be the next to ask
    def _compute(
        self, frames: range, height: int, width: int, dtype: torch.dtype, device: torch.device
    ) -> Tensor:
        axes = (range(frames.start, frames.stop), range(height), range(width))
        grids = []
        for axis, (positions, size) in enumerate(zip(axes, self.sizes, strict=True)):
            inverse = ROPE_THETA ** (-torch.arange(size, dtype=torch.float64) / size)
            angles = torch.tensor(list(positions), dtype=torch.float64)[:, None] * inverse
            shape = [1, 1, 1, size]
            shape[axis] = len(positions)
            grids.append(
                torch.polar(torch.ones_like(angles), angles)
                .view(shape)
                .expand(len(frames), height, width, size)
            )
        rotation = torch.cat(grids, dim=-1).reshape(-1, 1, sum(self.sizes))
        return rotation.to(
            device=device, dtype=torch.complex128 if dtype == torch.float64 else torch.complex64
        )


def rotate(x: Float[Tensor, " *batch head_dim"], rotation: Rotation) -> Float[Tensor, " *batch head_dim"]:
    """Rotate interleaved pairs of ``x``; computed in float32 (float64 for float64 input), returned in the
    dtype of ``x``.
    """
    wide = x if x.dtype == torch.float64 else x.float()
    if not rotation.is_complex():
        (even, odd), (cos, sin) = wide.unflatten(-1, (-1, 2)).unbind(-1), rotation.unbind(-1)
        return torch.stack([even * cos - odd * sin, even * sin + odd * cos], -1).flatten(-2).to(x.dtype)
    pairs = torch.view_as_complex(wide.unflatten(-1, (-1, 2)).contiguous())
    return torch.view_as_real(pairs * rotation).flatten(-2).to(x.dtype)
