"""Paths: conversions against their formulas, each other, and the limits of their precision."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fewstep.core.analytic import GaussianDenoiser
from fewstep.core.paths import (
    DiscreteVPPath,
    EDMPath,
    LinearPath,
    Path,
    Prediction,
    TrigFlowPath,
    VPPath,
    match_time,
)
from fewstep.core.schedules import shift

PATHS: list[Path] = [
    LinearPath(),
    LinearPath(sigma_min=1e-5),
    VPPath(),
    TrigFlowPath(sigma_data=0.5),
    EDMPath(),
    DiscreteVPPath.scaled_linear(),
]
KINDS: list[Prediction] = ["x0", "eps", "velocity", "v_ddpm", "score"]
TIMES = st.floats(0.01, 0.99)
EXACT = 1e-9  # float64, times the amplification of a division by alpha or sigma of 0.01

every_path = pytest.mark.parametrize("path", PATHS, ids=lambda path: type(path).__name__)


def sample(t: float, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    x0, eps = torch.randn(2, 3, 4, generator=generator, dtype=torch.float64)
    return x0.to(dtype), eps.to(dtype), torch.full((3, 1), t, dtype=torch.float64)


@every_path
@pytest.mark.parametrize("kind", KINDS)
@given(t=TIMES)
def test_every_prediction_converts_to_x0_and_back(path: Path, kind: Prediction, t: float) -> None:
    x0, eps, time = sample(t)
    x_t = path.add_noise(x0, eps, time)
    there = path.from_x0(x0, x_t, time, kind)
    torch.testing.assert_close(path.to_x0(there, x_t, time, kind), x0, rtol=EXACT, atol=EXACT)


@every_path
@given(t=TIMES)
def test_predictions_of_a_known_pair_are_their_definitions(path: Path, t: float) -> None:
    x0, eps, time = sample(t)
    x_t = path.add_noise(x0, eps, time)
    alpha, sigma = path.alpha(time), path.sigma(time)
    expected = {
        "x0": x0,
        "eps": eps,
        "velocity": path.alpha_dot(time) * x0 + path.sigma_dot(time) * eps,
        "v_ddpm": alpha * eps - sigma * x0,
        "score": -eps / sigma,
    }
    for kind in KINDS:
        torch.testing.assert_close(path.from_x0(x0, x_t, time, kind), expected[kind], rtol=1e-8, atol=1e-8)
    eps_again = path.eps_from_velocity(expected["velocity"], x_t, time)
    torch.testing.assert_close(eps_again, eps, rtol=EXACT, atol=EXACT)


@every_path
def test_dotted_coefficients_are_time_derivatives(path: Path) -> None:
    t = torch.linspace(0.0503, 0.9503, 10, dtype=torch.float64, requires_grad=True)
    for value, dot in ((path.alpha, path.alpha_dot), (path.sigma, path.sigma_dot)):
        by_difference = (value(t.detach() + 1e-6) - value(t.detach() - 1e-6)) / 2e-6
        torch.testing.assert_close(dot(t.detach()), by_difference, rtol=1e-6, atol=1e-6)


@every_path
def test_wronskian_is_its_definition(path: Path) -> None:
    t = torch.linspace(0, 0.99, 12, dtype=torch.float64)
    definition = path.alpha(t) * path.sigma_dot(t) - path.sigma(t) * path.alpha_dot(t)
    torch.testing.assert_close(path.wronskian(t), definition)


def test_linear_path_has_the_textbook_formulas() -> None:
    x0, eps, t = sample(0.3)
    path = LinearPath()
    x_t = (1 - t) * x0 + t * eps
    velocity = eps - x0
    torch.testing.assert_close(path.add_noise(x0, eps, t), x_t)
    torch.testing.assert_close(path.velocity_from_x0(x0, x_t, t), velocity)
    torch.testing.assert_close(path.x0_from_velocity(velocity, x_t, t), x_t - t * velocity)
    torch.testing.assert_close(path.eps_from_velocity(velocity, x_t, t), x_t + (1 - t) * velocity)


@every_path
@given(t=TIMES, w=st.floats(0, 8))
def test_guidance_commutes_with_every_conversion(path: Path, t: float, w: float) -> None:
    x0, eps, time = sample(t)
    x_t = path.add_noise(x0, eps, time)
    other = x0.flip(0)
    for kind in KINDS:
        null, conditional = (path.from_x0(x, x_t, time, kind) for x in (other, x0))
        guided = path.to_x0(null + w * (conditional - null), x_t, time, kind)
        torch.testing.assert_close(guided, other + w * (x0 - other), rtol=1e-8, atol=1e-8)


@every_path
@given(t=TIMES)
def test_score_gap_is_the_x0_gap_scaled(path: Path, t: float) -> None:
    x0, eps, time = sample(t)
    x_t = path.add_noise(x0, eps, time)
    gap = path.score_from_x0(x0, x_t, time) - path.score_from_x0(x0.flip(0), x_t, time)
    expected = path.alpha(time) / path.sigma(time).square() * (x0 - x0.flip(0))
    torch.testing.assert_close(gap, expected, rtol=1e-8, atol=1e-8)


@every_path
@pytest.mark.parametrize("kind", KINDS)
def test_error_scale_is_the_size_of_a_unit_x0_error(path: Path, kind: Prediction) -> None:
    x0, eps, time = sample(0.37)
    x_t = path.add_noise(x0, eps, time)
    difference = path.from_x0(x0 + 1, x_t, time, kind) - path.from_x0(x0, x_t, time, kind)
    torch.testing.assert_close(difference.abs(), path.error_scale(time, kind).expand_as(x0))


@every_path
def test_score_of_a_gaussian_is_the_gradient_of_its_log_density(path: Path) -> None:
    denoiser = GaussianDenoiser(mean=1.3, std=0.7, path=path)
    t = torch.full((5,), 0.4, dtype=torch.float64)
    x_t = torch.linspace(-2, 2, 5, dtype=torch.float64)
    score = path.score_from_x0(denoiser(x_t, t, None), x_t, t)
    torch.testing.assert_close(score, -(x_t - path.alpha(t) * 1.3) / denoiser.variance(t))


@every_path
@given(s=TIMES, later=TIMES)
def test_renoising_gives_the_marginal_of_the_later_time(path: Path, s: float, later: float) -> None:
    s, t = sorted((s, later))
    s_time, t_time = (torch.tensor(time, dtype=torch.float64) for time in (s, t))
    zero, one = torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    # Linear in (x_s, xi), so two basis vectors give the coefficients of x0 and the variance exactly.
    carried = path.renoise(one, s_time, t_time, zero)
    fresh = path.renoise(zero, s_time, t_time, one)
    torch.testing.assert_close(carried * path.alpha(s_time), path.alpha(t_time)[None], rtol=1e-9, atol=1e-9)
    variance = (carried * path.sigma(s_time)).square() + fresh.square()
    torch.testing.assert_close(variance, path.sigma(t_time).square()[None], rtol=1e-9, atol=1e-9)


@every_path
def test_renoising_to_the_same_time_changes_nothing(path: Path) -> None:
    x_s, xi, t = sample(0.3)
    assert torch.equal(path.renoise(x_s, t, t, xi), x_s)


def test_renoising_to_a_cleaner_time_is_nan_not_a_guess() -> None:
    x_s, xi, t = sample(0.3)
    assert LinearPath().renoise(x_s, t, t - 0.1, xi).isnan().all()


@every_path
@given(t=TIMES)
def test_time_of_eta_inverts_eta(path: Path, t: float) -> None:
    time = torch.tensor(t, dtype=torch.float64)
    torch.testing.assert_close(path.time_of_eta(path.eta(time)), time, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("source", PATHS, ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("target", PATHS, ids=lambda p: type(p).__name__)
def test_matched_times_carry_the_same_signal_and_noise(source: Path, target: Path) -> None:
    x0, eps, t = sample(0.4)
    matched, scale = match_time(t, source, target)
    expected = target.add_noise(x0, eps, matched)
    torch.testing.assert_close(scale * source.add_noise(x0, eps, t), expected, rtol=1e-9, atol=1e-9)


def test_matched_times_survive_both_ends() -> None:
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
    matched, scale = match_time(ends, LinearPath(), VPPath())
    torch.testing.assert_close(matched, ends)
    torch.testing.assert_close(scale, torch.ones_like(ends))


@given(t=TIMES, scale=st.floats(0.5, 12))
def test_shifting_time_multiplies_the_linear_eta(t: float, scale: float) -> None:
    time = torch.tensor(t, dtype=torch.float64)
    torch.testing.assert_close(LinearPath().eta(shift(time, scale)), scale * LinearPath().eta(time))


def test_discrete_path_reproduces_its_table_and_timesteps() -> None:
    path = DiscreteVPPath.scaled_linear()
    k = torch.tensor([0, 1, 399, 998, 999])
    t = k.double() / 999
    table = torch.tensor(path.alphas_cumprod, dtype=torch.float64)[k]
    # tighter than its neighbours' slopes differ: one entry must not be extrapolated from others
    torch.testing.assert_close(path.alpha(t).square(), table, rtol=1e-10, atol=0)
    torch.testing.assert_close(path.sigma(t).square(), 1 - table, rtol=1e-10, atol=0)
    assert torch.equal(path.timestep(t), k)


def test_stable_diffusion_table_ends_with_its_known_signal() -> None:
    alpha = DiscreteVPPath.scaled_linear().alpha(torch.ones((), dtype=torch.float64))
    assert alpha.item() == pytest.approx(0.0682650, abs=1e-6)  # why x0 from eps needs float32 at least


@pytest.mark.parametrize("table", [(0.9,), (0.5, 0.9), (1.0, 0.5), (0.9, 0.0)])
def test_discrete_path_refuses_a_table_that_does_not_fall_inside_0_1(table: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="alphas_cumprod"):
        DiscreteVPPath(table)


@every_path
def test_half_precision_samples_are_converted_in_float32(path: Path) -> None:
    x0, eps, t = sample(0.93, torch.bfloat16)
    x_t = path.add_noise(x0, eps, t.float())
    exact = path.x0_from_eps(eps.double(), x_t.double(), t)
    converted = path.x0_from_eps(eps, x_t, t.float())
    assert converted.dtype == torch.bfloat16
    # One rounding, of the result: half a unit in the last of bfloat16's 8 bits.
    torch.testing.assert_close(converted.double(), exact, rtol=2**-8, atol=1e-5)


def test_the_same_conversion_in_bfloat16_would_be_off() -> None:
    x0, eps, t = sample(0.93, torch.bfloat16)
    x_t = LinearPath().add_noise(x0, eps, t.float())
    naive = (x_t - t.bfloat16() * eps) / (1 - t.bfloat16())
    error = (naive.double() - LinearPath().x0_from_eps(eps.double(), x_t.double(), t)).abs()
    assert error.max() > 0.02


@pytest.mark.parametrize("path", [LinearPath(), VPPath(), TrigFlowPath()], ids=lambda p: type(p).__name__)
def test_velocities_give_x0_at_both_ends(path: Path) -> None:
    x0, eps, _ = sample(0.5)
    for end in (0.0, 1.0):
        t = torch.full((3, 1), end, dtype=torch.float64)
        x_t = path.add_noise(x0, eps, t)
        velocity = path.alpha_dot(t) * x0 + path.sigma_dot(t) * eps
        torch.testing.assert_close(path.x0_from_velocity(velocity, x_t, t), x0)


def test_singular_ends_are_not_papered_over() -> None:
    x0, eps, _ = sample(0.5)
    clean, noise = (torch.full((3, 1), end, dtype=torch.float64) for end in (0.0, 1.0))
    assert not LinearPath().eps_from_x0(x0, x0, clean).isfinite().any()
    assert not LinearPath().velocity_from_x0(x0, x0, clean).isfinite().any()
    assert not VPPath().x0_from_eps(eps, eps, noise).isfinite().any()


def test_trigflow_velocity_is_its_network_times_sigma_data() -> None:
    """Lu & Song (2024): D = cos(tau) x - sin(tau) sigma_d F, with dx/dtau = sigma_d F."""
    path = TrigFlowPath(sigma_data=0.5)
    network, x_t, t = sample(0.3)
    tau = path.angle(t)
    x0 = tau.cos() * x_t - tau.sin() * 0.5 * network
    velocity = (math.pi / 2) * 0.5 * network
    torch.testing.assert_close(path.x0_from_velocity(velocity, x_t, t), x0)


@every_path
def test_a_time_in_half_precision_is_taken_as_it_is_and_computed_with_in_float32(path: Path) -> None:
    x0, eps, _ = sample(0.4, torch.bfloat16)
    t = torch.full((3, 1), 0.4).bfloat16()
    expected = path.add_noise(x0.float(), eps.float(), t.float())
    assert torch.equal(path.add_noise(x0, eps, t), expected.bfloat16())
