"""Layouts: padding changes nothing, a batch of one is a slice."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fewstep.core.layouts import DENSE, Masked


def test_a_time_per_sample_or_per_frame_broadcasts_over_the_rest() -> None:
    video = torch.zeros(2, 3, 4, 5, 6)
    assert DENSE.expand(torch.zeros(2), video).shape == (2, 1, 1, 1, 1)
    assert DENSE.expand(torch.zeros(2, 3), video).shape == (2, 3, 1, 1, 1)
    assert DENSE.expand(torch.zeros(2, 3, 4, 5, 6), video).shape == video.shape


@pytest.mark.parametrize("shape", [(3,), (2, 4), (1,)])
def test_a_value_that_does_not_match_the_leading_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="leading shape"):
        DENSE.expand(torch.zeros(shape), torch.zeros(2, 3, 4))


def test_dense_mean_is_over_everything_but_the_batch() -> None:
    x = torch.arange(12.0).view(2, 3, 2)
    torch.testing.assert_close(DENSE.mean(x), torch.tensor([2.5, 8.5]))
    torch.testing.assert_close(DENSE.mean(torch.tensor([1.0, 2.0])), torch.tensor([1.0, 2.0]))


@given(lengths=st.lists(st.integers(1, 5), min_size=1, max_size=4), padding=st.integers(0, 3))
def test_masked_mean_is_the_mean_of_the_real_part_whatever_the_padding(
    lengths: list[int], padding: int
) -> None:
    longest = max(lengths) + padding
    x = torch.randn(len(lengths), longest, 3, dtype=torch.float64)
    mask = torch.arange(longest) < torch.tensor(lengths)[:, None]
    garbage = torch.where(mask[..., None], x, 1e6 * torch.randn_like(x)).requires_grad_()
    mean = Masked(mask).mean(garbage)
    expected = torch.stack([row[:length].mean() for row, length in zip(x, lengths, strict=True)])
    torch.testing.assert_close(mean, expected)
    mean.sum().backward()
    assert garbage.grad is not None
    assert (garbage.grad[~mask] == 0).all()


def test_a_batch_of_one_is_a_slice_of_the_batch() -> None:
    x = torch.randn(3, 5, 2)
    mask = torch.arange(5) < torch.tensor([5, 2, 3])[:, None]
    whole = Masked(mask).mean(x)
    for i in range(3):
        torch.testing.assert_close(Masked(mask[i : i + 1]).mean(x[i : i + 1])[0], whole[i])


@pytest.mark.parametrize("mask", [torch.zeros(2, 3, dtype=torch.bool), torch.ones(2, dtype=torch.bool)])
def test_masks_without_a_real_element_or_without_elements_are_refused(mask: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="mask"):
        Masked(mask)
