"""Time grids against published numbers, training times against their distributions."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fewstep.core.objectives.lcm import LCM
from fewstep.core.paths import LinearPath
from fewstep.core.schedules import (
    LogitNormalTimes,
    TimeSampler,
    UniformTimes,
    karras_grid,
    shift,
    step_grid,
    table_time,
    uniform_grid,
)

MANY = 20_000


def draw(times: TimeSampler, count: int = MANY) -> torch.Tensor:
    return times.sample(count, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize(
    ("scale", "timesteps"),
    [
        (1.0, [1000, 750, 500, 250]),
        (5.0, [1000, 937.5, 833.3333, 625]),  # Self-Forcing, Reward Forcing
        (8.0, [1000, 960, 888.8889, 727.2727]),  # CausVid
    ],
)
def test_step_grid_is_the_published_warped_list(scale: float, timesteps: list[float]) -> None:
    assert [1000 * t for t in step_grid(4, scale)] == pytest.approx(timesteps, abs=1e-4)


@given(num_steps=st.integers(1, 50), scale=st.floats(0.5, 12))
def test_step_grid_starts_at_noise_descends_and_stays_above_0(num_steps: int, scale: float) -> None:
    times = step_grid(num_steps, scale)
    assert times[0] == 1
    assert len(times) == num_steps
    assert all(later < earlier for earlier, later in zip(times, (*times[1:], 0), strict=True))


@given(t=st.floats(0, 1), scale=st.floats(0.5, 12))
def test_shifting_back_by_the_inverse_is_the_identity(t: float, scale: float) -> None:
    assert shift(shift(t, scale), 1 / scale) == pytest.approx(t, abs=1e-12)


@given(num_steps=st.integers(1, 30), scale=st.floats(0.5, 12))
def test_uniform_grid_runs_from_1_to_0(num_steps: int, scale: float) -> None:
    grid = uniform_grid(num_steps, scale=scale)
    assert (grid[0], grid[-1], len(grid)) == (1, 0, num_steps + 1)
    assert (grid.diff() < 0).all()
    torch.testing.assert_close(grid[:-1], torch.tensor(step_grid(num_steps, scale), dtype=torch.float64))


def test_karras_grid_has_the_published_sigmas() -> None:
    eta = LinearPath().eta(karras_grid(18))
    expected = [80.0, 57.585986, 40.785575, 28.374592]  # EDM, 18 steps, rho 7, 0.002 to 80
    assert eta[:4].tolist() == pytest.approx(expected, rel=1e-5)
    assert eta[-2:].tolist() == pytest.approx([0.002, 0])


def test_table_time_ends_where_the_released_code_ends() -> None:
    t = torch.tensor([0.0, 0.6251, 0.9375, 1.0], dtype=torch.float64)
    expected = torch.tensor([0.004980, 0.625, 0.9375, 1.0], dtype=torch.float64)
    torch.testing.assert_close(table_time(t, scale=5.0), expected, rtol=0, atol=1e-6)


def test_uniform_times_fill_their_range_evenly() -> None:
    t = draw(UniformTimes(low=0.02, high=0.98))
    assert 0.02 <= t.min() < 0.021
    assert 0.979 < t.max() <= 0.98
    # Standard error of the mean 0.002; five of them.
    assert t.mean().item() == pytest.approx(0.5, abs=0.01)


def test_shifted_then_clamped_times_pile_up_at_the_upper_end_only() -> None:
    t = draw(UniformTimes(shift=5.0, clamp=(0.02, 0.98)))
    # u beyond the preimage of 0.98, which is 0.98 / (5 - 4 * 0.98) = 0.9074; standard error 0.002.
    assert (t == torch.tensor(0.98)).double().mean().item() == pytest.approx(1 - 0.9074, abs=0.01)
    assert (t <= 0.02).double().mean().item() < 0.01
    assert t.median().item() == pytest.approx(shift(0.5, 5.0), abs=0.01)


def test_logit_normal_times_have_their_normal_quantiles() -> None:
    t = draw(LogitNormalTimes(mean=1.0, std=0.5))
    quantiles = torch.logit(t).quantile(torch.tensor([0.1587, 0.5, 0.8413]))
    torch.testing.assert_close(quantiles, torch.tensor([0.5, 1.0, 1.5]), atol=0.03, rtol=0)


@pytest.mark.parametrize("times", [UniformTimes(), LogitNormalTimes()])
def test_a_generator_decides_the_times_and_the_global_one_is_left_alone(times: TimeSampler) -> None:
    before = torch.get_rng_state()
    assert torch.equal(draw(times, 8), draw(times, 8))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(("low", "high"), [(0.5, 0.5), (0.0, 1.5), (-0.1, 1.0)])
def test_ranges_outside_0_1_or_empty_are_refused(low: float, high: float) -> None:
    with pytest.raises(ValueError, match="low="):
        UniformTimes(low=low, high=high)


def test_an_empty_clamp_is_refused() -> None:
    with pytest.raises(ValueError, match="clamp="):
        UniformTimes(clamp=(0.9, 0.1))


def test_too_few_steps_are_refused() -> None:
    with pytest.raises(ValueError, match="num_steps"):
        step_grid(0)
    with pytest.raises(ValueError, match="num_steps"):
        karras_grid(1)
    with pytest.raises(ValueError, match="std"):
        LogitNormalTimes(std=0.0)


@pytest.mark.parametrize("scale", [0.0, -1.0])
def test_a_shift_that_is_no_factor_is_refused_with_the_remedy(scale: float) -> None:
    """0 is not off: it would make every time 0."""
    named = rf"shift={scale} must be positive; 1"
    for sampler in (UniformTimes, LogitNormalTimes):
        with pytest.raises(ValueError, match=named):
            sampler(shift=scale)
    for grid in (lambda: step_grid(4, scale), lambda: uniform_grid(4, scale=scale), lambda: LCM(shift=scale)):
        with pytest.raises(ValueError, match=named):
            grid()
