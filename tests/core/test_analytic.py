"""Closed-form denoisers against numerical integration."""

import pytest
import torch

from fewstep.core.analytic import GaussianDenoiser, GaussianFlowMap, MixtureDenoiser
from fewstep.core.denoisers import FlowMap, velocity_of
from fewstep.core.paths import LinearPath, Path, VPPath


@pytest.mark.parametrize("path", [LinearPath(), VPPath()], ids=lambda path: type(path).__name__)
def test_mixture_denoiser_is_the_posterior_mean(path: Path) -> None:
    centres = torch.tensor([[-1.0], [0.5], [2.0]], dtype=torch.float64)
    denoiser = MixtureDenoiser(centres=centres, std=0.3, path=path)
    x_t = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]
    t = torch.full((9,), 0.4, dtype=torch.float64)
    x0 = torch.linspace(-6, 6, 20001, dtype=torch.float64)
    prior = torch.exp(-((x0 - centres) ** 2) / (2 * 0.3**2)).sum(0)
    joint = prior * torch.exp(-((x_t - path.alpha(t[0]) * x0) ** 2) / (2 * path.sigma(t[0]) ** 2))
    posterior_mean = (joint * x0).sum(1) / joint.sum(1)
    torch.testing.assert_close(denoiser(x_t, t, None)[:, 0], posterior_mean, rtol=1e-8, atol=1e-8)


def test_a_mixture_of_one_is_a_gaussian() -> None:
    x_t = torch.randn(8, 2, dtype=torch.float64)
    t = torch.linspace(0.1, 1, 8, dtype=torch.float64)
    centre = torch.tensor([[0.3, -0.7]], dtype=torch.float64)
    mixture = MixtureDenoiser(centres=centre, std=0.6)
    torch.testing.assert_close(mixture(x_t, t, None), GaussianDenoiser(mean=centre, std=0.6)(x_t, t, None))


def test_critic_minus_teacher_of_equal_width_is_constant_in_x() -> None:
    """(m - mu) t^2 / ((1 - t)^2 s^2 + t^2), wherever x_t is."""
    t = torch.full((5,), 0.6, dtype=torch.float64)
    x_t = torch.linspace(-3, 3, 5, dtype=torch.float64)[:, None]
    gap = GaussianDenoiser(mean=0.4, std=0.7)(x_t, t, None) - GaussianDenoiser(mean=1.3, std=0.7)(
        x_t, t, None
    )
    expected = (0.4 - 1.3) * 0.36 / (0.16 * 0.49 + 0.36)
    torch.testing.assert_close(gap, torch.full_like(gap, expected))


def test_the_flow_map_goes_where_the_probability_flow_goes() -> None:
    denoiser, flow_map = GaussianDenoiser(mean=1.3, std=0.7), GaussianFlowMap(mean=1.3, std=0.7)
    x_t = torch.linspace(-2, 3, 6, dtype=torch.float64)[:, None]
    t = torch.tensor([1.0, 0.9, 0.5, 0.5, 0.2, 1.0], dtype=torch.float64)
    r = torch.tensor([0.0, 0.4, 0.45, 0.0, 0.1, 0.7], dtype=torch.float64)
    jumped = x_t - (t - r)[:, None] * flow_map.average_velocity(x_t, t, r, None)
    torch.testing.assert_close(jumped, denoiser.transport(x_t, t[:, None], r[:, None]))
    zero = torch.zeros(6, 1, dtype=torch.float64)
    torch.testing.assert_close(flow_map(x_t, t, None), denoiser.transport(x_t, t[:, None], zero))
    assert isinstance(flow_map, FlowMap)


def test_the_flow_map_at_equal_times_is_the_velocity() -> None:
    x_t = torch.linspace(-2, 3, 6, dtype=torch.float64)[:, None]
    t = torch.linspace(0.1, 1, 6, dtype=torch.float64)
    velocity = velocity_of(GaussianDenoiser(mean=1.3, std=0.7), x_t, t, None)
    flow_map = GaussianFlowMap(mean=1.3, std=0.7)
    torch.testing.assert_close(flow_map.average_velocity(x_t, t, t, None), velocity)
    near = flow_map.average_velocity(x_t, t, t - 1e-7, None)
    torch.testing.assert_close(near, velocity, rtol=1e-6, atol=1e-6)


def test_training_in_half_precision_leaves_a_mixture_exact() -> None:
    centres = torch.tensor([[-1.03, 2.0], [0.57, 1.0], [2.0, -1.29]])
    denoiser, x_t, t = MixtureDenoiser(centres=centres, std=0.3), torch.randn(8, 2), torch.rand(8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = denoiser(x_t, t, None)
    torch.testing.assert_close(found, denoiser(x_t, t, None), rtol=0, atol=0)
