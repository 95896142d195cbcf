"""P-SEA on ideal chains, and against biotite on real ones; DSSP on real backbones."""

import numpy as np
import pytest
import torch

from fewstep.modalities.protein.chains import padded
from fewstep.modalities.protein.secondary_structure import dssp, p_sea


def helix(residues: int = 20) -> np.ndarray:
    turn = np.deg2rad(100.0) * np.arange(residues)
    return np.stack([2.3 * np.cos(turn), 2.3 * np.sin(turn), 1.5 * np.arange(residues)], 1)


def strand(residues: int = 12) -> np.ndarray:
    """Rise 3.3, zigzag of 0.9 to either side, with the twist of -170 degrees that a sheet has."""
    turn = np.deg2rad(-170.0) * np.arange(residues)
    return np.stack([0.9 * np.cos(turn), 0.9 * np.sin(turn), 3.3 * np.arange(residues)], 1)


def biotite_says(chain: np.ndarray) -> str:
    structure = pytest.importorskip(
        "biotite.structure", reason="needs biotite: pip install 'fewstep[protein]'"
    )
    atoms = structure.AtomArray(len(chain))
    atoms.coord = chain.astype(np.float32)
    atoms.atom_name[:], atoms.res_name[:], atoms.chain_id[:] = "CA", "ALA", "A"
    atoms.res_id = np.arange(1, len(chain) + 1)
    return "".join({"a": "H", "b": "E", "c": "-"}[code] for code in structure.annotate_sse(atoms))


def test_ideal_helix_and_strand_are_found_except_at_their_ends() -> None:
    found = p_sea(padded([helix(), strand()]))
    texts = found.texts()
    assert texts[0][1:-2] == "H" * 17
    assert texts[1][1:-2] == "E" * 9
    assert found.helix_share()[0] > 0.85
    assert found.strand_share()[1] > 0.7


def test_the_mirror_image_of_a_helix_is_not_one_by_its_angles() -> None:
    # distances are the same in the mirror, so that the rule of distances alone still holds
    loose = helix() * [1.0, 1.0, 1.2]  # d3 and d4 past their rules: only angle and dihedral remain
    assert "H" in p_sea(padded([helix() * [1.0, 1.0, -1.0]])).texts()[0]
    assert "HHHHHHHH" in p_sea(padded([loose])).texts()[0]
    assert "H" not in p_sea(padded([loose * [1.0, 1.0, -1.0]])).texts()[0]


def test_real_chains_are_annotated_as_biotite_does(real_chains: list[np.ndarray]) -> None:
    found = p_sea(padded(real_chains)).texts()
    assert found == [biotite_says(chain) for chain in real_chains]
    assert sum(text.count("H") for text in found) > 300
    assert sum(text.count("E") for text in found) > 150


def test_noisy_and_short_chains_are_annotated_as_biotite_does(real_chains: list[np.ndarray]) -> None:
    rng = np.random.default_rng(0)
    noisy = [chain + 0.3 * rng.standard_normal(chain.shape) for chain in real_chains]
    parts = noisy + [chain[start : start + size] for chain in real_chains for start, size in ((3, 6), (9, 7))]
    parts += [real_chains[0][:size] for size in (1, 4, 5, 8)]
    assert p_sea(padded(parts)).texts() == [biotite_says(part) for part in parts]


def test_company_does_not_change_an_annotation(real_chains: list[np.ndarray]) -> None:
    together = p_sea(padded(real_chains)).texts()
    assert together == [p_sea(padded([chain])).texts()[0] for chain in real_chains]
    again = p_sea(padded(real_chains[::-1])).texts()
    assert again[::-1] == together


def test_shares_count_residues_not_padding(real_chains: list[np.ndarray]) -> None:
    found = p_sea(padded(real_chains))
    texts = found.texts()
    counted = torch.tensor([text.count("H") / len(text) for text in texts])
    assert torch.allclose(found.helix_share(), counted)


def test_hydrogen_bonds_and_ca_alone_mostly_agree(
    real_backbones: list[np.ndarray], real_chains: list[np.ndarray]
) -> None:
    pytest.importorskip("pydssp", reason="needs pydssp: pip install 'fewstep[protein]'")
    by_bonds, by_ca = "".join(dssp(real_backbones)), "".join(p_sea(padded(real_chains)).texts())
    same = np.mean([one == other for one, other in zip(by_bonds, by_ca, strict=True)])
    assert same > 0.75
    assert dssp([real_backbones[0][:4]]) == ["----"]
