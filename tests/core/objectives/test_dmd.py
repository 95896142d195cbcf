"""DMD: its gradient against the formula and the KL divergence, its invariances, its masks."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from fewstep.core.analytic import GaussianDenoiser
from fewstep.core.denoisers import Denoiser, NetworkDenoiser, OnPath
from fewstep.core.layouts import DENSE, Layout, Masked, append_dims
from fewstep.core.objectives.contract import Objective, Sample, Turn
from fewstep.core.objectives.dmd import DMD, dmd_direction, kl_direction, pseudo_target_loss
from fewstep.core.objectives.flow_matching import FlowMatching
from fewstep.core.paths import EDMPath, LinearPath, Path, Prediction, VPPath, match_time
from tests.core.objectives.known_numbers import FixedTimes

Weighting = Literal["normalised", "kl", "none"]
WEIGHTINGS: list[Weighting] = ["normalised", "kl", "none"]


@dataclass(frozen=True)
class ConstantDenoiser:
    answer: Tensor
    path: Path = field(default_factory=LinearPath)

    def __call__(self, x_t: Tensor, t: Tensor, condition: object) -> Tensor:
        return self.answer


class ExactNetwork(nn.Module):
    def __init__(self, denoiser: GaussianDenoiser, kind: Prediction) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.kind: Prediction = kind

    def forward(self, x_t: Tensor, t: Tensor, condition: object) -> Tensor:
        x0 = self.denoiser(x_t, t, condition)
        return self.denoiser.path.from_x0(x0, x_t, append_dims(t, x_t), self.kind)


TEACHER = GaussianDenoiser(mean=1.3, std=0.7)
CRITIC = GaussianDenoiser(mean=0.4, std=1.1)


def gradient(
    x: Tensor,
    objective: DMD,
    teacher: Denoiser = TEACHER,
    critic: Denoiser = CRITIC,
    *,
    layout: Layout = DENSE,
    weight: Tensor | None = None,
) -> Tensor:
    """d loss / d x with the noise of a fixed seed."""
    leaf = x.detach().clone().requires_grad_()
    turn = Turn(
        sample=Sample(x=leaf, layout=layout, weight=weight),
        teacher=teacher,
        critic=critic,
        generator=torch.Generator().manual_seed(7),
    )
    loss, _ = objective.student_loss(turn)
    (grad,) = torch.autograd.grad(loss, leaf)
    return grad


@given(batch=st.integers(1, 4), size=st.integers(1, 6), seed=st.integers(0, 99))
def test_gradient_is_the_gap_over_normaliser_batch_and_size(batch: int, size: int, seed: int) -> None:
    """T-DMD-1, against the formula written out."""
    torch.manual_seed(seed)
    x, x0_teacher, x0_critic = torch.randn(3, batch, size, 2, dtype=torch.float64)
    grad = gradient(x, DMD(), ConstantDenoiser(x0_teacher), ConstantDenoiser(x0_critic))
    normaliser = (x - x0_teacher).abs().mean(dim=(1, 2), keepdim=True)
    expected = (x0_critic - x0_teacher) / normaliser / (batch * size * 2)
    torch.testing.assert_close(grad, expected, rtol=1e-4, atol=1e-9)  # 1e-6 in the normaliser


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_student_equal_to_teacher_gets_no_gradient_anywhere(weighting: Weighting) -> None:
    """T-DMD-3."""
    x = 5 * torch.randn(16, 3, dtype=torch.float64)
    assert (gradient(x, DMD(weighting=weighting), TEACHER, TEACHER) == 0).all()


def test_kl_weighting_gives_the_gradient_of_the_kl_divergence() -> None:
    """T-DMD-2: student 0.4 + 1.1 z against N(1.3, 0.7^2) at t = 0.5; the expectations are exact.

    The direction is affine in (z, eps), so the corners of +-1 integrate it and its product with z exactly.
    """
    z, eps = torch.tensor([[1.0, 1.0, -1.0, -1.0], [1.0, -1.0, 1.0, -1.0]], dtype=torch.float64)[..., None]
    t = torch.full((4,), 0.5, dtype=torch.float64)
    x_t = LinearPath().add_noise(0.4 + 1.1 * z, eps, t[:, None])
    direction = kl_direction(TEACHER(x_t, t, None), CRITIC(x_t, t, None), LinearPath(), t)
    assert direction.mean().item() == pytest.approx(-0.60403, abs=1e-5)
    assert (direction * z).mean().item() == pytest.approx(0.24052, abs=1e-5)


def test_kl_weighting_is_the_score_gap_times_alpha_at_every_time() -> None:
    x_t = torch.randn(3, 4, dtype=torch.float64)
    t = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    time = t[:, None]
    scores = [
        -(x_t - (1 - time) * mean) / ((1 - time) ** 2 * std**2 + time**2)
        for mean, std in [(0.4, 1.1), (1.3, 0.7)]
    ]
    direction = kl_direction(TEACHER(x_t, t, None), CRITIC(x_t, t, None), LinearPath(), t)
    torch.testing.assert_close(direction, (1 - time) * (scores[0] - scores[1]))


def test_kl_weighting_agrees_with_autograd_through_the_kl_itself() -> None:
    mu = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)
    v = torch.tensor(1.1, dtype=torch.float64, requires_grad=True)
    student = torch.distributions.Normal(0.5 * mu, (0.25 * v**2 + 0.25).sqrt())
    teacher = torch.distributions.Normal(
        torch.tensor(0.65, dtype=torch.float64), torch.tensor(0.25 * 0.49 + 0.25, dtype=torch.float64).sqrt()
    )
    torch.distributions.kl_divergence(student, teacher).backward()
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(400_000, 1, generator=generator, dtype=torch.float64)
    grad = len(z) * gradient(0.4 + 1.1 * z, DMD(times=FixedTimes((0.5,)), weighting="kl"))
    assert mu.grad is not None
    assert v.grad is not None
    # Five standard errors of 400,000 draws.
    assert grad.mean().item() == pytest.approx(mu.grad.item(), abs=0.004)
    assert (grad * z).mean().item() == pytest.approx(v.grad.item(), abs=0.006)


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("path", [VPPath(), EDMPath()], ids=lambda path: type(path).__name__)
def test_the_path_makes_no_difference_at_equal_noise_to_signal(path: Path, weighting: Weighting) -> None:
    x = torch.randn(12, 3, dtype=torch.float64)
    times = torch.tensor([0.1, 0.4, 0.8], dtype=torch.float64)
    matched, _ = match_time(times, LinearPath(), path)
    here = gradient(x, DMD(times=FixedTimes(tuple(times.tolist())), weighting=weighting))
    wrapped = [OnPath(denoiser, path) for denoiser in (TEACHER, CRITIC)]
    there = gradient(x, DMD(times=FixedTimes(tuple(matched.tolist())), weighting=weighting), *wrapped)
    torch.testing.assert_close(there, here, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", ["x0", "eps", "velocity", "v_ddpm", "score"])
def test_what_the_networks_predict_makes_no_difference(kind: Prediction) -> None:
    x = torch.randn(12, 3, dtype=torch.float64)
    objective = DMD(times=FixedTimes((0.1, 0.4, 0.8)))
    wrapped = [
        NetworkDenoiser(ExactNetwork(denoiser, kind), prediction=kind) for denoiser in (TEACHER, CRITIC)
    ]
    torch.testing.assert_close(gradient(x, objective, *wrapped), gradient(x, objective), rtol=1e-9, atol=1e-9)


def test_the_normaliser_makes_the_gradient_blind_to_the_scale_of_the_data() -> None:
    x, x0_teacher, x0_critic = torch.randn(3, 4, 5, dtype=torch.float64)
    large = dmd_direction(1000 * x, 1000 * x0_teacher, 1000 * x0_critic)
    torch.testing.assert_close(large, dmd_direction(x, x0_teacher, x0_critic), rtol=1e-5, atol=0)


def test_a_perfect_sample_has_a_finite_direction() -> None:
    x = torch.randn(2, 3)
    assert (dmd_direction(x, x, x) == 0).all()


def test_teacher_and_critic_get_no_gradient() -> None:
    networks = [nn.Linear(3, 3, bias=False) for _ in range(2)]

    class Wrapped(nn.Module):
        def __init__(self, network: nn.Module) -> None:
            super().__init__()
            self.network, self.path = network, LinearPath()

        def forward(self, x_t: Tensor, t: Tensor, condition: object) -> Tensor:
            return self.network(x_t)

    x = torch.randn(4, 3, requires_grad=True)
    teacher, critic = map(Wrapped, networks)
    DMD().student_loss(Turn(sample=Sample(x=x), teacher=teacher, critic=critic))[0].backward()
    assert x.grad is not None
    assert x.grad.abs().max() > 0
    assert all(network.weight.grad is None for network in networks)


def test_frames_get_their_weights_share_of_the_gradient() -> None:
    x = torch.randn(2, 4, 3, dtype=torch.float64)
    weight = torch.tensor([[0.0, 0.0, 1.0, 0.25]], dtype=torch.float64).expand(2, 4)
    objective = DMD(times=FixedTimes((0.5,)))
    windowed, whole = gradient(x, objective, weight=weight), gradient(x, objective)
    assert (windowed[:, :2] == 0).all()
    assert torch.equal(windowed[:, 2], whole[:, 2])
    assert torch.equal(windowed[:, 3], 0.25 * whole[:, 3])


def test_padding_changes_neither_loss_nor_gradient() -> None:
    mask = torch.tensor([[True, True, False], [True, False, False]])
    x = torch.randn(2, 3, 4, dtype=torch.float64)
    grads = [
        gradient(torch.where(mask[..., None], x, padding), DMD(times=FixedTimes((0.5,))), layout=Masked(mask))
        for padding in (0.0, 1e3)
    ]
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-12, atol=1e-12)
    assert (grads[1][~mask] == 0).all()
    assert (grads[1][mask] != 0).all()


def test_a_batch_of_one_is_a_slice_of_the_batch() -> None:
    x, x0_teacher, x0_critic = torch.randn(3, 4, 5, dtype=torch.float64)
    direction = dmd_direction(x, x0_teacher, x0_critic)
    for i in range(4):
        alone = dmd_direction(x[i : i + 1], x0_teacher[i : i + 1], x0_critic[i : i + 1])
        torch.testing.assert_close(alone[0], direction[i])


def test_half_precision_samples_are_compared_in_float32() -> None:
    x, x0_teacher = torch.randn(2, 8, 16, dtype=torch.bfloat16)
    x0_critic = x0_teacher + 0.05
    leaf = x.clone().requires_grad_()
    teacher, critic = ConstantDenoiser(x0_teacher), ConstantDenoiser(x0_critic)
    loss, _ = DMD().student_loss(Turn(sample=Sample(x=leaf), teacher=teacher, critic=critic))
    assert loss.dtype == torch.float32
    loss.backward()
    assert leaf.grad is not None
    expected = dmd_direction(x.double(), x0_teacher.double(), x0_critic.double()) / x.numel()
    torch.testing.assert_close(leaf.grad.double(), expected, rtol=2**-7, atol=1e-7)


def test_loss_is_half_the_mean_squared_direction() -> None:
    x, direction = torch.randn(2, 3, 4)
    torch.testing.assert_close(pseudo_target_loss(x, direction), 0.5 * direction.square().mean())


def test_diagnostics_are_the_stated_sizes() -> None:
    x, x0_teacher, x0_critic = torch.randn(3, 4, 5, dtype=torch.float64)
    teacher, critic = ConstantDenoiser(x0_teacher), ConstantDenoiser(x0_critic)
    _, diagnostics = DMD().student_loss(Turn(sample=Sample(x=x), teacher=teacher, critic=critic))
    direction = dmd_direction(x, x0_teacher, x0_critic)
    torch.testing.assert_close(diagnostics["gap_rms"], (x0_critic - x0_teacher).square().mean().sqrt())
    torch.testing.assert_close(diagnostics["direction_rms"], direction.square().mean().sqrt())
    normaliser = (x - x0_teacher).abs().mean()
    torch.testing.assert_close(diagnostics["normaliser"], normaliser, rtol=1e-4, atol=0)


def test_networks_of_different_paths_are_refused_with_the_remedy() -> None:
    with pytest.raises(ValueError, match="OnPath"):
        gradient(torch.randn(2, 3), DMD(), TEACHER, GaussianDenoiser(path=VPPath()))


def test_a_generator_decides_the_loss_and_the_global_one_is_left_alone() -> None:
    x = torch.randn(4, 3)
    state = torch.get_rng_state()
    assert torch.equal(gradient(x, DMD()), gradient(x, DMD()))
    assert torch.equal(torch.get_rng_state(), state)


def test_dmd_is_an_objective_that_trains_a_critic_and_decodes_nothing() -> None:
    objective: Objective = DMD()
    assert objective.needs == {"teacher", "critic", "sample"}


@pytest.mark.parametrize("missing", ["sample", "teacher", "critic"])
def test_what_is_missing_is_named(missing: str) -> None:
    turn = Turn(sample=Sample(x=torch.zeros(2, 3)), teacher=TEACHER, critic=CRITIC)
    with pytest.raises(ValueError, match=missing):
        DMD().student_loss(replace(turn, **{missing: None}))


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_the_layout_changes_neither_loss_nor_gradient(
    layouts_agree: Callable[..., None], weighting: Weighting
) -> None:
    layouts_agree(lambda turn: DMD(weighting=weighting).student_loss(turn)[0], teacher=TEACHER, critic=CRITIC)


def test_the_layout_changes_neither_the_critics_loss_nor_its_gradient(
    layouts_agree: Callable[..., None], learnt_gaussian: Callable[..., Any]
) -> None:
    critic = learnt_gaussian()
    layouts_agree(
        lambda turn: DMD().critic_loss(turn)[0], critic=critic, parameters=list(critic.parameters())
    )


@pytest.mark.parametrize("batch", [1, 3])
def test_the_critic_regresses_on_detached_samples_at_its_own_times(
    learnt_gaussian: Callable[..., Any], batch: int
) -> None:
    """The literal formula: mean |v_hat - (eps - x)|^2 at the regression's times, not the comparison's."""
    critic = learnt_gaussian()
    x = torch.randn(batch, 5, dtype=torch.float64, requires_grad=True)
    objective = DMD(times=FixedTimes((0.9,)), regression=FlowMatching(times=FixedTimes((0.4,))))
    turn = Turn(sample=Sample(x=x), critic=critic, generator=torch.Generator().manual_seed(3))
    loss, _ = objective.critic_loss(turn)
    eps = torch.randn(batch, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    x_t = 0.6 * x + 0.4 * eps
    v_hat = (x_t - critic(x_t, torch.full((batch,), 0.4, dtype=torch.float64), None)) / 0.4
    torch.testing.assert_close(loss, (v_hat - (eps - x)).square().mean())
    loss.backward()
    assert x.grad is None
