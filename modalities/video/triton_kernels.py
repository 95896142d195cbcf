"""The transformer's norms with what follows them, each as one Triton kernel; import only where Triton is.

Both read every number once and write every result once, where the separate operations pass over memory four
to six times; both compute in float32 whatever they are given, and neither has a gradient.
"""

# Triton is optional, and launching a kernel looks like indexing a function:
# pyright: reportMissingImports=false, reportIndexIssue=false

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

from fewstep.modalities.video.rotary import Rotation


class TritonKernels:
    """The ``Kernels`` of ``blocks``."""

    def norm_modulated(
        self,
        x: Float[Tensor, " batch frame token dim"],
        shift: Float[Tensor, " batch frame 1 dim"],
        scale: Float[Tensor, " batch frame 1 dim"],
        eps: float,
    ) -> Float[Tensor, " batch frame token dim"]:
        """Layer norm, times ``scale``, plus ``shift``."""
        tokens, dim = x.shape[-2:]
        x, shift, scale = x.contiguous(), shift.contiguous(), scale.contiguous()
        out = torch.empty_like(x)
        block = triton.next_power_of_2(dim)
        with torch.cuda.device_of(x):  # a kernel runs on the present device, which may be another
            _norm_modulated[(x.numel() // dim,)](x, shift, scale, out, tokens, dim, eps, BLOCK=block)  # pyright: ignore[reportArgumentType]
        return out

    def norm_rotated(
        self,
        pair: Float[Tensor, " batch tokens 2 dim"],
        weights: Float[Tensor, " 2 dim"],
        rotation: Rotation,
        heads: int,
        eps: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Root-mean-square norm of queries and keys over ``dim``, and their rotation head by head: rotated
        queries, rotated keys, and the keys before rotation, ``[batch, tokens, head, head_dim]``.
        """
        batch, tokens, _, dim = pair.shape
        angles = torch.view_as_real(rotation) if rotation.is_complex() else rotation
        angles = angles.float().expand(batch, tokens, 1, dim // heads // 2, 2)
        if pair.stride(3) != 1 or angles.stride(3) != 2 or angles.stride(4) != 1:
            pair, angles = pair.contiguous(), angles.contiguous()
        rotated = pair.new_empty(2, batch, tokens, dim)
        keys = pair.new_empty(batch, tokens, dim)
        with torch.cuda.device_of(pair):
            _norm_rotated[(batch * tokens, 2)](
                pair,
                weights.contiguous(),
                angles,
                rotated,
                keys,
                tokens,
                dim,
                dim // heads,
                pair.stride(0),
                pair.stride(1),
                pair.stride(2),
                angles.stride(0),
                angles.stride(1),
                rotated.stride(0),
                eps,
                BLOCK=triton.next_power_of_2(dim // 2),  # pyright: ignore[reportArgumentType]
            )
        queries, turned = rotated.unflatten(-1, (heads, -1)).unbind(0)
        return queries, turned, keys.unflatten(-1, (heads, -1))


@triton.jit
def _norm_modulated(x_ptr, shift_ptr, scale_ptr, out_ptr, tokens, dim, eps, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    frame = row // tokens
    column = tl.arange(0, BLOCK)
    inside = column < dim
    x = tl.load(x_ptr + row * dim + column, mask=inside, other=0.0).to(tl.float32)
    mean = tl.sum(x, axis=0) / dim
    centred = tl.where(inside, x - mean, 0.0)
    variance = tl.sum(centred * centred, axis=0) / dim
    shift = tl.load(shift_ptr + frame * dim + column, mask=inside, other=0.0).to(tl.float32)
    scale = tl.load(scale_ptr + frame * dim + column, mask=inside, other=0.0).to(tl.float32)
    out = shift + centred / tl.sqrt(variance + eps) * scale
    tl.store(out_ptr + row * dim + column, out.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _norm_rotated(
    pair_ptr,
    weight_ptr,
    angle_ptr,
    rotated_ptr,
    keys_ptr,
    tokens,
    dim,
    head_dim,
    pair_batch,
    pair_token,
    pair_which,
    angle_batch,
    angle_token,
    rotated_which,
    eps,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    which = tl.program_id(1)  # 0 are queries, 1 keys
    sample, token = row // tokens, row % tokens
    twos = tl.arange(0, BLOCK)  # neighbours that turn together
    inside = twos < dim // 2
    start = pair_ptr + sample * pair_batch + token * pair_token + which * pair_which
    even = tl.load(start + 2 * twos, mask=inside, other=0.0).to(tl.float32)
    odd = tl.load(start + 2 * twos + 1, mask=inside, other=0.0).to(tl.float32)
    scale = 1.0 / tl.sqrt(tl.sum(even * even + odd * odd, axis=0) / dim + eps)
    weights = weight_ptr + which * dim + 2 * twos
    even = even * scale * tl.load(weights, mask=inside, other=0.0).to(tl.float32)
    odd = odd * scale * tl.load(weights + 1, mask=inside, other=0.0).to(tl.float32)
    if which == 1:
        own = keys_ptr + row * dim + 2 * twos
        tl.store(own, even.to(keys_ptr.dtype.element_ty), mask=inside)
        tl.store(own + 1, odd.to(keys_ptr.dtype.element_ty), mask=inside)
    angles = angle_ptr + sample * angle_batch + token * angle_token + 2 * (twos % (head_dim // 2))
    cos = tl.load(angles, mask=inside, other=0.0)
    sin = tl.load(angles + 1, mask=inside, other=0.0)
    out = rotated_ptr + which * rotated_which + row * dim + 2 * twos
    tl.store(out, (even * cos - odd * sin).to(rotated_ptr.dtype.element_ty), mask=inside)
    tl.store(out + 1, (even * sin + odd * cos).to(rotated_ptr.dtype.element_ty), mask=inside)
