"""The rendered driving world."""

from itertools import pairwise
from random import Random

import numpy as np
import pytest

pytest.importorskip("gymnasium.envs.box2d.car_racing", exc_type=ImportError)

from fewstep.modalities.video.captions import Attributes
from fewstep.modalities.video.driving import (
    PALETTE_COLOURS,
    SEGMENT_FRAMES,
    Drive,
    DrivingWorld,
    draw_script,
)


def film(seed: int = 0, frames: int = 40, **attributes: str) -> Drive:
    return DrivingWorld(seed).film([(0, Attributes(**attributes))], frames=frames)


def test_the_same_seed_and_script_give_the_same_frames():
    first, second = film(3, 6), film(3, 6)
    assert np.array_equal(first.frames, second.frames)
    assert not np.array_equal(first.frames, film(4, 6).frames)


@pytest.mark.parametrize(("manoeuvre", "wanted"), [("left", -0.55), ("centre", 0.0), ("right", 0.55)])
@pytest.mark.parametrize("speed", ["slow", "fast"])
def test_the_car_keeps_the_side_it_was_told(manoeuvre, wanted, speed):
    drive = film(frames=80, manoeuvre=manoeuvre, speed=speed)
    assert np.median(drive.lane_offset) == pytest.approx(wanted, abs=0.12)


def test_weaving_swings_to_both_sides():
    drive = film(frames=80, manoeuvre="weave")
    assert drive.lane_offset.min() < -0.3
    assert drive.lane_offset.max() > 0.3


def test_fast_is_more_than_twice_as_fast_as_slow():
    assert film(speed="fast").speed.mean() > 2 * film(speed="slow").speed.mean()


def test_the_palette_changes_at_once_and_everywhere():
    script = [(0, Attributes(palette="meadow")), (3, Attributes(palette="night"))]
    frames = DrivingWorld(0).film(script, frames=4).frames
    road = PALETTE_COLOURS["night"].road
    assert np.abs(frames[2].mean((0, 1)) - frames[0].mean((0, 1))).max() < 10
    assert frames[3].mean() < frames[2].mean() / 2
    assert (
        frames[3].reshape(-1, 3).max(axis=0)[1] <= 140
    )  # nothing of the meadow's 204 or the white kerbs is left
    assert np.linalg.norm(frames[3][90, 48].astype(float) - road, axis=-1) < 25


def test_driving_goes_on_after_a_lap():
    world = DrivingWorld(0)
    points = len(world._points)
    drive = world.film([(0, Attributes(speed="fast"))], frames=round(1.3 * points * 3.5 / (38 * 0.08)))
    assert not drive.off_road
    assert drive.speed[-20:].mean() > 30


def test_leaving_the_road_for_more_than_a_second_is_told():
    drive = film(frames=30)
    assert not drive.off_road
    drive.lane_offset[5:18] = 1.3
    assert drive.off_road
    drive.lane_offset[10] = 0.9
    assert not drive.off_road


def test_a_script_that_does_not_begin_at_the_first_frame_is_refused():
    with pytest.raises(ValueError, match=r"script starts \[4\] must begin at 0 and rise"):
        DrivingWorld(0).film([(4, Attributes())], frames=8)


def test_scripts_change_one_or_two_attributes_after_four_to_eight_seconds():
    palettes, changes = 0, 0
    for seed in range(60):
        script = draw_script(320, Random(seed))
        starts = [start for start, _ in script] + [320]
        lengths = np.diff(starts)
        assert all(SEGMENT_FRAMES[0] <= length <= SEGMENT_FRAMES[1] for length in lengths[:-1])
        assert lengths[-1] >= SEGMENT_FRAMES[0]
        for (_, before), (_, after) in pairwise(script):
            differing = [name for name, value in after.as_dict().items() if before.as_dict()[name] != value]
            assert len(differing) in (1, 2)
            palettes += "palette" in differing
            changes += 1
    assert palettes / changes == pytest.approx(1 / 3, abs=0.1)
