"""Kabsch: known motions come back, reflections never."""

import numpy as np
import pytest
import torch

from fewstep.modalities.protein.superposition import nearest_rotation, rmsd, superposition


def rotations(count: int) -> torch.Tensor:
    return nearest_rotation(torch.randn(count, 3, 3, dtype=torch.float64))


def test_a_known_motion_comes_back() -> None:
    points, turn, shift = torch.randn(7, 20, 3).double(), rotations(7), torch.randn(7, 1, 3).double()
    moved = points @ turn.mT + shift
    found = superposition(points, moved)
    assert torch.allclose(found.rotation, turn, atol=1e-10)
    assert torch.allclose(found(points), moved, atol=1e-10)
    assert torch.allclose(rmsd(points, moved), torch.zeros(7).double(), atol=1e-10)


def test_a_mirror_image_is_met_by_a_rotation_not_a_reflection() -> None:
    points = torch.randn(5, 30, 3).double()
    mirrored = points * torch.tensor([1.0, 1.0, -1.0]).double()
    found = superposition(points, mirrored)
    assert torch.allclose(torch.linalg.det(found.rotation), torch.ones(5).double())
    assert (rmsd(points, mirrored) > 0.3).all()


def test_flat_and_straight_points_are_superposed_too() -> None:
    flat = torch.randn(4, 12, 3).double() * torch.tensor([1.0, 1.0, 0.0]).double()
    line = torch.arange(6.0).double()[:, None] * torch.tensor([1.0, 0.0, 0.0]).double()
    for points in (flat, line.expand(4, 6, 3)):
        moved = points @ rotations(4).mT + 3.0
        assert torch.allclose(rmsd(points, moved), torch.zeros(4).double(), atol=1e-8)


def test_no_other_rotation_is_better() -> None:
    one, other = torch.randn(20, 3).double(), torch.randn(20, 3).double()
    best = rmsd(one, other)
    centred, target = one - one.mean(0), other - other.mean(0)
    for turn in rotations(200):
        assert (centred @ turn.mT - target).square().sum(-1).mean().sqrt() >= best


def test_weightless_points_do_not_matter() -> None:
    points, turn = torch.randn(3, 10, 3).double(), rotations(3)
    moved = points @ turn.mT
    moved[:, 6:] += 50.0
    weights = torch.ones(3, 10).double()
    weights[:, 6:] = 0
    assert torch.allclose(superposition(points, moved, weights=weights).rotation, turn, atol=1e-10)
    assert not torch.allclose(superposition(points, moved).rotation, turn, atol=1e-2)


def test_it_agrees_with_biotite(real_chains: list[np.ndarray]) -> None:
    structure = pytest.importorskip(
        "biotite.structure", reason="needs biotite: pip install 'fewstep[protein]'"
    )
    one, other = (chain[:40].astype(np.float32) for chain in real_chains[:2])
    fitted, _ = structure.superimpose(other, one)
    theirs = float(structure.rmsd(other, fitted))
    assert rmsd(torch.tensor(one), torch.tensor(other)).item() == pytest.approx(theirs, rel=1e-4)
