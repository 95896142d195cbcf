"""The layouts' own check must refuse losses that look at the layout."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fewstep.core.objectives.contract import Sample, Turn


def sample_of(turn: Turn) -> Sample:
    assert turn.sample is not None
    return turn.sample


def plain_mean(turn: Turn) -> Tensor:
    return sample_of(turn).x.square().mean()


def noise_of_its_own(turn: Turn) -> Tensor:
    x = sample_of(turn).x
    return sample_of(turn).layout.mean(x * torch.randn_like(x)).mean()


def batch_by_length(turn: Turn) -> Tensor:
    sample = sample_of(turn)
    return sample.layout.mean(sample.x.square()).sum() / len(sample.x)


def mean_of_one(turn: Turn) -> Tensor:
    sample = sample_of(turn)
    return sample.layout.mean(sample.x.square()).sum()


def honest(turn: Turn) -> Tensor:
    sample = sample_of(turn)
    x, layout = sample.x, sample.layout
    scale = layout.expand(turn.uniform(layout.batch_size(x), x.device), x)
    return layout.mean((scale * x + turn.noise_like(x)).square()).mean()


@pytest.mark.parametrize("loss", [plain_mean, noise_of_its_own, batch_by_length, mean_of_one])
def test_a_loss_that_sees_the_layout_is_refused(
    layouts_agree: Callable[..., None], loss: Callable[[Turn], Tensor]
) -> None:
    with pytest.raises(AssertionError):
        layouts_agree(loss)


def test_a_loss_that_does_not_is_accepted(layouts_agree: Callable[..., None]) -> None:
    layouts_agree(honest)
