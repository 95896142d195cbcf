"""The motion reward: still is bad, noise is worse, steady motion is good, and none of it can be faked."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fewstep.core.rewards.contract import Reward
from fewstep.core.rewards.motion import FLOOR, MotionReward

FRAMES, SIZE, ZOOM = 12, 48, 4

REWARD = MotionReward()


def texture() -> Tensor:
    """A smooth random picture, [1, 3, 96 ZOOM, 96 ZOOM], in [0, 1]."""
    coarse = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    return F.interpolate(coarse, size=(96 * ZOOM, 96 * ZOOM), mode="bicubic").clamp(0, 1)


def panning(pixels_per_frame: float) -> Tensor:
    """The picture seen through a window that moves steadily, [1, FRAMES, 3, SIZE, SIZE]."""
    picture = texture()
    offsets = [round(ZOOM * pixels_per_frame * frame) for frame in range(FRAMES)]
    views = [picture[..., : SIZE * ZOOM : ZOOM, o : o + SIZE * ZOOM : ZOOM] for o in offsets]
    return torch.stack(views, dim=1)


def noise(std: float) -> Tensor:
    return (panning(0) + std * torch.randn(1, FRAMES, 3, SIZE, SIZE)).clamp(0, 1)


def score(pixels: Tensor) -> float:
    return REWARD.score(pixels).item()


def test_a_still_clip_scores_the_stated_minimum() -> None:
    assert score(panning(0)) == pytest.approx(math.log(FLOOR / (0.014 + FLOOR)), abs=1e-4)


@pytest.mark.parametrize("std", [0.03, 0.1, 0.3])
def test_noise_scores_below_stillness_and_motion_above(std: float) -> None:
    assert score(noise(std)) < score(panning(0)) < score(panning(0.5)) - 1


def test_faster_steady_motion_scores_higher_up_to_the_ceiling() -> None:
    scores = [score(panning(speed)) for speed in (0, 0.25, 0.5, 1)]
    assert scores == sorted(scores)
    assert len(set(scores)) == 4
    assert score(panning(4)) == pytest.approx(math.log(2))


def test_the_same_frames_in_random_order_score_far_below() -> None:
    clip = panning(3)
    order = torch.randperm(FRAMES, generator=torch.Generator().manual_seed(1))
    assert score(clip[:, order]) < score(clip) - 2


def test_brightness_that_alternates_is_punished() -> None:
    alternating = 0.1 * (torch.arange(FRAMES) % 2)[None, :, None, None, None]
    assert score(panning(0.5) * 0.8 + alternating) < score(panning(0)) - 5


def test_a_cut_between_two_still_scenes_is_not_paid_as_motion() -> None:
    half = FRAMES // 2
    jump = torch.cat([panning(0)[:, :half], 1 - panning(0)[:, half:]], dim=1)
    assert score(jump) < score(panning(0.25))


def test_clips_are_scored_one_by_one() -> None:
    clips = [panning(0), panning(0.5), noise(0.1)]
    together = REWARD.score(torch.cat(clips))
    torch.testing.assert_close(together, torch.cat([REWARD.score(clip) for clip in clips]))


def test_playing_backwards_changes_nothing() -> None:
    clip = panning(0.7)
    torch.testing.assert_close(REWARD.score(clip.flip(1)), REWARD.score(clip))


def test_its_gradient_reaches_the_pixels_as_it_declares() -> None:
    clip = panning(0.25).requires_grad_()
    assert REWARD.differentiable
    REWARD.score(clip).sum().backward()
    assert clip.grad is not None
    assert clip.grad.isfinite().all()
    step = clip.detach() + 0.02 * clip.grad / clip.grad.abs().max()
    assert score(step) > score(clip.detach())


def test_half_precision_pixels_are_scored_in_float32() -> None:
    clip = panning(0.5)
    half = REWARD.score(clip.bfloat16())
    assert half.dtype == torch.float32
    # Rounding to 8 bits is itself a little flicker.
    assert half.item() == pytest.approx(score(clip), abs=0.15)


def test_training_in_half_precision_does_not_round_the_score() -> None:
    clip = panning(0.5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = REWARD.score(clip)
    torch.testing.assert_close(found, REWARD.score(clip), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("pixels", "named"),
    [
        (2 * torch.rand(1, 8, 3, 16, 16) - 1, "0.5"),
        (255 * torch.rand(1, 8, 3, 16, 16), "0, 1"),
        (torch.rand(1, 3, 3, 16, 16), "4 frames"),
    ],
    ids=["minus one to one", "bytes", "too short"],
)
def test_pixels_of_the_wrong_range_or_length_are_refused_with_the_remedy(pixels: Tensor, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        REWARD.score(pixels)


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="typical_change"):
        MotionReward(typical_change=0.0)
    with pytest.raises(ValueError, match="blur"):
        MotionReward(blur=4)


def test_it_is_a_reward() -> None:
    reward: Reward = REWARD
    assert isinstance(reward, Reward)
    assert reward.name == "motion"


@pytest.mark.parametrize(("channel", "weight"), [(0, 0.299), (1, 0.587), (2, 0.114)])
def test_each_colour_moves_as_much_as_it_is_bright(channel: int, weight: float) -> None:
    """A ramp in time of one channel, which has no flicker."""
    clip = torch.zeros(1, FRAMES, 3, 8, 8)
    clip[:, :, channel] = 0.02 * torch.arange(FRAMES)[:, None, None]
    expected = math.log((0.02 * weight + FLOOR) / (0.014 + FLOOR))
    assert score(clip) == pytest.approx(expected, abs=1e-4)
