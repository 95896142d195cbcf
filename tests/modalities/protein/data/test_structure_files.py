"""Anybody's PDB and mmCIF files: chains, gaps, odd residues, what cannot be read."""

import gzip
from pathlib import Path

import numpy as np
import pytest

from fewstep.modalities.protein.data.structure_files import read_structure_file, structure_files

biotite = pytest.importorskip("biotite.structure")


def atoms_of(chain: np.ndarray, chain_id: str, names: list[str]) -> "biotite.AtomArray":  # pyright: ignore[reportInvalidTypeForm]
    array = biotite.AtomArray(len(chain))
    array.coord = chain.astype(np.float32)
    array.chain_id[:] = chain_id
    array.res_id = np.arange(1, len(chain) + 1)
    array.res_name = np.array(names)
    array.atom_name[:] = "CA"
    array.element[:] = "C"
    return array


def save(path: Path, array: "biotite.AtomArray") -> Path:  # pyright: ignore[reportInvalidTypeForm]
    from biotite.structure.io import pdb, pdbx

    if path.suffix == ".pdb":
        file = pdb.PDBFile()
        file.set_structure(array)
        file.write(path)
    else:
        kind = pdbx.BinaryCIFFile if path.suffix == ".bcif" else pdbx.CIFFile
        file = kind()
        pdbx.set_structure(file, array)
        file.write(path)
    return path


@pytest.mark.parametrize("suffix", [".pdb", ".cif", ".bcif"])
def test_every_chain_of_a_file_is_read(suffix: str, real_chains: list[np.ndarray], tmp_path: Path) -> None:
    both = atoms_of(real_chains[0], "A", ["ALA"] * len(real_chains[0])) + atoms_of(
        real_chains[1], "B", ["MSE"] * len(real_chains[1])
    )
    found = list(read_structure_file(save(tmp_path / f"1abc{suffix}", both)))
    assert [chain.name for chain in found] == ["1abc_A", "1abc_B"]
    assert [set(chain.sequence) for chain in found] == [{"A"}, {"M"}]
    for chain, expected in zip(found, real_chains, strict=False):
        np.testing.assert_allclose(chain.coordinates, expected, atol=0.001)


def test_a_gap_or_an_unknown_residue_ends_a_part(real_chains: list[np.ndarray], tmp_path: Path) -> None:
    chain = real_chains[0][:40]
    names = ["GLY"] * 40
    names[12] = "UNK"
    (found,) = read_structure_file(save(tmp_path / "gap.pdb", atoms_of(chain, "A", names)))
    np.testing.assert_allclose(found.coordinates, chain[13:], atol=0.001)


def test_files_are_found_in_folders_and_unpacked(real_chains: list[np.ndarray], tmp_path: Path) -> None:
    deep = tmp_path / "a" / "b"
    deep.mkdir(parents=True)
    chain = real_chains[0]
    plain = save(deep / "one.pdb", atoms_of(chain, "A", ["GLY"] * len(chain)))
    packed = tmp_path / "two.ENT.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    (tmp_path / "notes.txt").write_text("not a structure")
    assert structure_files(tmp_path) == sorted([plain, packed])
    (found,) = read_structure_file(packed)
    assert found.name == "two_A"


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="holds no structure files"):
        structure_files(tmp_path)
    (tmp_path / "bad.cif").write_text("data_\nloop_\n_atom_site.id\n")
    with pytest.raises(ValueError, match=r"bad\.cif cannot be read"):
        list(read_structure_file(tmp_path / "bad.cif"))


def packed(content: bytes) -> bytes:
    return gzip.compress(content, mtime=0)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("empty.pdb", b""),
        ("words.pdb", b"hello"),
        ("words.cif", b"hello"),
        ("words.bcif", b"hello"),
        ("half.bcif", b"\x82\xa7encoder"),
        ("list.bcif", b"\x91\x01"),
        ("plain.pdb.gz", b"ATOM"),
        ("cut.pdb.gz", packed(b"ATOM" * 99)[:-9]),
        ("spoilt.pdb.gz", packed(b"ATOM" * 99)[:12] + b"\xff" * 20),
        ("blank.cif.gz", b""),
    ],
)
def test_files_that_are_damaged_or_something_else_are_named(
    tmp_path: Path, name: str, content: bytes
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"{name} cannot be read as a structure"):
        list(read_structure_file(tmp_path / name))
