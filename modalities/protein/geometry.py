"""What CA coordinates alone say of a chain's geometry; chains are padded with NaN, lengths in angstrom."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from fewstep.modalities.protein.chains import PaddedChains, lengths

BOND = 3.8  # CA to CA over a trans peptide bond
BOND_TOLERANCE = 0.1
VALID_TOLERANCE = 0.4
CLASH_DISTANCE = 3.0
CLASH_SEPARATION = 3  # residues along the chain
HELIX_DIHEDRAL = (30.0, 70.0)  # degrees; P-SEA's 50 +- 20, and its mirror image
NATIVE_RADIUS = (2.2, 0.38)  # radius of gyration of a compact chain, 2.2 L^0.38


def bond_lengths(chains: PaddedChains) -> Float[Tensor, " chain bond"]:
    """Distances of consecutive CA atoms; NaN where padded."""
    return (chains[:, 1:] - chains[:, :-1]).norm(dim=-1)


def virtual_angles(chains: PaddedChains) -> Float[Tensor, " chain angle"]:
    """Angles at the middle one of three consecutive CA atoms, in degrees."""
    back, ahead = chains[:, :-2] - chains[:, 1:-1], chains[:, 2:] - chains[:, 1:-1]
    sine = torch.linalg.cross(back, ahead).norm(dim=-1)
    return torch.rad2deg(torch.atan2(sine, (back * ahead).sum(-1)))


def virtual_dihedrals(chains: PaddedChains) -> Float[Tensor, " chain dihedral"]:
    """Dihedral angles of four consecutive CA atoms, in degrees from -180 to 180."""
    step = chains[:, 1:] - chains[:, :-1]
    first, middle, last = step[:, :-2], step[:, 1:-1], step[:, 2:]
    normal, next_normal = torch.linalg.cross(first, middle), torch.linalg.cross(middle, last)
    sine = (first * next_normal).sum(-1) * middle.norm(dim=-1)
    return torch.rad2deg(torch.atan2(sine, (normal * next_normal).sum(-1)))


def radius_of_gyration(chains: PaddedChains) -> Float[Tensor, " chain"]:
    """Root mean square distance from the centre."""
    centre = chains.nanmean(1, keepdim=True)
    return (chains - centre).square().sum(-1).nanmean(1).sqrt()


def clashes(chains: PaddedChains) -> Float[Tensor, " chain"]:
    """Pairs of residues at least three apart along the chain and less than 3 angstrom in space."""
    far = torch.ones(chains.shape[1], chains.shape[1], dtype=torch.bool, device=chains.device)
    far = far.triu(CLASH_SEPARATION)
    # squares by components: exact also for near pairs, which cdist's matrix product is not
    squared = sum((chains[:, :, None, axis] - chains[:, None, :, axis]).square() for axis in range(3))
    assert isinstance(squared, Tensor)
    return ((squared < CLASH_DISTANCE**2) & far).sum((1, 2)).to(chains.dtype)


def right_handed_share(chains: PaddedChains) -> Float[Tensor, " chain"]:
    """Share of dihedrals of the right-handed helix among those of either helix; NaN without any.

    Near 1 for real chains, a half for a model that does not know left from right.
    """
    dihedrals = virtual_dihedrals(chains)
    low, high = HELIX_DIHEDRAL
    right = ((dihedrals > low) & (dihedrals < high)).sum(1)
    left = ((dihedrals < -low) & (dihedrals > -high)).sum(1)
    return right / (right + left).to(chains.dtype)


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """Of each of a number of chains.

    Args:
        bond_mean: mean distance of consecutive CA atoms; 3.80 for real chains.
        bond_std: its standard deviation within the chain.
        bond_share: share of those distances within 0.1 of 3.8.
        clashes: pairs at least three apart along the chain that are nearer than 3.
        radius_of_gyration: root mean square distance from the centre.
        radius_ratio: the same over 2.2 L^0.38, of a compact chain of that length.
        right_handed: share of right-handed dihedrals among helical ones; NaN without any.
        valid: every bond within 0.4 of 3.8, and no clash.
    """

    bond_mean: Float[Tensor, " chain"]
    bond_std: Float[Tensor, " chain"]
    bond_share: Float[Tensor, " chain"]
    clashes: Float[Tensor, " chain"]
    radius_of_gyration: Float[Tensor, " chain"]
    radius_ratio: Float[Tensor, " chain"]
    right_handed: Float[Tensor, " chain"]
    valid: Bool[Tensor, " chain"]


def geometry(chains: PaddedChains) -> Geometry:
    """All of it.

    Raises:
        ValueError: for chains of a single residue.
    """
    counts = lengths(chains)
    if int(counts.min()) < 2:
        raise ValueError("a chain of one residue has no geometry; give at least two residues")
    bonds = bond_lengths(chains)
    off = (bonds - BOND).abs()
    number = (counts - 1).to(chains.dtype)
    mean = bonds.nansum(1) / number
    clashing = clashes(chains)
    radius = radius_of_gyration(chains)
    scale, power = NATIVE_RADIUS
    return Geometry(
        bond_mean=mean,
        bond_std=((bonds - mean[:, None]).square().nansum(1) / number).sqrt(),
        bond_share=(off <= BOND_TOLERANCE).sum(1) / number,
        clashes=clashing,
        radius_of_gyration=radius,
        radius_ratio=radius / (scale * counts.to(chains.dtype) ** power),
        right_handed=right_handed_share(chains),
        valid=((off <= VALID_TOLERANCE).sum(1) == counts - 1) & (clashing == 0),
    )
