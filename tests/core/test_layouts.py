"""Layouts: padding changes nothing, a batch of one is a slice."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fewstep.core.layouts import DENSE, Masked, Packed


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


@pytest.mark.parametrize("garbage", [float("inf"), float("nan")])
def test_padding_that_is_no_number_does_not_reach_the_mean(garbage: float) -> None:
    """A factor of 0 would not do."""
    mask = torch.tensor([[True, False], [True, True]])
    x = torch.tensor([[1.0, garbage], [2.0, 4.0]])
    assert Masked(mask).mean(x).tolist() == [1.0, 3.0]


def test_packed_tokens_average_to_their_samples_in_any_order() -> None:
    layout = Packed(torch.tensor([1, 0, 1, 1]), 2)
    x = torch.tensor([[1.0, 3.0], [5.0, 7.0], [2.0, 2.0], [0.0, 4.0]])
    assert layout.mean(x).tolist() == [6.0, 2.0]
    assert layout.batch_size(x) == 2
    t = torch.tensor([0.25, 0.75])
    assert layout.times(t).tolist() == [0.75, 0.25, 0.75, 0.75]
    assert layout.expand(t, x).tolist() == [[0.75], [0.25], [0.75], [0.75]]
    assert layout.expand(x[:, 0], x).tolist() == [[1.0], [5.0], [2.0], [0.0]]


@pytest.mark.parametrize(("index", "size"), [([0, 2], 3), ([0, 1, 2], 2), ([], 1)])
def test_packed_samples_without_a_token_and_tokens_without_a_sample_are_refused(
    index: list[int], size: int
) -> None:
    with pytest.raises(ValueError, match=f"size={size}"):
        Packed(torch.tensor(index, dtype=torch.int64), size)
