"""Layers of the transformer in eight bits, by torchao."""

import importlib
import logging
from typing import Any

from torch import nn

from fewstep.modalities.video.acceleration import Quantization, why_not_quantized
from fewstep.modalities.video.transformer import VideoTransformer

CONFIGS: dict[str, str] = {
    "int8_weights": "Int8WeightOnlyConfig",
    "int8": "Int8DynamicActivationInt8WeightConfig",
    "fp8_weights": "Float8WeightOnlyConfig",
    "fp8": "Float8DynamicActivationFloat8WeightConfig",
}
ALIGNMENT = 16  # of the sides of a matrix, which the eight-bit products ask for


def quantize(network: VideoTransformer, mode: Quantization) -> None:
    """Replace, in place and for good, the weights of the products within the layers: those of attention and
    of the feed-forward parts. The embeddings, the head and the norms, which are few and sensitive, stay, as
    do layers whose sides are no multiple of 16.

    Raises:
        ValueError: with the reason, where ``why_not_quantized`` has one.
    """
    if mode == "none":
        return
    if reason := why_not_quantized(mode, str(network.patch_embedding.weight.device)):
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
