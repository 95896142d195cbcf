"""Tiny networks of the real classes, and words whose features need no model."""

import hashlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fewstep.modalities.video.codec import CodecConfig, VideoCodec
from fewstep.modalities.video.transformer import TransformerConfig, VideoTransformer

WORDS, FEATURES = 4, 8  # of the stand-in for the text encoder
SIZES: dict[str, Any] = {
    "dim": 48,
    "ffn_dim": 96,
    "num_layers": 2,
    "num_heads": 4,
    "channels": 4,
    "freq_dim": 16,
    "text_dim": FEATURES,
}


class WordFeatures:
    """Random features for each word, the same whenever it occurs; zeros after a prompt's end."""

    def __call__(self, prompts: list[str]) -> Tensor:
        features = torch.zeros(len(prompts), WORDS, FEATURES)
        for row, prompt in zip(features, prompts, strict=True):
            for place, word in enumerate(["[CLS]", *prompt.split()][:WORDS]):
                key = int.from_bytes(hashlib.sha256(word.encode()).digest()[:4], "little")
                row[place] = torch.randn(FEATURES, generator=torch.Generator().manual_seed(key))
        return features


def randomise(module: nn.Module, seed: int) -> None:
    """No weight at its initial 0 or 1: a term that starts switched off would go untested."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            scale = 0.3 if parameter.ndim == 1 else parameter[0].numel() ** -0.5
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator))


@pytest.fixture(scope="session")
def make_network() -> Callable[..., VideoTransformer]:
    def make(seed: int = 0, dtype: torch.dtype = torch.float64, **sizes: int) -> VideoTransformer:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            network = VideoTransformer(TransformerConfig(**{**SIZES, **sizes}))
        randomise(network, seed)
        return network.to(dtype).eval()

    return make


@pytest.fixture(scope="session")
def make_codec() -> Callable[..., VideoCodec]:
    def make(seed: int = 0, dtype: torch.dtype = torch.float64, **sizes: int) -> VideoCodec:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            codec = VideoCodec(
                CodecConfig(**{"channels": 4, "frames_per_latent": 2, "width": 8, "depth": 2, **sizes})
            )
        randomise(codec, seed)
        return codec.to(dtype).eval()

    return make


@pytest.fixture
def word_features(monkeypatch: pytest.MonkeyPatch) -> WordFeatures:
    """Puts ``WordFeatures`` in the text encoder's place wherever training builds one."""
    monkeypatch.setattr("fewstep.modalities.video.latents.TextEncoder", WordFeatures)
    monkeypatch.setattr("fewstep.modalities.video.distillation.TextEncoder", WordFeatures)
    return WordFeatures()
