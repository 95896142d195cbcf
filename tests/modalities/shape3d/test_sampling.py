from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from fewstep.modalities.shape3d.denoisers import VoxelCondition, VoxelVelocity
from fewstep.modalities.shape3d.networks.latent_flow import LatentFlow, LatentFlowConfig
from fewstep.modalities.shape3d.sampling import FlowSampling
from fewstep.modalities.shape3d.sparse.tensor import SparseTensor

MEAN, DEVIATION = 0.7, 0.3


class GaussianVelocity(nn.Module):
    """The exact velocity of Gaussian data; counts the samples that it is called with."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[float, int]] = []

    def forward(self, x_t: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        self.calls.append((t[0].item(), len(x_t)))
        t = t.double()[:, None]
        variance = (1 - t).square() * DEVIATION**2 + t.square()
        slope = (t - (1 - t) * DEVIATION**2) / variance
        # a condition other than zero moves the mean by itself
        mean = MEAN + condition.double()
        return (slope * (x_t.double() - (1 - t) * mean) - mean).to(x_t.dtype)


def gain(sampling: FlowSampling) -> float:
    """How much further apart two samples are than their noises."""
    noise = torch.tensor([[0.0], [1.0]])
    nothing = torch.zeros(2, 1)
    low, high = sampling.sample(GaussianVelocity(), noise, nothing, null_condition=nothing)
    return (high - low).item()


@pytest.mark.parametrize(
    ("num_steps", "shift", "expected"),
    [
        (1, 1.0, 0.0),
        (2, 1.0, 0.082569),
        (4, 1.0, 0.177247),
        (12, 1.0, 0.255167),
        (25, 1.0, 0.277708),
        (2, 3.0, 0.029703),
        (4, 3.0, 0.084391),
        (12, 3.0, 0.202354),
        (25, 3.0, 0.25036),
    ],
)
@pytest.mark.parametrize("sigma_min", [0.0, 1e-5])
def test_euler_shrinks_gaussian_data_by_the_known_factor(
    num_steps: int, shift: float, expected: float, sigma_min: float
) -> None:
    # Euler only sees velocities, so that sigma_min, which says how x0 follows from one, does not matter
    sampling = FlowSampling(num_steps=num_steps, shift=shift, guidance_scale=1.0, sigma_min=sigma_min)
    assert gain(sampling) == pytest.approx(expected, abs=1e-5)


def test_the_grid_is_the_originals() -> None:
    expected = [1, 0.971, 0.937, 0.9, 0.857, 0.808, 0.75, 0.682, 0.6, 0.5, 0.375, 0.214, 0]
    assert FlowSampling(num_steps=12).times().tolist() == pytest.approx(expected, abs=5e-4)


@pytest.mark.parametrize(("num_steps", "nfe"), [(25, 44), (12, 22)])
def test_guidance_costs_a_second_evaluation_within_its_interval_only(num_steps: int, nfe: int) -> None:
    network, sampling = GaussianVelocity(), FlowSampling(num_steps=num_steps)
    sampling.sample(network, torch.randn(1, 1), torch.ones(1, 1), null_condition=torch.zeros(1, 1))
    assert sum(samples for _, samples in network.calls) == sampling.nfe == nfe
    assert all((samples == 2) == (0.5 <= t <= 1.0) for t, samples in network.calls)


def test_both_ends_of_the_interval_belong_to_it() -> None:
    network = GaussianVelocity()
    sampling = FlowSampling(num_steps=4, shift=1.0, interval=(0.5, 0.75))
    sampling.sample(network, torch.randn(1, 1), torch.ones(1, 1), null_condition=torch.zeros(1, 1))
    assert network.calls == [(1.0, 1), (0.75, 2), (0.5, 2), (0.25, 1)]


@pytest.mark.parametrize("strength", [0.0, 3.0])
def test_a_strength_of_the_original_is_a_scale_less_one(strength: float) -> None:
    network, noise = GaussianVelocity(), torch.randn(3, 1)
    condition, null = torch.ones(3, 1), torch.zeros(3, 1)
    sampling = FlowSampling(num_steps=6, guidance_scale=1 + strength)
    found = sampling.sample(network, noise, condition, null_condition=null)
    x, times = noise, sampling.times().float()
    for t, t_next in pairwise(times):  # as the original does it
        velocity = network(x, t.expand(3), condition)
        if 0.5 <= t <= 1.0:
            velocity = (1 + strength) * velocity - strength * network(x, t.expand(3), null)
        x = x - (t - t_next) * velocity
    torch.testing.assert_close(found, x, atol=1e-5, rtol=1e-5)


def test_packed_samples_are_those_of_one_object_at_a_time() -> None:
    config = LatentFlowConfig(
        resolution=8, model_channels=24, cond_channels=6, num_blocks=1, num_heads=2, io_block_channels=(8,)
    )
    flow = LatentFlow(config).requires_grad_(False)
    for parameter in flow.parameters():
        nn.init.normal_(parameter, std=0.1)
    coords = (torch.rand(2, 8, 8, 8) < 0.2).nonzero()
    noise = SparseTensor.of(torch.randn(len(coords), 8), coords, batch_size=2, resolution=8)
    tokens, sampling = torch.randn(2, 3, 6), FlowSampling(num_steps=3)

    def sample(noise: SparseTensor, tokens: Tensor) -> Tensor:
        condition = VoxelCondition(voxels=noise, picture=tokens)
        null = condition.without_picture()
        return sampling.sample(VoxelVelocity(flow), noise.feats, condition, null_condition=null)

    together = sample(noise, tokens)
    alone = [sample(noise.sample(number), tokens[number : number + 1]) for number in range(2)]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-4, rtol=1e-4)
