"""Scores of generated pictures of objects: what they show, against what their prompts say.

A picture is reduced to what a classifier takes it for, the classifier's features, and the colour of its
object in pixels. A `Reference` holds the features' moments of real pictures, and the scores that other real
pictures have against it.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np
from jaxtyping import Float

from fewstep.core.frechet import Moments, frechet_of_moments
from fewstep.modalities.image.classifier import AttributeClassifier, recognise
from fewstep.modalities.image.files import Pictures as LabelledPictures
from fewstep.modalities.image.metrics import Pictures, object_colour, pairwise_distance
from fewstep.modalities.objects.captions import (
    BACKGROUNDS,
    LIGHTS,
    MATERIALS,
    TONES,
    VIEWS,
    Attributes,
    Phrasing,
    drawn_prompt,
    pairs,
)
from fewstep.modalities.video.metrics import high_frequency_energy

DETAILS = ("material", "view", "light", "tone", "background")
FRECHET = "frechet_classifier"
REFERENCE = "reference.json"  # beside the classifier whose features it is in
REAL_SAMPLES = {"train": 232, "heldout": 112}  # real pictures, by pairs, that are scored against the others
DIGITS = 6


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """A caption, what it stands for, which of that it says, and the seed of its noise."""

    text: str
    attributes: Attributes
    named: frozenset[str]
    seed: int


def draw_prompts(count: int, *, phrasing: Phrasing, heldout_pairs: bool, seed: int) -> list[Prompt]:
    """`count` prompts in which all pairs of category and colour are equally frequent, of three lengths."""
    random = Random(f"{phrasing} {heldout_pairs} {seed}")
    allowed = pairs(heldout=heldout_pairs)
    random.shuffle(allowed)
    prompts = []
    for number in range(count):
        category, colour = allowed[number % len(allowed)]
        attributes = Attributes(
            category=category,
            colour=colour,
            material=random.choice(MATERIALS),
            view=random.choice(VIEWS),
            light=random.choice(LIGHTS),
            tone=random.choice(TONES),
            background=random.choice(BACKGROUNDS),
        )
        text, named = drawn_prompt(attributes, random, phrasing, length=number % 3)
        prompts.append(Prompt(text=text, attributes=attributes, named=named, seed=random.getrandbits(62)))
    return prompts


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What pictures show: the named colours of their objects, all attributes by the classifier, its features,
    and their sharpness.
    """

    colours: list[str]
    attributes: list[dict[str, str]]
    features: Float[np.ndarray, " picture feature"]
    high_frequency_energy: float

    @classmethod
    def of(cls, pictures: Pictures, classifier: AttributeClassifier) -> "Measured":
        attributes, features = recognise(classifier, pictures)
        return cls(
            colours=object_colour(pictures),
            attributes=attributes,
            features=features,
            high_frequency_energy=float(high_frequency_energy(pictures).mean()),
        )


def obedience(
    measured: Measured, wanted: Sequence[Attributes], named: Sequence[frozenset[str]]
) -> dict[str, float]:
    """Shares of pictures, in percent, that show what was said; an attribute that no prompt names is left out.

    `colour_accuracy` is by pixels, the others are by the classifier; `detail_accuracy` pools material, view,
    light, tone and background over all prompts that name them.
    """
    right: dict[str, list[bool]] = {}
    for colour, found, attributes, names in zip(
        measured.colours, measured.attributes, wanted, named, strict=True
    ):
        values = attributes.as_dict()
        right.setdefault("colour", []).append(colour == values["colour"])
        right.setdefault("category", []).append(found["category"] == values["category"])
        for name in DETAILS:
            if name in names:
                right.setdefault(name, []).append(found[name] == values[name])
                right.setdefault("detail", []).append(found[name] == values[name])
    order = ("colour", "category", "detail", *DETAILS)
    return {f"{name}_accuracy": 100.0 * float(np.mean(right[name])) for name in order if name in right}


@dataclass(frozen=True, kw_only=True)
class Reference:
    """Real pictures reduced to what scores need, small enough to lie beside a model.

    Args:
        moments: of the classifier's features, by "train" or "heldout" pairs of category and colour.
        floor: by the same, the scores that other real pictures have: no model can be asked for more.
        samples: by the same, how many pictures `floor` is from.
        classifier: SHA-256 of the weights whose features these are.
        source: where the pictures came from, in words.
    """

    moments: dict[str, Moments]
    floor: dict[str, dict[str, float]]
    samples: dict[str, int]
    classifier: str
    source: str

    @classmethod
    def of(
        cls,
        pictures: dict[str, LabelledPictures],
        classifier: AttributeClassifier,
        *,
        weights: str,
        source: str,
    ) -> "Reference":
        """Measured on real pictures, some of which are scored against the others.

        Args:
            pictures: of "train" pairs (which the classifier was not trained on) and of "heldout" ones.
            weights: SHA-256 of the classifier's weights.
        """
        moments, floor, samples = {}, {}, {}
        for name, part in pictures.items():
            count = min(REAL_SAMPLES[name], len(part.labels) // 3)
            if count < 2:
                raise ValueError(
                    f"{len(part.labels)} real pictures ({name} pairs) are too few; use at least 6"
                )
            chosen = np.linspace(0, len(part.labels) - 1, count).round().astype(int)
            others = np.setdiff1d(np.arange(len(part.labels)), chosen)
            moments[name] = Moments.of(recognise(classifier, part.pixels[others])[1])
            wanted = [Attributes(**part.labels[number].attributes) for number in chosen]
            measured = Measured.of(part.pixels[chosen], classifier)
            floor[name] = obedience(measured, wanted, [frozenset(DETAILS)] * count)
            floor[name] |= appearance(measured, moments[name])
            floor[name]["diversity"] = pairwise_distance(_same_pair(part))
            samples[name] = count
        return cls(moments=moments, floor=floor, samples=samples, classifier=weights, source=source)

    def save(self, path: Path) -> None:
        """Write JSON with `DIGITS` significant digits."""
        record = {
            "source": self.source,
            "classifier": self.classifier,
            "samples": self.samples,
            "floor": {
                name: {key: _rounded(value) for key, value in scores.items()}
                for name, scores in self.floor.items()
            },
            "moments": {
                name: {
                    "mean": [_rounded(value) for value in one.mean.tolist()],
                    "covariance": [[_rounded(value) for value in row] for row in one.covariance.tolist()],
                }
                for name, one in self.moments.items()
            },
        }
        path.write_text(json.dumps(record) + "\n")

    @classmethod
    def load(cls, path: Path, *, weights: str) -> "Reference":
        """Read what `save` wrote; ValueError if it is of another classifier than `weights`."""
        record = json.loads(path.read_text())
        if record["classifier"] != weights:
            raise ValueError(
                f"{path} is of another classifier; run fewstep eval image --write-reference --data DIR"
            )
        moments = {}
        for name, one in record["moments"].items():
            covariance = np.array(one["covariance"])
            moments[name] = Moments(np.array(one["mean"]), (covariance + covariance.T) / 2)
        return cls(
            moments=moments,
            floor=record["floor"],
            samples=record["samples"],
            classifier=record["classifier"],
            source=record["source"],
        )


def appearance(measured: Measured, moments: Moments) -> dict[str, float]:
    """How pictures look as a set: the Frechet distance to real ones, and sharpness.

    The Frechet distance falls with the number of pictures; compare equal numbers.
    """
    return {
        FRECHET: frechet_of_moments(Moments.of(measured.features), moments),
        "high_frequency_energy": measured.high_frequency_energy,
    }


def _same_pair(part: LabelledPictures) -> list[Pictures]:
    """Real pictures by category and colour, where there are two or more."""
    groups: dict[tuple[str, str], list[int]] = {}
    for number, label in enumerate(part.labels):
        pair = label.attributes["category"], label.attributes["colour"]
        groups.setdefault(pair, []).append(number)
    return [part.pixels[numbers] for numbers in groups.values() if len(numbers) > 1]


def _rounded(value: float) -> float:
    return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else value
