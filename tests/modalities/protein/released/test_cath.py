"""Codes of CATH become rows of a released network's tables."""

from pathlib import Path

import pytest
import torch

from fewstep.modalities.protein.released.cath import CathLabels

ROWS = {
    "C": {"1": 0, "2": 1, "3": 2},
    "A": {"1.10": 0, "1.20": 1, "2.60": 2, "3.40": 3},
    "T": {"1.10.8": 0, "1.20.5": 1, "2.60.40": 2, "3.40.50": 3, "3.40.30": 4},
}
SIZES = (3, 4, 5)


@pytest.fixture
def labels(tmp_path: Path) -> CathLabels:
    torch.save(ROWS, tmp_path / "cath_label_mapping.pt")
    return CathLabels.read(tmp_path / "cath_label_mapping.pt")


@pytest.mark.parametrize(
    ("code", "rows"), [("3", (2, 4, 5)), ("3.40", (2, 3, 5)), ("3.40.30", (2, 3, 4)), ("1.10.8", (0, 0, 0))]
)
def test_levels_that_a_code_does_not_tell_are_unknown(
    labels: CathLabels, code: str, rows: tuple[int, int, int]
) -> None:
    assert labels.of(code, SIZES) == rows


@pytest.mark.parametrize("code", ["9", "1.99", "1.10.9", "1.10.8.10", "", "mainly alpha"])
def test_codes_that_are_not_there_are_named(labels: CathLabels, code: str) -> None:
    with pytest.raises(ValueError, match=f"fold='{code}' is not in "):
        labels.of(code, SIZES)


def test_labels_of_another_model_and_other_files_are_refused(labels: CathLabels, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has \(3, 4, 5\) labels, the network \(3, 0, 0\)"):
        labels.of("1", (3, 0, 0))
    torch.save({"C": {"1": 0}}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match=r"has no labels by C, A, T; give Proteina's cath_label_mapping\.pt"):
        CathLabels.read(tmp_path / "other.pt")
    with pytest.raises(FileNotFoundError, match=r"none\.pt is missing"):
        CathLabels.read(tmp_path / "none.pt")
