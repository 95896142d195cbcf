"""`fewstep chains` from structure files."""

from pathlib import Path

import numpy as np
import pytest

from fewstep.apps.cli import main
from fewstep.modalities.protein.data.chain_set import load_chain_set

pytest.importorskip("biotite")


def pdb_text(chain: np.ndarray) -> str:
    lines = [
        f"ATOM  {i:5d}  CA  GLY A{i:4d}    {x:8.3f}{y:8.3f}{z:8.3f}  1.00  0.00           C"
        for i, (x, y, z) in enumerate(chain, 1)
    ]
    return "\n".join([*lines, "END", ""])


@pytest.fixture
def files(tmp_path: Path) -> Path:
    folder = tmp_path / "structures"
    folder.mkdir()
    for length in (30, 50, 90):
        chain = np.stack([3.8 * np.arange(length), np.zeros(length), np.zeros(length)], 1)
        (folder / f"s{length}.pdb").write_text(pdb_text(chain))
    return folder


def test_a_folder_becomes_a_set_of_the_lengths_asked_for(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "set"
    assert main(["chains", str(files), str(out), "--max-length", "60", "--licence", "mine"]) == 0
    found = load_chain_set(out)
    assert (found.names, found.lengths.tolist()) == (("s50_A",), [50])
    assert '"licence": "mine"' in (out / "card.json").read_text()
    assert "1 chains, 50 residues" in capsys.readouterr().out


def test_a_file_that_cannot_be_read_is_told_and_the_others_are_taken(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (files / "a.pdb").write_text("not found")
    assert main(["chains", str(files), str(tmp_path / "set")]) == 0
    told = capsys.readouterr()
    assert "2 chains" in told.out
    assert "1 files were left out: " in told.err
    assert "a.pdb cannot be read as a structure" in told.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{nowhere}", "{out}"], "does not exist"),
        (["{files}", "{out}", "--min-length", "9", "--max-length", "5"], "--min-length 9 must be"),
        (["{files}", "{out}", "--min-length", "200", "--max-length", "300"], "no chains"),
        (["{files}/s30.pdb", "{out}"], "is not ProMod3's structure_db.dat"),
        (["{files}", "{files}/s30.pdb"], "s30.pdb is a file; give a folder"),
    ],
)
def test_what_cannot_be_done_is_one_line(
    arguments: list[str], message: str, files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = {"nowhere": tmp_path / "no", "out": tmp_path / "set", "files": files}
    assert main(["chains", *(argument.format(**places) for argument in arguments)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
