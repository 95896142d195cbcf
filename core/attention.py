"""Scaled dot-product attention: one function over several kernels, each trusted only once it was called."""

import importlib
import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import functional
from torch.nn.attention.flex_attention import flex_attention

Backend = Literal["sdpa", "flash_attn", "cudnn", "xformers", "flex", "matmul"]
BACKENDS: tuple[Backend, ...] = get_args(Backend)
PREFERENCE: tuple[Backend, ...] = ("flash_attn", "sdpa", "cudnn", "xformers", "flex", "matmul")
HALF_AND_DENSE: tuple[Backend, ...] = ("flash_attn", "cudnn")  # take 16-bit numbers and no mask
COMPILABLE: tuple[Backend, ...] = ("sdpa", "cudnn")  # operators of torch's own, which its compiler knows
WIDEST: Mapping[Backend, int] = MappingProxyType({"flash_attn": 256, "cudnn": 128, "flex": 128})
"""Numbers per head that a kernel takes at most; one head of Wan's autoencoder has 384."""

Queries = Float[Tensor, " batch queries heads dim"]
Keys = Float[Tensor, " batch keys heads dim"]
Mask = Bool[Tensor, " #batch #heads #queries keys"] | Float[Tensor, " #batch #heads #queries keys"]

FLASH_DTYPES = (torch.float16, torch.bfloat16)
HOPPER = 9  # major compute capability of the only devices for which FlashAttention 3 has kernels
ALIGNMENT = 8  # of the numbers per head, in the kernels for 16 bits
XFORMERS_ALIGNMENT = 8  # xformers reads attention biases in rows of a multiple of 8 entries
PROBE_SHAPE = (1, 16, 2, 64)  # batch, tokens, heads, dim: accepted by every kernel
MOST_LOGITS = (
    16_000_000  # 32 MB in bfloat16: more would have to leave the processor's cache and fill the memory
)
PROBE_FAILURES = (ImportError, OSError, RuntimeError, ValueError, AttributeError, AssertionError)

_override: Backend | None = None
_usable: dict[torch.device, tuple[Backend, ...]] = {}
_compiled_flex: Callable[..., Tensor] | None = None


def attention(
    q: Queries, k: Keys, v: Keys, *, mask: Mask | None = None, backend: Backend | None = None
) -> Queries:
    r"""Softmax attention, :math:`\mathrm{softmax}(q k^\top / \sqrt{dim} + mask)\, v` for each head.

    A boolean ``mask`` is True where a query may look at a key; a float mask is added to the logits.
    ``backend`` overrides :func:`use_backend`, which overrides the choice by inputs: on a CPU SDPA, or plain
    matrix products where a gradient is needed (there SDPA's backward pass is two to six times slower) and
    for few tokens in bfloat16 (where its forward pass takes twice as long);
    elsewhere the first of ``PREFERENCE`` that works on the device and takes these inputs, or before it the
    one that :func:`prefer` names for the device; under ``torch.compile`` only those in ``COMPILABLE``.
    Forward-mode derivatives (``torch.func.jvp``), which the fused kernels lack, take plain products
    everywhere. An explicit backend that cannot take its inputs is an error, never replaced.
    """
    chosen = backend or _override or _choose(q, k, v, mask)
    return _kernel(chosen)(q, k, v, mask)


@contextmanager
def use_backend(backend: Backend) -> Iterator[None]:
    """Use ``backend`` for every call inside the ``with`` block, in all threads of the process."""
    global _override
    _kernel(backend)
    previous, _override = _override, backend
    try:
        yield
    finally:
        _override = previous


def available_backends(device: torch.device | str) -> tuple[Backend, ...]:
    """The backends that work on ``device``, best first; the first call for a device tries each of them."""
    key = torch.device(device)
    if key not in _usable:
        _usable[key] = tuple(backend for backend in PREFERENCE if probe(backend, key) is None)
    return _usable[key]


def prefer(backend: Backend, device: torch.device | str) -> None:
    """From now on try ``backend`` first on ``device``, where it takes the inputs."""
    usable = available_backends(device)
    if backend not in usable:
        raise ValueError(f"attention: {backend} does not work on {device}; choose one of {', '.join(usable)}")
    _usable[torch.device(device)] = (backend, *(other for other in usable if other != backend))


def probe(backend: Backend, device: torch.device | str) -> str | None:
    """Call ``backend`` on a few numbers: None when it works on ``device``, otherwise a one-line reason."""
    kernel = _kernel(backend)
    dtype = torch.float32 if torch.device(device).type == "cpu" else torch.bfloat16
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # optional packages warn about parts that we do not use
            q = torch.zeros(PROBE_SHAPE, device=device, dtype=dtype)
            kernel(q, q, q, None).sum().item()
    except PROBE_FAILURES as error:
        lines = str(error).strip().splitlines()
        return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"
    return None


def _choose(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Backend:
    if forward_ad._current_level >= 0:
        return "matmul"
    if q.device.type == "cpu":
        trained = torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad)
        return "matmul" if trained or _small_and_half(q, k) else "sdpa"
    if torch.compiler.is_compiling():
        for backend in _usable.get(q.device, ()):  # nothing is tried while tracing
            if backend in COMPILABLE and _takes(backend, q, mask):
                return backend
        return "sdpa"
    for backend in available_backends(q.device):
        if _takes(backend, q, mask):
            return backend
    raise ValueError(f"attention: no backend works on {q.device}; run `fewstep doctor` for the reasons")


def _takes(backend: Backend, q: Tensor, mask: Tensor | None) -> bool:
    dim = q.shape[-1]
    if dim > WIDEST.get(backend, dim):
        return False
    dense = q.dtype in FLASH_DTYPES and mask is None and dim % ALIGNMENT == 0
    return dense or backend not in HALF_AND_DENSE


def _small_and_half(q: Tensor, k: Tensor) -> bool:
    logits = q.shape[0] * q.shape[2] * q.shape[1] * k.shape[1]
    return q.dtype == torch.bfloat16 and logits <= MOST_LOGITS


def _sdpa(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    out = functional.scaled_dot_product_attention(
        q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), attn_mask=mask
    )
    return out.transpose(1, 2)


def _matmul(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    logits = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    if mask is not None:
        logits = logits.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else logits + mask
    return (logits.softmax(-1).to(v.dtype) @ v).transpose(1, 2)


def _flash_attn(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    _check_half_and_dense("flash_attn", q, mask)
    flash_attn_func = _flash_function(torch.cuda.get_device_capability(q.device))
    out = flash_attn_func(q, k, v)
    return out[0] if isinstance(out, tuple) else out  # early FlashAttention 3 also returned the log-sum-exp


def _cudnn(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """The kernel of SDPA that SDPA itself takes last; asked for by its name, as a switch would hold for the
    whole process.
    """
    _check_half_and_dense("cudnn", q, mask)
    heads_first = (part.transpose(1, 2) for part in (q, k, v))
    for_backward = torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad)
    out = torch.ops.aten._scaled_dot_product_cudnn_attention(*heads_first, None, for_backward)
    return out[0].transpose(1, 2)


def _check_half_and_dense(backend: Backend, q: Tensor, mask: Tensor | None) -> None:
    if mask is not None:
        raise ValueError(f"attention: {backend} takes no mask here; use backend='sdpa' for masked attention")
    if q.device.type != "cuda" or q.dtype not in FLASH_DTYPES:
        raise ValueError(
            f"attention: {backend} needs CUDA tensors in float16 or bfloat16, got {q.dtype} on {q.device}; "
            "use backend='sdpa'"
        )


def _flash_function(capability: tuple[int, int]) -> Callable[..., Tensor | tuple[Tensor, ...]]:
    if capability[0] == HOPPER:
        try:
            return importlib.import_module("flash_attn_interface").flash_attn_func
        except ImportError:
            pass  # FlashAttention 2 also runs on these devices
    return importlib.import_module("flash_attn").flash_attn_func


def _xformers(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    bias = None if mask is None else _aligned_bias(mask, q, k)
    return importlib.import_module("xformers.ops").memory_efficient_attention(q, k, v, attn_bias=bias)


def _aligned_bias(mask: Tensor, q: Tensor, k: Tensor) -> Tensor:
    """The mask as logits ``[batch, heads, queries, keys]`` to add, in rows aligned as xformers wants."""
    batch, queries, heads, _ = q.shape
    keys = k.shape[1]
    padded = -(-keys // XFORMERS_ALIGNMENT) * XFORMERS_ALIGNMENT
    bias = q.new_zeros(batch, heads, queries, padded)[..., :keys]
    if mask.dtype == torch.bool:
        return bias.masked_fill_(~mask, -math.inf)
    return bias.copy_(mask.expand_as(bias))


def _flex(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    if q.device.type != "cuda":
        raise NotImplementedError("flex is used on CUDA devices only; on a CPU it has no backward pass")
    global _compiled_flex
    if _compiled_flex is None:
        _compiled_flex = torch.compile(flex_forward)
    return _compiled_flex(q, k, v, mask)


def flex_forward(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """What the ``flex`` backend compiles; called as it is, it materialises the logits."""
    score_mod = None
    if mask is not None:
        logits = mask.expand(q.shape[0], q.shape[2], q.shape[1], k.shape[1])
        if mask.dtype == torch.bool:
            score_mod = lambda score, b, h, i, j: torch.where(logits[b, h, i, j], score, -math.inf)  # noqa: E731 - traced
        else:
            score_mod = lambda score, b, h, i, j: score + logits[b, h, i, j]  # noqa: E731 - traced
    out = flex_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), score_mod=score_mod)
    assert isinstance(out, Tensor)  # the log-sum-exp was not asked for
    return out.transpose(1, 2)


Kernel = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
_KERNELS: dict[str, Kernel] = {
    "sdpa": _sdpa,
    "flash_attn": _flash_attn,
    "cudnn": _cudnn,
    "xformers": _xformers,
    "flex": _flex,
    "matmul": _matmul,
}


def _kernel(backend: str) -> Kernel:
    if backend not in _KERNELS:
        raise ValueError(f"attention: backend={backend!r} is unknown; choose one of {', '.join(BACKENDS)}")
    return _KERNELS[backend]
