"""A small classifier of the world of objects, to measure what generated pictures show."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor, nn
from torch.nn import functional as F

from fewstep.core.checkpoints import Card, load_model, network_config, save_model
from fewstep.modalities.objects.captions import (
    BACKGROUNDS,
    CATEGORIES,
    COLOURS,
    LIGHTS,
    MATERIALS,
    TONES,
    VIEWS,
)

SIZE = 64  # pixels; the last layer sees the whole picture at once
HEADS: dict[str, tuple[str, ...]] = {
    "category": CATEGORIES,
    "colour": COLOURS,
    "material": MATERIALS,
    "view": VIEWS,
    "light": LIGHTS,
    "tone": TONES,
    "background": BACKGROUNDS,
}
BATCH = 64


@dataclass(frozen=True, kw_only=True)
class ClassifierConfig:
    """Sizes: channels at half the picture's resolution (twice and four times as many below), features."""

    width: int = 24
    features: int = 64

    def __post_init__(self) -> None:
        for name in ("width", "features"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")


class _Layer(nn.Module):
    """A convolution that halves the picture, and one that adds to what it found."""

    def __init__(self, into: int, out: int) -> None:
        super().__init__()
        self.halve = nn.Conv2d(into, out, 3, stride=2, padding=1, bias=False)
        self.halve_norm = nn.BatchNorm2d(out)
        self.refine = nn.Conv2d(out, out, 3, padding=1, bias=False)
        self.refine_norm = nn.BatchNorm2d(out)

    def forward(
        self, x: Float[Tensor, " batch into height width"]
    ) -> Float[Tensor, " batch out half_height half_width"]:
        x = F.silu(self.halve_norm(self.halve(x)))
        return x + F.silu(self.refine_norm(self.refine(x)))


class AttributeClassifier(nn.Module):
    """Logits of every attribute in ``HEADS`` of ``[B, 3, 64, 64]`` pixels in [-1, 1].

    ``features`` are the ``config.features`` values before the heads: the Frechet distances of the image
    evaluation are taken in them. They are comparable only between measurements with the same weights.
    """

    def __init__(self, config: ClassifierConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.stem = nn.Conv2d(3, width, 3, stride=2, padding=1, bias=False)
        self.stem_norm = nn.BatchNorm2d(width)
        self.layers = nn.Sequential(_Layer(width, 2 * width), _Layer(2 * width, 4 * width))
        self.last = nn.Conv2d(4 * width, 4 * width, 3, stride=2, padding=1, bias=False)
        self.last_norm = nn.BatchNorm2d(4 * width)
        self.summary = nn.Linear(4 * width * (SIZE // 16) ** 2, config.features)
        self.heads = nn.Linear(config.features, sum(map(len, HEADS.values())))

    def features(self, pixels: Float[Tensor, " batch 3 height width"]) -> Float[Tensor, " batch feature"]:
        """What the picture is, in ``config.features`` numbers."""
        if pixels.shape[-2:] != (SIZE, SIZE):
            size = f"{pixels.shape[-2]}x{pixels.shape[-1]}"
            raise ValueError(f"pixels of {size}: the classifier was trained on {SIZE}x{SIZE}; scale them")
        x = F.silu(self.stem_norm(self.stem(pixels)))
        x = F.silu(self.last_norm(self.last(self.layers(x))))
        return F.silu(self.summary(x.flatten(1)))

    def forward(self, pixels: Float[Tensor, " batch 3 height width"]) -> dict[str, Float[Tensor, " batch _"]]:
        return self.logits(self.features(pixels))

    def logits(self, features: Float[Tensor, " batch feature"]) -> dict[str, Float[Tensor, " batch _"]]:
        """By attribute, in the order of its values in ``HEADS``."""
        parts = self.heads(features).split([len(values) for values in HEADS.values()], dim=1)
        return dict(zip(HEADS, parts, strict=True))


def labels_of(attributes: dict[str, str]) -> Int64[Tensor, " head"]:
    """The number of each attribute's value, in the order of ``HEADS``."""
    try:
        numbers = [values.index(attributes[name]) for name, values in HEADS.items()]
    except (KeyError, ValueError) as error:
        raise ValueError(
            f"attributes {attributes} do not name a value of each of {', '.join(HEADS)}; "
            "the classifier needs pictures of the world of objects: fewstep render --world objects"
        ) from error
    return torch.tensor(numbers)


@torch.inference_mode()
def recognise(
    classifier: AttributeClassifier, pictures: UInt8[np.ndarray, " picture height width 3"]
) -> tuple[list[dict[str, str]], Float[np.ndarray, " picture feature"]]:
    """What the classifier takes each picture for, and the features that made it."""
    found: list[dict[str, str]] = []
    rows = []
    for start in range(0, len(pictures), BATCH):
        batch = torch.from_numpy(np.ascontiguousarray(pictures[start : start + BATCH])).permute(0, 3, 1, 2)
        features = classifier.features(batch.float() / 127.5 - 1)
        best = {name: logits.argmax(1).tolist() for name, logits in classifier.logits(features).items()}
        found += [
            {name: HEADS[name][numbers[row]] for name, numbers in best.items()} for row in range(len(batch))
        ]
        rows.append(features.double().numpy())
    return found, np.concatenate(rows)


def load_classifier(folder: Path) -> AttributeClassifier:
    """The classifier of a model folder, in float32 and evaluation mode."""
    network = load_model(folder, networks={"AttributeClassifier": (AttributeClassifier, ClassifierConfig)})[0]
    return cast(AttributeClassifier, network).eval()


def save_classifier(
    folder: Path,
    classifier: AttributeClassifier,
    *,
    training: dict[str, Any],
    metrics: dict[str, int | float],
    storage_dtype: str = "float32",
) -> Card:
    """Write a model folder of a classifier."""
    card = Card(
        network="AttributeClassifier",
        config=network_config(classifier.config),
        path=None,
        prediction=None,
        training=cast(Any, training),
        metrics=metrics,
        storage_dtype=storage_dtype,
    )
    return save_model(folder, classifier, card)
