"""Helix and strand: from CA alone by P-SEA (Labesse et al., 1997), from whole backbones by DSSP."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from fewstep.modalities.protein.chains import PaddedChains, lengths
from fewstep.modalities.protein.geometry import virtual_angles, virtual_dihedrals

# table 1 of the paper: distances over two, three and four residues, angle, dihedral
HELIX_D3, HELIX_D4 = (5.3, 0.5), (6.4, 0.6)
HELIX_ANGLE, HELIX_DIHEDRAL = (89.0, 12.0), (50.0, 20.0)
STRAND_D2, STRAND_D3, STRAND_D4 = (6.7, 0.6), (9.9, 0.9), (12.4, 1.1)
STRAND_ANGLE, STRAND_DIHEDRAL = (124.0, 14.0), (-170.0, 45.0)
HELIX_RUN, STRAND_RUN, SHORT_STRAND_RUN = 5, 4, 3
CONTACT, CONTACTS = (4.2, 5.2), 5  # a short strand needs five neighbours at this distance
SHORTEST = 6
INSTALL = "DSSP needs the package pydssp: pip install 'fewstep[protein]'"

Residues = Bool[Tensor, " chain residue"]


@dataclass(frozen=True)
class SecondaryStructure:
    """Which residues of padded chains are in a helix, and which in a strand; never in both."""

    helix: Residues
    strand: Residues
    lengths: tuple[int, ...]

    def helix_share(self) -> Float[Tensor, " chain"]:
        """Of each chain's residues."""
        return self._share(self.helix)

    def strand_share(self) -> Float[Tensor, " chain"]:
        """Of each chain's residues."""
        return self._share(self.strand)

    def texts(self) -> list[str]:
        """One letter per residue: H, E, or - for neither."""
        codes = (self.helix.int() + 2 * self.strand.int()).cpu().numpy()
        letters = np.array(list("-HE"))
        return ["".join(letters[row[:size]]) for row, size in zip(codes, self.lengths, strict=True)]

    def _share(self, which: Residues) -> Float[Tensor, " chain"]:
        return which.sum(1) / torch.tensor(self.lengths, dtype=torch.float32, device=which.device)


def p_sea(chains: PaddedChains) -> SecondaryStructure:
    """Helices and strands by distances and angles of CA atoms.

    The rules are those of ``biotite.structure.annotate_sse``: runs of 5 for helices, of 4 for strands (of 3
    with contacts), each extended by one residue per side that meets a weaker rule; strand wins over helix.
    """
    sizes = lengths(chains)
    distance = {gap: _spread(_distance(chains, gap), chains) for gap in (2, 3, 4)}
    angle, dihedral = _spread(virtual_angles(chains), chains), _spread(virtual_dihedrals(chains), chains)

    helix_d3 = _within(distance[3], HELIX_D3)
    helix_angle = _within(angle, HELIX_ANGLE)
    helix = (helix_d3 & _within(distance[4], HELIX_D4)) | (helix_angle & _within(dihedral, HELIX_DIHEDRAL))
    helix = _extended(_runs(helix, HELIX_RUN), helix_d3 | helix_angle)

    strand_d3 = _within(distance[3], STRAND_D3)
    centre, tolerance = STRAND_DIHEDRAL
    wrapped = (dihedral - centre + 180.0) % 360.0 - 180.0
    strand = (_within(distance[2], STRAND_D2) & strand_d3 & _within(distance[4], STRAND_D4)) | (
        _within(angle, STRAND_ANGLE) & (wrapped.abs() <= tolerance)
    )
    short = _with_contacts(chains, _runs(strand, SHORT_STRAND_RUN))
    strand = _extended(_runs(strand, STRAND_RUN) | short, strand_d3)

    enough = (sizes >= SHORTEST)[:, None]
    return SecondaryStructure(helix & ~strand & enough, strand & enough, tuple(sizes.tolist()))


def dssp(backbones: Sequence[Float[np.ndarray, " _ 4 3"]]) -> list[str]:
    """One letter per residue, H, E or -, from N, CA, C and O by hydrogen bonds (Kabsch and Sander, 1983).

    Raises:
        ImportError: without pydssp.
    """
    try:
        from pydssp.pydssp_numpy import assign
    except ImportError as error:
        raise ImportError(INSTALL) from error
    letters = np.array(list("-HE"))
    texts = []
    for backbone in backbones:
        if len(backbone) < SHORTEST:
            texts.append("-" * len(backbone))
        else:
            texts.append("".join(letters[assign(backbone.astype(np.float64)[None])[0].argmax(-1)]))
    return texts


def _distance(chains: PaddedChains, gap: int) -> Float[Tensor, " chain some"]:
    return (chains[:, gap:] - chains[:, :-gap]).norm(dim=-1)


def _spread(values: Float[Tensor, " chain some"], chains: PaddedChains) -> Float[Tensor, " chain residue"]:
    """Values of windows at the second residue of each window, NaN elsewhere."""
    full = chains.new_full(chains.shape[:2], torch.nan)
    if values.shape[1]:
        full[:, 1 : 1 + values.shape[1]] = values
    return full


def _within(values: Float[Tensor, " chain residue"], rule: tuple[float, float]) -> Residues:
    centre, tolerance = rule
    return (values >= centre - tolerance) & (values <= centre + tolerance)


def _runs(mask: Residues, size: int) -> Residues:
    """Members of runs of at least ``size``."""
    if mask.shape[1] < size:
        return torch.zeros_like(mask)
    starts = mask.unfold(1, size, 1).all(-1)
    found = torch.zeros_like(mask)
    for shift in range(size):
        found[:, shift : shift + starts.shape[1]] |= starts
    return found


def _extended(mask: Residues, allowed: Residues) -> Residues:
    """Runs with one more residue at each side where that is allowed."""
    beside = torch.zeros_like(mask)
    beside[:, :-1] |= mask[:, 1:]
    beside[:, 1:] |= mask[:, :-1]
    return mask | (beside & allowed)


def _with_contacts(chains: PaddedChains, runs: Residues) -> Residues:
    """Runs whose residues have, summed, enough neighbours at the distance of strands in a sheet."""
    low, high = CONTACT
    inside = torch.zeros(runs.shape, dtype=torch.long, device=runs.device)
    rows = runs.any(1)
    if not bool(rows.any()):
        return runs
    some = chains[rows]
    distance = (some[:, :, None] - some[:, None]).norm(dim=-1)
    inside[rows] = ((distance > low) & (distance <= high)).sum(-1)
    starts = runs.clone()
    starts[:, 1:] &= ~runs[:, :-1]
    run = starts.cumsum(1) * runs  # 0 is outside of every run
    total = inside.new_zeros(len(runs), runs.shape[1] + 1)
    total.scatter_add_(1, run, inside)
    return runs & (total.gather(1, run) >= CONTACTS)
