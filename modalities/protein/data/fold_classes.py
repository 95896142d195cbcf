"""The class of a fold, told from helices and strands alone, where CATH's is not known."""

import torch
from jaxtyping import Int
from torch import Tensor

from fewstep.modalities.protein.chains import PaddedChains
from fewstep.modalities.protein.secondary_structure import SecondaryStructure, p_sea

FOLD_CLASSES = ("mainly alpha", "mainly beta", "alpha beta")  # CATH's 1, 2 and 3
UNKNOWN = len(FOLD_CLASSES)
ALPHA = (0.4, 0.1)  # more helix, less strand
BETA = (0.25, 0.15)  # more strand, less helix
BOTH = (0.15, 0.1)  # at least this much helix, and this much strand


def fold_classes(structure: SecondaryStructure) -> Int[Tensor, " chain"]:
    """A number of ``FOLD_CLASSES`` for each chain, or `UNKNOWN` where the shares say nothing clear."""
    helix, strand = structure.helix_share(), structure.strand_share()
    known = torch.full(helix.shape, UNKNOWN, device=helix.device)
    known[(helix >= BOTH[0]) & (strand >= BOTH[1])] = 2
    known[(strand > BETA[0]) & (helix < BETA[1])] = 1
    known[(helix > ALPHA[0]) & (strand < ALPHA[1])] = 0
    return known


def fold_classes_of(chains: PaddedChains) -> Int[Tensor, " chain"]:
    """The same of CA chains, by P-SEA."""
    return fold_classes(p_sea(chains))
