"""A reward for the colours that a caption names; it needs no learned model."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.core.denoisers import Condition
from fewstep.core.rewards.captions import CaptionReader, captions_of, read_captions
from fewstep.core.rewards.contract import Reward, check_pixels

Colour = tuple[float, float, float]

COLOURS: dict[str, Colour] = {
    "black": (0.05, 0.05, 0.05),
    "white": (0.95, 0.95, 0.95),
    "grey": (0.5, 0.5, 0.5),
    "gray": (0.5, 0.5, 0.5),
    "red": (0.85, 0.1, 0.1),
    "green": (0.1, 0.6, 0.2),
    "blue": (0.1, 0.25, 0.85),
    "yellow": (0.95, 0.85, 0.1),
    "orange": (0.95, 0.5, 0.1),
    "purple": (0.5, 0.15, 0.65),
    "pink": (0.95, 0.55, 0.7),
    "brown": (0.45, 0.25, 0.1),
}


@dataclass(frozen=True, kw_only=True)
class NamedColourReward(Reward):
    r"""The share of a sample's pixels that have a colour its caption names, softly.

    With d a pixel's distance in RGB to the nearest named colour, and the mean over all pixels of all frames,

    .. math:: r = \Big\langle \frac{1}{1 + d^2 / s^2} \Big\rangle \in (0, 1]

    The tails fall with the square, so that pixels of any colour have a gradient. Nothing tells object from
    background: a sample painted over in the colour scores 1, so a student that follows this reward alone
    will paint. For tests, and beside a loss that holds the picture together.

    Args:
        colours: word -> RGB in [0, 1]; words are matched whole and in any case.
        softness: s, the distance at which a pixel counts half.
        unnamed: score of a sample whose caption names no colour; None to raise.
        captions: how to read the captions out of a condition.
    """

    name = "named_colour"
    differentiable = True

    colours: Mapping[str, Colour] = field(default_factory=lambda: dict(COLOURS))
    softness: float = 0.2
    unnamed: float | None = None
    captions: CaptionReader = read_captions

    def __post_init__(self) -> None:
        if self.softness <= 0:
            raise ValueError(f"softness={self.softness} must be positive")
        for word, colour in self.colours.items():
            if word != word.lower() or not all(0 <= value <= 1 for value in colour):
                raise ValueError(f"colours[{word!r}]={colour} must be a lower-case word and RGB in [0, 1]")

    def score(
        self, pixels: Float[Tensor, " batch frame 3 height width"], condition: Condition = None
    ) -> Float[Tensor, " batch"]:
        """One score per sample, in float32."""
        check_pixels(pixels)
        captions = captions_of(condition, len(pixels), self.captions)
        return torch.stack(
            [self._share(clip, caption) for clip, caption in zip(pixels, captions, strict=True)]
        )

    def _share(self, clip: Float[Tensor, " frame 3 height width"], caption: str) -> Float[Tensor, ""]:
        words = re.findall(r"\w+", caption.lower())
        named = [self.colours[word] for word in words if word in self.colours]
        if not named and self.unnamed is None:
            raise ValueError(
                f"caption {caption!r} names none of {', '.join(self.colours)}; add its colour, or set unnamed"
            )
        if not named:
            return clip.new_full((), self.unnamed or 0.0, dtype=torch.float32)
        distances = [
            (clip.float() - clip.new_tensor(colour, dtype=torch.float32)[:, None, None]).square().sum(1)
            for colour in named
        ]
        nearest = torch.stack(distances).amin(0)
        return (1 / (1 + nearest / self.softness**2)).mean()
