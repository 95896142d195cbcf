"""Designability: do designed sequences fold back into the design? The folding network is a plug-in."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float

from fewstep.modalities.protein.chains import Chain
from fewstep.modalities.protein.sequence_design import SequenceDesigner
from fewstep.modalities.protein.superposition import rmsd
from fewstep.modalities.protein.tm_score import tm_score_of_pairing

SEQUENCES, TEMPERATURE = 8, 0.1  # per design, as Proteina's evaluation has them
DESIGNABLE = 2.0  # angstrom
CA = 1  # place of the CA atom in ESMFold's order of 14 atoms
MISSING = (
    "designability needs a folding network: give the folder of ESMFold's weights (facebook/esmfold_v1); "
    "without one there are proxies only"
)


@runtime_checkable
class Folder(Protocol):
    """What turns sequences into chains of CA atoms, in angstrom."""

    def __call__(self, sequences: Sequence[str]) -> list[Chain]: ...


@dataclass(frozen=True, kw_only=True)
class Designability:
    """Of one design.

    Args:
        sc_rmsd: least CA root mean square distance between the design and a folded sequence, angstrom.
        sc_tm: greatest TM-score of the two, residue by residue.
        designable: whether ``sc_rmsd`` is below 2.
    """

    sc_rmsd: float
    sc_tm: float
    designable: bool


class EsmFolder:
    """ESMFold (Lin et al., 2023) of the package transformers.

    Args:
        model: an ``EsmForProteinFolding`` in evaluation mode.
    """

    def __init__(self, model: Any) -> None:
        self.model = model

    @classmethod
    def load(cls, name: str | Path, *, device: torch.device | str = "cpu") -> "EsmFolder":
        """By the folder of its weights, or its id on the hub where these are in the cache.

        Raises:
            FileNotFoundError: they are not there.
        """
        from transformers import EsmForProteinFolding

        try:
            model = EsmForProteinFolding.from_pretrained(str(name), local_files_only=True)
        except (
            OSError,
            ValueError,
        ) as error:  # a path that is not there is a malformed id to the hub's client
            raise FileNotFoundError(f"{name}: {MISSING}") from error
        return cls(cast(Any, model).to(device).eval())

    @torch.no_grad()
    def __call__(self, sequences: Sequence[str]) -> list[Chain]:
        from transformers.models.esm.openfold_utils import residue_constants

        letters = residue_constants.restypes_with_x
        chains = []
        for sequence in sequences:
            codes = torch.tensor([[letters.index(letter) for letter in sequence]], device=self.model.device)
            positions = self.model(codes)["positions"][-1, 0, :, CA]
            chains.append(positions.float().cpu().numpy().astype(np.float64))
        return chains


def designability(
    chains: Sequence[Chain],
    designer: SequenceDesigner,
    folder: Folder,
    *,
    sequences: int = SEQUENCES,
    temperature: float = TEMPERATURE,
    seed: int = 0,
) -> list[Designability]:
    """Sequences for each design, folded, and the best of them compared with the design."""
    found = []
    for chain, made in zip(
        chains,
        designer.design(chains, count=sequences, temperature=temperature, seed=seed),
        strict=True,
    ):
        folded = np.stack(folder(made.sequences))
        found.append(self_consistency(chain, folded))
    return found


def self_consistency(chain: Chain, folded: Float[np.ndarray, " sequence residue 3"]) -> Designability:
    """The best of several predictions for one design, residue by residue."""
    if folded.shape[1:] != chain.shape:
        raise ValueError(f"predictions of shape {folded.shape} do not fit a design of {len(chain)} residues")
    target = torch.from_numpy(np.ascontiguousarray(chain, np.float64)).expand(folded.shape)
    predicted = torch.from_numpy(np.ascontiguousarray(folded, np.float64))
    least = float(rmsd(predicted, target).min())
    return Designability(
        sc_rmsd=least,
        sc_tm=float(tm_score_of_pairing(predicted, target).max()),
        designable=least < DESIGNABLE,
    )
