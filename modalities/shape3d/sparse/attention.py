"""Attention among rows of segments of unequal length: the voxels of a sample, or those of a window.

Axis names: ``row`` (all segments' rows), ``head``, ``dim``, ``token`` (of a condition).
"""

import importlib
import warnings
from collections.abc import Callable
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd import forward_ad

from fewstep.core.attention import FLASH_DTYPES, PROBE_FAILURES, attention
from fewstep.modalities.shape3d.sparse.segments import Segments
from fewstep.modalities.shape3d.sparse.tensor import Voxels

PackedBackend = Literal["flash_attn", "xformers", "padded", "loop"]
PACKED_BACKENDS: tuple[PackedBackend, ...] = get_args(PackedBackend)
KERNELS_FOR_SEGMENTS: tuple[PackedBackend, ...] = ("flash_attn", "xformers")
MOST_WASTE = 2.0  # of a padded batch's logits to the real ones; beyond it segments are taken one by one

Rows = Float[Tensor, " row head dim"]

_usable: dict[torch.device, tuple[PackedBackend, ...]] = {}


def packed_attention(
    q: Rows, k: Rows, v: Rows, segments: Segments, *, backend: PackedBackend | None = None
) -> Rows:
    """Every row attends to the rows of its own segment.

    On a GPU by FlashAttention's or xformers' kernels for segments of unequal length, where one of them was
    called there with success and takes the dtype; otherwise by ``fewstep.core.attention`` on a padded batch,
    or segment after segment where much of the batch would be padding. On a CPU half precision without
    gradients is computed in float32, segment after segment: there each new length would have products
    in bfloat16 compiled anew. An explicit ``backend`` that cannot take its inputs is an error.
    """
    if backend is not None:
        return _KERNELS[backend](q, k, v, segments)
    if len(segments) == 1:
        return attention(q[None], k[None], v[None])[0]
    if q.device.type == "cpu" and q.dtype in FLASH_DTYPES and not torch.is_grad_enabled():
        return _loop(q.float(), k.float(), v.float(), segments).to(q.dtype)
    return _KERNELS[_choose(q, segments)](q, k, v, segments)


def windowed_attention(q: Rows, k: Rows, v: Rows, voxels: Voxels, size: int, shift: int) -> Rows:
    """Every voxel attends to those of its window, see ``Voxels.windows``."""
    order, segments = voxels.windows(size, shift)
    if len(segments) == 1:
        return packed_attention(q, k, v, segments)
    attended = packed_attention(q[order], k[order], v[order], segments)
    return torch.empty_like(q).index_copy(0, order, attended)


def attention_to_condition(
    q: Rows,
    k: Float[Tensor, " batch token head dim"],
    v: Float[Tensor, " batch token head dim"],
    samples: Segments,
) -> Rows:
    """Every row attends to all tokens of its sample's condition."""
    return samples.unpad(attention(samples.pad(q), k, v))


def available_packed_backends(device: torch.device | str) -> tuple[PackedBackend, ...]:
    """The kernels for segments that work on ``device``; the first call for a device tries each of them."""
    key = torch.device(device)
    if key not in _usable:
        _usable[key] = tuple(name for name in PACKED_BACKENDS if probe_packed(name, key) is None)
    return _usable[key]


def probe_packed(backend: PackedBackend, device: torch.device | str) -> str | None:
    """Call ``backend`` on a few rows: None when it works on ``device``, otherwise a one-line reason."""
    dtype = torch.float32 if torch.device(device).type == "cpu" else torch.bfloat16
    segments = Segments(torch.tensor([3, 5], device=device))
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # optional packages warn about parts that we do not use
            q = torch.zeros(8, 2, 64, device=device, dtype=dtype)
            _KERNELS[backend](q, q, q, segments).sum().item()
    except PROBE_FAILURES as error:
        lines = str(error).strip().splitlines()
        return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"
    return None


def _choose(q: Tensor, segments: Segments) -> PackedBackend:
    derived = forward_ad._current_level >= 0  # the kernels have no forward-mode derivatives
    if (
        q.device.type != "cpu"
        and q.dtype in FLASH_DTYPES
        and not derived
        and not torch.compiler.is_compiling()
    ):
        for backend in available_packed_backends(q.device):
            if backend in KERNELS_FOR_SEGMENTS:
                return backend
    padded = len(segments) * segments.longest**2
    wasteful = padded > MOST_WASTE * sum(size**2 for size in segments.sizes)
    return "loop" if wasteful and q.device.type == "cpu" else "padded"


def _padded(q: Tensor, k: Tensor, v: Tensor, segments: Segments) -> Tensor:
    mask = segments.mask[:, None, None]
    return segments.unpad(attention(segments.pad(q), segments.pad(k), segments.pad(v), mask=mask))


def _loop(q: Tensor, k: Tensor, v: Tensor, segments: Segments) -> Tensor:
    parts = zip(*(part.split(segments.sizes) for part in (q, k, v)), strict=True)
    return torch.cat([attention(own_q[None], own_k[None], own_v[None])[0] for own_q, own_k, own_v in parts])


def _flash_attn(q: Tensor, k: Tensor, v: Tensor, segments: Segments) -> Tensor:
    if q.device.type != "cuda" or q.dtype not in FLASH_DTYPES:
        raise ValueError(
            f"packed_attention: flash_attn needs CUDA tensors in float16 or bfloat16, got {q.dtype} on "
            f"{q.device}; use backend='padded'"
        )
    kernel = importlib.import_module("flash_attn").flash_attn_varlen_func
    return kernel(q, k, v, segments.bounds, segments.bounds, segments.longest, segments.longest)


def _xformers(q: Tensor, k: Tensor, v: Tensor, segments: Segments) -> Tensor:
    ops = importlib.import_module("xformers.ops")
    bias = ops.fmha.BlockDiagonalMask.from_seqlens(segments.sizes)
    return ops.memory_efficient_attention(q[None], k[None], v[None], attn_bias=bias)[0]


Kernel = Callable[[Tensor, Tensor, Tensor, Segments], Tensor]
_KERNELS: dict[PackedBackend, Kernel] = {
    "flash_attn": _flash_attn,
    "xformers": _xformers,
    "padded": _padded,
    "loop": _loop,
}
