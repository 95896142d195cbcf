"""Whole backbones from CA atoms: one angle per peptide, looked up by the shape of the chain around it.

Two neighbouring CA atoms of a trans peptide fix its plane but for a turn about the axis between them. That
turn follows from the CA atoms before and after, as PULCHRA (Rotkiewicz and Skolnick, 2008) and others use it;
C, O and N then stand where they stand in an ideal peptide, so that bonds are right whatever the table says.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

import numpy as np
from jaxtyping import Float, UInt8
from safetensors.numpy import load

from fewstep.modalities.protein.chains import Chain, checked

TABLE = "backbone_table.safetensors"
ATOMS = ("N", "CA", "C", "O")
FIRST_ANGLE, ANGLE_STEP, ANGLES = 76.0, 4.0, 23  # degrees, of the two CA angles
DIHEDRALS = 36
TURNS = 256  # an angle in one byte
SHORTEST = 4
CA_BOND = 3.8
# along the axis and beside it, in angstrom; means over 2 million trans peptides of the PDB
C_PLACE, O_PLACE, N_PLACE = (1.4305, 0.5274), (1.6506, 1.7396), (-1.4068, -0.3814)  # N from the second CA

Vectors = Float[np.ndarray, " peptide 3"]


@dataclass(frozen=True)
class Peptides:
    """The chain around each pair of neighbouring CA atoms that has one more on either side.

    Args:
        angles: of the CA atoms at both ends, degrees.
        dihedral: of the four of them, degrees.
        axis: from the first to the second, of length 1.
        side: at right angles to it, towards the CA atom before.
        normal: completes them to a right-handed frame.
    """

    angles: Float[np.ndarray, " peptide 2"]
    dihedral: Float[np.ndarray, " peptide"]
    axis: Vectors
    side: Vectors
    normal: Vectors

    @classmethod
    def of(cls, chain: Chain) -> "Peptides":
        """Of all pairs of a chain but the first and the last."""
        bond = np.diff(chain.astype(np.float64), axis=0)
        before, axis, after = bond[:-2], _unit(bond[1:-1]), bond[2:]
        side = _unit(-before + (before * axis).sum(1, keepdims=True) * axis)
        normal = np.cross(axis, side)
        ends = np.stack([_angle(-before, bond[1:-1]), _angle(-bond[1:-1], after)], 1)
        # the dihedral is the turn from the side of the atom before to that of the atom after
        turn = np.arctan2((after * normal).sum(1), (after * side).sum(1))
        return cls(ends, np.degrees(turn), axis, side, normal)

    def turn_of(self, vector: Vectors) -> Float[np.ndarray, " peptide"]:
        """The angle of a vector about the axis, in radians from ``side``."""
        return np.arctan2((vector * self.normal).sum(1), (vector * self.side).sum(1))


def cell_of(peptides: Peptides) -> Float[np.ndarray, " peptide 3"]:
    """Where the table is looked up, in its steps; angles beyond its ends are at its ends."""
    angles = ((peptides.angles - FIRST_ANGLE) / ANGLE_STEP).clip(0, ANGLES - 1)
    return np.concatenate([angles, (peptides.dihedral[:, None] + 180) / (360 / DIHEDRALS)], 1)


def completed(chains: Sequence[Chain]) -> list[Float[np.ndarray, " _ 4 3"]]:
    """N, CA, C and O of each residue, in angstrom; CA stays where it is.

    The chain is continued by two residues at either end as it goes on there, so that the first N and the
    last C and O have a place too. All peptides are trans: 3 in 1000 real ones are not.

    Raises:
        ValueError: for a chain of fewer than four residues, or one that is not finite.
    """
    checked(chains)
    short = min(map(len, chains), default=SHORTEST)
    if short < SHORTEST:
        raise ValueError(f"a chain of {short} residues has no backbone yet; give at least {SHORTEST}")
    if not len(chains):
        return []
    longer = [_continued(_continued(chain.astype(np.float64))[::-1])[::-1] for chain in chains]
    ends = np.cumsum([len(one) for one in longer])
    placed = np.split(_placed(np.concatenate(longer)), ends[:-1])
    return [_with_ca(chain, peptides) for chain, peptides in zip(longer, placed, strict=True)]


def _placed(atoms: Float[np.ndarray, " atom 3"]) -> Float[np.ndarray, " atom 3 3"]:
    """C, O and N of the peptide from each CA atom to the next, for all chains at once.

    What stands at the ends of chains, where a peptide lacks a neighbour, is not to be looked at.
    """
    peptides = Peptides.of(atoms)
    turn = _looked_up(cell_of(peptides))
    beside = np.cos(turn)[:, None] * peptides.side + np.sin(turn)[:, None] * peptides.normal
    first, second = atoms[1:-2], atoms[2:-1]
    c, o = (first + along * peptides.axis + off * beside for along, off in (C_PLACE, O_PLACE))
    n = second + N_PLACE[0] * peptides.axis + N_PLACE[1] * beside
    placed = np.full((len(atoms), 3, 3), np.nan)
    placed[1:-2] = np.stack([c, o, n], 1)
    return placed


def _with_ca(
    longer: Float[np.ndarray, " longer 3"], peptides: Float[np.ndarray, " longer 3 3"]
) -> Float[np.ndarray, " residue 4 3"]:
    own = slice(2, -2)
    c, o, n = peptides[own, 0], peptides[own, 1], peptides[1:-3, 2]
    return np.stack([n, longer[own], c, o], 1)


def _continued(chain: Float[np.ndarray, " residue 3"]) -> Float[np.ndarray, " longer 3"]:
    """Two more residues, each turned from the last ones as these are from those before."""
    for _ in range(2):
        tail = chain[-4:]
        frame, last = _frame(tail[:3]), _frame(tail[1:])
        # in the frame of three atoms, where the fourth one is; then the same in the next frame
        local = frame @ (tail[3] - tail[2])
        step = last.T @ local
        chain = np.concatenate([chain, chain[-1:] + CA_BOND * step / np.linalg.norm(step)])
    return chain


def _frame(three: Float[np.ndarray, " 3 3"]) -> Float[np.ndarray, " 3 3"]:
    """Rows: the last bond, what the one before has at right angles to it, and their cross product."""
    axis = _unit(three[2] - three[1])
    before = three[1] - three[0]
    side = before - (before @ axis) * axis
    length = np.linalg.norm(side)
    # a straight chain has no side: any will do
    side = side / length if length > 1e-6 else _unit(np.cross(axis, np.eye(3)[np.abs(axis).argmin()]))
    return np.stack([axis, side, np.cross(axis, side)])


def _looked_up(cell: Float[np.ndarray, " peptide 3"]) -> Float[np.ndarray, " peptide"]:
    """The turn of the carbonyl, in radians, between the eight entries around."""
    low = np.floor(cell).astype(np.int64)
    low[:, :2] = low[:, :2].clip(0, ANGLES - 2)
    part = cell - low
    direction = np.zeros((len(cell), 2))
    for corner in np.ndindex(2, 2, 2):
        weight = np.where(corner, part, 1 - part).prod(1)
        i, j, k = (low + corner).T
        angle = _table()[i, j, k % DIHEDRALS] * (2 * np.pi / TURNS)
        direction += weight[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1)
    return np.arctan2(direction[:, 1], direction[:, 0])


@cache
def _table() -> UInt8[np.ndarray, " angle angle dihedral"]:
    return load(files("fewstep.modalities.protein").joinpath(TABLE).read_bytes())["turns"]


def _unit(vectors: Float[np.ndarray, " *n 3"]) -> Float[np.ndarray, " *n 3"]:
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / np.maximum(length, np.finfo(np.float64).tiny)


def _angle(one: Vectors, other: Vectors) -> Float[np.ndarray, " peptide"]:
    sine = np.linalg.norm(np.cross(one, other), axis=1)
    return np.degrees(np.arctan2(sine, (one * other).sum(1)))
