"""Denoising regression: its value and minimiser for Gaussian data, its spaces, its masks."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fewstep.core.analytic import GaussianDenoiser
from fewstep.core.layouts import Masked, Packed
from fewstep.core.objectives.contract import Turn
from fewstep.core.objectives.flow_matching import FlowMatching, Space, denoising_error
from fewstep.core.paths import LinearPath, Path, VPPath
from fewstep.core.schedules import TimeSampler

SPACES: list[Space] = ["velocity", "eps", "x0"]


@dataclass(frozen=True)
class FixedTime(TimeSampler):
    value: float

    def sample(
        self,
        batch_size: int,
        *,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
    ) -> Tensor:
        return torch.full((batch_size,), self.value)


class AffineCritic(nn.Module):
    """x0 = slope x_t + offset, at one time only."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.slope = nn.Parameter(torch.tensor(0.1, dtype=torch.float64))
        self.offset = nn.Parameter(torch.tensor(0.0, dtype=torch.float64))

    def forward(self, x_t: Tensor, t: Tensor, condition: object) -> Tensor:
        return self.slope * x_t + self.offset


def seeded_generator() -> torch.Generator:
    return torch.Generator().manual_seed(11)


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("path", [LinearPath(), VPPath()], ids=lambda path: type(path).__name__)
def test_an_affine_critic_fits_the_closed_form_whatever_the_space(space: Space, path: Path) -> None:
    critic = AffineCritic(path)
    x0 = 0.4 + 1.1 * torch.randn(50_000, 1, dtype=torch.float64)
    objective = FlowMatching(times=FixedTime(0.6), space=space)
    optimiser = torch.optim.LBFGS(critic.parameters(), line_search_fn="strong_wolfe")

    def closure() -> float:
        optimiser.zero_grad()
        loss, _ = objective.loss(critic, x0, condition=None, generator=seeded_generator())
        loss.backward()
        return float(loss.detach())

    optimiser.step(closure)
    t = torch.full((2,), 0.6, dtype=torch.float64)
    x_t = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    exact = GaussianDenoiser(mean=0.4, std=1.1, path=path)(x_t, t, None)
    torch.testing.assert_close(critic(x_t, t, None).detach(), exact, atol=0.01, rtol=0)


@pytest.mark.parametrize("space", SPACES)
def test_the_loss_of_a_perfect_denoiser_is_the_posterior_variance(space: Space) -> None:
    """s^2 sigma^2 / Var in x0, times the squared factor into the space: at t = 0.5 that is 4, 1 and 1."""
    t, s = 0.5, 0.7
    posterior = s**2 * t**2 / ((1 - t) ** 2 * s**2 + t**2)
    factor = {"velocity": 1 / t**2, "eps": ((1 - t) / t) ** 2, "x0": 1.0}[space]
    x0 = 1.3 + s * torch.randn(2000, 50)
    objective = FlowMatching(times=FixedTime(t), space=space)
    loss, diagnostics = objective.loss(GaussianDenoiser(mean=1.3, std=s), x0, condition=None)
    # 100,000 squares of a normal: relative standard error 0.0045, five of them.
    assert loss.item() == pytest.approx(factor * posterior, rel=0.022)
    assert diagnostics["x0_error_rms"].item() == pytest.approx(posterior**0.5, rel=0.011)


def test_velocity_loss_is_the_squared_velocity_error() -> None:
    """The literal formula: mean |v_hat - (eps - x0)|^2."""
    critic = AffineCritic(LinearPath())
    x0 = torch.randn(64, 3, dtype=torch.float64)
    loss, _ = FlowMatching(times=FixedTime(0.3)).loss(
        critic, x0, condition=None, generator=seeded_generator()
    )
    eps = torch.randn(64, 3, dtype=torch.float64, generator=seeded_generator())
    t = torch.tensor(0.3)
    x_t = (1 - t) * x0 + t * eps
    v_hat = (x_t - (critic.slope * x_t + critic.offset)) / t
    torch.testing.assert_close(loss, (v_hat - (eps - x0)).square().mean(), rtol=1e-6, atol=0)


def test_the_sample_gets_no_gradient_and_the_critic_does() -> None:
    critic = AffineCritic(LinearPath())
    x0 = torch.randn(8, 3, dtype=torch.float64, requires_grad=True)
    FlowMatching().loss(critic, x0, condition=None)[0].backward()
    assert x0.grad is None
    assert critic.slope.grad is not None
    assert critic.slope.grad != 0


class RecordingDenoiser(GaussianDenoiser):
    def __call__(self, x_t: Tensor, t: Tensor, condition: object) -> Tensor:
        TIMES_SEEN.append(t)
        return super().__call__(x_t, t, condition)


TIMES_SEEN: list[Tensor] = []


@pytest.mark.parametrize(("block", "frames"), [(1, 6), (3, 6), (4, 6), (6, 6)])
def test_blocks_of_frames_share_a_time_and_differ_between_blocks(block: int, frames: int) -> None:
    TIMES_SEEN.clear()
    x0 = torch.randn(2, frames, 3)
    FlowMatching(block=block).loss(RecordingDenoiser(), x0, condition=None)
    (t,) = TIMES_SEEN
    assert t.shape == (2, frames)
    for row in t:
        blocks = [set(row[start : start + block].tolist()) for start in range(0, frames, block)]
        assert all(len(times) == 1 for times in blocks)
        assert len(set.union(*blocks)) == len(blocks)


def test_per_frame_losses_equal_frames_taken_apart() -> None:
    x0, eps = torch.randn(2, 2, 3, 4, dtype=torch.float64)
    t = torch.rand(2, 3, dtype=torch.float64)
    denoiser = GaussianDenoiser(mean=0.2, std=0.5)
    together = denoising_error(denoiser, x0, eps, t, None)
    for frame in range(3):
        apart = denoising_error(denoiser, x0[:, frame], eps[:, frame], t[:, frame], None)
        torch.testing.assert_close(together[:, frame], apart)


def test_padding_changes_neither_loss_nor_gradient() -> None:
    mask = torch.tensor([[True, True, False], [True, False, False]])
    x0 = torch.randn(2, 3, 4, dtype=torch.float64)
    results = []
    for padding in (0.0, 1e3):
        critic = AffineCritic(LinearPath())
        padded = torch.where(mask[..., None], x0, padding)
        loss, _ = FlowMatching(times=FixedTime(0.5)).loss(
            critic, padded, condition=None, generator=seeded_generator(), layout=Masked(mask)
        )
        loss.backward()
        assert critic.slope.grad is not None
        results.append(torch.stack([loss.detach(), critic.slope.grad]))
    torch.testing.assert_close(results[0], results[1])


@pytest.mark.parametrize("space", SPACES)
def test_the_layout_changes_neither_loss_nor_gradient(
    layouts_agree: Callable[..., None], learnt_gaussian: Callable[..., Any], space: Space
) -> None:
    critic = learnt_gaussian()

    def loss(turn: Turn) -> Tensor:
        assert turn.data is not None
        objective = FlowMatching(space=space)
        return objective.loss_in(turn, critic, turn.data.x0, condition=None, layout=turn.data.layout)[0]

    layouts_agree(loss, parameters=list(critic.parameters()))


@pytest.mark.parametrize("block", [None, 2])
def test_a_loss_by_generator_is_the_loss_in_a_turn_of_that_generator(block: int | None) -> None:
    x0, denoiser, objective = torch.randn(3, 4, 2), GaussianDenoiser(), FlowMatching(block=block)
    by_generator, _ = objective.loss(denoiser, x0, condition=None, generator=seeded_generator())
    in_turn, _ = objective.loss_in(Turn(generator=seeded_generator()), denoiser, x0, condition=None)
    assert torch.equal(by_generator, in_turn)


def test_a_block_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="block"):
        FlowMatching(block=0)


def test_packed_samples_have_no_frames_to_time_apart() -> None:
    """Their second axis holds channels."""
    packed = Packed(torch.tensor([0, 0, 1]), 2)
    with pytest.raises(ValueError, match=r"block=1 .* \(3, 4\) .* set block to None"):
        FlowMatching(block=1).loss(GaussianDenoiser(), torch.randn(3, 4), condition=None, layout=packed)
