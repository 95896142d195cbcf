"""The discriminator on the critic's features, inside SiD: its logits, losses, shares and layouts."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from fewstep.core.analytic import GaussianDenoiser
from fewstep.core.layouts import append_dims
from fewstep.core.objectives.contract import Data, Sample, Turn
from fewstep.core.objectives.diffusion_gan import DiffusionGAN
from fewstep.core.objectives.sid import SiD
from fewstep.core.paths import LinearPath
from fewstep.core.schedules import TimeSampler

TEACHER = GaussianDenoiser(mean=1.3, std=0.7)
CRITIC = GaussianDenoiser(mean=0.4, std=1.1)


@dataclass(frozen=True, kw_only=True)
class GivenNoise(Turn):
    """A turn whose noise is known."""

    eps: Tensor

    def noise_like(self, x: Tensor) -> Tensor:
        return self.eps


class Seeing(nn.Module):
    """The critic of a Gaussian that shows two channels per token, whose mean is gain * x_t + bias."""

    def __init__(self, gain: float, bias: float = 0.0) -> None:
        super().__init__()
        self.path = LinearPath()
        self.gain = nn.Parameter(torch.tensor(gain, dtype=torch.float64))
        self.bias = nn.Parameter(torch.tensor(bias, dtype=torch.float64))

    def forward(self, x_t: Tensor, t: Tensor, condition: object) -> Tensor:
        return CRITIC(x_t, t, condition)

    def features(self, x_t: Tensor, t: Tensor, condition: object) -> Tensor:
        seen = self.gain * x_t.mean(-1) + self.bias + 0 * append_dims(t, x_t)[..., 0]
        return torch.stack([seen + 3, seen - 3], dim=-1)


def adversarial(start: int = 0, share: float = 0.5) -> SiD:
    return SiD(gan=DiffusionGAN(share=share, start=start))


def test_the_discriminator_asks_for_data_and_plain_sid_does_not() -> None:
    assert SiD().needs == {"teacher", "critic", "sample"}
    assert adversarial().needs == {"teacher", "critic", "sample", "data"}


def test_logits_are_the_channel_mean_of_the_critics_features_within_a_limit() -> None:
    x_t, t = torch.tensor([[[0.5], [40.0]], [[-0.5], [-40.0]]], dtype=torch.float64), torch.ones(2)
    logits = DiffusionGAN().logits(Seeing(2.0, 1.0), x_t, t, None)
    assert logits.tolist() == [[2.0, 10.0], [0.0, -10.0]]


def test_an_undecided_discriminator_loses_ln_2_on_either_side(known_turn: Callable[..., Turn]) -> None:
    x = torch.randn(3, 2, 1, dtype=torch.float64)
    turn = known_turn(x, critic=Seeing(0.0), teacher=TEACHER, data=Data(x0=x + 1))
    _, of_critic = adversarial().critic_loss(turn)
    _, of_student = adversarial().student_loss(turn)
    assert of_critic["discrimination"].item() == pytest.approx(math.log(2))
    assert of_critic["logit_gap"].item() == 0
    assert of_student["gan"].item() == pytest.approx(math.log(2))


def test_the_critics_loss_is_denoising_plus_half_of_each_cross_entropy(
    fixed_times: Callable[..., TimeSampler], known_turn: Callable[..., Turn]
) -> None:
    x, real = torch.randn(2, 3, 2, 1, dtype=torch.float64)
    critic = Seeing(0.7, 0.1)
    roles = {"critic": critic, "teacher": TEACHER, "data": Data(x0=real)}
    times = fixed_times(1e-9)  # the discriminator sees samples almost without noise
    found, diagnostics = SiD(gan=DiffusionGAN(), times=times).critic_loss(known_turn(x, **roles))
    plain, _ = SiD(times=times).critic_loss(known_turn(x, **roles))
    logits = [0.7 * values.squeeze(-1) + 0.1 for values in (real, x)]
    on_real = -logits[0].sigmoid().log().mean()
    on_fake = -(1 - logits[1].sigmoid()).log().mean()
    torch.testing.assert_close(found - plain, (on_real + on_fake) / 2, rtol=1e-6, atol=0)
    torch.testing.assert_close(diagnostics["logit_gap"], (logits[0] - logits[1]).mean(), rtol=1e-6, atol=0)
    (grad,) = torch.autograd.grad(found, critic.gain)
    assert grad != 0


def test_the_discriminators_loss_has_no_gradient_in_the_samples() -> None:
    x = torch.randn(3, 2, 1, dtype=torch.float64, requires_grad=True)
    turn = Turn(sample=Sample(x=x), critic=Seeing(0.7, 0.1), data=Data(x0=torch.zeros_like(x)))
    adversarial().critic_loss(turn)[0].backward()
    assert x.grad is None


def test_the_students_loss_shares_between_both_under_one_weight(
    fixed_times: Callable[..., TimeSampler],
) -> None:
    x, eps = torch.randn(2, 4, 1, 1, dtype=torch.float64)
    times = fixed_times(0.2)
    leaf = x.clone().requires_grad_()
    turn = GivenNoise(sample=Sample(x=leaf), teacher=TEACHER, critic=Seeing(0.7), eps=eps)
    gan = DiffusionGAN(share=0.25)
    both = torch.autograd.grad(SiD(gan=gan, times=times).student_loss(turn)[0], leaf)[0]
    plain = torch.autograd.grad(SiD(times=times).student_loss(turn)[0], leaf)[0]
    logits = 0.7 * (0.8 * x + 0.2 * eps)
    fooling = -0.7 * 0.8 * (-logits).sigmoid() / len(x)
    torch.testing.assert_close(both, 0.75 * plain + 0.25 * 0.8 * fooling, rtol=1e-9, atol=0)


def test_the_discriminator_enters_the_students_loss_when_it_starts() -> None:
    roles = {"sample": Sample(x=torch.randn(3, 2, 1)), "teacher": TEACHER, "critic": Seeing(0.7)}
    before, after = (adversarial(start=5).student_loss(Turn(**roles, update=n))[1] for n in (4, 5))
    assert "gan" not in before
    assert "gan" in after


def test_a_critic_without_features_is_refused() -> None:
    turn = Turn(sample=Sample(x=torch.randn(3, 2)), teacher=TEACHER, critic=CRITIC)
    with pytest.raises(ValueError, match="features"):
        adversarial().student_loss(turn)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_a_share_of_nothing_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match="share"):
        DiffusionGAN(share=share)


@pytest.mark.parametrize("loss", ["student_loss", "critic_loss"])
def test_the_layout_makes_no_difference_to_the_discriminator(
    loss: str, layouts_agree: Callable[..., None]
) -> None:
    critic = Seeing(0.7, 0.1)
    layouts_agree(
        lambda turn: getattr(adversarial(), loss)(turn)[0],
        parameters=list(critic.parameters()),
        teacher=TEACHER,
        critic=critic,
    )
