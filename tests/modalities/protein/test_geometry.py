"""Geometry of CA chains whose answer is known."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fewstep.modalities.protein.chains import by_length, lengths, padded
from fewstep.modalities.protein.geometry import (
    bond_lengths,
    clashes,
    geometry,
    radius_of_gyration,
    right_handed_share,
    virtual_angles,
    virtual_dihedrals,
)

MIRROR = np.array([1.0, 1.0, -1.0])


def helix(residues: int = 20) -> np.ndarray:
    """Rise 1.5, 100 degrees per residue, radius 2.3: a right-handed helix of CA atoms."""
    turn = np.deg2rad(100.0) * np.arange(residues)
    return np.stack([2.3 * np.cos(turn), 2.3 * np.sin(turn), 1.5 * np.arange(residues)], 1)


def rotation(seed: int) -> np.ndarray:
    q, r = np.linalg.qr(np.random.default_rng(seed).standard_normal((3, 3)))
    q = q * np.sign(np.diag(r))
    return q * np.sign(np.linalg.det(q))


def test_an_ideal_helix_has_its_bonds_angles_and_hand() -> None:
    chain = padded([helix()])
    one, two = (2 * 2.3**2 * (1 - math.cos(math.radians(100 * k))) + (1.5 * k) ** 2 for k in (1, 2))
    assert torch.allclose(bond_lengths(chain), torch.tensor(math.sqrt(one)), atol=1e-5)
    angle = math.degrees(math.acos((2 * one - two) / (2 * one)))
    assert torch.allclose(virtual_angles(chain), torch.tensor(angle), atol=1e-3)
    assert torch.allclose(virtual_dihedrals(chain), torch.tensor(49.7), atol=0.5)
    assert right_handed_share(chain).item() == 1.0
    assert right_handed_share(padded([helix() * MIRROR])).item() == 0.0
    assert geometry(chain).valid.item()


def test_a_straight_chain_and_two_points_have_worked_out_radii() -> None:
    pair = padded([np.array([[0.0, 0, 0], [4.0, 0, 0]])])
    assert radius_of_gyration(pair).item() == pytest.approx(2.0)
    line = np.outer(np.arange(5) * 3.8, [1.0, 0, 0])
    found = geometry(padded([line]))
    assert found.radius_of_gyration.item() == pytest.approx(3.8 * math.sqrt(2))
    assert found.bond_share.item() == 1.0
    assert math.isnan(found.right_handed.item())


def test_a_clash_is_a_near_pair_at_least_three_apart() -> None:
    # a square of side 3.8: its fifth corner is its first
    square = np.array([[0.0, 0, 0], [3.8, 0, 0], [3.8, 3.8, 0], [0, 3.8, 0], [0, 0, 2.9], [0, 0, 6.7]])
    found = geometry(padded([square, square[:4]]))
    assert found.clashes.tolist() == [1, 0]
    assert found.valid.tolist() == [False, True]
    near = np.array([[0.0, 0, 0], [3.8, 0, 0], [0.5, 0.5, 0]])
    assert clashes(padded([near])).item() == 0


def test_a_broken_bond_is_not_valid() -> None:
    chain = helix()
    chain[10:] += [0.0, 0.0, 2.0]
    found = geometry(padded([helix(), chain]))
    assert found.valid.tolist() == [True, False]
    assert found.bond_share[1] == pytest.approx(18 / 19)


def test_real_chains_look_real(real_chains: list[np.ndarray]) -> None:
    found = geometry(padded(real_chains))
    assert found.bond_mean.mean().item() == pytest.approx(3.804, abs=0.01)
    assert (found.bond_share > 0.95).all()
    assert found.valid.all()
    assert found.right_handed.nanmean().item() > 0.85
    assert 0.8 < found.radius_ratio.min().item() < found.radius_ratio.median().item() < 1.5


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), more=st.integers(0, 9))
def test_neither_place_nor_turn_nor_padding_nor_neighbours_matter(seed: int, more: int) -> None:
    rng = np.random.default_rng(seed)
    chain = np.cumsum(rng.standard_normal((12, 3)) * 2.2, 0)
    moved = chain @ rotation(seed).T + rng.standard_normal(3) * 20
    other = np.cumsum(rng.standard_normal((12 + more, 3)) * 2.2, 0)
    alone = geometry(padded([chain], dtype=torch.float64))
    among = geometry(padded([other, moved, chain], dtype=torch.float64))
    for name, value in vars(alone).items():
        for row in (1, 2):
            here = getattr(among, name)[row]
            assert torch.allclose(here.double(), value[0].double(), atol=1e-8, equal_nan=True), name


def test_groups_of_like_lengths_hold_everybody_once_and_no_more_than_asked() -> None:
    sizes = [5, 90, 7, 40, 6, 41, 300]
    groups = list(by_length(sizes, residues=100))
    assert sorted(np.concatenate(groups).tolist()) == list(range(len(sizes)))
    assert [len(group) * max(sizes[i] for i in group) <= 100 for group in groups[:-1]] == [True] * 3
    assert groups[-1].tolist() == [6]  # longer than a group may be: alone


def test_what_is_no_chain_is_refused() -> None:
    assert lengths(padded([helix(4), helix(9)])).tolist() == [4, 9]
    with pytest.raises(ValueError, match="chains is empty"):
        padded([])
    with pytest.raises(ValueError, match="chain 1 has a coordinate that is not finite"):
        padded([helix(4), np.full((3, 3), np.nan)])
    with pytest.raises(ValueError, match="one residue has no geometry"):
        geometry(padded([helix(1)]))
