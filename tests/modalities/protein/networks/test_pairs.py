"""Pairs: look-ups against one-hot products, one vector per sample against one per pair."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fewstep.modalities.protein.networks.blocks import Block, attention_biases
from fewstep.modalities.protein.networks.pairs import (
    FARTHEST,
    NEAREST,
    PairBuilder,
    PairFeatures,
    distance_bins,
    separations,
)

ROUNDING = 1e-6  # float32 sums of three rows, then a layer norm


def one_hot_features(layer: PairFeatures, x_t: Tensor, told: Tensor | None) -> Tensor:
    """As published: every pair's row of zeros and ones, times the weight."""
    along, by_told, by_distance = layer.sizes
    n = x_t.shape[1]
    places = torch.arange(n)
    edges = torch.linspace(-(along / 2 - 1), along / 2 - 1, along - 1)
    columns = [F.one_hot(torch.bucketize(places[:, None] - places, edges), along).expand(len(x_t), n, n, -1)]
    for x, bins in ((told, by_told), (x_t, by_distance)):
        if x is None:
            columns.append(torch.zeros(len(x_t), n, n, bins))
        else:
            distances = (x[:, :, None] - x[:, None]).square().sum(-1).sqrt()
            edges = torch.linspace(NEAREST, FARTHEST, bins - 1)
            columns.append(F.one_hot(torch.bucketize(distances, edges), bins))
    return layer.ln_out(torch.cat(columns, -1).float() @ layer.linear_out.weight.t())


@pytest.mark.parametrize("told", [False, True], ids=["untold", "told"])
def test_look_ups_are_products_with_one_hot_rows_and_have_their_gradients(told: bool) -> None:
    layer = PairFeatures(9, 12, 10, 8)
    x_t = torch.randn(2, 11, 3)
    x_sc = torch.randn(2, 11, 3) if told else None
    found, expected = layer(x_t, x_sc), one_hot_features(layer, x_t, x_sc)
    torch.testing.assert_close(found, expected, atol=ROUNDING, rtol=ROUNDING)
    probe = torch.randn_like(found)
    gradients = [
        torch.autograd.grad((y * probe).sum(), layer.linear_out.weight)[0] for y in (found, expected)
    ]
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-5, rtol=1e-5)  # sums over 121 pairs


def test_an_estimate_of_zeros_is_not_the_same_as_none() -> None:
    layer = PairFeatures(9, 12, 10, 8)
    x_t = torch.randn(1, 5, 3)
    assert not torch.allclose(layer(x_t, torch.zeros(1, 5, 3)), layer(x_t, None))


def test_bins_of_distances_end_where_published() -> None:
    distances = torch.tensor([0.05, 0.11, 2.99, 3.5])
    x = torch.zeros(4, 2, 3)
    x[:, 1, 0] = distances
    assert distance_bins(x, 64)[:, 0, 1].tolist() == [0, 1, 62, 63]
    assert distance_bins(x, 64)[:, 1, 1].tolist() == [0, 0, 0, 0]


def test_separations_are_signed_and_clamped() -> None:
    bins = separations(5, 5, torch.device("cpu"))
    assert bins.tolist() == [
        [2, 1, 0, 0, 0],
        [3, 2, 1, 0, 0],
        [4, 3, 2, 1, 0],
        [4, 4, 3, 2, 1],
        [4, 4, 4, 3, 2],
    ]


def test_one_gain_per_sample_is_one_per_pair() -> None:
    builder = PairBuilder((9, 12, 10), 8, 12, 6)
    x_t, embedded = torch.randn(2, 5, 3), torch.randn(2, 6)
    condition = builder.cond_factory(embedded)[:, None, None].expand(2, 5, 5, 12)
    normed = builder.adaln.norm_cond(condition)
    pairs = F.layer_norm(builder.init_repr_factory(x_t, None), (8,))
    expected = pairs * builder.adaln.to_gamma(normed) + builder.adaln.to_beta(normed)
    torch.testing.assert_close(builder(x_t, None, embedded), expected)


def test_biases_of_all_blocks_at_once_are_those_of_each_with_zeros_for_registers() -> None:
    blocks = [Block(16, 8, 12, 2, qk_norm=True) for _ in range(3)]
    for block in blocks:
        for parameter in block.parameters():
            torch.nn.init.normal_(parameter)
    pairs = torch.randn(2, 5, 5, 8)
    mask = torch.ones(2, 7, dtype=torch.bool)
    mask[1, 6] = False
    padded = F.pad(pairs, (0, 0, 2, 0, 2, 0))
    for block, bias in zip(blocks, attention_biases(pairs, blocks, mask), strict=True):
        layer = block.mhba.mha
        expected = layer.to_bias(layer.pair_norm(padded)).permute(0, 3, 1, 2)
        torch.testing.assert_close(bias[0], expected[0], atol=1e-4, rtol=1e-4)  # products of 8 normal numbers
        torch.testing.assert_close(bias[1, ..., :6], expected[1, ..., :6], atol=1e-4, rtol=1e-4)
        assert bool((bias[1, ..., 6] < -1e37).all())
