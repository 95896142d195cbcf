"""A few numbers on drawn chains that tell a training run's state; CA atoms alone, nothing to compare with."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from fewstep.modalities.protein.geometry import BOND, bond_lengths, geometry
from fewstep.modalities.protein.secondary_structure import p_sea

ANGSTROM_PER_NANOMETRE = 10.0
NEAR_BOND = 0.2  # angstrom from 3.8


def quality(
    chains: Float[Tensor, " batch residue 3"], mask: Bool[Tensor, " batch residue"]
) -> dict[str, Float[Tensor, ""]]:
    """Means over chains in nanometre.

    ``bond_mean`` and ``bond_std`` of consecutive CA atoms in angstrom (3.80 and 0.05 for real chains),
    ``bonds_within_0.2`` of 3.8, ``helix`` and ``strand`` shares, ``clashes`` per chain, ``radius`` of
    gyration in angstrom, ``right_handed`` share of helical dihedrals.
    """
    padded = torch.where(mask[..., None], chains.float() * ANGSTROM_PER_NANOMETRE, torch.nan)
    shape, structure = geometry(padded), p_sea(padded)
    bonds = bond_lengths(padded)
    bonds = bonds[~bonds.isnan()]
    return {
        "bond_mean": bonds.mean(),
        "bond_std": bonds.std(),
        "bonds_within_0.2": ((bonds - BOND).abs() <= NEAR_BOND).float().mean(),
        "helix": structure.helix_share().mean(),
        "strand": structure.strand_share().mean(),
        "clashes": shape.clashes.mean(),
        "radius": shape.radius_of_gyration.mean(),
        "right_handed": shape.right_handed.nanmean(),
    }
