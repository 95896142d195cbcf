"""Turns whose random numbers are known, and the same tokens in every layout."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fewstep.core.analytic import GaussianDenoiser
from fewstep.core.layouts import DENSE, Layout, Masked, Packed
from fewstep.core.objectives.contract import Data, Sample, Turn
from fewstep.core.rollouts import Call
from fewstep.core.schedules import TimeSampler
from tests.core.objectives.known_numbers import FixedTimes

ROWS = 32  # of the tables of random numbers: more than there are tokens or samples
PADDING = -1  # a token's number that stands for padding


@dataclass(frozen=True, kw_only=True)
class KnownTurn(Turn):
    """The n-th draw gives the same token of the same sample the same number, wherever that token lies.

    Times and uniform numbers are in float64, so that layouts can be told apart to its last digits.

    Args:
        tokens: their numbers, in the leading shape of samples; -1 is padding, which gets numbers of its own.
        samples: their numbers. [B]
    """

    tokens: Tensor
    samples: Tensor
    draws: Iterator[int] = field(default_factory=count)

    def times(self, sampler: TimeSampler, x: Tensor, layout: Layout) -> Tensor:
        return sampler.sample(ROWS, generator=self._next_generator()).double()[self.samples]

    def noise_like(self, x: Tensor) -> Tensor:
        rows = self.tokens if x.shape[: self.tokens.ndim] == self.tokens.shape else self.samples
        event = x.shape[rows.ndim :]
        return torch.randn(ROWS, *event, generator=self._next_generator(), dtype=torch.float64)[rows].to(x)

    def uniform(self, size: int, device: torch.device) -> Tensor:
        table = torch.rand(ROWS, generator=self._next_generator(), dtype=torch.float64)
        return table[self.samples] if size == len(self.samples) else table[:size]

    def _next_generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(1000 + next(self.draws))


@dataclass(frozen=True, eq=False)
class Arrangement:
    """Where tokens lie in a batch."""

    layout: Layout
    tokens: Tensor
    samples: Tensor
    padding: float = 0.0

    @property
    def real(self) -> Tensor:
        return self.tokens != PADDING

    def lay(self, values: Tensor) -> Tensor:
        """``values`` [token, ...] as a batch."""
        laid = values[self.tokens].clone()
        laid[~self.real] = self.padding
        return laid

    def read(self, x: Tensor) -> Tensor:
        """The inverse: [token, ...], zeros where a token is not in this batch."""
        values = x.new_zeros(ROWS, *x.shape[self.tokens.ndim :])
        values[self.tokens[self.real]] = x[self.real]
        return values


def _arranged(
    layout: Layout, tokens: Sequence[object], *, samples: int = 3, padding: float = 0
) -> Arrangement:
    return Arrangement(layout, torch.tensor(tokens), torch.arange(samples), padding)


def _packed(index: Sequence[int], tokens: Sequence[int]) -> Arrangement:
    return _arranged(Packed(torch.tensor(index), 3), tokens)


_PADDED = [[0, 1, 2], [3, PADDING, PADDING], [4, 5, PADDING]]
_MASK = Masked(torch.tensor(_PADDED) != PADDING)
RAGGED = (
    _arranged(_MASK, _PADDED),
    _arranged(_MASK, _PADDED, padding=1e3),
    _packed([0, 0, 0, 1, 2, 2], [0, 1, 2, 3, 4, 5]),
    _packed([2, 0, 1, 0, 2, 0], [5, 1, 3, 0, 4, 2]),
)
"""Samples of 3, 1 and 2 tokens: padded with zeros, with large values, packed, and packed in another order."""

EVEN = (
    _arranged(DENSE, [[0, 1], [2, 3], [4, 5]]),
    _arranged(Masked(torch.ones(3, 2, dtype=torch.bool)), [[0, 1], [2, 3], [4, 5]]),
    _packed([0, 0, 1, 1, 2, 2], [0, 1, 2, 3, 4, 5]),
)
"""Three samples of 2 tokens: dense, under a mask of nothing, packed."""

ALONE = tuple(
    Arrangement(DENSE, torch.tensor([[2 * number, 2 * number + 1]]), torch.tensor([number]))
    for number in range(3)
)
"""The samples of ``EVEN``, each in a batch of its own."""


def _evaluate(
    loss: Callable[[Turn], Tensor], here: Arrangement, parameters: Sequence[Tensor], roles: dict[str, Any]
) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
    """The loss, its gradient in each token of the sample, and in ``parameters``."""
    generator = torch.Generator().manual_seed(0)
    x, x0, x_t, pairs = torch.randn(4, ROWS, 2, generator=generator, dtype=torch.float64)
    leaf = here.lay(x).requires_grad_()
    t = torch.tensor([0.8, 0.6, 0.9], dtype=torch.float64)[here.samples]
    call = Call(x_t=here.lay(x_t), t=t, t_next=t / 2)
    turn = KnownTurn(
        sample=Sample(x=leaf, layout=here.layout, call=call),
        data=Data(x0=here.lay(x0), layout=here.layout, noise=here.lay(pairs)),
        tokens=here.tokens,
        samples=here.samples,
        **roles,
    )
    value = loss(turn)
    # adding 0 makes a loss that ignores the sample differentiable in it
    grads = torch.autograd.grad(value + 0 * leaf.sum(), [leaf, *parameters], materialize_grads=True)
    assert (grads[0][~here.real] == 0).all(), "padding received a gradient"
    return value.detach(), here.read(grads[0]), grads[1:]


@pytest.fixture
def layouts_agree() -> Callable[..., None]:
    """``layouts_agree(loss, parameters=..., alone=..., **roles)`` proves a loss blind to the layout.

    ``loss(turn)`` is evaluated on the same tokens, padded, packed, permuted and dense, and must give the same
    value and gradients, in the sample and in ``parameters``; ``alone``: and the mean over batches of one.
    The turn holds a sample with its last call, data with noise, and ``roles`` (``teacher=...``): these must
    treat tokens alike: [B, L, 2] with one time per sample, or [N, 2] with one per token; all in float64.
    """

    def check(
        loss: Callable[[Turn], Tensor], *, parameters: Sequence[Tensor] = (), alone: bool = True, **roles: Any
    ) -> None:
        def agree(found: Any, expected: Any) -> None:
            # sums change their order, and padding of 1e3 passes through some
            torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)

        for same in (RAGGED, EVEN):
            expected = _evaluate(loss, same[0], parameters, roles)
            assert expected[1].abs().max() > 0 or any(grad.abs().max() > 0 for grad in expected[2])
            for here in same[1:]:
                agree(_evaluate(loss, here, parameters, roles), expected)
        if alone:
            values, grads, _ = zip(*(_evaluate(loss, here, parameters, roles) for here in ALONE), strict=True)
            together = _evaluate(loss, EVEN[0], parameters, roles)
            agree(torch.stack(values).mean(), together[0])
            agree(torch.stack(grads).sum(0) / 3, together[1])

    return check


@pytest.fixture
def known_turn() -> Callable[..., Turn]:
    """``known_turn(x, **roles)``: a turn around a dense batch whose n-th draw is always the same numbers.

    ``x`` becomes the sample unless ``sample=`` is among ``roles``.
    """

    def make(x: Tensor, **roles: Any) -> Turn:
        numbers = torch.arange(len(x)) % ROWS
        assert len(x) <= ROWS, "draw large batches from Turn itself, with a generator"
        return KnownTurn(**{"sample": Sample(x=x), **roles}, tokens=numbers, samples=numbers)

    return make


@pytest.fixture
def fixed_times() -> Callable[..., TimeSampler]:
    """``fixed_times(0.5)`` or ``fixed_times(0.1, 0.9)``: a sampler that gives these, over and over."""
    return lambda *values: FixedTimes(values)


@pytest.fixture
def gaussian_teacher() -> GaussianDenoiser:
    """The exact denoiser of N(1.3, 0.7^2), the teacher of every golden number."""
    return GaussianDenoiser(mean=1.3, std=0.7)


@pytest.fixture
def gaussian_critic() -> GaussianDenoiser:
    """The exact denoiser of N(0.4, 1.1^2), the students of these golden numbers."""
    return GaussianDenoiser(mean=0.4, std=1.1)


class LearntGaussian(nn.Module):
    """The denoiser of a Gaussian whose mean and width are parameters, in float64."""

    def __init__(self, mean: float = 0.4, std: float = 1.1) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.tensor(mean, dtype=torch.float64))
        self.std = nn.Parameter(torch.tensor(std, dtype=torch.float64))
        self.path = GaussianDenoiser().path

    def forward(self, x_t: Tensor, t: Tensor, condition: object) -> Tensor:
        return GaussianDenoiser(mean=self.mean, std=self.std)(x_t, t, condition)


@pytest.fixture
def learnt_gaussian() -> Callable[..., nn.Module]:
    """``learnt_gaussian(mean=0.4, std=1.1)``: a denoiser with two parameters, for students and critics."""
    return LearntGaussian
