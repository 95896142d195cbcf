"""Features of residues: what they say of a helix, and what they do not see."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fewstep.modalities.protein.networks.embedding import index_embedding, time_embedding
from fewstep.modalities.protein.networks.sequence_features import (
    SEQUENCE_FEATURES,
    SequenceFeatures,
    chirality,
    difference,
    local_differences,
)

RISE, TURN, RADIUS = 0.15, 100 * math.pi / 180, 0.23  # of an ideal alpha helix, nanometre


def helix(residues: int) -> Tensor:
    """Right-handed."""
    places = torch.arange(residues, dtype=torch.float32)
    angle = TURN * places
    return torch.stack([RADIUS * angle.cos(), RADIUS * angle.sin(), RISE * places], -1)[None]


def everywhere(x: Tensor) -> Tensor:
    return torch.ones(x.shape[:2], dtype=torch.bool)


def test_a_helix_and_its_mirror_differ_by_strong_signs() -> None:
    x = helix(9)
    features = chirality(x, everywhere(x))[0]
    right_handed = torch.tensor([-1.0, -1.0, 1.0, 1.0])  # the second triple is the first, seen backwards
    assert bool((features[2:-2] * right_handed > 0.5).all())
    mirrored = chirality(x * torch.tensor([1.0, 1.0, -1.0]), everywhere(x))[0]
    torch.testing.assert_close(mirrored, -features)


def test_chirality_is_zero_where_a_neighbour_is_missing_and_on_a_line() -> None:
    x = helix(9)
    features = chirality(x, everywhere(x))[0]
    first_triple, second_triple = features[:, :2], features[:, 2:]
    assert not bool(first_triple[[0, -2, -1]].any()), "needs -1, 1, 2"
    assert not bool(second_triple[[0, 1, -1]].any()), "needs -2, -1, 1"
    assert bool(first_triple[1:-2].all())
    assert bool(second_triple[2:-1].all())
    line = torch.zeros(1, 6, 3)
    line[0, :, 0] = torch.arange(6)
    assert not bool(chirality(line, everywhere(line)).any())


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 1000))
def test_chirality_does_not_see_rotations_and_translations(seed: int) -> None:
    torch.manual_seed(seed)
    x = torch.randn(2, 7, 3)
    rotation = torch.linalg.qr(torch.randn(3, 3)).Q
    rotation = rotation * torch.linalg.det(rotation)
    moved = x @ rotation.mT + torch.randn(3)
    torch.testing.assert_close(
        chirality(moved, everywhere(x)), chirality(x, everywhere(x)), atol=1e-4, rtol=1e-3
    )


def test_coinciding_residues_have_finite_features_and_gradients() -> None:
    x = torch.zeros(1, 6, 3, requires_grad=True)
    features = chirality(x, everywhere(x))
    assert not bool(features.any())
    features.sum().backward()
    assert x.grad is not None
    assert bool(x.grad.isfinite().all())


@pytest.mark.parametrize("offset", [-2, -1, 1, 2])
def test_differences_lead_to_the_neighbour_and_vanish_where_there_is_none(offset: int) -> None:
    x, mask = torch.randn(1, 6, 3), torch.tensor([[True] * 5 + [False]])
    way, exists = difference(x, mask, offset)
    for i in range(6):
        there = 0 <= i + offset < 5 and i < 5
        assert bool(exists[0, i]) == there
        expected = x[0, i + offset] - x[0, i] if there else torch.zeros(3)
        torch.testing.assert_close(way[0, i], expected)


def test_a_chain_shorter_than_the_offsets_has_no_neighbours() -> None:
    x = torch.randn(1, 1, 3)
    assert not bool(local_differences(x, everywhere(x)).any())
    assert not bool(chirality(x, everywhere(x)).any())


def test_columns_follow_the_order_of_names() -> None:
    x, told = torch.randn(2, 5, 3), torch.randn(2, 5, 3)
    forward = SequenceFeatures(("res_seq_pdb_idx", "x_sc", "chain_break_per_res"), 8, 4)
    other = SequenceFeatures(("res_seq_pdb_idx", "chain_break_per_res", "x_sc"), 8, 4)
    columns = forward.linear_out.weight
    with torch.no_grad():
        other.linear_out.weight.copy_(torch.cat([columns[:, :8], columns[:, 11:], columns[:, 8:11]], 1))
    torch.testing.assert_close(other(x, everywhere(x), told), forward(x, everywhere(x), told))


def test_our_own_features_add_24_and_8_columns() -> None:
    released = ("res_seq_pdb_idx", "x_sc", "chain_break_per_res")
    assert SequenceFeatures(released, 128, 4).linear_out.in_features == 132
    assert SequenceFeatures(SEQUENCE_FEATURES, 128, 4).linear_out.in_features == 132 + 24 + 8


def test_embeddings_are_the_published_sinusoids() -> None:
    time = time_embedding(torch.tensor([0.3]), 6)[0]
    angles = [2000 * 0.3 * math.exp(-k * math.log(2000) / 2) for k in range(3)]
    expected = [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
    assert time.tolist() == pytest.approx(expected, abs=1e-4)  # float32 at an angle of 600
    index = index_embedding(3, 4, torch.device("cpu"))[2]
    angles = [3 * math.pi / 2056 ** (2 * k / 4) for k in range(2)]
    expected = [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
    assert index.tolist() == pytest.approx(expected, abs=1e-6)


def test_times_in_double_precision_stay_so() -> None:
    assert time_embedding(torch.tensor([0.3], dtype=torch.float64), 6).dtype == torch.float64
    assert time_embedding(torch.tensor([0.3], dtype=torch.bfloat16), 6).dtype == torch.float32
