"""TDM: its transitions, its Huber gradient, its two critics, and DMD as the case of one step."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import repeat
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn

from fewstep.core.analytic import GaussianDenoiser
from fewstep.core.layouts import Masked
from fewstep.core.objectives.contract import Sample, Turn
from fewstep.core.objectives.dmd import DMD
from fewstep.core.objectives.tdm import TDM, importance_weights, interval_errors, pseudo_huber, transition_std
from fewstep.core.paths import LinearPath, Path, VPPath
from fewstep.core.rollouts import Call, FewStep
from fewstep.core.schedules import TimeSampler

TEACHER = GaussianDenoiser(mean=1.3, std=0.7)
CRITIC = GaussianDenoiser(mean=0.4, std=1.1)
LINEAR = LinearPath()


@dataclass(frozen=True, kw_only=True)
class GivenTurn(Turn):
    """A turn with one uniform number for everybody and given noises, the last of them for ever."""

    uniform_number: float = 0.5
    noises: Iterator[Tensor]

    def uniform(self, size: int, device: torch.device) -> Tensor:
        return torch.full((size,), self.uniform_number, dtype=torch.float64)

    def noise_like(self, x: Tensor) -> Tensor:
        return next(self.noises)


def call_of(x_t: Tensor, t: float, t_next: float) -> Call:
    full = torch.full((len(x_t),), t, dtype=torch.float64)
    return Call(x_t=x_t, t=full, t_next=torch.full_like(full, t_next))


def turn_of(
    x: Tensor,
    call: Call,
    xi: Tensor,
    *,
    teacher: GaussianDenoiser = TEACHER,
    critic: GaussianDenoiser | nn.Module = CRITIC,
    weight: Tensor | None = None,
    uniform_number: float = 0.5,
) -> GivenTurn:
    return GivenTurn(
        sample=Sample(x=x, call=call, weight=weight),
        teacher=teacher,
        critic=critic,  # pyright: ignore[reportArgumentType]
        uniform_number=uniform_number,
        noises=repeat(xi),
    )


def some_turn(x: Tensor, **settings: object) -> GivenTurn:
    """A second step of four: from 0.75 to 0.5, seen at 0.62 (the middle of 0.5 and 0.74)."""
    x_t, xi = torch.randn(2, *x.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    return turn_of(x, call_of(x_t, 0.75, 0.5), xi, **settings)  # pyright: ignore[reportArgumentType]


def gradient(method: TDM | DMD, turn: Turn) -> Tensor:
    assert turn.sample is not None
    leaf = turn.sample.x.detach().clone().requires_grad_()
    loss, _ = method.student_loss(replace(turn, sample=replace(turn.sample, x=leaf)))
    return torch.autograd.grad(loss, leaf)[0]


@pytest.mark.parametrize("path", [LINEAR, VPPath()], ids=lambda path: type(path).__name__)
@pytest.mark.parametrize(("s", "t"), [(0.5, 0.7), (0.0, 0.3), (0.2, 0.2), (0.6, 1.0)])
def test_a_transition_adds_what_is_missing_to_the_noise(path: Path, s: float, t: float) -> None:
    """T-TDM-1: beta, and that it takes the variance of p_s to that of p_t."""
    at_s, at_t = torch.tensor([s, t], dtype=torch.float64)
    ratio = path.alpha(at_t) / path.alpha(at_s)
    beta = transition_std(path, at_s, at_t)
    assert beta.item() == pytest.approx((path.sigma(at_t) ** 2 - (ratio * path.sigma(at_s)) ** 2) ** 0.5)
    denoiser = GaussianDenoiser(mean=1.3, std=0.7, path=path)
    carried = ratio**2 * denoiser.variance(at_s) + beta**2
    torch.testing.assert_close(carried, denoiser.variance(at_t))


def test_samples_of_the_step_diffuse_to_the_marginal_of_the_time_drawn() -> None:
    """T-TDM-1, by samples: an exact chain has x_s ~ p_s, and the transition makes that p_t."""
    generator = torch.Generator().manual_seed(0)
    x0, eps = torch.randn(2, 500_000, 1, generator=generator, dtype=torch.float64)
    x0 = 1.3 + 0.7 * x0
    call = call_of(LINEAR.add_noise(x0, eps, torch.tensor([[0.75]])), 0.75, 0.5)
    turn = replace(
        turn_of(x0, call, x0), noises=repeat(torch.randn(500_000, 1, generator=generator).double())
    )
    assert turn.sample is not None
    step = TDM().transition(turn, turn.sample, LINEAR)
    assert step.t.unique().tolist() == pytest.approx([0.62])
    # five standard errors of 500,000 draws
    assert step.x_t.mean().item() == pytest.approx(0.38 * 1.3, abs=0.005)
    assert step.x_t.var().item() == pytest.approx(TEACHER.variance(torch.tensor(0.62)).item(), rel=0.01)


def test_the_end_of_a_step_goes_on_along_its_own_noise() -> None:
    """The formula written out: x_s = alpha_s x0 + sigma_s eps with eps from (x_t, t), then renoised."""
    x = torch.randn(3, 4, dtype=torch.float64)
    turn = some_turn(x)
    assert turn.sample is not None
    assert turn.sample.call is not None
    step = TDM().transition(turn, turn.sample, LINEAR)
    eps = (turn.sample.call.x_t - 0.25 * x) / 0.75
    x_s = 0.5 * x + 0.5 * eps
    torch.testing.assert_close(step.eps, eps)
    ratio = 0.38 / 0.5
    expected = ratio * x_s + (0.62**2 - (ratio * 0.5) ** 2) ** 0.5 * step.xi
    torch.testing.assert_close(step.x_t, expected)


@pytest.mark.parametrize("normalise", [False, True])
def test_the_huber_gradient_is_nearly_the_sign_of_the_gap(normalise: bool) -> None:
    """T-TDM-3: Delta / (N sqrt(Delta^2 + c^2) numel B), in every element."""
    x = torch.randn(3, 4, dtype=torch.float64)
    turn = some_turn(x)
    assert turn.sample is not None
    step = TDM().transition(turn, turn.sample, LINEAR)
    x0_teacher = TEACHER(step.x_t, step.t, None)
    gap = CRITIC(step.x_t, step.t, None) - x0_teacher
    expected = gap / (gap.square() + 0.3**2).sqrt() / 12
    if normalise:
        expected = expected / (x - x0_teacher).abs().mean(1, keepdim=True)
    # 1e-6 in the normaliser
    torch.testing.assert_close(gradient(TDM(c=0.3, normalise=normalise), turn), expected, rtol=1e-5, atol=0)
    clipped = gradient(TDM(c=1e-6), turn)
    torch.testing.assert_close(clipped, gap.sign() / 12, rtol=1e-6, atol=0)


def test_pseudo_huber_is_quadratic_near_and_linear_far() -> None:
    zero = torch.zeros(1, dtype=torch.float64)
    assert pseudo_huber(zero + 1e-3, zero, 1.0).item() == pytest.approx(0.5e-6, rel=1e-3)
    assert pseudo_huber(zero + 1e3, zero, 1.0).item() == pytest.approx(1e3 - 1, rel=1e-3)


def of_last_step(x: Tensor) -> tuple[GivenTurn, Tensor]:
    """A one-step student's turn, and its time: x_t is pure noise, s = 0, t in the middle of 0.02 and 0.99."""
    noise, xi = torch.randn(2, *x.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    return turn_of(x, call_of(noise, 1.0, 0.0), xi), torch.full((len(x),), 0.505, dtype=torch.float64)


def test_on_the_last_interval_it_is_dmd_with_the_factor_2_of_the_bare_square(
    fixed_times: Callable[..., TimeSampler],
) -> None:
    """T-TDM-2, and identity 2: MSE / N has no factor 1/2."""
    x = torch.randn(3, 4, dtype=torch.float64)
    turn, t = of_last_step(x)
    dmd = DMD(times=fixed_times(t[0].item()))
    ours = gradient(TDM(distance="mse", normalise=True), turn)
    torch.testing.assert_close(ours, 2 * gradient(dmd, turn), rtol=1e-9, atol=0)
    bare = gradient(TDM(distance="mse"), turn)
    bare_dmd = gradient(replace(dmd, weighting="none"), turn)
    torch.testing.assert_close(bare, 2 * bare_dmd, rtol=1e-9, atol=0)


@pytest.mark.parametrize("distance", ["huber", "mse"])
def test_student_equal_to_teacher_gets_no_gradient_anywhere(distance: Literal["huber", "mse"]) -> None:
    turn = replace(some_turn(3 * torch.randn(5, 4, dtype=torch.float64)), teacher=CRITIC)
    assert (gradient(TDM(distance=distance, normalise=True), turn) == 0).all()


class AffineCritic(nn.Module):
    """x0 = slope x_t + offset, whatever the time."""

    def __init__(self) -> None:
        super().__init__()
        self.path = LINEAR
        self.weights = nn.Parameter(torch.zeros(2, dtype=torch.float64))

    def forward(self, x_t: Tensor, t: Tensor, condition: object) -> Tensor:
        return self.weights[0] * x_t + self.weights[1]


def minimiser(method: TDM, *, independent: bool = False) -> tuple[float, float]:
    """Slope and offset of the critic that minimises the loss of a 1-D student's step from 1 to 0.5, at 0.7.

    The student predicts x0 = 0.6 z + 1 from noise z; the loss is a square of what is affine in (z, xi), so
    that corners of +-1 integrate it exactly, and one Newton step finds the minimum. ``independent`` gives it
    a call in which x0 and the noise it implies are independent.
    """
    corners = torch.cartesian_prod(*[torch.tensor([1.0, -1.0], dtype=torch.float64)] * 3)
    z, other, xi = corners[:, 0:1], corners[:, 1:2], corners[:, 2:3]
    x = 0.6 * z + 1
    eps = other if independent else z
    call = call_of(eps, 1.0, 0.5)
    critic = AffineCritic()
    uniform = (0.7 - 0.5) / (0.99 - 0.5)
    turn = turn_of(x, call, xi, critic=critic, uniform_number=uniform)
    loss, _ = method.critic_loss(turn)
    (slope,) = torch.autograd.grad(loss, critic.weights, create_graph=True)
    hessian = torch.stack([torch.autograd.grad(s, critic.weights, retain_graph=True)[0] for s in slope])
    found = -torch.linalg.solve(hessian, slope.detach())
    return found[0].item(), found[1].item()


OFFICIAL = TDM(target="official", importance=False)


def test_the_corrected_critic_finds_the_denoiser_of_a_deterministic_step_and_the_official_one_does_not() -> (
    None
):
    """T-TDM-4: x_t has variance 0.6304, so that the true slope is (1 - 0.49 / 0.6304) / 0.3."""
    slope, offset = minimiser(TDM())
    true_slope = (1 - 0.7**2 / 0.6304) / 0.3
    assert true_slope == pytest.approx(0.74239, abs=1e-5)
    assert slope == pytest.approx(true_slope, abs=1e-9)
    assert offset == pytest.approx(1 - true_slope * 0.3, abs=1e-9)
    official, _ = minimiser(OFFICIAL)
    assert official == pytest.approx(0.45685, abs=1e-5)


def test_with_noise_independent_of_the_sample_both_critics_agree() -> None:
    """T-TDM-4, last sentence: the slope of the denoiser of N(1, 0.6^2) at 0.7."""
    slope = 0.6**2 * 0.3 / (0.3**2 * 0.6**2 + 0.7**2)
    assert minimiser(TDM(), independent=True)[0] == pytest.approx(slope, abs=1e-9)
    assert minimiser(OFFICIAL, independent=True)[0] == pytest.approx(slope, abs=1e-9)


def test_the_corrected_errors_are_those_of_the_stated_target_under_the_stated_weight() -> None:
    r"""beta^2 alpha^2 / sigma^4 times the square of x0 - (x_t - sigma^2 xi / beta) / alpha."""
    x0, x_t, xi = torch.randn(3, 5, 2, dtype=torch.float64)
    s, t = torch.tensor([[0.5]], dtype=torch.float64), torch.tensor([[0.7]], dtype=torch.float64)
    beta = (0.49 - 0.36 * 0.25) ** 0.5
    target = (x_t - 0.49 * xi / beta) / 0.3
    expected = beta**2 * 0.3**2 / 0.7**4 * (x0 - target).square()
    torch.testing.assert_close(interval_errors(x0, x_t, xi, LINEAR, s, t).square(), expected)


def test_at_the_start_of_an_interval_the_corrected_errors_stay_finite() -> None:
    x0, x_t, xi = torch.randn(3, 5, 2)
    s = torch.full((5, 1), 0.5)
    assert torch.equal(interval_errors(x0, x_t, xi, LINEAR, s, s), xi)


def test_the_official_loss_is_the_weighted_square_to_the_sample() -> None:
    """min(SNR, 5) and the tempered importance ratio, written out."""
    x = torch.randn(3, 4, dtype=torch.float64)
    turn = some_turn(x)
    assert turn.sample is not None
    step = TDM().transition(turn, turn.sample, LINEAR)
    ratio = 0.38 / 0.5
    beta = (0.62**2 - (ratio * 0.5) ** 2) ** 0.5
    n = (ratio * 0.5 * step.eps + beta * step.xi) / 0.62
    importance = (-0.5 * n.square().mean(1)).exp() / (-0.5 * step.xi.square().mean(1)).exp()
    errors = (CRITIC(step.x_t, step.t, None) - x).square().mean(1)
    snr = (0.38 / 0.62) ** 2
    for settings, weight in (
        ({}, snr * importance),
        ({"importance": False}, snr),
        ({"max_snr": 0.1}, 0.1 * importance),
    ):
        loss, _ = TDM(target="official", **settings).critic_loss(turn)  # pyright: ignore[reportArgumentType]
        torch.testing.assert_close(loss, (weight * errors).mean())


def test_importance_is_1_where_all_noise_is_fresh() -> None:
    eps, xi = torch.randn(2, 5, 2, dtype=torch.float64)
    s, t = torch.zeros(1, 1, dtype=torch.float64), torch.full((1, 1), 0.7, dtype=torch.float64)
    torch.testing.assert_close(importance_weights(eps, xi, LINEAR, s, t), torch.ones(5, dtype=torch.float64))


def test_both_critics_have_one_loss_up_to_the_weight_on_the_last_interval() -> None:
    """At s = 0 both regress on the sample; the corrected weight is the unclamped SNR."""
    turn, _ = of_last_step(torch.randn(3, 4, dtype=torch.float64))
    corrected = TDM().critic_loss(turn)[0]
    official = TDM(target="official", importance=False, max_snr=1e9).critic_loss(turn)[0]
    torch.testing.assert_close(corrected, official)


def times_drawn(method: TDM, call: Call, uniform_number: float) -> float:
    turn = replace(
        turn_of(torch.zeros(1, 1).double(), call, torch.zeros(1, 1).double()), uniform_number=uniform_number
    )
    assert turn.sample is not None
    return method.transition(turn, turn.sample, LINEAR).t.item()


def test_four_steps_over_900_have_the_released_intervals() -> None:
    """T-TDM-5: ends at 225, 450, 675 and 900 of 1000; t below its end by 10, above its start, 20 at least."""
    rollout = FewStep((0.9, 0.675, 0.45, 0.225), renoise="ddim")
    student, noise = GaussianDenoiser(), torch.randn(1, 1)
    for step, (low, high) in enumerate([(0.675, 0.9), (0.45, 0.675), (0.225, 0.45), (0.02, 0.225)]):
        _, call = rollout.rollout_and_call(student, noise, None, exit_step=step)
        assert times_drawn(TDM(end=0.9), call, 0.0) == pytest.approx(low, abs=1e-6)
        assert times_drawn(TDM(end=0.9), call, 1.0) == pytest.approx(high - 0.01, abs=1e-6)
        nested = TDM(end=0.9, intervals="nested")
        assert times_drawn(nested, call, 0.0) == pytest.approx(low, abs=1e-6)
        assert times_drawn(nested, call, 1.0) == pytest.approx(0.89, abs=1e-6)


def test_the_gradient_reaches_the_samples_of_the_last_call_alone() -> None:
    """Neither the chain's states nor teacher and critic."""
    x, x_t = torch.randn(2, 3, 4, dtype=torch.float64).requires_grad_().unbind()
    learnt = [AffineCritic() for _ in range(2)]
    turn = replace(
        turn_of(x, call_of(x_t, 0.75, 0.5), torch.randn(3, 4).double()), teacher=learnt[0], critic=learnt[1]
    )
    with torch.no_grad():
        learnt[0].weights.add_(0.3)
    loss, _ = TDM().student_loss(turn)
    grads = torch.autograd.grad(loss, [x, x_t, *(net.weights for net in learnt)], materialize_grads=True)
    assert grads[0].abs().max() > 0
    assert all((grad == 0).all() for grad in grads[1:])


def test_the_critics_loss_leaves_the_sample_alone() -> None:
    critic = AffineCritic()
    for target in ("corrected", "official"):
        x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
        loss, _ = TDM(target=target).critic_loss(some_turn(x, critic=critic))
        grads = torch.autograd.grad(loss, [x, critic.weights], materialize_grads=True)
        assert (grads[0] == 0).all()
        assert (grads[1] != 0).all()


def test_frames_of_weight_0_get_no_gradient_and_the_others_keep_theirs() -> None:
    x = torch.randn(2, 3, 4, dtype=torch.float64)
    weight = torch.tensor([[0.0, 1.0, 2.0]] * 2, dtype=torch.float64)
    whole, windowed = (gradient(TDM(), some_turn(x, weight=w)) for w in (None, weight))
    torch.testing.assert_close(windowed, weight[..., None] * whole)


every_method = pytest.mark.parametrize(
    "method",
    [TDM(), TDM(normalise=True), TDM(distance="mse"), TDM(target="official"), TDM(intervals="nested")],
    ids=["huber", "normalised", "mse", "official", "nested"],
)


@every_method
def test_the_layout_changes_neither_loss_nor_gradient(
    layouts_agree: Callable[..., None], method: TDM
) -> None:
    layouts_agree(lambda turn: method.student_loss(turn)[0], teacher=TEACHER, critic=CRITIC)


@every_method
def test_the_layout_changes_neither_the_critics_loss_nor_its_gradient(
    layouts_agree: Callable[..., None], learnt_gaussian: Callable[..., Any], method: TDM
) -> None:
    critic = learnt_gaussian()
    layouts_agree(
        lambda turn: method.critic_loss(turn)[0], critic=critic, parameters=list(critic.parameters())
    )


def test_importance_ignores_padding() -> None:
    mask = Masked(torch.tensor([[True, True, False]]))
    eps, xi = torch.randn(2, 1, 3, 2)
    s, t = torch.full((1, 1, 1), 0.4), torch.full((1, 1, 1), 0.7)
    padded = torch.where(mask.mask[..., None], xi, 50.0)
    torch.testing.assert_close(
        importance_weights(eps, padded, LINEAR, s, t, mask), importance_weights(eps, xi, LINEAR, s, t, mask)
    )


def test_half_precision_samples_are_compared_in_float32() -> None:
    x, x_t, xi = torch.randn(3, 4, 8, dtype=torch.bfloat16)
    turn = turn_of(x, replace(call_of(x_t, 0.75, 0.5), x_t=x_t), xi)
    for loss in (TDM().student_loss, TDM().critic_loss):
        assert loss(turn)[0].dtype != torch.bfloat16


def test_a_sample_without_its_last_call_is_refused_with_the_remedy() -> None:
    turn = Turn(sample=Sample(x=torch.zeros(2, 3)), teacher=TEACHER, critic=CRITIC)
    with pytest.raises(ValueError, match="rollout_and_call"):
        TDM().student_loss(turn)


def test_steps_too_close_for_the_margins_are_refused() -> None:
    x = torch.zeros(2, 3, dtype=torch.float64)
    with pytest.raises(ValueError, match="no time lies between"):
        TDM().student_loss(turn_of(x, call_of(x, 0.505, 0.5), x))


@pytest.mark.parametrize("bad", [{"c": 0.0}, {"max_snr": 0.0}, {"margin": -0.1}, {"low": 0.0}, {"end": 1.5}])
def test_impossible_settings_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        TDM(**bad)  # pyright: ignore[reportArgumentType]


def test_it_needs_a_teacher_a_critic_and_samples() -> None:
    assert TDM().needs == {"teacher", "critic", "sample"}
