"""A set of CA chains on disk: one safetensors file and a card that says where the chains come from."""

import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Int, Int16, UInt8
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from fewstep.modalities.protein.chains import Chain

CHAINS, CARD = "chains.safetensors", "card.json"
FORMAT = 1
UNIT = 0.01  # angstrom
BUNDLED = "fewstep.modalities.protein.data"
BUNDLED_FOLDER = "pdb_chains"
BONDS = (2.7, 4.2)  # angstrom between consecutive CA atoms; outside of it a residue is missing or misplaced
FARTHEST = np.iinfo(np.int16).max * UNIT  # from the centre of a chain, in angstrom
VALIDATION_SHARE = 0.05

Split = Literal["train", "val"]


@dataclass(frozen=True, kw_only=True, eq=False)
class NamedChain:
    """One chain: CA atoms in angstrom, one-letter residues (X where unknown), and ENTRY_CHAIN as a name."""

    name: str
    sequence: str
    coordinates: Float[np.ndarray, " residue 3"]


@dataclass(frozen=True, kw_only=True, eq=False)
class ChainSet:
    """Chains one after another, each centred, in steps of 0.01 angstrom.

    Args:
        coordinates: of all residues of all chains.
        lengths: residues of each chain.
        sequences: ASCII letters of all residues.
        names: ENTRY_CHAIN of each chain; chains of one entry share a split.
    """

    coordinates: Int16[np.ndarray, " residue 3"]
    lengths: Int16[np.ndarray, " chain"]
    sequences: UInt8[np.ndarray, " residue"]
    names: tuple[str, ...]

    def __post_init__(self) -> None:
        total = int(self.lengths.sum(dtype=np.int64))
        if not len(self.names) == len(self.lengths) or not total == len(self.coordinates) == len(
            self.sequences
        ):
            raise ValueError(
                f"{len(self.names)} names and {len(self.lengths)} lengths of {total} residues do not fit "
                f"{len(self.coordinates)} coordinates and {len(self.sequences)} letters; build the set again"
            )

    @classmethod
    def of(cls, chains: Iterable[NamedChain]) -> "ChainSet":
        """A set of these chains.

        Raises:
            ValueError: for no chain, or one that is too large for the format.
        """
        rows = list(chains)
        if not rows:
            raise ValueError("a set of no chains is of no use; widen the limits of length")
        return cls(
            coordinates=np.concatenate([_stored(chain) for chain in rows]),
            lengths=np.array([len(chain.coordinates) for chain in rows], np.int16),
            sequences=np.frombuffer("".join(chain.sequence for chain in rows).encode("ascii"), np.uint8),
            names=tuple(chain.name for chain in rows),
        )

    def __len__(self) -> int:
        return len(self.lengths)

    @cached_property
    def starts(self) -> Int[np.ndarray, " chain"]:
        """First residue of each chain."""
        return np.cumsum(self.lengths, dtype=np.int64) - self.lengths

    def chain(self, number: int) -> Chain:
        """CA atoms of one chain in angstrom, in float32."""
        return self.coordinates[self._rows(number)].astype(np.float32) * np.float32(UNIT)

    def sequence(self, number: int) -> str:
        """One-letter residues of one chain."""
        return self.sequences[self._rows(number)].tobytes().decode("ascii")

    def chosen(self, split: Split | None, *, lengths: tuple[int, int]) -> Int[np.ndarray, " some"]:
        """Numbers of the chains of a split (None is all) with from lengths[0] to lengths[1] residues."""
        fits = (self.lengths >= lengths[0]) & (self.lengths <= lengths[1])
        mine = np.array([split is None or split_of(name) == split for name in self.names], bool)
        return np.flatnonzero(fits & mine)

    def _rows(self, number: int) -> slice:
        start = self.starts[number]
        return slice(start, start + self.lengths[number])


def split_of(name: str) -> Split:
    """The split of a chain, decided by a hash of its entry alone: one entry in twenty is for validation."""
    entry = (name.rpartition("_")[0] or name).lower()  # names of entries may have underscores, chains do not
    drawn = int.from_bytes(hashlib.sha256(entry.encode()).digest()[:8]) / 2**64
    return "val" if drawn < VALIDATION_SHARE else "train"


def longest_run(coordinates: Float[np.ndarray, " residue 3"]) -> slice:
    """The longest part of a chain in which no residue is missing."""
    steps = np.linalg.norm(np.diff(coordinates.astype(np.float64), axis=0), axis=1)
    ends = np.flatnonzero(np.r_[True, (steps < BONDS[0]) | (steps > BONDS[1]), True])
    first = int(np.argmax(np.diff(ends)))
    return slice(int(ends[first]), int(ends[first + 1]))


def save_chain_set(folder: Path, chains: ChainSet, *, origin: dict[str, Any]) -> dict[str, Any]:
    """Write ``chains.safetensors`` and ``card.json``, and return what stands on the card.

    Args:
        origin: where the chains come from and under which licence; goes on the card as it is.
    """
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {
        "coordinates": chains.coordinates,
        "lengths": chains.lengths,
        "sequences": chains.sequences,
        "names": np.frombuffer("\n".join(chains.names).encode(), np.uint8),
    }
    part = folder / f".{CHAINS}.part"
    save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, part)
    part.chmod(0o644)  # safetensors writes files that only their owner may read
    os.replace(part, folder / CHAINS)
    sizes = {split: len(chains.chosen(split, lengths=(0, 2**15))) for split in ("train", "val")}
    card = {
        "format": FORMAT,
        "chains": len(chains),
        "residues": len(chains.coordinates),
        "lengths": [int(chains.lengths.min()), int(chains.lengths.max())],
        **sizes,
        "unit_angstrom": UNIT,
        "sha256": file_sha256(folder / CHAINS),
        "origin": origin,
    }
    (folder / CARD).write_text(json.dumps(card, indent=2) + "\n")
    return card


def load_chain_set(folder: Path) -> ChainSet:
    """The set in a folder.

    Raises:
        FileNotFoundError: the folder holds no set.
        ValueError: it is damaged, or of another version.
    """
    path = folder / CHAINS
    if not path.is_file():
        raise FileNotFoundError(f"{folder} holds no set of chains: it has no {CHAINS}")
    try:
        arrays = load_file(path)
        return ChainSet(
            coordinates=arrays["coordinates"],
            lengths=arrays["lengths"],
            sequences=arrays["sequences"],
            names=tuple(arrays["names"].tobytes().decode().split("\n")),
        )
    except (SafetensorError, KeyError) as error:
        raise ValueError(f"{path} is not a set of chains ({error}); build it again") from error


def bundled_chain_set() -> ChainSet:
    """The chains that come with the package: 5,583 of 40 to 128 residues of the Protein Data Bank."""
    with as_file(files(BUNDLED)) as folder:
        return load_chain_set(folder / BUNDLED_FOLDER)


def file_sha256(path: Path) -> str:
    """In hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _stored(chain: NamedChain) -> Int16[np.ndarray, " residue 3"]:
    if len(chain.sequence) != len(chain.coordinates) or not len(chain.coordinates):
        raise ValueError(
            f"chain {chain.name} has {len(chain.coordinates)} CA atoms and {len(chain.sequence)} letters"
        )
    centred = chain.coordinates.astype(np.float64)
    centred = centred - centred.mean(0)
    if not np.isfinite(centred).all() or np.abs(centred).max() > FARTHEST:
        raise ValueError(
            f"chain {chain.name} reaches {np.abs(centred).max():.0f} angstrom from its centre, over the "
            f"{FARTHEST:.0f} that a set can hold; leave it out"
        )
    return np.rint(centred / UNIT).astype(np.int16)
