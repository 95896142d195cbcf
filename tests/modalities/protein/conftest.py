"""Fifteen chains of the Protein Data Bank, of 40 to 128 residues, three pairs of them alike."""

from pathlib import Path

import numpy as np
import pytest

HELD = Path(__file__).with_name("real_chains.npz")


@pytest.fixture(scope="session")
def real_backbones() -> list[np.ndarray]:
    """N, CA, C and O, in angstrom, [residue, 4, 3]."""
    with np.load(HELD) as held:
        return np.split(held["backbone"].astype(np.float64) / 100, np.cumsum(held["lengths"])[:-1])


@pytest.fixture(scope="session")
def real_chains(real_backbones: list[np.ndarray]) -> list[np.ndarray]:
    """CA alone."""
    return [backbone[:, 1] for backbone in real_backbones]


@pytest.fixture(scope="session")
def real_sequences() -> list[str]:
    with np.load(HELD) as held:
        return [str(sequence) for sequence in held["sequences"]]
