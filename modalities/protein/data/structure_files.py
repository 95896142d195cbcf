"""Chains out of anybody's PDB and mmCIF files, read by biotite."""

import gzip
import io
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from fewstep.modalities.protein.data.chain_set import NamedChain, longest_run

PDB, CIF, BINARY_CIF = (".pdb", ".ent"), (".cif", ".mmcif"), (".bcif",)
SUFFIXES = (*PDB, *CIF, *BINARY_CIF)
INSTALL = "structure files need the package biotite: pip install 'fewstep[protein]'"
# what gzip, msgpack and biotite say of files that are cut short or something else
DAMAGE = (AttributeError, EOFError, IndexError, KeyError, OSError, TypeError, ValueError, zlib.error)
LETTERS = {
    "ALA": "A", "ARG": "R", "ASN": "N", "ASP": "D", "CYS": "C", "GLN": "Q", "GLU": "E", "GLY": "G",
    "HIS": "H", "ILE": "I", "LEU": "L", "LYS": "K", "MET": "M", "PHE": "F", "PRO": "P", "SER": "S",
    "THR": "T", "TRP": "W", "TYR": "Y", "VAL": "V", "MSE": "M",
}  # fmt: skip


def structure_files(folder: Path) -> list[Path]:
    """All PDB, mmCIF and binary CIF files in a folder and its folders, also gzipped ones, by name.

    Raises:
        FileNotFoundError: there is none.
    """
    found = sorted(path for path in folder.rglob("*") if path.is_file() and _suffix(path) in SUFFIXES)
    if not found:
        raise FileNotFoundError(
            f"{folder} holds no structure files; put {', '.join(SUFFIXES)} there (also with .gz)"
        )
    return found


def read_structure_file(path: Path) -> Iterator[NamedChain]:
    """The longest part without a gap of each protein chain of the file's first model.

    Residues that are neither one of the 20 amino acids nor selenomethionine end a part, as missing ones do.

    Raises:
        ImportError: without biotite.
        ValueError: the file cannot be read.
    """
    atoms = _atoms(path)
    atoms = atoms[(atoms.atom_name == "CA") & np.isin(atoms.res_name, list(LETTERS))]
    entry = (path.stem if path.suffix.lower() == ".gz" else path.name).rsplit(".", 1)[0]
    for chain_id in dict.fromkeys(atoms.chain_id.tolist()):
        chain = atoms[atoms.chain_id == chain_id]
        part = chain[longest_run(chain.coord)]
        yield NamedChain(
            name=f"{entry}_{chain_id}",
            sequence="".join(LETTERS[name] for name in part.res_name),
            coordinates=part.coord.astype(np.float32),
        )


def pdb_text(path: Path) -> str:
    """The amino acids of the file's first model in PDB format, for programs that read no other.

    Raises:
        ImportError: without biotite.
        ValueError: the file cannot be read, or does not fit that format's columns.
    """
    atoms = _atoms(path)
    from biotite.structure import BadStructureError, filter_amino_acids
    from biotite.structure.io import pdb

    text, file = io.StringIO(), pdb.PDBFile()
    try:
        file.set_structure(atoms[filter_amino_acids(atoms)])
    except (BadStructureError, *DAMAGE) as error:
        raise ValueError(f"{path} does not fit the PDB format ({error})") from error
    file.write(text)
    return text.getvalue()


def _atoms(path: Path) -> Any:
    try:
        from biotite import DeserializationError, InvalidFileError
        from biotite.structure.io import pdb, pdbx
    except ImportError as error:
        raise ImportError(INSTALL) from error
    content = path.read_bytes()
    try:
        if path.suffix.lower() == ".gz":
            content = gzip.decompress(content)
        if _suffix(path) in PDB:
            return pdb.PDBFile.read(_text(content)).get_structure(model=1)
        if _suffix(path) in CIF:
            return pdbx.get_structure(pdbx.CIFFile.read(_text(content)), model=1)
        return pdbx.get_structure(pdbx.BinaryCIFFile.read(io.BytesIO(content)), model=1)
    except (DeserializationError, InvalidFileError, *DAMAGE) as error:
        raise ValueError(f"{path} cannot be read as a structure ({error}); repair or remove it") from error


def _suffix(path: Path) -> str:
    return Path(path.name.lower().removesuffix(".gz")).suffix


def _text(content: bytes) -> io.StringIO:
    return io.StringIO(content.decode("utf-8", errors="replace"))
