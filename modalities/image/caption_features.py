"""Text features of many captions, computed once and kept on disk without their padding."""

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from jaxtyping import Float, Float16, Int64
from lightning.pytorch.utilities import rank_zero_info
from safetensors.torch import load_file, save_file
from torch import Tensor

from fewstep.modalities.video.text import TEXT_TOKENS, TextEncoder

TEXT_BATCH = 64
ENCODER_NAME = "all-MiniLM-L6-v2"

Encoder = Callable[[list[str]], Float[Tensor, " prompt text feature"]]


class CaptionFeatures:
    """Token features of a list of captions; zero after each caption's end.

    Args:
        tokens: ``[token, D]``, the tokens of all captions one after the other.
        lengths: ``[caption]``, how many of them each caption has.
        width: ``L``, tokens that a caption is padded or cut to.
    """

    def __init__(
        self, tokens: Float16[Tensor, " token feature"], lengths: Int64[Tensor, " caption"], *, width: int
    ) -> None:
        self.tokens, self.lengths, self.width = tokens, lengths, width
        self.starts = lengths.cumsum(0) - lengths

    def __call__(self, captions: Int64[Tensor, " batch"]) -> Float[Tensor, " batch width feature"]:
        """Features ``[batch, L, D]`` in float32 of captions given by their numbers."""
        places = torch.arange(self.width)
        inside = places < self.lengths[captions][:, None]
        rows = self.starts[captions][:, None] + torch.where(inside, places, 0)
        return self.tokens[rows].float() * inside[..., None]


def encode_captions(
    captions: Sequence[str], *, cache: Path, width: int = TEXT_TOKENS, encoder: Encoder | None = None
) -> CaptionFeatures:
    """The features of distinct captions, from a file in `cache` that the first call writes.

    Args:
        captions: texts in a fixed order; the empty text is the null condition.
        width: tokens per caption, at most 32; longer captions are cut there.
        encoder: what to encode with; None loads the bundled sentence encoder.
    """
    if not 1 <= width <= TEXT_TOKENS:
        raise ValueError(f"width={width} is out of range; use 1 to {TEXT_TOKENS} text tokens")
    name = ENCODER_NAME if encoder is None else f"{type(encoder).__module__}.{type(encoder).__qualname__}"
    key = hashlib.sha256(json.dumps([name, list(captions)]).encode()).hexdigest()[:16]
    path = cache / f"features-{key}.safetensors"
    if not path.exists():
        rank_zero_info(f"encoding {len(captions)} captions, once, into {path}")
        cache.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(f".{os.getpid()}.part")
        save_file(
            _encoded(list(captions), TextEncoder().without_padding if encoder is None else encoder), part
        )
        part.replace(path)
    stored = load_file(path)
    return CaptionFeatures(stored["tokens"], stored["lengths"], width=width)


def _encoded(captions: list[str], encoder: Encoder) -> dict[str, Tensor]:
    tokens: list[Tensor] = [torch.empty(0)] * len(captions)
    by_length = sorted(range(len(captions)), key=lambda number: len(captions[number]))
    for start in range(0, len(captions), TEXT_BATCH):
        numbers = by_length[start : start + TEXT_BATCH]
        for number, features in zip(numbers, encoder([captions[n] for n in numbers]), strict=True):
            tokens[number] = features[features.abs().sum(-1) > 0].half()
    return {"tokens": torch.cat(tokens), "lengths": torch.tensor([len(one) for one in tokens])}
