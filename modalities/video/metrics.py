"""Measurements of driving videos from pixels alone: where the car is, how fast, which world, how stable."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor
from torch.nn.functional import avg_pool2d, conv2d, grid_sample

from fewstep.modalities.video.captions import PALETTES
from fewstep.modalities.video.driving import (
    CAR_COLUMN,
    CAR_ROW,
    FRAME_SECONDS,
    HALF_WIDTH,
    IMAGE_SIZE,
    PALETTE_COLOURS,
    PIXELS_PER_UNIT,
)

Frames = UInt8[np.ndarray, " frame height width 3"]

HALF_WIDTH_PIXELS = HALF_WIDTH * PIXELS_PER_UNIT  # 14.8: half the road's width on the screen
PIXELS_PER_SPEED = PIXELS_PER_UNIT * FRAME_SECONDS  # pixels per frame for each world unit per second

# Mean RGB over 24,000 frames of the training videos; single frames deviate by 1 to 3 per channel.
PALETTE_MEANS = {
    "meadow": (101.2, 167.9, 99.1),
    "desert": (192.0, 156.3, 104.9),
    "snow": (200.4, 205.6, 216.0),
    "night": (34.0, 38.6, 68.0),
}

OFFSET_ROWS = slice(77, 89)  # symmetric about the car's row, so that a slanted road does not shift the mean
OFFSET_REACH = 27  # columns to each side: the road's half-width and the largest offset on the road
CAR_HALF_LENGTH, CAR_HALF_WIDTH = 7, 4
LEAST_ROAD = 0.15  # share of the pixels looked at that must be road

MAX_SHIFT, MAX_TURN = 12.0, 0.28  # pixels and radians per frame
MARGIN = 12  # pixels over which contrast is taken; the frame's border of that width has none to compare
CONTRAST_FLOOR = 0.01
SEARCH = (  # pixels per cell, reach in pixels and radians, candidates in each
    (4, MAX_SHIFT / 2, MAX_TURN, 13, 21),
    (2, 0.75, 0.03, 4, 4),
    (2, 0.25, 0.01, 4, 4),
    (2, 0.08, 0.004, 4, 4),
)

REACTION_FRAMES = 18  # the driver's time to carry out a new caption
WEAVE_SPREAD, SIDE_OFFSET, FAST_PIXELS = 0.22, 0.27, 4.6

FEATURE_FLOOR = 1e-2

EPS = 1e-6


def palette(frames: Frames) -> Int64[np.ndarray, " frame"]:
    """The index in `PALETTES` of the world whose mean colour is nearest."""
    return _palette_distances(frames).argmin(axis=1)


def palette_error(frames: Frames, wanted: list[str] | None = None) -> Float[np.ndarray, " frame"]:
    """Euclidean RGB distance of each frame's mean colour to that of its wanted (or else nearest) world.

    Real frames have 2 to 4.
    """
    distances = _palette_distances(frames)
    if wanted is None:
        return distances.min(axis=1)
    return distances[np.arange(len(frames)), [PALETTES.index(name) for name in wanted]]


def _palette_distances(frames: Frames) -> Float[np.ndarray, " frame palette"]:
    means = frames.mean(axis=(1, 2), dtype=np.float64)
    return np.linalg.norm(means[:, None] - np.array([PALETTE_MEANS[name] for name in PALETTES]), axis=2)


def lane_offset(frames: Frames) -> Float[np.ndarray, " frame"]:
    """How far the car is right of the road's centre, in pixels; nan where there is no road.

    A frame has 96 pixels. The road's pixels are those nearer to its colour than to any other of the world,
    and the car's own place counts as road. Divide by `HALF_WIDTH_PIXELS` for half-widths of the road.
    """
    _require_size(frames)
    worlds = palette(frames)
    columns = np.arange(IMAGE_SIZE) + 0.5 - CAR_COLUMN
    inside = np.abs(columns) <= OFFSET_REACH
    offsets = np.full(len(frames), np.nan)
    for index, name in enumerate(PALETTES):
        chosen = np.flatnonzero(worlds == index)
        road = _road_mask(frames[chosen][:, OFFSET_ROWS], name)[:, :, inside]
        enough = road.mean(axis=(1, 2)) >= LEAST_ROAD
        weights = road[enough].astype(np.float64)
        per_row = weights @ columns[inside] / np.maximum(weights.sum(axis=2), 1.0)
        # The median over rows forgives single rows that a kerb or another stretch of road has cut.
        offsets[chosen[enough]] = -np.median(per_row, axis=1)
    return offsets


def _road_mask(
    rows: UInt8[np.ndarray, " frame row width 3"], name: str
) -> Bool[np.ndarray, " frame row width"]:
    colours = PALETTE_COLOURS[name]
    road = np.array(colours.road) + colours.stripe
    others = np.array([colours.ground, colours.grass, *colours.kerb])
    pixels = rows.astype(np.float64)
    to_road = np.linalg.norm(pixels - road, axis=-1)
    to_others = np.min([np.linalg.norm(pixels - other, axis=-1) for other in others], axis=0)
    mask = to_road < to_others
    row_numbers = np.arange(IMAGE_SIZE)[OFFSET_ROWS] + 0.5
    car_rows = np.abs(row_numbers - CAR_ROW) <= CAR_HALF_LENGTH
    car_columns = np.abs(np.arange(IMAGE_SIZE) + 0.5 - CAR_COLUMN) <= CAR_HALF_WIDTH
    return mask | (car_rows[:, None] & car_columns)


def speed(frames: Frames) -> Float[np.ndarray, " pair"]:
    """Pixels per frame by which the ground moves down under the car, for each pair of neighbouring frames.

    The camera turns with the car, so each pair is explained by a shift along the picture and a turn about the
    car: both are searched, coarse to fine, for the best match of the two frames without the car. Divide
    by `PIXELS_PER_SPEED` for world units per second. Pairs across a change of the world mean nothing.
    """
    _require_size(frames)
    pixels = torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2).float() / 255
    pairs = len(frames) - 1
    shift, turn = torch.full((pairs,), MAX_SHIFT / 2), torch.zeros(pairs)
    for cell, shift_span, turn_span, shifts, turns in SEARCH:
        images = _contrasts(pixels, cell)
        best = torch.full((pairs,), math.inf)
        centre_shift, centre_turn = shift.clone(), turn.clone()
        for delta_shift in torch.linspace(-shift_span, shift_span, shifts):
            for delta_turn in torch.linspace(-turn_span, turn_span, turns):
                candidate = centre_shift + delta_shift, centre_turn + delta_turn
                error = _mismatch(images[:-1], images[1:], *candidate)
                better = error < best
                best = torch.where(better, error, best)
                shift = torch.where(better, candidate[0], shift)
                turn = torch.where(better, candidate[1], turn)
    return shift.double().numpy()


def _contrasts(
    pixels: Float[Tensor, " frame 3 height width"], cell: int
) -> Float[Tensor, " frame 3 grid grid"]:
    """Cells of pixels less their local mean, over their local spread: faint stripes count as edges do."""
    small = avg_pool2d(pixels, cell)
    reach = MARGIN // cell
    mean = avg_pool2d(small, 2 * reach + 1, stride=1, padding=reach, count_include_pad=False)
    high = small - mean
    power = avg_pool2d(high.square(), 2 * reach + 1, stride=1, padding=reach, count_include_pad=False)
    return high / (power.sum(dim=1, keepdim=True).sqrt() + CONTRAST_FLOOR)


def _mismatch(
    before: Float[Tensor, " pair 3 grid grid"],
    after: Float[Tensor, " pair 3 grid grid"],
    shift: Float[Tensor, " pair"],
    turn: Float[Tensor, " pair"],
) -> Float[Tensor, " pair"]:
    """Mean squared difference of `after` and `before` moved, over what both see, without the car."""
    cells = before.shape[-1]
    centres = (torch.arange(cells) + 0.5) * (IMAGE_SIZE / cells)
    y, x = torch.meshgrid(centres - CAR_ROW, centres - CAR_COLUMN, indexing="ij")
    cos, sin = turn.cos()[:, None, None], turn.sin()[:, None, None]
    source_x = cos * x - sin * y + CAR_COLUMN
    source_y = sin * x + cos * y - shift[:, None, None] + CAR_ROW
    grid = torch.stack([source_x, source_y], dim=-1) * (2 / IMAGE_SIZE) - 1
    target = torch.stack([x + CAR_COLUMN, y + CAR_ROW], dim=-1) * (2 / IMAGE_SIZE) - 1
    moved = grid_sample(before, grid, align_corners=False)
    limit = 1 - 2 * MARGIN / IMAGE_SIZE
    seen = ((grid.abs() <= limit) & (target.abs() <= limit)).all(dim=-1) & ~(
        (x.abs() <= CAR_HALF_WIDTH) & (y.abs() <= CAR_HALF_LENGTH + 2)
    )
    error = (moved - after).square().sum(dim=1) * seen
    return error.sum(dim=(1, 2)) / seen.sum(dim=(1, 2)).clamp(min=1)


def motion(frames: Frames) -> Float[np.ndarray, " pair"]:
    """Mean absolute difference of neighbouring frames, in grey levels."""
    pixels = frames.astype(np.int16)
    return np.abs(np.diff(pixels, axis=0)).mean(axis=(1, 2, 3), dtype=np.float64)


def high_frequency_energy(frames: Frames) -> Float[np.ndarray, " frame"]:
    """Mean absolute difference of horizontally neighbouring pixels, in grey levels; noise raises it."""
    return np.abs(np.diff(frames.astype(np.int16), axis=2)).mean(axis=(1, 2, 3), dtype=np.float64)


def recognise(frames: Frames) -> dict[str, str]:
    """The caption's attributes read from the pixels of one segment; the manoeuvre is "lost" without a road.

    The first `REACTION_FRAMES` frames are left out, if there are others: the driver needs them to obey.
    """
    settled = frames[REACTION_FRAMES:] if len(frames) > 2 * REACTION_FRAMES else frames
    offsets = lane_offset(settled) / HALF_WIDTH_PIXELS
    world = int(np.bincount(palette(settled), minlength=len(PALETTES)).argmax())
    return {
        "palette": PALETTES[world],
        "manoeuvre": _manoeuvre(offsets[~np.isnan(offsets)], len(settled)),
        "speed": "fast" if float(np.median(speed(settled))) > FAST_PIXELS else "slow",
    }


def _manoeuvre(offsets: Float[np.ndarray, " seen"], frames: int) -> str:
    if len(offsets) < frames / 2:
        return "lost"
    centre = float(offsets.mean())
    if offsets.std() > WEAVE_SPREAD:
        return "weave"
    if abs(centre) > SIDE_OFFSET:
        return "right" if centre > 0 else "left"
    return "centre"


def random_features(frames: Frames, *, span: int = 3) -> Float[np.ndarray, " pair feature"]:
    """99 features of each frame and its change over `span` frames, from a fixed random convolutional network.

    Three layers of stride two with weights from a frozen generator, blind to constant colour; each channel
    gives the logarithms of its mean and standard deviation, and the frame adds its mean RGB. Nothing is
    learned or downloaded: the Frechet distance of these features is comparable only with itself.
    """
    if len(frames) <= span:
        raise ValueError(f"frames has {len(frames)} frames; pass more than span={span}")
    pixels = torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2)
    weights = _random_weights()
    features = []
    for start in range(0, len(frames) - span, 64):
        stop = min(start + 64, len(frames) - span)
        first, last = pixels[start:stop].float(), pixels[start + span : stop + span].float()
        hidden = torch.cat([first / 127.5 - 1, (last - first) / 127.5], dim=1)
        pooled = [hidden[:, :3].mean(dim=(2, 3))]
        for weight in weights:
            hidden = conv2d(hidden, weight, stride=2).relu()
            pooled += [
                (pool + FEATURE_FLOOR).log() for pool in (hidden.mean(dim=(2, 3)), hidden.std(dim=(2, 3)))
            ]
        features.append(torch.cat(pooled, dim=1))
    return torch.cat(features).double().numpy()


def _random_weights() -> list[Float[Tensor, " out into 5 5"]]:
    # RandomState's stream is frozen by numpy, so the features are the same in every version.
    random = np.random.RandomState(0)
    weights = []
    for into, out in ((6, 12), (12, 16), (16, 20)):
        weight = random.standard_normal((out, into, 5, 5)) * math.sqrt(2 / (into * 25))
        weight -= weight.mean(axis=(2, 3), keepdims=True)
        weights.append(torch.from_numpy(weight).float())
    return weights


@dataclass(frozen=True)
class FrameStatistics:
    """What real frames of each world look like, as means and standard deviations of eight statistics.

    The statistics of a frame are its mean RGB, the standard deviation of its RGB, and the mean and the root
    mean square of the differences of horizontally neighbouring pixels: the one rises with noise, the other
    falls with blur.
    """

    means: dict[str, Float[np.ndarray, " statistic"]]
    spreads: dict[str, Float[np.ndarray, " statistic"]]

    @classmethod
    def of(cls, frames: Frames, worlds: list[str]) -> "FrameStatistics":
        """Measured on real frames, `worlds` naming the palette of each."""
        statistics, names = _statistics(frames), np.array(worlds)
        means = {str(name): statistics[names == name].mean(axis=0) for name in np.unique(names)}
        spreads = {str(name): statistics[names == name].std(axis=0) + EPS for name in np.unique(names)}
        return cls(means, spreads)

    def distance(self, frames: Frames, worlds: list[str]) -> Float[np.ndarray, " frame"]:
        """Mean number of standard deviations between a frame's statistics and real ones; 0.8 if real."""
        unknown = sorted(set(worlds) - set(self.means))
        if unknown:
            raise ValueError(
                f"worlds {unknown} were not in the real frames; measure on frames of every world"
            )
        means = np.array([self.means[name] for name in worlds])
        spreads = np.array([self.spreads[name] for name in worlds])
        return (np.abs(_statistics(frames) - means) / spreads).mean(axis=1)


def _statistics(frames: Frames) -> Float[np.ndarray, " frame 8"]:
    pixels = frames.reshape(len(frames), -1, 3).astype(np.float32)
    energy = high_frequency_energy(frames)[:, None]
    steps = np.diff(frames.astype(np.float32), axis=2)
    edges = np.sqrt(np.square(steps).mean(axis=(1, 2, 3)))[:, None]
    return np.concatenate([pixels.mean(axis=1), pixels.std(axis=1), energy, edges], axis=1).astype(np.float64)


def drift(distances: Float[np.ndarray, " frame"], *, window: int = 60) -> float:
    """How much further from real frames a stream's last `window` frames are than its first, both from
    `FrameStatistics.distance`; near 0 for real video, positive where a stream decays."""
    if len(distances) < 2 * window:
        raise ValueError(
            f"distances has {len(distances)} frames; pass at least {2 * window} or a smaller window"
        )
    return float(distances[-window:].mean() - distances[:window].mean())


def _require_size(frames: Frames) -> None:
    if frames.shape[1:3] != (IMAGE_SIZE, IMAGE_SIZE):
        height, width = frames.shape[1:3]
        raise ValueError(
            f"frames are {height}x{width}; pass {IMAGE_SIZE}x{IMAGE_SIZE} frames of the driving world"
        )
