"""Chains and backbones as PDB, mmCIF or binary CIF files."""

import importlib
import io
import os
import secrets
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

from fewstep.modalities.protein.backbone import ATOMS

Format = Literal["pdb", "cif", "bcif"]
FORMATS: tuple[Format, ...] = ("pdb", "cif", "bcif")
INSTALL = "mmCIF files need the package biotite: pip install 'fewstep[protein]'; --format pdb needs nothing"
CA_ONLY = ("CA",)
PLACEHOLDER = "G"  # a residue of which only the backbone is known
NAMES = {
    "A": "ALA", "R": "ARG", "N": "ASN", "D": "ASP", "C": "CYS", "Q": "GLN", "E": "GLU", "G": "GLY",
    "H": "HIS", "I": "ILE", "L": "LEU", "K": "LYS", "M": "MET", "F": "PHE", "P": "PRO", "S": "SER",
    "T": "THR", "W": "TRP", "Y": "TYR", "V": "VAL", "X": "UNK",
}  # fmt: skip
MOST_ATOMS, MOST_RESIDUES = 99_999, 9_999  # of a PDB file
FARTHEST = 9_999.0  # angstrom, in eight columns with three decimals

Atoms = Float[np.ndarray, " residue atom 3"]


def structure_bytes(
    atoms: Atoms, *, kind: Format, sequence: str | None = None, title: str = "", first: int = 1
) -> bytes:
    """The contents of a structure file of one chain, A.

    Args:
        atoms: CA alone, [residue, 1, 3], or N, CA, C, O, [residue, 4, 3]; angstrom.
        kind: of the file.
        sequence: one letter per residue; glycine by default.
        title: a line at the top, in PDB files.
        first: number of the first residue; Proteina's files count from 0.

    Raises:
        ValueError: for atoms, a sequence or a kind that cannot be written.
        ImportError: mmCIF without biotite.
    """
    names = _checked(atoms, sequence)
    if kind == "pdb":
        return _pdb(atoms, names, title, first).encode("ascii")
    if kind not in FORMATS:
        raise ValueError(f"kind={kind!r} must be one of {', '.join(FORMATS)}")
    return _cif(atoms, names, first, binary=kind == "bcif")


def write_whole(path: Path, content: bytes) -> None:
    """Write beside ``path`` and rename, so that the file is there whole or not at all, also after a crash."""
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    with part.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def _checked(atoms: Atoms, sequence: str | None) -> list[str]:
    if atoms.shape[1] not in (len(CA_ONLY), len(ATOMS)) or not len(atoms):
        raise ValueError(f"atoms of shape {atoms.shape} must be [residue, 1, 3] or [residue, 4, 3]")
    if not np.isfinite(atoms).all():
        raise ValueError("a coordinate is not finite; leave that design out")
    letters = PLACEHOLDER * len(atoms) if sequence is None else sequence
    unknown = sorted(set(letters) - set(NAMES))
    if len(letters) != len(atoms) or unknown:
        raise ValueError(
            f"sequence of {len(letters)} letters{f' with {unknown[0]!r}' if unknown else ''} does not fit "
            f"{len(atoms)} residues; give one of {''.join(NAMES)} for each"
        )
    return [NAMES[letter] for letter in letters]


def _atom_names(atoms: Atoms) -> tuple[str, ...]:
    return CA_ONLY if atoms.shape[1] == len(CA_ONLY) else ATOMS


def _pdb(atoms: Atoms, names: list[str], title: str, first: int) -> str:
    if atoms.shape[0] * atoms.shape[1] > MOST_ATOMS or first + len(atoms) - 1 > MOST_RESIDUES:
        raise ValueError(f"{len(atoms)} residues do not fit the columns of a PDB file; write mmCIF")
    centred = atoms - atoms.mean((0, 1)) if np.abs(atoms).max() > FARTHEST else atoms
    lines = [f"TITLE     {title[:70]}"] if title else []
    serial = 0
    for residue, name, number in zip(centred, names, range(first, first + len(names)), strict=True):
        for atom, (x, y, z) in zip(_atom_names(atoms), residue.tolist(), strict=True):
            serial += 1
            lines.append(
                f"ATOM  {serial:5d}  {atom:<3s} {name} A{number:4d}    {x:8.3f}{y:8.3f}{z:8.3f}  1.00  0.00"
                f"          {atom[0]:>2s}"
            )
    lines.append(f"TER   {serial + 1:5d}      {names[-1]} A{first + len(names) - 1:4d}")
    return "\n".join([*lines, "END", ""])


def require_biotite() -> None:
    """Raise an ImportError that tells how to get it."""
    try:
        importlib.import_module("biotite.structure.io.pdbx")
    except ImportError as error:
        raise ImportError(INSTALL) from error


def _cif(atoms: Atoms, names: list[str], first: int, *, binary: bool) -> bytes:
    require_biotite()
    from biotite.structure import AtomArray
    from biotite.structure.io import pdbx

    residues, per_residue = atoms.shape[:2]
    array: Any = AtomArray(residues * per_residue)
    array.coord = atoms.reshape(-1, 3).astype(np.float32)
    array.atom_name[:] = np.tile(_atom_names(atoms), residues)
    array.element[:] = np.tile([name[0] for name in _atom_names(atoms)], residues)
    array.res_name[:] = np.repeat(names, per_residue)
    array.res_id[:] = np.repeat(np.arange(first, first + residues), per_residue)
    array.chain_id[:] = "A"
    if binary:
        file = pdbx.BinaryCIFFile()
        pdbx.set_structure(file, array, data_block="design")
        stream = io.BytesIO()
        small: Any = pdbx.compress(file)
        small.write(stream)
        return stream.getvalue()
    text, cif = io.StringIO(), pdbx.CIFFile()
    pdbx.set_structure(cif, array, data_block="design")
    cif.write(text)
    return text.getvalue().encode("ascii")
