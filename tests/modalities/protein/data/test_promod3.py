"""ProMod3's database: a small one written by its layout is read back, others are refused."""

import struct
from pathlib import Path

import numpy as np
import pytest

from fewstep.modalities.protein.data.promod3 import read_structure_db

Entry = tuple[str, str, str, np.ndarray]  # entry, chain, letters, N CA C O in hundredths of an angstrom


def written(path: Path, entries: list[Entry], *, version: int = 2) -> Path:
    head = struct.pack("<II", 1234, version).ljust(77, b"\0") + struct.pack("<Q", len(entries))
    first = 0
    for entry, chain, letters, _ in entries:
        for word in (entry, chain):
            head += struct.pack("<I", len(word)) + word.encode()
        head += struct.pack("<IHH3f", first, len(letters), 1, 0.5, -1.5, 2.0)
        first += len(letters)
    total = struct.pack("<Q", first)
    letters = "".join(entry[2] for entry in entries).encode()
    atoms = np.concatenate([entry[3] for entry in entries]).astype("<u2").tobytes()
    path.write_bytes(head + total + letters + total + atoms + b"profiles")
    return path


@pytest.fixture
def entries() -> list[Entry]:
    random = np.random.default_rng(0)
    return [
        ("1ABC", "A", "GAV", random.integers(0, 60_000, (3, 4, 3))),
        ("2XYZ", "long", "MKTAY", random.integers(0, 60_000, (5, 4, 3))),
    ]


def test_names_letters_and_ca_atoms_come_back(entries: list[Entry], tmp_path: Path) -> None:
    found = list(read_structure_db(written(tmp_path / "db.dat", entries)))
    assert [(chain.name, chain.sequence) for chain in found] == [("1ABC_A", "GAV"), ("2XYZ_long", "MKTAY")]
    for chain, (*_, atoms) in zip(found, entries, strict=True):
        np.testing.assert_allclose(chain.coordinates, atoms[:, 1] / 100, atol=1e-4)


def test_other_files_and_versions_are_refused(entries: list[Entry], tmp_path: Path) -> None:
    (tmp_path / "text").write_text("HEADER of something else that is longer than the header of a database is")
    with pytest.raises(ValueError, match="promod3-data"):
        list(read_structure_db(tmp_path / "text"))
    with pytest.raises(ValueError, match="of version 2"):
        list(read_structure_db(written(tmp_path / "db.dat", entries, version=3)))


@pytest.mark.parametrize("kept", [0, 8, 60, 100, 140, 200])
def test_a_file_that_was_cut_is_named(entries: list[Entry], tmp_path: Path, kept: int) -> None:
    path = written(tmp_path / "db.dat", entries)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ValueError, match=r"db\.dat is (damaged|not ProMod3's)"):
        list(read_structure_db(path))
