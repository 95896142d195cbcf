"""Proteina's times, turned: known grid points, monotone schedules, distributions."""

from typing import get_args

import pytest
import torch

from fewstep.modalities.protein.times import (
    LogTimes,
    Schedule,
    TrainingTimes,
    solver_grid,
    student_grid,
)


@pytest.mark.parametrize("schedule", get_args(Schedule))
@pytest.mark.parametrize("num_steps", [1, 7, 400])
def test_every_schedule_falls_from_1_to_0(schedule: Schedule, num_steps: int) -> None:
    times = solver_grid(num_steps, schedule)
    assert (len(times), float(times[0]), float(times[-1])) == (num_steps + 1, 1.0, 0.0)
    assert bool((times.diff() < 0).all())


def test_the_default_grid_is_proteinas() -> None:
    # 1 - 10^(-2 / 400), stretched from [0, 0.99] to [0, 1]
    assert float(1 - solver_grid(400)[1]) == pytest.approx(0.01144691 / 0.99, abs=1e-7)


def test_schedules_have_their_closed_forms() -> None:
    torch.testing.assert_close(1 - solver_grid(4, "power", power=3.0), torch.arange(5).double() ** 3 / 64)
    torch.testing.assert_close(solver_grid(4, "uniform"), 1 - torch.arange(5).double() / 4)
    # all others are symmetric in the logarithm of the signal-to-noise ratio, or nearly: half way is t = 1/2
    assert float(solver_grid(2, "loglinear")[1]) == pytest.approx(0.5, abs=1e-3)
    assert float(solver_grid(2, "cos", power=1.0)[1]) == pytest.approx(0.5, abs=1e-3)
    sigma = ((0.002 ** (1 / 7) + 80 ** (1 / 7)) / 2) ** 7
    ends = 80 / 81, 0.002 / 1.002
    expected = (sigma / (1 + sigma) - ends[1]) / (ends[0] - ends[1])
    assert float(solver_grid(2, "edm", power=7.0)[1]) == pytest.approx(expected, abs=1e-6)


def test_a_student_starts_at_a_seventh_tenth_and_ends_at_a_hundredth() -> None:
    grid = student_grid(16)
    assert (len(grid), grid[0], grid[-1]) == (16, pytest.approx(1 - 0.29205, abs=5e-6), pytest.approx(0.01))
    assert student_grid(1) == (0.63,)
    with pytest.raises(ValueError, match="num_steps=0"):
        student_grid(0)


def test_training_times_have_their_distribution() -> None:
    t = TrainingTimes().sample(40_000)
    for level in (0.05, 0.3, 0.7, 0.95):
        expected = 0.98 * (1 - (1 - level) ** 1.9) + 0.02 * level
        assert float((t < level).float().mean()) == pytest.approx(expected, abs=0.01)  # four standard errors
    clamped = TrainingTimes(clamp=(0.02, 0.98)).sample(4000)
    assert (float(clamped.min()), float(clamped.max())) == pytest.approx((0.02, 0.98), abs=0.005)


def test_every_decade_is_as_likely_on_the_logarithmic_grid() -> None:
    t = LogTimes(clamp=None).sample(40_000)
    assert float(t.min()) == pytest.approx(0.01)
    assert float((t > 0.1).float().mean()) == pytest.approx(0.5, abs=0.012)


@pytest.mark.parametrize(
    "build", [lambda: TrainingTimes(clamp=(1.0, 0.0)), lambda: LogTimes(clamp=(1.0, 0.0))]
)
def test_empty_clamps_are_refused(build) -> None:
    with pytest.raises(ValueError, match="is empty"):
        build()
