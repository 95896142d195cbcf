"""The table that ``backbone`` looks peptides up in, counted on real chains."""

from collections.abc import Iterable

import numpy as np
from jaxtyping import Float, UInt8

from fewstep.modalities.protein.backbone import ANGLES, CA_BOND, DIHEDRALS, TURNS, Peptides, cell_of

TRANS = 0.2  # angstrom from 3.8; cis peptides are at 2.9
# smoothing in cells and its weight: where there are few counts, those of farther cells speak
SCALES = ((0.4, 1.0), (1.2, 1e-3), (3.2, 1e-6), (12.0, 1e-12))

Backbones = Iterable[Float[np.ndarray, " _ 4 3"]]


def fitted_table(backbones: Backbones) -> UInt8[np.ndarray, " angle angle dihedral"]:
    """The mean turn of the carbonyl about the axis of its peptide, by the CA atoms around it.

    Args:
        backbones: N, CA, C, O of unbroken chains, angstrom.

    Raises:
        ValueError: without a peptide.
    """
    shape = (ANGLES, ANGLES, DIHEDRALS)
    sums = np.zeros((2, *shape))
    for backbone in backbones:
        cell, turn = peptide_turns(backbone)
        place = np.rint(cell).astype(np.int64)
        place[:, 2] %= DIHEDRALS
        flat = np.ravel_multi_index(tuple(place.T), shape)
        for row, value in zip(sums, (np.cos(turn), np.sin(turn)), strict=True):
            row += np.bincount(flat, value, row.size).reshape(shape)
    if not sums.any():
        raise ValueError("no peptide was found; give whole backbones in angstrom")
    smoothed = sum(weight * _smoothed(sums, scale) for scale, weight in SCALES)
    assert isinstance(smoothed, np.ndarray)
    turn = np.arctan2(smoothed[1], smoothed[0])
    steps = np.rint(turn * (TURNS / (2 * np.pi))).astype(np.int64) % TURNS
    return np.ascontiguousarray(steps, np.uint8)


def peptide_turns(
    backbone: Float[np.ndarray, " residue 4 3"],
) -> tuple[Float[np.ndarray, " peptide 3"], Float[np.ndarray, " peptide"]]:
    """Cell and turn of each trans peptide that has a residue on either side."""
    atoms = backbone.astype(np.float64)
    ca, carbonyl = atoms[:, 1], atoms[:, 3] - atoms[:, 1]
    trans = np.abs(np.linalg.norm(np.diff(ca, axis=0), axis=1)[1:-1] - CA_BOND) < TRANS
    peptides = Peptides.of(ca)
    return cell_of(peptides)[trans], peptides.turn_of(carbonyl[1:-2])[trans]


def _smoothed(sums: Float[np.ndarray, " 2 angle angle dihedral"], scale: float) -> np.ndarray:
    """Weighted by a Gaussian along each axis; the dihedral's goes round."""
    for axis, size in ((1, ANGLES), (2, ANGLES), (3, DIHEDRALS)):
        apart = np.abs(np.arange(size)[:, None] - np.arange(size))
        if axis == 3:
            apart = np.minimum(apart, size - apart)
        kernel = np.exp(-0.5 * (apart / scale) ** 2)
        sums = np.moveaxis(np.tensordot(kernel, sums, (1, axis)), 0, axis)
    return sums
