"""Layers of the transformer in eight bits, by torchao."""

import importlib
import importlib.util
import logging
from typing import Any, Literal

import torch
from torch import nn

from fewstep.modalities.video.transformer import VideoTransformer

Quantization = Literal["none", "int8_weights", "int8", "fp8_weights", "fp8"]
"""Weights alone save memory; ``int8`` (per token and channel) and ``fp8`` (per row) also quantise what comes
in, and multiply in eight bits."""

CONFIGS: dict[str, str] = {
    "int8_weights": "Int8WeightOnlyConfig",
    "int8": "Int8DynamicActivationInt8WeightConfig",
    "fp8_weights": "Float8WeightOnlyConfig",
    "fp8": "Float8DynamicActivationFloat8WeightConfig",
}
FP8_CAPABILITY = (8, 9)  # Ada; the first devices with products in eight-bit floats
ALIGNMENT = 16  # of the sides of a matrix, which the eight-bit products ask for


def why_not_quantized(mode: Quantization, device: torch.device) -> str | None:
    """Why layers cannot be quantised so on ``device``, in a line; None where they can."""
    if mode == "none":
        return None
    if importlib.util.find_spec("torchao") is None:
        return f"quantization={mode!r} needs torchao: pip install 'fewstep[quantize]'"
    if mode == "fp8" and (device.type != "cuda" or torch.cuda.get_device_capability(device) < FP8_CAPABILITY):
        return f"quantization='fp8' needs a CUDA device of capability 8.9 or higher, not {device}"
    return None


def quantize(network: VideoTransformer, mode: Quantization) -> None:
    """Replace, in place and for good, the weights of the products within the layers: those of attention and
    of the feed-forward parts. The embeddings, the head and the norms, which are few and sensitive, stay, as
    do layers whose sides are no multiple of 16.

    Raises:
        ValueError: with the reason, where ``why_not_quantized`` has one.
    """
    if mode == "none":
        return
    if reason := why_not_quantized(mode, network.patch_embedding.weight.device):
        raise ValueError(reason)
    network.separate_projections()
    # it warns of every kernel of other devices that it does not find
    logging.getLogger("torchao").setLevel(logging.ERROR)
    library = importlib.import_module("torchao.quantization")
    settings: dict[str, Any] = {"granularity": library.PerRow()} if mode == "fp8" else {}
    library.quantize_(network.blocks, getattr(library, CONFIGS[mode])(**settings), filter_fn=_is_product)


def _is_product(module: nn.Module, name: str) -> bool:
    return isinstance(module, nn.Linear) and not (
        module.in_features % ALIGNMENT or module.out_features % ALIGNMENT
    )
