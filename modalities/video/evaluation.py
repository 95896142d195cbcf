"""Scores of generated driving videos: each sample against real video with the same attributes.

A sample is 24 frames under one prompt, whoever made it: a clip of the teacher, the start of a stream, the
end of a segment of one, or real video. What it shows is reduced to a `Measured`; a `Reference` holds the same
numbers of real video; `obedience` and `appearance` compare the two.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float

from fewstep.core.frechet import Moments, frechet_of_moments
from fewstep.modalities.video.captions import Attributes
from fewstep.modalities.video.metrics import (
    HALF_WIDTH_PIXELS,
    Frames,
    FrameStatistics,
    high_frequency_energy,
    lane_offset,
    motion,
    palette_error,
    random_features,
    speed,
)

SAMPLE_FRAMES = 24
SPEED_PAIRS = 5  # of a sample's last frames; the search for the best match is most of the cost of measuring
FEATURES = "frechet_random_cnn"
DIGITS = 5


def combination(attributes: Attributes) -> str:
    """The key of a combination of attributes, as in a model's steering."""
    return f"{attributes.manoeuvre}|{attributes.speed}|{attributes.palette}"


@dataclass(frozen=True, kw_only=True)
class Sample:
    """24 frames that should show `attributes`."""

    frames: Frames
    attributes: Attributes


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What a sample shows.

    `offset` and `spread` are the mean and standard deviation of the lane offset in pixels, nan where more
    than half of the frames show no road; `lost` is the share of frames that do not; `speed` is the median in
    pixels per frame; `palette_error` is in RGB levels, `motion` and `high_frequency_energy` in grey levels.
    """

    attributes: Attributes
    offset: float
    spread: float
    lost: float
    speed: float
    palette_error: float
    motion: float
    high_frequency_energy: float
    features: Float[np.ndarray, " pair feature"]


def measure(sample: Sample) -> Measured:
    """All measurements of one sample."""
    frames, attributes = sample.frames, sample.attributes
    offsets = lane_offset(frames)
    seen = offsets[~np.isnan(offsets)]
    found = len(seen) >= len(frames) / 2
    return Measured(
        attributes=attributes,
        offset=float(seen.mean()) if found else math.nan,
        spread=float(seen.std()) if found else math.nan,
        lost=1.0 - len(seen) / len(frames),
        speed=float(np.median(speed(frames[-SPEED_PAIRS - 1 :]))),
        palette_error=float(palette_error(frames, [attributes.palette] * len(frames)).mean()),
        motion=float(motion(frames).mean()),
        high_frequency_energy=float(high_frequency_energy(frames).mean()),
        features=random_features(frames),
    )


@dataclass(frozen=True, kw_only=True)
class Expected:
    """Means over real samples of one combination of attributes."""

    offset: float
    spread: float
    speed: float
    samples: int


@dataclass(frozen=True, kw_only=True)
class Reference:
    """Real video reduced to what scores need, small enough to lie beside a model.

    Args:
        expected: by combination of attributes.
        moments: of the features of all samples, every combination with equal weight.
        statistics: of single frames, by palette.
        floor: the scores that other real video has against this one: no model can be asked for less.
        source: where the video came from, in words.
    """

    expected: dict[str, Expected]
    moments: Moments
    statistics: FrameStatistics
    floor: dict[str, float]
    source: str

    @classmethod
    def of(cls, samples: Sequence[Sample], *, source: str) -> "Reference":
        """Measured on real samples, without a floor."""
        by_combination: dict[str, list[Measured]] = {}
        for sample in samples:
            by_combination.setdefault(combination(sample.attributes), []).append(measure(sample))
        expected = {key: _expected(measured) for key, measured in sorted(by_combination.items())}
        features, weights = [], []
        for measured in by_combination.values():
            features += [one.features for one in measured]
            weights += [np.full(len(one.features), 1.0 / len(measured)) for one in measured]
        worlds = [sample.attributes.palette for sample in samples for _ in sample.frames]
        return cls(
            expected=expected,
            moments=Moments.of(np.concatenate(features), np.concatenate(weights)),
            statistics=FrameStatistics.of(np.concatenate([sample.frames for sample in samples]), worlds),
            floor={},
            source=source,
        )

    def require(self, wanted: Sequence[Attributes]) -> None:
        """ValueError when a combination is missing."""
        missing = sorted({combination(one) for one in wanted} - set(self.expected))
        if missing:
            raise ValueError(
                f"real video ({self.source}) shows no settled {SAMPLE_FRAMES} frames of "
                f"{', '.join(missing)}; render more clips"
            )

    def save(self, path: Path) -> None:
        """Write JSON with `DIGITS` significant digits."""
        record = {
            "source": self.source,
            "floor": {name: _rounded(value) for name, value in self.floor.items()},
            "expected": {
                key: {"samples": one.samples}
                | {name: _rounded(getattr(one, name)) for name in ("offset", "spread", "speed")}
                for key, one in self.expected.items()
            },
            "statistics": {
                name: {"mean": _listed(self.statistics.means[name]), "spread": _listed(values)}
                for name, values in self.statistics.spreads.items()
            },
            "feature_mean": _listed(self.moments.mean),
            "feature_covariance": [_listed(row) for row in self.moments.covariance],
        }
        path.write_text(json.dumps(record) + "\n")

    @classmethod
    def load(cls, path: Path) -> "Reference":
        """Read what `save` wrote."""
        record = json.loads(path.read_text())
        covariance = np.array(record["feature_covariance"])
        statistics = record["statistics"]
        return cls(
            expected={key: Expected(**one) for key, one in record["expected"].items()},
            moments=Moments(np.array(record["feature_mean"]), (covariance + covariance.T) / 2),
            statistics=FrameStatistics(
                {name: np.array(one["mean"]) for name, one in statistics.items()},
                {name: np.array(one["spread"]) for name, one in statistics.items()},
            ),
            floor=record["floor"],
            source=record["source"],
        )


def obedience(measured: Sequence[Measured], reference: Reference) -> dict[str, float]:
    """How far samples are from what their prompts ask for; means over samples.

    `lane_offset_error` (left, centre and right only) and `speed_error` are absolute differences of a
    sample's mean offset and median speed to the mean of real video with the same attributes. `weave_error`
    (weave only) is that of the standard deviation of the offset. A sample without a road counts as half a
    road's width off, and as not weaving.
    """
    expected = [reference.expected[combination(one.attributes)] for one in measured]
    pairs = list(zip(measured, expected, strict=True))
    steady = [pair for pair in pairs if pair[0].attributes.manoeuvre != "weave"]
    weaving = [pair for pair in pairs if pair[0].attributes.manoeuvre == "weave"]
    result = {
        "lane_offset_error": _mean(
            [_off(one.offset - real.offset, HALF_WIDTH_PIXELS) for one, real in steady]
        ),
        "weave_error": _mean([_off(one.spread - real.spread, real.spread) for one, real in weaving]),
        "speed_error": _mean([abs(one.speed - real.speed) for one, real in pairs]),
        "palette_error": _mean([one.palette_error for one in measured]),
        "road_lost": 100.0 * _mean([one.lost for one in measured]),
    }
    return {name: value for name, value in result.items() if not math.isnan(value)}


def appearance(measured: Sequence[Measured], reference: Reference) -> dict[str, float]:
    """How samples look as a set: motion, sharpness, and the Frechet distance to real video.

    The Frechet distance falls with the number of samples; compare equal numbers.
    """
    features = np.concatenate([one.features for one in measured])
    return {
        "motion": _mean([one.motion for one in measured]),
        "high_frequency_energy": _mean([one.high_frequency_energy for one in measured]),
        FEATURES: frechet_of_moments(Moments.of(features), reference.moments),
    }


def lane_offset_gap(measured: Sequence[Measured], others: Sequence[Measured]) -> float:
    """Pixels between the mean offsets of two sets of samples, averaged over left, centre and right.

    nan if the road is lost in all samples of a manoeuvre.
    """
    gaps = []
    for manoeuvre in ("left", "centre", "right"):
        means = [
            _mean(
                [
                    one.offset
                    for one in group
                    if not math.isnan(one.offset) and one.attributes.manoeuvre == manoeuvre
                ]
            )
            for group in (measured, others)
        ]
        gaps.append(abs(means[0] - means[1]))
    return _mean(gaps)


def _expected(measured: list[Measured]) -> Expected:
    return Expected(
        offset=_mean([one.offset for one in measured if not math.isnan(one.offset)]),
        spread=_mean([one.spread for one in measured if not math.isnan(one.spread)]),
        speed=_mean([one.speed for one in measured]),
        samples=len(measured),
    )


def _off(difference: float, lost: float) -> float:
    return lost if math.isnan(difference) else abs(difference)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan


def _rounded(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")


def _listed(values: Float[np.ndarray, " value"]) -> list[float]:
    return [_rounded(value) for value in values.tolist()]
