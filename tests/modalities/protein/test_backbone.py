"""CA to N, CA, C, O: ideal geometry, held-out chains, and what must not matter."""

from pathlib import Path

import numpy as np
import pytest

from fewstep.modalities.protein.backbone import ATOMS, Peptides, cell_of, completed
from fewstep.modalities.protein.backbone_fitting import fitted_table, peptide_turns
from fewstep.modalities.protein.secondary_structure import dssp

HELD = Path(__file__).with_name("held_out_backbones.npz")


@pytest.fixture(scope="module")
def held_out() -> list[np.ndarray]:
    """Eight chains of the validation split, which the table was not counted on."""
    with np.load(HELD) as held:
        return np.split(held["backbone"].astype(np.float64) / 100, np.cumsum(held["lengths"])[:-1])


def errors(found: list[np.ndarray], real: list[np.ndarray]) -> dict[str, float]:
    squared = np.concatenate([(one - other) ** 2 for one, other in zip(found, real, strict=True)]).sum(-1)
    return dict(zip(ATOMS, np.sqrt(squared.mean(0)).tolist(), strict=True))


def rotation(seed: int) -> np.ndarray:
    q, r = np.linalg.qr(np.random.default_rng(seed).standard_normal((3, 3)))
    q = q * np.sign(np.diag(r))
    return q * np.sign(np.linalg.det(q))


def test_held_out_backbones_come_back(held_out: list[np.ndarray]) -> None:
    found = errors(completed([chain[:, 1] for chain in held_out]), held_out)
    assert found["CA"] < 1e-6
    assert found["N"] < 0.35
    assert found["C"] < 0.35
    assert found["O"] < 0.9


def test_the_mirror_image_of_a_chain_is_not_completed_as_well(held_out: list[np.ndarray]) -> None:
    # the table knows right from left: with its help mirrored helices get carbonyls that do not fit
    mirrored = [chain * np.array([1.0, 1.0, -1.0]) for chain in held_out]
    assert errors(completed([chain[:, 1] for chain in mirrored]), mirrored)["O"] > 1.2


def test_bonds_are_those_of_a_peptide(held_out: list[np.ndarray]) -> None:
    for chain in completed([chain[:, 1] for chain in held_out]):
        n, ca, c, o = chain.transpose(1, 0, 2)
        for one, other, length in ((n, ca, 1.458), (ca, c, 1.525), (c, o, 1.231)):
            assert np.linalg.norm(one - other, axis=1) == pytest.approx(length, abs=0.005)
        # what CA atoms are nearer or farther than 3.8 goes into this bond, most of all in a cis peptide
        joint = np.linalg.norm(c[:-1] - n[1:], axis=1)
        assert np.median(joint) == pytest.approx(1.33, abs=0.01)
        assert np.mean(np.abs(joint - 1.33) < 0.1) > 0.95
        # the peptide is flat: O, C, N and the next CA lie in one plane
        normal = np.cross(o[:-1] - c[:-1], n[1:] - c[:-1])
        height = ((ca[1:] - c[:-1]) * normal).sum(1) / np.linalg.norm(normal, axis=1)
        assert height == pytest.approx(0.0, abs=1e-6)


def test_dssp_sees_the_same_helices_and_strands(held_out: list[np.ndarray]) -> None:
    pytest.importorskip("pydssp", reason="needs pydssp: pip install 'fewstep[protein]'")
    real, found = "".join(dssp(held_out)), "".join(dssp(completed([chain[:, 1] for chain in held_out])))
    assert np.mean([one == other for one, other in zip(real, found, strict=True)]) > 0.88


def test_neither_place_nor_company_changes_a_backbone(held_out: list[np.ndarray]) -> None:
    chains = [chain[:, 1] for chain in held_out[:3]]
    together = completed(chains)
    for chain, whole in zip(chains, together, strict=True):
        turn = rotation(len(chain))
        alone = completed([chain @ turn.T + 5.0])[0]
        assert alone == pytest.approx(whole @ turn.T + 5.0, abs=1e-6)


def test_the_frame_of_a_peptide_is_known_on_a_worked_example() -> None:
    chain = np.array([[0.0, 1, 0], [0, 0, 0], [2, 0, 0], [2, 0, 1]])
    found = Peptides.of(chain)
    assert found.angles.tolist() == [[90.0, 90.0]]
    assert found.dihedral[0] == pytest.approx(90.0)
    assert found.axis[0].tolist() == [1, 0, 0]
    assert found.side[0].tolist() == [0, 1, 0]
    assert found.turn_of(np.array([[7.0, 0, -2]]))[0] == pytest.approx(-np.pi / 2)


def test_a_table_of_one_chain_gives_that_chain_back(held_out: list[np.ndarray]) -> None:
    cell, turn = peptide_turns(held_out[0])
    table = fitted_table([held_out[0]])
    assert cell == pytest.approx(cell_of(Peptides.of(held_out[0][:, 1]))[: len(cell)], abs=1e-9)
    i, j, k = np.rint(cell).astype(int).T
    looked_up = table[i, j, k % table.shape[2]] * (2 * np.pi / 256)
    assert np.mean(np.cos(looked_up - turn)) > 0.97
    assert table.flags.c_contiguous  # safetensors writes bytes as they lie


def test_straight_and_broken_chains_are_completed_too() -> None:
    line = np.outer(np.arange(6) * 3.8, [1.0, 0, 0])
    gap = np.concatenate([line, line + np.array([40.0, 3.0, 1.0])])
    for chain in completed([line, gap, np.random.default_rng(0).standard_normal((9, 3))]):
        assert np.isfinite(chain).all()


def test_what_has_no_backbone_is_refused() -> None:
    assert completed([]) == []
    with pytest.raises(ValueError, match="a chain of 3 residues has no backbone yet; give at least 4"):
        completed([np.zeros((3, 3))])
    with pytest.raises(ValueError, match="no peptide was found"):
        fitted_table([])
