"""The best order-keeping pairing of two chains' residues, many pairs of chains at once."""

import torch
from jaxtyping import Float, Int
from torch import Tensor


def best_pairing(scores: Float[Tensor, " item first second"]) -> Int[Tensor, " item first"]:
    r"""For each residue of the first chain its partner in the second one, or -1.

    Partners come in the order of the residues, and the sum of their scores is the greatest possible; gaps are
    free. For scores :math:`1 / (1 + d^2 / d_0^2)` of superposed chains that is the pairing with the greatest
    TM-score. Scores of 0 or less are never paired, so padding is given -inf or 0. Dynamic programming
    (Needleman and Wunsch, 1970) along antidiagonals, so that every step is one operation on all items.
    """
    items, first, second = scores.shape
    steps = first + second
    # row k of ``along`` holds the cells (i, k - i)
    along = scores.new_zeros(items, first, steps)
    along[:, :, :second] = scores.clamp_min(0)
    along = along.reshape(items, -1)[:, : first * (steps - 1)].reshape(items, first, steps - 1)
    along = along.permute(2, 0, 1).contiguous()
    # best[k][:, i] is the greatest sum over the first i residues and the first k - i of the other chain
    best = scores.new_zeros(steps + 1, items, first + 1)
    for k in range(2, steps + 1):
        low, high = max(1, k - second), min(first, k - 1) + 1
        met = best[k - 2][:, low - 1 : high - 1] + along[k - 2][:, low - 1 : high - 1]
        skipped = torch.maximum(best[k - 1][:, low - 1 : high - 1], best[k - 1][:, low:high])
        torch.maximum(met, skipped, out=best[k][:, low:high])
    return _traced(best, first, second)


def _traced(
    best: Float[Tensor, " step item first_and_one"], first: int, second: int
) -> Int[Tensor, " item first"]:
    items = best.shape[1]
    row = torch.arange(items, device=best.device)
    flat, width, stride = best.reshape(-1), best.shape[2], best.shape[1] * best.shape[2]
    i, j = row.new_full((items,), first), row.new_full((items,), second)
    partner = row.new_full((items, first + 1), -1)
    for _ in range(first + second):
        here = (i + j) * stride + row * width + i
        value = flat[here]
        active = (i > 0) & (j > 0)
        # where i or j is 0 the looked-up cell is meaningless, but then nothing moves
        up = (flat[(here - stride - 1).clamp_min(0)] == value) & active
        left = ~up & (flat[(here - stride).clamp_min(0)] == value) & active
        met = active & ~up & ~left
        partner[row, i] = torch.where(met, j - 1, partner[row, i])
        i = i - (up | met).long()
        j = j - (left | met).long()
    return partner[:, 1:]
