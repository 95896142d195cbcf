"""What a model is told what to make by, pictures or words, and the tokens that its flows see of them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from fewstep.modalities.shape3d.conditioning.pictures import (
    centred_on_black,
    has_transparency,
    ordinary,
    picture_values,
)
from fewstep.modalities.shape3d.networks.image_encoder import ImageEncoder
from fewstep.modalities.shape3d.several_pictures import Several

Tokens = Float[Tensor, " batch token dim"]
Kind = Literal["pictures", "words"]
How = Literal["mean", "turns"]
Source = Image.Image | str | Sequence[Image.Image]
"""A picture, words, or several pictures of one object."""


@dataclass(frozen=True, eq=False)
class Conditioning:
    """An encoder of pictures or of words.

    Args:
        kind: what it takes.
        tokens: of some at once.
        nothing: tokens that stand for none, in the shape of those given.
    """

    kind: Kind
    tokens: Callable[[Sequence[Any]], Tokens]
    nothing: Callable[[Tokens], Tokens] = torch.zeros_like

    def of(self, source: Source, how: How = "mean") -> tuple[Tokens | Several, Tokens]:
        """The condition of one object, and that of nothing.

        Args:
            how: several pictures are combined, see `Several`.

        Raises:
            ValueError: for words where pictures are taken, or the reverse.
        """
        given = "words" if isinstance(source, str) else "pictures"
        if given != self.kind:
            raise ValueError(f"this model takes {self.kind}, not {given}")
        if isinstance(source, str | Image.Image):
            tokens = self.tokens([source])
            return tokens, self.nothing(tokens)
        each = tuple(self.tokens([picture]) for picture in source)
        return Several(each, how), self.nothing(each[0])


def small_pictures(encoder: ImageEncoder) -> Conditioning:
    """By the bundled encoder, which knows objects in their studio and cut out on black."""
    size = encoder.config.image_size

    def prepared(picture: Image.Image) -> Tensor:
        if has_transparency(picture):
            return picture_values(centred_on_black(picture, size=size))
        picture = ordinary(picture)
        side = min(picture.size)
        left, top = (picture.width - side) // 2, (picture.height - side) // 2
        square = picture.convert("RGB").crop((left, top, left + side, top + side))
        return picture_values(square.resize((size, size), Image.Resampling.LANCZOS))

    def tokens(pictures: Sequence[Image.Image]) -> Tokens:
        parameter = next(encoder.parameters())
        return encoder(torch.stack([prepared(picture) for picture in pictures]).to(parameter))

    return Conditioning("pictures", tokens)


def dino_pictures(folder: str | Path, device: torch.device | str) -> Conditioning:
    """By DINOv2 with registers, as TRELLIS's pipelines from pictures see."""
    from fewstep.modalities.shape3d.conditioning.dinov2 import load_dinov2

    dino = load_dinov2(folder).to(device)

    def tokens(pictures: Sequence[Image.Image]) -> Tokens:
        squares = [picture_values(centred_on_black(one, size=dino.image_size)) for one in pictures]
        return dino(torch.stack(squares).to(device))

    return Conditioning("pictures", tokens)


def clip_words(folder: str | Path, device: torch.device | str) -> Conditioning:
    """By CLIP's text model, as TRELLIS's pipelines from text read; longer texts than it knows are refused."""
    from fewstep.modalities.shape3d.conditioning.clip_text import load_clip_text

    clip = load_clip_text(folder).to(device)

    def tokens(texts: Sequence[str]) -> Tokens:
        for text in texts:
            count = len(clip.tokenizer(text)["input_ids"])
            if count > clip.length:
                raise ValueError(
                    f"text has {count} tokens, CLIP reads {clip.length}; shorten {text[:40]!r}..."
                )
        return clip(texts)

    return Conditioning("words", tokens, lambda like: clip.null(len(like)))
