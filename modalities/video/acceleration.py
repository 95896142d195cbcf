"""What makes a stream faster, each a switch; `fewstep bench stream` measures its gain and its error.

Needs no torch, so that a server can refuse a switch without it.
"""

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Literal, get_args

Quantization = Literal["none", "int8_weights", "int8", "fp8_weights", "fp8"]
"""Weights alone save memory; ``int8`` (per token and channel) and ``fp8`` (per row) also quantise what comes
in, and multiply in eight bits."""
CacheFrom = Literal["clean", "last_step"]
"""Which pass leaves a chunk's keys and values in the cache: one of its own over the clean chunk, or the last
denoising step, whose input still holds noise."""
FP8_CAPABILITY = (8, 9)  # Ada; the first devices with products in eight-bit floats


@dataclass(frozen=True, kw_only=True)
class Acceleration:
    """How a ``VideoModel`` runs. The defaults change no number beyond rounding.

    Args:
        fused_projections: one product for queries, keys and values. Not of quantised layers.
        merged_passes: a finished chunk enters the cache in the same pass in which the next one begins: fewer
            calls, the same arithmetic, and a second copy of the window. Only without ``static_steps``. None
            is only off CUDA devices; see ``merges_on``.
        fused_kernels: norm and modulation, and norm and rotation of queries and keys, as one Triton kernel
            each. CUDA devices only.
        static_steps: positions as tensors and every pass of one chunk, so that nothing that changes from pass
            to pass is a Python number. What the next two need.
        compiled: the layers, and the decoder of whole chunks, through ``torch.compile``.
        cuda_graphs: passes recorded once and replayed, once the window is full.
        quantization: of the weights, and for ``int8`` and ``fp8`` the activations, of the layers' products.
            Changes the numbers.
        cache_from: ``last_step`` saves a pass per chunk and changes the numbers.
        overlapped_decoding: a chunk is decoded while the next one is denoised, so that a prompt takes effect
            a chunk later.
    """

    fused_projections: bool = True
    merged_passes: bool | None = None
    fused_kernels: bool = False
    static_steps: bool = False
    compiled: bool = False
    cuda_graphs: bool = False
    quantization: Quantization = "none"
    cache_from: CacheFrom = "clean"
    overlapped_decoding: bool = False

    def __post_init__(self) -> None:
        if self.quantization not in get_args(Quantization):
            raise ValueError(f"quantization={self.quantization!r}: use {_either(Quantization)}")
        if self.cache_from not in get_args(CacheFrom):
            raise ValueError(f"cache_from={self.cache_from!r}: use {_either(CacheFrom)}")
        for name in ("compiled", "cuda_graphs"):
            if getattr(self, name) and not self.static_steps:
                raise ValueError(f"{name} needs passes whose shapes stay; switch static_steps on as well")

    def merges_on(self, device: str) -> bool:
        """Whether passes are merged on ``device``, where nobody chose.

        A chunk of Wan's fills a CUDA device already, so that one pass over two takes the time of both; and
        the copy of the window, filled anew for each chunk, is 6 GB for 21 latent frames of 1.3B at 832x480.
        """
        return not device.startswith("cuda") if self.merged_passes is None else self.merged_passes

    def why_not(self, device: str) -> str | None:
        """Why this cannot run on ``device``, in a line; None where it can."""
        cuda = device.startswith("cuda")
        if self.cuda_graphs and not cuda:
            return f"cuda_graphs needs a CUDA device, not {device}"
        if self.fused_kernels and not (cuda and importlib.util.find_spec("triton") is not None):
            return f"fused_kernels needs a CUDA device and Triton (pip install 'fewstep[gpu]'), not {device}"
        return why_not_quantized(self.quantization, device)


def why_not_quantized(mode: Quantization, device: str) -> str | None:
    """Why layers cannot be quantised so on ``device``, in a line; None where they can."""
    if mode == "none":
        return None
    if importlib.util.find_spec("torchao") is None:
        return f"quantization={mode!r} needs torchao: pip install 'fewstep[quantize]'"
    if mode == "fp8" and not (device.startswith("cuda") and _capability(device) >= FP8_CAPABILITY):
        return f"quantization='fp8' needs a CUDA device of capability 8.9 or higher, not {device}"
    return None


def _capability(device: str) -> tuple[int, int]:
    import torch

    from fewstep.core.devices import usable_device

    return torch.cuda.get_device_capability(usable_device(device))


def _either(literal: object) -> str:
    return " or ".join(map(repr, get_args(literal)))


PLAIN = Acceleration(fused_projections=False, merged_passes=False)
"""Nothing switched on: what each switch is measured against."""

SWITCHES: Mapping[str, Acceleration] = MappingProxyType(
    {
        "default": Acceleration(),
        "exact": Acceleration(static_steps=True, compiled=True, cuda_graphs=True, overlapped_decoding=True),
        "exact+fp8": Acceleration(
            static_steps=True, compiled=True, cuda_graphs=True, overlapped_decoding=True, quantization="fp8"
        ),
        "fused_projections": replace(PLAIN, fused_projections=True),
        "merged_passes": replace(PLAIN, merged_passes=True),
        "fused_kernels": replace(PLAIN, fused_kernels=True),
        "static_steps": replace(PLAIN, static_steps=True),
        "static+fused": replace(PLAIN, static_steps=True, fused_projections=True),
        "compiled": replace(PLAIN, static_steps=True, compiled=True),
        "cuda_graphs": replace(PLAIN, static_steps=True, cuda_graphs=True),
        "overlapped_decoding": replace(PLAIN, overlapped_decoding=True),
        "last_step": replace(PLAIN, cache_from="last_step"),
        "int8_weights": replace(PLAIN, quantization="int8_weights"),
        "int8": replace(PLAIN, quantization="int8"),
        "fp8_weights": replace(PLAIN, quantization="fp8_weights"),
        "fp8": replace(PLAIN, quantization="fp8"),
    }
)
"""The defaults; everything for a CUDA device that changes no number beyond rounding, without and with what
does; each switch by itself with what it needs, and static passes of fused projections. In the order in which
they are measured."""


def switched(name: str) -> Acceleration:
    """The acceleration of this name.

    Raises:
        ValueError: there is none.
    """
    if name not in SWITCHES:
        raise ValueError(f"acceleration {name!r} is unknown; choose from {', '.join(SWITCHES)}")
    return SWITCHES[name]
