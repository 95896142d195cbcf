"""One run of `fewstep protein`: what was asked for, and how a worker makes a shard of it."""

from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from torch import Tensor

from fewstep import __version__
from fewstep.modalities.protein.backbone import completed
from fewstep.modalities.protein.chains import Chain
from fewstep.modalities.protein.design_table import Row, measured, of_backbones, rounded
from fewstep.modalities.protein.files import Format, require_biotite, structure_bytes, write_whole
from fewstep.modalities.protein.lengths import lengths_of, parsed_lengths
from fewstep.modalities.protein.pipeline import (
    ChainGuidance,
    ProteinModel,
    TeacherSampler,
    identity_of,
    steps_of,
)
from fewstep.modalities.protein.released.cath import CathLabels
from fewstep.modalities.protein.sequence_design import require_length
from fewstep.modalities.protein.shards import Shard, ShardFolder, seeds_of

if TYPE_CHECKING:
    from fewstep.modalities.protein.folding import EsmFolder
    from fewstep.modalities.protein.novelty import KnownChains
    from fewstep.modalities.protein.sequence_design import SequenceDesigner

STRUCTURES = "structures"
Atoms = Literal["backbone", "ca"]


@dataclass(frozen=True, kw_only=True)
class Request:
    """What was asked for; all of it but ``device`` and ``out`` decides what the designs are.

    Args:
        length: as ``parsed_lengths`` reads it.
        files: kind of structure files, or None for shards alone.
        atoms: of the files.
        sequences: of ProteinMPNN per design; 0 for none.
        novelty: whether designs are compared with the chains of the training set.
        folding: ESMFold's weights, for designability; None for none.
        sampler: of a teacher; None for its own.
        guidance: scale of it, 1 for none.
        worse: the network that autoguidance leads away from.
        fold_labels: file of the labels that a released network's folds are told by.
    """

    out: Path
    model: str
    length: str
    num: int
    seed: int
    student: str | None
    steps: int | None
    noise_scale: float | None
    fold: str | None
    files: Format | None
    atoms: Atoms
    sequences: int
    novelty: bool
    folding: str | None
    shard_size: int
    device: str
    sampler: TeacherSampler | None = None
    guidance: float = 1.0
    worse: Path | None = None
    fold_labels: Path | None = None


class Maker:
    """A worker with its model loaded.

    Raises:
        ValueError: for a request that cannot be, or a folder of another one.
        ImportError: for a measure whose package is missing.
    """

    def __init__(self, request: Request) -> None:
        self.request = request
        cath = None if request.fold_labels is None else CathLabels.read(request.fold_labels)
        self.model = ProteinModel.load(request.model, device=request.device, cath=cath)
        self.network, self.sampling = self.model.sampling(
            student=request.student,
            steps=request.steps,
            noise_scale=request.noise_scale,
            sampler=request.sampler,
        )
        self.guidance = guidance_of(request)
        labels = self.model.labels(self.network, request.fold, batch=1)
        self.lengths = lengths_of(parsed_lengths(request.length), request.num)
        settings = {
            "fewstep": __version__,
            "model": request.model,
            "weights": self.model.identity(self.network),
            "network": self.network,
            "sampling": {"kind": type(self.sampling).__name__, **asdict(self.sampling)},
            **self._guided_settings(labels),
            **{name: getattr(request, name) for name in SETTINGS},
        }
        self._refuse_what_is_missing()
        self.folder = ShardFolder.open(request.out, settings, count=request.num, size=request.shard_size)

    def make(self, shard: int) -> int:
        """Generate, measure and write one shard; returns how many designs it holds."""
        numbers = self.folder.designs(shard)
        seeds = seeds_of(numbers, self.request.seed)
        lengths = [self.lengths[number] for number in numbers]
        chains = self.model.sampled(
            self.network,
            self.sampling,
            lengths,
            seeds=seeds,
            fold=self.request.fold,
            guidance=self.guidance,
        )
        rows: list[Row] = [
            {
                "design": number,
                "file": self._name(number) if self.request.files is not None else None,
                "length": length,
                "seed": seed,
                "network": self.network,
                "steps": steps_of(self.sampling),
                "fold": self.request.fold,
            }
            for number, length, seed in zip(numbers, lengths, seeds, strict=True)
        ]
        for more in self._measures(chains, seed=seeds[0]):
            for row, values in zip(rows, more, strict=True):
                row.update(values)
        made = Shard(chains=chains, rows=rows)
        self.write_structures(made, missing_only=False)
        self.folder.write(shard, made)
        return len(numbers)

    def write_structures(self, shard: Shard, *, missing_only: bool) -> None:
        """The shard's structure files, if any were asked for."""
        kind = self.request.files
        if kind is None:
            return
        (self.request.out / STRUCTURES).mkdir(exist_ok=True)
        paths = [self.request.out / str(row["file"]) for row in shard.rows]
        wanted = [i for i, path in enumerate(paths) if not missing_only or not path.is_file()]
        chains = [shard.chains[i] for i in wanted]
        whole = completed(chains) if self.request.atoms == "backbone" else [one[:, None] for one in chains]
        for i, atoms in zip(wanted, whole, strict=True):
            row = shard.rows[i]
            sequence = row.get("sequence")
            title = f"fewstep design {row['design']}, seed {row['seed']}"
            content = structure_bytes(
                atoms, kind=kind, title=title, sequence=sequence if isinstance(sequence, str) else None
            )
            write_whole(paths[i], content)

    def _guided_settings(self, labels: Tensor | None) -> dict[str, Any]:
        settings: dict[str, Any] = {}
        if labels is not None:
            settings["labels"] = labels[0].tolist()
        if self.guidance is not None:
            worse = self.guidance.worse
            settings["guidance"] = self.guidance.scale
            settings["worse"] = None if worse is None else identity_of(worse)
        return settings

    def _refuse_what_is_missing(self) -> None:
        """Now, and not after the first shard."""
        if self.request.files in ("cif", "bcif"):
            require_biotite()
        if self.request.folding is not None:
            _ = self._folder
        if self.request.sequences or self.request.folding is not None:
            _ = self._designer
            require_length(min(self.lengths))

    def _name(self, number: int) -> str:
        return f"{STRUCTURES}/design-{number:06d}.{self.request.files}"

    def _measures(self, chains: list[Chain], *, seed: int) -> list[list[Row]]:
        request, tables = self.request, [measured(chains)]
        if request.atoms == "backbone" and _has_dssp():
            tables.append(of_backbones(completed(chains)))
        if request.novelty:
            known, names = self._known
            nearest = known.nearest(chains, device=request.device)
            tables.append(
                [
                    {"nearest_tm": rounded(float(tm)), "nearest": names[int(number)]}
                    for tm, number in zip(nearest.tm, nearest.number, strict=True)
                ]
            )
        if request.sequences:
            tables.append(self._sequence_rows(chains, seed))
        if request.folding is not None:
            tables.append(self._folding_rows(chains, seed))
        return tables

    def _sequence_rows(self, chains: list[Chain], seed: int) -> list[Row]:
        designed = self._designer.design(chains, count=self.request.sequences, seed=seed)
        return [
            {
                "mpnn_nll": rounded(float(np.mean(one.nll))),
                "mpnn_information": rounded(one.information),
                "mpnn_agreement": rounded(one.agreement),
                "sequence": one.best,
            }
            for one in designed
        ]

    def _folding_rows(self, chains: list[Chain], seed: int) -> list[Row]:
        from fewstep.modalities.protein.folding import designability

        found = designability(chains, self._designer, self._folder, seed=seed)
        return [{name: rounded(value) for name, value in vars(one).items()} for one in found]

    @cached_property
    def _designer(self) -> "SequenceDesigner":
        from fewstep.modalities.protein.sequence_design import SequenceDesigner

        return SequenceDesigner(device=self.request.device)

    @cached_property
    def _folder(self) -> "EsmFolder":
        from fewstep.modalities.protein.folding import EsmFolder

        assert self.request.folding is not None
        return EsmFolder.load(self.request.folding, device=self.request.device)

    @cached_property
    def _known(self) -> tuple["KnownChains", list[str]]:
        return known_chains()


SETTINGS = ("length", "seed", "fold", "files", "atoms", "sequences", "novelty", "folding")  # of a Request


def guidance_of(request: Request) -> ChainGuidance | None:
    """None where it is off.

    Raises:
        ValueError: for guidance towards nothing and away from nothing.
    """
    if not np.isfinite(request.guidance):
        raise ValueError(f"--guidance {request.guidance} must be a number")
    if request.guidance == 1:
        if request.worse is not None:
            raise ValueError(f"--worse {request.worse} is of use with --guidance above 1 only")
        return None
    if request.worse is None and request.fold is None:
        raise ValueError(
            f"--guidance {request.guidance} needs --fold to lead to, or --worse to lead away from"
        )
    return ChainGuidance(scale=request.guidance, worse=request.worse)


def known_chains() -> tuple["KnownChains", list[str]]:
    """The training split of the bundled chains, and their names."""
    from fewstep.modalities.protein.data.chain_set import bundled_chain_set
    from fewstep.modalities.protein.novelty import KnownChains

    chains = bundled_chain_set()
    numbers = chains.chosen("train", lengths=(0, 2**15 - 1))
    known = KnownChains([chains.chain(int(number)).astype(np.float64) for number in numbers])
    return known, [chains.names[int(number)] for number in numbers]


def _has_dssp() -> bool:
    import importlib.util

    return importlib.util.find_spec("pydssp") is not None
