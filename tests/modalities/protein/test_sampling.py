"""Teachers' samplers on Gaussian data, where the result is known, and what chains ask of them."""

import math

import pytest
import torch
from torch import Tensor

from fewstep.core.analytic import GaussianDenoiser
from fewstep.core.paths import LinearPath
from fewstep.modalities.protein.centring import centred, centred_noise
from fewstep.modalities.protein.denoisers import ChainCondition, GuidedChains, chain_denoiser
from fewstep.modalities.protein.networks.transformer import ProteinTransformer, ProteinTransformerConfig
from fewstep.modalities.protein.sampling import ChainSampling
from fewstep.modalities.protein.student_sampling import StudentSampling
from fewstep.modalities.protein.times import student_grid

STD = 0.9  # nanometre, of a chain of a hundred residues
RESIDUES = 24
MASK = torch.ones(160, RESIDUES, dtype=torch.bool)
GAUSSIAN = GaussianDenoiser(std=STD)


def final_std(sampling: ChainSampling | StudentSampling) -> float:
    x = sampling.sample(GAUSSIAN, ChainCondition(MASK), generator=torch.Generator().manual_seed(0))
    # the centre of each chain is no longer free
    return float(x.std()) * math.sqrt(RESIDUES / (RESIDUES - 1))


@pytest.mark.parametrize("gamma", [1.0, 0.45])
def test_the_stochastic_sampler_ends_at_the_root_of_gamma(gamma: float) -> None:
    sampling = ChainSampling(num_steps=400, gain_cap=None, noise_variance=gamma)
    assert final_std(sampling) == pytest.approx(math.sqrt(gamma) * STD, rel=0.02)  # 3 standard errors


@pytest.mark.parametrize(
    ("num_steps", "std"), [(100, 0.904), (50, 0.909), (20, 0.999), (16, 1.339), (10, 5.3)]
)
def test_without_a_cap_few_steps_of_euler_blow_up(num_steps: int, std: float) -> None:
    assert final_std(ChainSampling(num_steps=num_steps, gain_cap=None, noise_variance=1.0)) == pytest.approx(
        std, rel=0.03
    )


@pytest.mark.parametrize("num_steps", [50, 20, 16, 10])
def test_with_a_cap_any_number_of_steps_is_stable(num_steps: int) -> None:
    assert final_std(ChainSampling(num_steps=num_steps, noise_variance=1.0)) == pytest.approx(STD, rel=0.07)


def test_the_cap_leaves_no_step_longer_than_it_may_be() -> None:
    for num_steps in (10, 100, 400):
        sampling = ChainSampling(num_steps=num_steps, gain_cap=0.5)
        times, gains = sampling.times(), sampling.gains()
        steps = -times.diff()
        assert bool((gains * steps <= 0.5 * times[:-1].square() + 1e-12).all())
        assert not gains[times[:-1] < 0.01].any()
    free = ChainSampling(num_steps=400, gain_cap=None).gains()
    torch.testing.assert_close(free[0], torch.tensor(100.0, dtype=torch.float64))


@pytest.mark.parametrize(("gain", "half"), [("inverse", 1 / 0.51), ("ratio", 0.5 / 0.51), ("tangent", 1.55)])
def test_gains_at_half_time(gain, half: float) -> None:
    sampling = ChainSampling(num_steps=2, schedule="uniform", gain=gain, gain_cap=None)
    assert float(sampling.gains()[1]) == pytest.approx(half, abs=0.01)


def test_the_ode_ends_at_the_data() -> None:
    assert final_std(ChainSampling(num_steps=400, stochastic=False)) == pytest.approx(STD, rel=0.02)
    # one step goes to the estimate itself
    noise = centred_noise(MASK[:2])
    sampling = ChainSampling(num_steps=1, stochastic=False)
    x = sampling.sample(GAUSSIAN, ChainCondition(MASK[:2]), noise=noise)
    torch.testing.assert_close(x, GAUSSIAN(noise, torch.ones(2), None), atol=1e-6, rtol=0.0)


def test_renoising_shrinks_and_weaker_noise_shrinks_more() -> None:
    stds = [final_std(StudentSampling(times=student_grid(16), noise_scale=g)) for g in (0.3, 0.45, 0.8, 1.0)]
    assert stds == sorted(stds)
    assert stds[-1] < STD
    # all that is done is linear, so the result scales with the noise
    assert stds[1] / stds[3] == pytest.approx(0.45, rel=1e-4)


class Recorder(torch.nn.Module):
    """A denoiser that remembers what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.path = LinearPath()
        self.seen: list[tuple[Tensor, float, ChainCondition]] = []
        self.given: list[Tensor] = []

    def forward(self, x_t: Tensor, t: Tensor, condition: ChainCondition) -> Tensor:
        self.seen.append((x_t, float(t[0]), condition))
        # a centre elsewhere and something at padding, as a network may give
        self.given.append(0.5 * x_t + torch.randn_like(x_t) + 3.0)
        return self.given[-1]


PADDED = torch.tensor([[True] * 7, [True] * 4 + [False] * 3])


@pytest.mark.parametrize("sampling", [ChainSampling(num_steps=5), StudentSampling(times=student_grid(5))])
def test_every_call_sees_centred_chains_and_zeros_at_padding(sampling) -> None:
    recorder = Recorder()
    x = sampling.sample(recorder, ChainCondition(PADDED))
    assert len(recorder.seen) == sampling.num_steps == 5
    for chain in [x, *(seen for seen, _, _ in recorder.seen)]:
        assert not chain[~PADDED].any()
        assert float(chain.sum(1).abs().max()) < 1e-4


def test_each_call_is_told_the_estimate_before_it_or_nothing() -> None:
    told, untold = Recorder(), Recorder()
    ChainSampling(num_steps=3).sample(told, ChainCondition(PADDED))
    ChainSampling(num_steps=3, self_condition=False).sample(untold, ChainCondition(PADDED))
    conditions = [condition.self_condition for _, _, condition in told.seen]
    assert conditions[0] is None
    for condition, estimate in zip(conditions[1:], told.given, strict=False):
        assert condition is not None
        torch.testing.assert_close(condition, estimate)
    assert all(condition.self_condition is None for _, _, condition in untold.seen)


def test_guidance_costs_the_calls_that_are_counted() -> None:
    labels = torch.zeros(2, 3, dtype=torch.int64)
    plain, worse = Recorder(), Recorder()
    cases = (
        (GuidedChains(plain, guidance_scale=1.0), 1),
        (GuidedChains(plain, guidance_scale=2.0), 2),
        (GuidedChains(plain, guidance_scale=2.0, worse=worse, autoguidance_share=1.0), 2),
        (GuidedChains(plain, guidance_scale=2.0, worse=worse, autoguidance_share=0.5), 3),
    )
    sampling = ChainSampling(num_steps=4)
    for denoiser, per_step in cases:
        plain.seen.clear()
        worse.seen.clear()
        sampling.sample(denoiser, ChainCondition(PADDED, labels=labels))
        assert len(plain.seen) + len(worse.seen) == sampling.nfe(denoiser) == 4 * per_step


def test_a_padded_chain_is_the_chain_alone() -> None:
    config = ProteinTransformerConfig(
        token_dim=16, pair_dim=8, cond_dim=8, num_blocks=2, num_heads=2, registers=2,
        time_dim=8, index_dim=8, fold_dim=4, fold_classes=(3, 0, 0),
    )  # fmt: skip
    denoiser = chain_denoiser(ProteinTransformer(config).eval())
    for parameter in denoiser.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    noise = torch.randn(2, 7, 3)
    noise[1, :4] -= noise[1, :4].mean(0)
    sampling = ChainSampling(num_steps=4, stochastic=False)
    both = sampling.sample(denoiser, ChainCondition(PADDED), noise=noise)
    alone = sampling.sample(denoiser, ChainCondition(PADDED[1:, :4]), noise=noise[1:, :4])
    assert float(alone.abs().max()) > 0.1
    torch.testing.assert_close(both[1:, :4], alone, atol=1e-5, rtol=0.0)


def test_centring_ignores_padding_and_projects() -> None:
    x = torch.randn(2, 7, 3)
    once = centred(x, PADDED)
    torch.testing.assert_close(centred(once, PADDED), once, atol=1e-6, rtol=0.0)
    garbage = torch.where(PADDED[..., None], x, 1e6)
    assert torch.equal(centred(garbage, PADDED), once)


@pytest.mark.parametrize(
    "options", [{"noise_variance": -1.0}, {"gain_cap": 0.0}, {"num_steps": 0}, {"power": 0.0}]
)
def test_settings_without_meaning_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        ChainSampling(**options)  # pyright: ignore[reportArgumentType]
