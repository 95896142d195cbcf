"""Samplers: their orders of convergence, where they are exact, and how often they call the denoiser."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fewstep.core.analytic import GaussianDenoiser, MixtureDenoiser
from fewstep.core.paths import EDMPath, LinearPath, Path, TrigFlowPath, VPPath
from fewstep.core.samplers import dpmpp_2m, euler, heun
from fewstep.core.schedules import uniform_grid

Sampler = Callable[..., Tensor]

SAMPLERS: list[Sampler] = [euler, heun, dpmpp_2m]
every_sampler = pytest.mark.parametrize("sampler", SAMPLERS)


class CountingDenoiser:
    def __init__(self, path: Path | None = None) -> None:
        self.inner = GaussianDenoiser(mean=1.3, std=0.7, path=path or LinearPath())
        self.path = self.inner.path
        self.calls = 0

    def __call__(self, x_t: Tensor, t: Tensor, condition: object) -> Tensor:
        self.calls += 1
        return self.inner(x_t, t, condition)


def global_error(sampler: Sampler, path: Path, num_steps: int) -> float:
    denoiser = GaussianDenoiser(mean=1.3, std=0.7, path=path)
    start, end = torch.tensor([0.95, 0.05], dtype=torch.float64)
    x_t = torch.linspace(-2, 2, 5, dtype=torch.float64)[:, None]
    times = torch.linspace(float(start), float(end), num_steps + 1, dtype=torch.float64)
    error = sampler(denoiser, x_t, times, None) - denoiser.transport(x_t, start, end)
    return error.abs().max().item()


@pytest.mark.parametrize(("sampler", "order"), [(euler, 1), (heun, 2), (dpmpp_2m, 2)])
@pytest.mark.parametrize(
    "path", [LinearPath(), VPPath(), TrigFlowPath()], ids=lambda path: type(path).__name__
)
def test_halving_the_step_divides_the_error_by_two_to_the_order(
    sampler: Sampler, order: int, path: Path
) -> None:
    coarse, fine = (global_error(sampler, path, num_steps) for num_steps in (128, 256))
    # The next order's term is still 1 / 128 of the error, times about ten for the multistep method.
    assert math.log2(coarse / fine) == pytest.approx(order, abs=0.12)


@every_sampler
@pytest.mark.parametrize("path", [LinearPath(), VPPath(), EDMPath()], ids=lambda path: type(path).__name__)
def test_the_whole_way_to_data_ends_near_the_exact_map(sampler: Sampler, path: Path) -> None:
    denoiser = GaussianDenoiser(mean=1.3, std=0.7, path=path)
    x_t = torch.linspace(-2, 2, 5, dtype=torch.float64)[:, None]
    one, zero = torch.ones((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    x0 = sampler(denoiser, x_t, uniform_grid(200), None)
    torch.testing.assert_close(x0, denoiser.transport(x_t, one, zero), atol=0.015, rtol=0)


@every_sampler
@pytest.mark.parametrize("num_steps", [1, 2, 7])
def test_straight_paths_are_followed_exactly_in_any_number_of_steps(sampler: Sampler, num_steps: int) -> None:
    point = GaussianDenoiser(mean=1.3, std=0.0)
    x_t = torch.randn(4, 3, dtype=torch.float64)
    x0 = sampler(point, x_t, uniform_grid(num_steps), None)
    torch.testing.assert_close(x0, torch.full_like(x0, 1.3))


@pytest.mark.parametrize("sampler", [euler, heun])
def test_standard_normal_data_stand_still_on_the_vp_path(sampler: Sampler) -> None:
    x_t = torch.randn(4, 3, dtype=torch.float64)
    x0 = sampler(GaussianDenoiser(path=VPPath()), x_t, [0.9, 0.6, 0.3], None)
    torch.testing.assert_close(x0, x_t, atol=1e-12, rtol=0)


def test_one_euler_step_from_noise_is_the_denoisers_answer() -> None:
    denoiser = GaussianDenoiser(mean=1.3, std=0.7)
    x_t = torch.randn(4, 3, dtype=torch.float64)
    expected = denoiser(x_t, torch.ones(4, dtype=torch.float64), None)
    torch.testing.assert_close(euler(denoiser, x_t, [1.0, 0.0], None), expected)


def test_a_first_dpmpp_step_is_eulers_on_the_linear_path() -> None:
    denoiser = GaussianDenoiser(mean=1.3, std=0.7)
    x_t = torch.randn(4, 3, dtype=torch.float64)
    both = [sampler(denoiser, x_t, [0.9, 0.5], None) for sampler in (euler, dpmpp_2m)]
    torch.testing.assert_close(both[0], both[1])


@pytest.mark.parametrize(("sampler", "calls"), [(euler, 6), (heun, 11), (dpmpp_2m, 6)])
def test_number_of_calls_is_the_stated_one(sampler: Sampler, calls: int) -> None:
    denoiser = CountingDenoiser()
    sampler(denoiser, torch.randn(2, 3), uniform_grid(6), None)
    assert denoiser.calls == calls


@every_sampler
def test_progress_is_told_after_every_step(sampler: Sampler) -> None:
    told: list[tuple[int, int]] = []
    sampler(
        GaussianDenoiser(), torch.randn(2, 3), uniform_grid(3), None, progress=lambda *now: told.append(now)
    )
    assert told == [(1, 3), (2, 3), (3, 3)]


@every_sampler
def test_half_precision_samples_run_in_float32_and_come_back_as_they_were(sampler: Sampler) -> None:
    denoiser = GaussianDenoiser(mean=1.3, std=0.7)
    x_t = torch.randn(64, 3, dtype=torch.bfloat16)
    x0 = sampler(denoiser, x_t, uniform_grid(50), None)
    assert x0.dtype == torch.bfloat16
    precise = sampler(denoiser, x_t.double(), uniform_grid(50), None)
    # The denoiser's own answers are rounded to 8 bits; the loop adds nothing that grows with the steps.
    torch.testing.assert_close(x0.double(), precise, atol=0.05, rtol=0)


@every_sampler
@pytest.mark.parametrize("times", [[1.0], [0.0, 1.0], [1.0, 0.5, 0.5, 0.0]])
def test_times_that_do_not_descend_are_refused(sampler: Sampler, times: list[float]) -> None:
    with pytest.raises(ValueError, match="descending"):
        sampler(GaussianDenoiser(), torch.randn(2, 3), times, None)


@every_sampler
def test_a_mixture_is_sampled_with_its_modes_and_widths(sampler: Sampler) -> None:
    centres = torch.tensor([[-2.0], [2.0]])
    x_t = torch.randn(4000, 1)
    x0 = sampler(MixtureDenoiser(centres=centres, std=0.3), x_t, uniform_grid(60), None)
    assert (x0 > 0).double().mean().item() == pytest.approx(0.5, abs=0.04)  # five standard errors
    assert (x0.abs() - 2).std().item() == pytest.approx(0.3, abs=0.03)
