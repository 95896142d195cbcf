"""Dynamic programming against all pairings of small chains."""

from itertools import combinations

import torch

from fewstep.modalities.protein.alignment import best_pairing


def greatest_sum(scores: torch.Tensor) -> float:
    first, second = scores.shape
    return max(
        sum(scores[i, j].item() for i, j in zip(rows, columns, strict=True))
        for size in range(min(first, second) + 1)
        for rows in combinations(range(first), size)
        for columns in combinations(range(second), size)
    )


def paired_sum(scores: torch.Tensor, partner: torch.Tensor) -> float:
    return sum(scores[i, j].item() for i, j in enumerate(partner.tolist()) if j >= 0)


def test_no_pairing_in_order_is_better() -> None:
    for first, second in ((4, 4), (3, 6), (6, 2), (1, 5), (5, 1)):
        scores = torch.rand(6, first, second) - 0.2
        found = best_pairing(scores)
        for item, partner in zip(scores, found, strict=True):
            used = [j for j in partner.tolist() if j >= 0]
            assert used == sorted(set(used))
            assert abs(paired_sum(item.clamp_min(0), partner) - greatest_sum(item.clamp_min(0))) < 1e-5


def test_padding_is_never_paired_and_changes_nothing() -> None:
    scores = torch.rand(3, 5, 7)
    wide = torch.full((3, 8, 9), -torch.inf)
    wide[:, :5, :7] = scores
    found = best_pairing(wide)
    assert torch.equal(found[:, :5], best_pairing(scores))
    assert (found[:, 5:] == -1).all()


def test_a_shifted_diagonal_is_found() -> None:
    scores = torch.zeros(1, 10, 12)
    scores[0, torch.arange(10), torch.arange(10) + 2] = 1.0
    assert best_pairing(scores)[0].tolist() == list(range(2, 12))
