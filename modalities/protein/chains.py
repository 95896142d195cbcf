"""Chains of CA atoms, in angstrom, one by one and many at once."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

Chain = Float[np.ndarray, " _ 3"]  # any length: lists hold chains of several
PaddedChains = Float[Tensor, " chain residue 3"]


def checked(chains: Sequence[Chain]) -> None:
    """Refuse what is not a list of finite [L, 3] chains.

    Raises:
        ValueError: naming the first bad chain.
    """
    for index, chain in enumerate(chains):
        if chain.ndim != 2 or chain.shape[1] != 3 or not len(chain):
            raise ValueError(
                f"chain {index} has shape {chain.shape}; give [residue, 3], at least one residue"
            )
        if not np.isfinite(chain).all():
            raise ValueError(f"chain {index} has a coordinate that is not finite; leave that design out")


def padded(
    chains: Sequence[Chain], *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> PaddedChains:
    """One tensor; residues that a chain does not have are NaN, so that nothing computed from them counts.

    Raises:
        ValueError: for no chain, or one that is not [residue, 3] or not finite.
    """
    if not len(chains):
        raise ValueError("chains is empty; give at least one")
    checked(chains)
    longest = max(len(chain) for chain in chains)
    held = np.full((len(chains), longest, 3), np.nan, np.float64)
    for row, chain in zip(held, chains, strict=True):
        row[: len(chain)] = chain
    return torch.from_numpy(held).to(device=device, dtype=dtype)


def real(chains: PaddedChains) -> Bool[Tensor, " chain residue"]:
    """Where there is a residue."""
    return ~chains[..., 0].isnan()


def lengths(chains: PaddedChains) -> Int[Tensor, " chain"]:
    """Residues of each chain."""
    return real(chains).sum(1)


def by_length(sizes: Sequence[int], *, residues: int) -> Iterator[Int[np.ndarray, " some"]]:
    """Indices of chains in groups of neighbouring lengths, with at most ``residues`` after padding."""
    order = np.argsort(sizes, kind="stable")
    start = 0
    for stop in range(1, len(order) + 1):
        full = stop == len(order) or (stop + 1 - start) * sizes[order[stop]] > residues
        if full:
            yield order[start:stop]
            start = stop
