"""Structure files: biotite reads what we write, to the digits that a format has."""

import io
from pathlib import Path

import numpy as np
import pytest

from fewstep.modalities.protein.backbone import ATOMS, completed
from fewstep.modalities.protein.data.structure_files import read_structure_file
from fewstep.modalities.protein.files import FORMATS, Format, structure_bytes, write_whole

SEQUENCE = "MKTAYIAKQRQISFVKSHFS"


def chain(residues: int = 20) -> np.ndarray:
    turn = np.deg2rad(100.0) * np.arange(residues)
    return np.stack([2.3 * np.cos(turn), 2.3 * np.sin(turn), 1.5 * np.arange(residues)], 1)


@pytest.mark.parametrize("kind", FORMATS)
def test_ca_atoms_come_back_through_biotite(tmp_path: Path, kind: Format) -> None:
    pytest.importorskip("biotite", reason="needs biotite: pip install 'fewstep[protein]'")
    path = tmp_path / f"design.{kind}"
    write_whole(path, structure_bytes(chain()[:, None] - 40.0, kind=kind, sequence=SEQUENCE))
    found = list(read_structure_file(path))
    assert [one.name for one in found] == ["design_A"]
    assert found[0].sequence == SEQUENCE
    assert found[0].coordinates == pytest.approx(chain() - 40.0, abs=1e-3)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_backbones_come_back_through_biotite_atom_by_atom() -> None:
    pdb = pytest.importorskip(
        "biotite.structure.io.pdb", reason="needs biotite: pip install 'fewstep[protein]'"
    )
    backbone = completed([chain()])[0]
    text = structure_bytes(backbone, kind="pdb", title="fewstep design 7").decode()
    atoms = pdb.PDBFile.read(io.StringIO(text)).get_structure(model=1)
    assert atoms.coord == pytest.approx(backbone.reshape(-1, 3), abs=1e-3)
    assert atoms.atom_name.tolist() == list(ATOMS) * 20
    assert atoms.element.tolist() == ["N", "C", "C", "O"] * 20
    assert set(atoms.res_name) == {"GLY"}
    assert atoms.res_id[[0, -1]].tolist() == [1, 20]


def test_a_pdb_line_has_its_columns() -> None:
    lines = structure_bytes(np.array([[[-1.5, 22.25, 100.125]]]), kind="pdb", first=0).decode().splitlines()
    assert lines[0] == ("ATOM      1  CA  GLY A   0      -1.500  22.250 100.125  1.00  0.00           C")
    assert lines[-1] == "END"


def test_what_does_not_fit_a_file_is_refused() -> None:
    with pytest.raises(ValueError, match="10000 residues do not fit the columns of a PDB file; write mmCIF"):
        structure_bytes(np.zeros((10_000, 1, 3)), kind="pdb")
    with pytest.raises(ValueError, match="sequence of 2 letters does not fit 3 residues"):
        structure_bytes(np.zeros((3, 1, 3)), kind="pdb", sequence="AA")
    with pytest.raises(ValueError, match="with 'B' does not fit"):
        structure_bytes(np.zeros((3, 1, 3)), kind="pdb", sequence="ABA")
    with pytest.raises(ValueError, match="not finite"):
        structure_bytes(np.full((3, 1, 3), np.nan), kind="pdb")
    with pytest.raises(ValueError, match=r"must be \[residue, 1, 3\]"):
        structure_bytes(np.zeros((3, 2, 3)), kind="pdb")
