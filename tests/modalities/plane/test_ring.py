"""What the benchmark measures: its floor, its even counts, and that bridges cost."""

import math

import pytest
import torch

from fewstep.core.samplers import euler
from fewstep.core.schedules import uniform_grid
from fewstep.modalities.plane.ring import (
    MODES,
    RADIUS,
    STD,
    RingTeacher,
    centres,
    draw,
    draw_evenly,
    quality,
    spread_noise,
)

COUNT = 2000
REAL = draw_evenly(COUNT, seed=3)


def nearest_mode(x: torch.Tensor) -> torch.Tensor:
    return torch.cdist(x, centres()).argmin(1)


def test_even_samples_have_even_counts_and_a_lower_floor_than_random_ones() -> None:
    even = draw_evenly(COUNT, seed=5)
    # one sample in 10,000 is nearer to a neighbour than to its own centre
    counts = nearest_mode(even).bincount(minlength=MODES)
    assert (counts - COUNT // MODES).abs().max() <= 2
    floor = quality(even, REAL).sliced_wasserstein
    assert floor < 0.025
    assert quality(draw(COUNT, seed=5)[0], REAL).sliced_wasserstein > 1.5 * floor


def test_the_exact_sampler_is_at_the_floor_with_spread_noise() -> None:
    noise, _ = spread_noise(COUNT, draws=1, seed=2)
    found = quality(euler(RingTeacher(), noise[0], uniform_grid(48), None), REAL)
    assert found.sliced_wasserstein < 0.025
    assert found.min_mode > 0.12
    assert found.right_half == pytest.approx(0.5, abs=5e-3)


@pytest.mark.parametrize("draws", [1, 4])
def test_spread_noise_is_standard_in_every_draw_and_half(draws: int) -> None:
    noise, half = spread_noise(4096, draws=draws, seed=0)
    assert noise.shape == (draws, 4096, 2)
    assert noise.isfinite().all()
    flat = noise.movedim(1, 0).flatten(1)
    # far below what chance leaves, 1 / 64
    torch.testing.assert_close(flat.mean(0), torch.zeros(2 * draws), atol=2e-3, rtol=0)
    torch.testing.assert_close(flat.T.cov(), torch.eye(2 * draws), atol=2e-2, rtol=0)
    assert half.sum() == 2048
    torch.testing.assert_close(flat[half == 1].mean(0), torch.zeros(2 * draws), atol=2e-2, rtol=0)


def test_samples_on_the_whole_circle_are_not_all_in_a_mode() -> None:
    """Four standard deviations would accept all of them."""
    angle = torch.arange(COUNT) * (2 * math.pi / COUNT)
    circle = RADIUS * torch.stack([angle.cos(), angle.sin()], dim=1)
    assert torch.cdist(circle, centres()).min(1).values.max() < 4 * STD
    # an arc of 2 arcsin(3 sd / 2 R) to either side of 8 centres
    share = MODES * 4 * math.asin(3 * STD / (2 * RADIUS)) / (2 * math.pi)
    assert quality(circle, REAL).in_mode == pytest.approx(share, abs=5e-3)
    assert quality(draw_evenly(COUNT, seed=5), REAL).in_mode == pytest.approx(1 - math.exp(-4.5), abs=7e-3)


def test_a_lost_mode_shows() -> None:
    kept = REAL[torch.arange(COUNT) % MODES != 0]
    found = quality(kept, REAL[: len(kept)])
    assert found.min_mode < 0.001
    assert found.right_half < 0.45
    assert found.sliced_wasserstein > 0.1


def test_distance_to_a_moved_ring_is_the_move_over_the_root_of_two() -> None:
    """The mean square of a projection onto all directions of the plane is half the square."""
    assert quality(REAL + torch.tensor([0.3, -0.4]), REAL).sliced_wasserstein == pytest.approx(
        0.5 / math.sqrt(2), abs=1e-4
    )
