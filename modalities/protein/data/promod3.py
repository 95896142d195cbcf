"""The structure database of ProMod3 (Debian package promod3-data): 21,119 chains of the Protein Data Bank."""

import mmap
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8, UInt16

from fewstep.modalities.protein.data.chain_set import NamedChain

MAGIC, VERSION = 1234, 2
HEADER = 77  # bytes, the sizes and endianness of C++ types; then a count, then as many entries
UNIT = 0.01  # angstrom
ATOMS = ("N", "CA", "C", "O")


@dataclass(frozen=True)
class _Entry:
    name: str
    first: int
    residues: int


def read_structure_db(path: Path) -> Iterator[NamedChain]:
    """Every chain of ``structure_db.dat`` with its CA atoms, in the file's order.

    Raises:
        ValueError: for another file, or another version of it.
    """
    entries, letters, atoms = _read(path)
    ca = atoms[:, ATOMS.index("CA")].astype(np.float32) * UNIT
    del atoms  # a view of the file would keep it open
    for entry in entries:
        rows = slice(entry.first, entry.first + entry.residues)
        yield NamedChain(
            name=entry.name, sequence=letters[rows].tobytes().decode("ascii"), coordinates=ca[rows]
        )


def read_backbones(path: Path) -> Iterator[tuple[str, Float[np.ndarray, " residue 4 3"]]]:
    """Name and N, CA, C, O of every chain, in angstrom; raises what ``read_structure_db`` raises."""
    entries, _, atoms = _read(path)
    for entry in entries:
        rows = atoms[entry.first : entry.first + entry.residues]
        yield entry.name, rows.astype(np.float32) * np.float32(UNIT)


def _read(
    path: Path,
) -> tuple[list[_Entry], UInt8[np.ndarray, " residue"], UInt16[np.ndarray, " residue 4 3"]]:
    """The table of contents, and letters and atoms of all residues.

    Little endian: a magic number and a version, a header to byte 77, a count of chains; for each chain two
    strings (entry and chain), its first row, its size, its first residue number and the shift to the frame
    of its entry; then a count of residues, their letters, the count again, and N, CA, C and O of each
    residue as 12 unsigned 16-bit numbers in 0.01 angstrom. Profiles follow, which are not read.
    """
    start = struct.pack("<II", MAGIC, VERSION)
    with path.open("rb") as file:
        if file.read(len(start)) != start:
            raise ValueError(
                f"{path} is not ProMod3's structure_db.dat of version {VERSION}; it is in Debian's "
                "promod3-data, as /usr/share/promod3/loop_data/structure_db.dat"
            )
        memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)  # closed with its last view
    try:
        return _parts(memory)
    except (struct.error, ValueError) as error:
        raise ValueError(f"{path} is damaged ({error}); copy it again") from error


def _parts(
    memory: mmap.mmap,
) -> tuple[list[_Entry], UInt8[np.ndarray, " residue"], UInt16[np.ndarray, " residue 4 3"]]:
    entries, place = _entries(memory)
    (residues,) = struct.unpack_from("<Q", memory, place)
    letters = np.frombuffer(memory, np.uint8, residues, place + 8).copy()
    place += 8 + residues
    if struct.unpack_from("<Q", memory, place)[0] != residues:
        raise ValueError("its residues are counted twice, and differently")
    atoms = np.frombuffer(memory, "<u2", residues * len(ATOMS) * 3, place + 8)
    return entries, letters, atoms.reshape(residues, len(ATOMS), 3)


def _entries(memory: mmap.mmap) -> tuple[list[_Entry], int]:
    """The table of contents, and where it ends."""
    (count,) = struct.unpack_from("<Q", memory, HEADER)
    place = HEADER + 8
    entries = []
    for _ in range(count):
        words = []
        for _ in range(2):
            (size,) = struct.unpack_from("<I", memory, place)
            words.append(memory[place + 4 : place + 4 + size].decode("ascii"))
            place += 4 + size
        first, residues = struct.unpack_from("<IH", memory, place)
        place += 4 + 2 + 2 + 3 * 4
        entries.append(_Entry("_".join(words), first, residues))
    return entries, place
