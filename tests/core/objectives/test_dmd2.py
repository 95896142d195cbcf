"""DMD2: the GAN on the critic's features, the two time scales, backward simulation."""

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from fewstep.core.analytic import GaussianDenoiser
from fewstep.core.denoisers import Guided
from fewstep.core.discriminators import TokenHead
from fewstep.core.layouts import append_dims
from fewstep.core.objectives.contract import Data, Sample, Turn
from fewstep.core.objectives.dmd import DMD
from fewstep.core.objectives.dmd2 import DMD2
from fewstep.core.paths import LinearPath
from fewstep.core.rollouts import FewStep
from fewstep.core.schedules import TimeSampler

TEACHER = GaussianDenoiser(mean=1.3, std=0.7)
DIM = 4


class Featured(nn.Module):
    """A token-wise denoiser with one hidden layer, which it shows."""

    def __init__(self) -> None:
        super().__init__()
        self.path = LinearPath()
        self.trunk = nn.Linear(3, DIM).double()
        self.out = nn.Linear(DIM, 2).double()

    def features(self, x_t: Tensor, t: Tensor, condition: object) -> Tensor:
        time = append_dims(t, x_t).expand(*x_t.shape[:-1], 1)
        return torch.tanh(self.trunk(torch.cat([x_t, time.to(x_t)], dim=-1)))

    def forward(self, x_t: Tensor, t: Tensor, condition: object) -> Tensor:
        return self.out(self.features(x_t, t, condition))


def objective(times: TimeSampler | None = None, **settings: Any) -> DMD2:
    torch.manual_seed(5)
    return DMD2(TokenHead(DIM, hidden=8).double(), times=times, **settings)


def turn_of(x: Tensor, critic: Featured, **roles: Any) -> Turn:
    data = Data(x0=torch.linspace(-1, 1, 12, dtype=torch.float64).view(3, 2, 2))
    turn = Turn(sample=Sample(x=x), teacher=TEACHER, critic=critic, data=data)
    return replace(turn, generator=torch.Generator().manual_seed(7), **roles)


def literal_logits(method: DMD2, critic: Featured, x: Tensor, eps: Tensor, t: float) -> Tensor:
    """One logit per sample: the head's mean over tokens, at (1 - t) x + t eps."""
    assert method.discriminator is not None
    time = torch.full((len(x),), t, dtype=torch.float64)
    return method.discriminator(critic.features((1 - t) * x + t * eps, time, None)).mean(1)


def next_noises(turn: Turn, count: int) -> list[Tensor]:
    """What the turn draws next."""
    return [turn.noise_like(torch.empty(3, 2, 2, dtype=torch.float64)) for _ in range(count)]


def test_the_students_loss_is_dmds_and_the_weighted_cross_entropy(
    fixed_times: Callable[..., TimeSampler],
) -> None:
    """The formula written out, value and gradient: the sample is noised anew for the discriminator."""
    critic, method = Featured(), objective(fixed_times(0.25), dmd=DMD(times=fixed_times(0.5)))
    x = torch.randn(3, 2, 2, dtype=torch.float64, requires_grad=True)
    loss, diagnostics = method.student_loss(turn_of(x, critic))
    again = turn_of(x, critic)
    plain, _ = method.dmd.student_loss(again)
    (eps,) = next_noises(again, 1)
    gan = softplus(-literal_logits(method, critic, x, eps, 0.25)).mean()
    torch.testing.assert_close(loss, plain + 3e-3 * gan)
    torch.testing.assert_close(diagnostics["gan"], gan.detach())
    (grad,), (expected,) = (torch.autograd.grad(value, x) for value in (loss, plain + 3e-3 * gan))
    torch.testing.assert_close(grad, expected)


def test_the_critics_loss_is_its_regression_and_the_weighted_discrimination(
    fixed_times: Callable[..., TimeSampler],
) -> None:
    critic, method = Featured(), objective(fixed_times(0.25))
    x = torch.randn(3, 2, 2, dtype=torch.float64)
    turn = turn_of(x, critic)
    assert turn.data is not None
    loss, _ = method.critic_loss(turn)
    again = turn_of(x, critic)
    plain, _ = method.dmd.critic_loss(again)
    of_fake, of_real = next_noises(again, 2)
    fake = literal_logits(method, critic, x, of_fake, 0.25)
    real = literal_logits(method, critic, turn.data.x0, of_real, 0.25)
    gan = (softplus(fake) + softplus(-real)).mean()
    torch.testing.assert_close(loss, plain + 1e-2 * gan)
    weights = [*critic.parameters(), *method.parameters()]
    grads, expected = (
        torch.autograd.grad(value, weights, materialize_grads=True) for value in (loss, plain + 1e-2 * gan)
    )
    torch.testing.assert_close(grads, expected)


def test_an_undecided_discriminator_costs_2_ln_2_and_pulls_with_half_its_weight() -> None:
    """T-DMD-6, through the objective: a head whose last layer is 0."""
    critic, method = Featured(), objective(student_weight=1.0, critic_weight=1.0)
    assert isinstance(method.discriminator, TokenHead)
    last = method.discriminator.layers[-1]
    assert isinstance(last, nn.Linear)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    x = torch.randn(3, 2, 2, dtype=torch.float64)
    on_critic = method.critic_loss(turn_of(x, critic))[0] - DMD().critic_loss(turn_of(x, critic))[0]
    assert on_critic.item() == pytest.approx(2 * math.log(2))
    on_student, _ = method.student_loss(turn_of(x, critic))
    (slope,) = torch.autograd.grad(on_student, last.bias)
    assert slope.item() == pytest.approx(-0.5)


def test_the_discriminators_gradient_reaches_the_critics_trunk_and_not_the_student() -> None:
    critic, method = Featured(), objective()
    x = torch.randn(3, 2, 2, dtype=torch.float64, requires_grad=True)
    gan_only = method.critic_loss(turn_of(x, critic))[0] - DMD().critic_loss(turn_of(x, critic))[0]
    gan_only.backward()
    assert x.grad is None
    assert critic.trunk.weight.grad is not None
    assert critic.trunk.weight.grad.abs().max() > 1e-6
    assert all(weight.grad is not None for weight in method.parameters())


def test_the_students_gan_gradient_passes_a_frozen_critic_and_head() -> None:
    critic, method = Featured().requires_grad_(False), objective().requires_grad_(False)
    x = torch.randn(3, 2, 2, dtype=torch.float64, requires_grad=True)
    loss = method.student_loss(turn_of(x, critic))[0] - DMD().student_loss(turn_of(x, critic))[0]
    (grad,) = torch.autograd.grad(loss, x)
    assert grad.abs().max() > 1e-6


def test_without_a_head_it_is_dmd_and_needs_no_data() -> None:
    critic, method = Featured(), DMD2(None)
    x = torch.randn(3, 2, 2, dtype=torch.float64, requires_grad=True)
    for loss in ("student_loss", "critic_loss"):
        ours = getattr(method, loss)(replace(turn_of(x, critic), data=None))[0]
        assert torch.equal(ours, getattr(DMD(), loss)(turn_of(x, critic))[0])
    assert method.needs == {"teacher", "critic", "sample"}
    assert objective().needs == {"teacher", "critic", "sample", "data"}


def test_frames_of_weight_0_get_no_gradient_from_the_discriminator_either() -> None:
    critic, x = Featured(), torch.randn(3, 2, 2, dtype=torch.float64, requires_grad=True)
    weight = torch.tensor([[0.0, 1.0]] * 3, dtype=torch.float64)
    turn = turn_of(x, critic)
    (whole,) = torch.autograd.grad(objective().student_loss(turn)[0], x)
    (windowed,) = torch.autograd.grad(
        objective().student_loss(turn_of(x, critic, sample=Sample(x=x, weight=weight)))[0], x
    )
    assert (windowed[:, 0] == 0).all()
    torch.testing.assert_close(windowed[:, 1], whole[:, 1])


@pytest.mark.parametrize("guided", [True, False])
def test_features_can_be_the_frozen_teachers(guided: bool) -> None:
    """FastGen's variant: guidance is taken off, and the critic's trunk hears nothing of the discriminator."""
    teacher, critic = Featured().requires_grad_(False), Featured()
    method = objective(features="teacher")
    given = Guided(teacher, guidance_scale=3.0) if guided else teacher
    x = torch.randn(3, 2, 2, dtype=torch.float64, requires_grad=True)
    turns = [turn_of(x, critic, teacher=given) for _ in range(2)]
    gan_only = method.critic_loss(turns[0])[0] - method.dmd.critic_loss(turns[1])[0]
    grads = torch.autograd.grad(
        gan_only, [*critic.parameters(), *method.parameters()], materialize_grads=True
    )
    # a difference of two equal regressions leaves their rounding
    assert max(grad.abs().max() for grad in grads[:4]) < 1e-12
    assert max(grad.abs().max() for grad in grads[4:]) > 1e-5
    hosted = objective().critic_loss(turn_of(x, teacher))[0] - DMD().critic_loss(turn_of(x, teacher))[0]
    torch.testing.assert_close(gan_only, hosted)


def test_the_r1_penalty_is_the_squared_change_of_logits_near_the_data(
    fixed_times: Callable[..., TimeSampler],
) -> None:
    """At one time and noise; the penalty's own noise is drawn last."""
    critic, times = Featured(), fixed_times(0.25)
    x = torch.randn(3, 2, 2, dtype=torch.float64)
    turns = [turn_of(x, critic) for _ in range(3)]
    with_r1 = objective(times, r1_weight=100.0, r1_noise=0.2).critic_loss(turns[0])[0]
    method = objective(times)
    without = method.critic_loss(turns[1])[0]
    method.dmd.critic_loss(turns[2])
    _, eps, n = next_noises(turns[2], 3)
    assert turns[2].data is not None
    x0 = turns[2].data.x0
    change = literal_logits(method, critic, x0, eps, 0.25) - literal_logits(
        method, critic, x0 + 0.2 * n, eps, 0.25
    )
    torch.testing.assert_close(with_r1 - without, 100 * change.square().mean())


@pytest.mark.parametrize("loss", ["student_loss", "critic_loss"])
def test_the_layout_changes_neither_loss_nor_gradient(
    layouts_agree: Callable[..., None], loss: Literal["student_loss", "critic_loss"]
) -> None:
    critic, method = Featured(), objective(r1_weight=10.0, student_weight=1.0)
    layouts_agree(
        lambda turn: getattr(method, loss)(turn)[0],
        teacher=TEACHER,
        critic=critic,
        parameters=[*critic.parameters(), *method.parameters()] if loss == "critic_loss" else (),
    )


def test_a_critic_that_shows_no_features_is_refused_with_the_remedy() -> None:
    turn = turn_of(torch.randn(3, 2, 2, dtype=torch.float64), Featured())
    with pytest.raises(ValueError, match="features"):
        objective().student_loss(replace(turn, critic=GaussianDenoiser()))


def test_missing_data_is_named() -> None:
    turn = replace(turn_of(torch.randn(3, 2, 2, dtype=torch.float64), Featured()), data=None)
    with pytest.raises(ValueError, match="data"):
        objective().critic_loss(turn)


@pytest.mark.parametrize("bad", [{"student_weight": -1.0}, {"r1_weight": -1.0}, {"r1_noise": 0.0}])
def test_impossible_weights_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        objective(**bad)


class AffineStudent(nn.Module):
    """x0 = a x_t + b t + c, with a bias of its own for each called time."""

    def __init__(self) -> None:
        super().__init__()
        self.path = LinearPath()
        self.a = nn.Parameter(torch.tensor(0.6, dtype=torch.float64))
        self.bias = nn.Parameter(torch.tensor([1.0, 0.5, -0.25], dtype=torch.float64))

    def forward(self, x_t: Tensor, t: Tensor, condition: object) -> Tensor:
        return self.a * x_t + self.bias[(t[:, None] * 3).round().long() - 1]


@pytest.mark.parametrize("exit_step", [0, 1, 2])
def test_backward_simulation_has_its_closed_form_mean_and_variance(exit_step: int) -> None:
    """T-DMD-5: with an affine student and fresh noise each step maps mean and variance affinely."""
    rollout, student = FewStep((1.0, 2 / 3, 1 / 3)), AffineStudent()
    count = 200_000
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(count, 1, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        x0 = rollout.rollout(student, noise, None, exit_step=exit_step, generator=generator)
    mean, variance, biases = 0.0, 1.0, (-0.25, 0.5, 1.0)
    for step in range(exit_step + 1):
        mean, variance = 0.6 * mean + biases[step], 0.36 * variance
        if step < exit_step:
            t = rollout.times[step + 1]
            mean, variance = (1 - t) * mean, (1 - t) ** 2 * variance + t**2
    # five standard errors of a mean and of a variance of 200,000 draws
    assert x0.mean().item() == pytest.approx(mean, abs=5 * (variance / count) ** 0.5)
    assert x0.var().item() == pytest.approx(variance, rel=5 * (2 / count) ** 0.5)


@pytest.mark.parametrize("exit_step", [0, 1, 2])
def test_the_gradient_reaches_the_last_call_of_backward_simulation_alone(exit_step: int) -> None:
    """T-DMD-5: each call's bias is a parameter that only this call uses."""
    rollout, student = FewStep((1.0, 2 / 3, 1 / 3)), AffineStudent()
    x = rollout.rollout(student, torch.randn(8, 1, dtype=torch.float64), None, exit_step=exit_step)
    turn = Turn(sample=Sample(x=x), teacher=TEACHER, critic=GaussianDenoiser())
    DMD2(None).student_loss(turn)[0].backward()
    assert student.bias.grad is not None
    reached = (student.bias.grad != 0).tolist()
    assert reached == [2 - exit_step == place for place in range(3)]


def test_a_discriminator_alone_moves_the_student_towards_the_data() -> None:
    """Without DMD's part: the critic's features tell 0 from 2, and the sample follows them."""
    torch.manual_seed(0)
    critic, method = Featured(), objective(student_weight=1.0, critic_weight=1.0)
    mean = torch.zeros((), dtype=torch.float64, requires_grad=True)
    students = torch.optim.Adam([mean], lr=0.1, betas=(0.0, 0.9))
    critics = torch.optim.Adam([*critic.parameters(), *method.parameters()], lr=2e-2, betas=(0.0, 0.9))
    for _ in range(50):
        x = mean + 0.3 * torch.randn(16, 1, 2, dtype=torch.float64)
        data = Data(x0=2 + 0.3 * torch.randn(16, 1, 2, dtype=torch.float64))
        # teacher and critic agree: DMD's gradient is 0
        turn = Turn(sample=Sample(x=x), teacher=critic, critic=critic, data=data)
        for optimiser, loss in ((critics, method.critic_loss), (students, method.student_loss)):
            optimiser.zero_grad()
            loss(turn)[0].backward()
            optimiser.step()
    assert mean.item() > 1.0


def test_state_of_the_head_is_saved_and_restored() -> None:
    method, critic = objective(), Featured()
    other = DMD2(TokenHead(DIM, hidden=8).double())
    other.load_state_dict(copy.deepcopy(method.state_dict()))
    turns = [turn_of(torch.ones(3, 2, 2, dtype=torch.float64), critic) for _ in range(2)]
    assert torch.equal(method.critic_loss(turns[0])[0], other.critic_loss(turns[1])[0])
