import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("gymnasium.envs.box2d.car_racing", exc_type=ImportError)

from fewstep.core.frechet import Moments
from fewstep.modalities.video import evaluation, held_out
from fewstep.modalities.video.captions import Attributes
from fewstep.modalities.video.data import write_clip
from fewstep.modalities.video.evaluation import (
    FEATURES,
    SAMPLE_FRAMES,
    Measured,
    Reference,
    Sample,
    appearance,
    combination,
    lane_offset_gap,
    measure,
    obedience,
)
from fewstep.modalities.video.generation import balanced_attributes
from fewstep.modalities.video.metrics import HALF_WIDTH_PIXELS, REACTION_FRAMES

COMBINATIONS = balanced_attributes(4)


@pytest.fixture(scope="module")
def real() -> list[Sample]:
    return [
        Sample(frames=held_out.film(one, frames=SAMPLE_FRAMES, seed=900_001 + 2 * index), attributes=one)
        for index, one in enumerate(COMBINATIONS)
    ]


@pytest.fixture(scope="module")
def measured(real: list[Sample]) -> list[Measured]:
    return [measure(sample) for sample in real]


@pytest.fixture(scope="module")
def reference(real: list[Sample]) -> Reference:
    return Reference.of(real, source="four drives")


def test_the_video_that_made_the_reference_obeys_it_exactly(measured: list[Measured], reference: Reference):
    scores = obedience(measured, reference)
    assert scores["lane_offset_error"] == scores["weave_error"] == scores["speed_error"] == 0
    assert scores["road_lost"] == 0
    assert scores["palette_error"] < 6  # single real frames deviate by 2 to 4
    # Rounding of eigenvalues; other real drives are at 0.1 and more.
    assert appearance(measured, reference)[FEATURES] == pytest.approx(0, abs=1e-3)


def test_driving_on_the_other_side_costs_the_distance_between_the_sides(
    measured: list[Measured], reference: Reference
):
    left, right = (
        next(one for one in measured if one.attributes.manoeuvre == side) for side in ("left", "right")
    )
    swapped = dataclasses.replace(left, attributes=right.attributes)
    assert right.offset - left.offset > HALF_WIDTH_PIXELS / 2
    assert obedience([swapped], reference)["lane_offset_error"] == right.offset - left.offset


def test_the_wrong_world_costs_colour(real: list[Sample], measured: list[Measured]):
    meadow, right = next(
        pair for pair in zip(real, measured, strict=True) if pair[0].attributes.palette == "meadow"
    )
    wrong = dataclasses.replace(meadow, attributes=dataclasses.replace(meadow.attributes, palette="night"))
    assert measure(wrong).palette_error > 10 * right.palette_error


def test_a_picture_without_a_road_counts_as_half_a_road_off(reference: Reference):
    attributes = next(one for one in COMBINATIONS if one.manoeuvre == "left")
    blank = measure(Sample(frames=np.zeros((SAMPLE_FRAMES, 96, 96, 3), np.uint8), attributes=attributes))
    assert math.isnan(blank.offset)
    scores = obedience([blank], reference)
    assert scores["road_lost"] == 100
    assert scores["lane_offset_error"] == HALF_WIDTH_PIXELS
    weave = next(one for one in COMBINATIONS if one.manoeuvre == "weave")
    lost = obedience([dataclasses.replace(blank, attributes=weave)], reference)
    assert lost["weave_error"] == reference.expected[combination(weave)].spread
    assert "lane_offset_error" not in lost


def test_a_car_that_stays_put_does_not_weave(measured: list[Measured], reference: Reference):
    weave = next(one for one in measured if one.attributes.manoeuvre == "weave")
    still = dataclasses.replace(weave, spread=0.0)
    assert obedience([still], reference)["weave_error"] == pytest.approx(weave.spread)
    assert weave.spread > 2


def test_the_gap_between_two_sets_is_the_mean_shift_of_the_sides(measured: list[Measured]):
    shifts = {"left": -1.0, "centre": 0.0, "right": 2.0, "weave": 9.0}
    moved = [
        dataclasses.replace(one, offset=one.offset + shifts[one.attributes.manoeuvre]) for one in measured
    ]
    assert lane_offset_gap(measured, measured) == 0
    assert lane_offset_gap(moved, measured) == pytest.approx(1.0)


def test_noise_raises_the_frechet_distance(
    real: list[Sample], measured: list[Measured], reference: Reference
):
    random = np.random.default_rng(0)
    noisy = [
        dataclasses.replace(
            sample,
            frames=np.clip(sample.frames + random.normal(0, 20, sample.frames.shape), 0, 255).astype(
                np.uint8
            ),
        )
        for sample in real
    ]
    scores = appearance([measure(sample) for sample in noisy], reference)
    clean = appearance(measured, reference)
    assert scores[FEATURES] > clean[FEATURES] + 1
    assert scores["high_frequency_energy"] > 2 * clean["high_frequency_energy"]


def test_a_combination_counts_once_however_often_it_was_filmed():
    features = np.random.default_rng(0).normal(size=(6, 3))
    once = Moments.of(features, np.ones(6))
    weights = np.concatenate([np.ones(5), np.full(4, 0.25)])
    often = Moments.of(np.concatenate([features, np.repeat(features[-1:], 3, axis=0)]), weights)
    np.testing.assert_allclose(often.mean, once.mean)
    # The unbiased covariance knows fewer effective samples; the shape is the same.
    ratio = often.covariance / once.covariance
    np.testing.assert_allclose(ratio, ratio[0, 0])


def test_a_saved_reference_gives_the_same_scores(
    measured: list[Measured], reference: Reference, tmp_path: Path
):
    path = tmp_path / "reference.json"
    kept = dataclasses.replace(reference, floor={"motion": 1.0})
    kept.save(path)
    loaded = Reference.load(path)
    assert loaded.floor == {"motion": 1.0}
    assert loaded.source == "four drives"
    shifted = [dataclasses.replace(one, offset=one.offset + 3, speed=one.speed + 1) for one in measured]
    # Numbers are stored with five digits.
    assert obedience(shifted, loaded) == pytest.approx(obedience(shifted, reference), abs=1e-3)
    assert appearance(measured[:3], loaded) == pytest.approx(appearance(measured[:3], reference), abs=1e-2)
    frames, worlds = np.full((2, 96, 96, 3), 90, np.uint8), ["snow", "night"]
    np.testing.assert_allclose(
        loaded.statistics.distance(frames, worlds), reference.statistics.distance(frames, worlds), rtol=1e-3
    )


def test_a_missing_combination_is_named(reference: Reference):
    with pytest.raises(ValueError, match=r"four drives.*right\|fast\|night; render more clips"):
        reference.require([*COMBINATIONS, Attributes(palette="night", manoeuvre="right", speed="fast")])


def test_a_folder_gives_the_settled_parts_of_its_segments(tmp_path: Path):
    first, second = COMBINATIONS[0], COMBINATIONS[1]
    length, change = 2 * SAMPLE_FRAMES + REACTION_FRAMES + SAMPLE_FRAMES + 5, 2 * SAMPLE_FRAMES + 3
    frames = np.full((length, 96, 96, 3), 40, np.uint8)
    frames[change:] = 100
    frames[change + REACTION_FRAMES :] = 200
    segments = [
        {"start": start, "captions": ["drive"], "attributes": one.as_dict()}
        for start, one in ((0, first), (change, second))
    ]
    write_clip(tmp_path, "drive", frames, {"segments": segments}, fps=12.0)
    samples = held_out.folder_samples(tmp_path)
    assert [sample.attributes for sample in samples] == [first, first, second]
    levels = [round(float(sample.frames.mean()), -1) for sample in samples]
    assert levels == [40, 40, 200]
    assert {len(sample.frames) for sample in samples} == {SAMPLE_FRAMES}


def test_a_rendered_reference_has_every_combination_and_a_floor(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(held_out, "all_attributes", lambda: COMBINATIONS)
    monkeypatch.setattr(held_out, "SAMPLES_PER_DRIVE", 1)
    monkeypatch.setattr(evaluation, "speed", lambda frames: np.full(len(frames) - 1, 3.0))  # slow to find
    reference = held_out.rendered_reference(drives=1, long_frames=120)
    assert set(reference.expected) == {combination(one) for one in COMBINATIONS}
    assert reference.floor["lane_offset_error"] < HALF_WIDTH_PIXELS / 4
    assert {"drift", "motion", FEATURES, "speed_error"} <= set(reference.floor)
