"""A protein model ready to use: students and teacher, from one folder, a network alone, or a checkpoint."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from fewstep.core.checkpoints import CARD, read_card
from fewstep.core.denoisers import Denoiser, NetworkDenoiser
from fewstep.core.devices import usable_device
from fewstep.core.rollouts import FewStep
from fewstep.core.seeds import check_seeds
from fewstep.modalities.protein.centring import CentredDenoiser, Generators, centred_noise
from fewstep.modalities.protein.chains import Chain, by_length
from fewstep.modalities.protein.data.chain_set import file_sha256
from fewstep.modalities.protein.data.fold_classes import FOLD_CLASSES
from fewstep.modalities.protein.denoisers import ChainCondition, GuidedChains, chain_denoiser
from fewstep.modalities.protein.flow_training import labels_of
from fewstep.modalities.protein.model_folder import load_transformer
from fewstep.modalities.protein.networks.transformer import ProteinTransformer
from fewstep.modalities.protein.pipeline_card import (
    PIPELINE,
    STUDENTS,
    TEACHER,
    card_of_network,
    read_pipeline,
)
from fewstep.modalities.protein.quality import ANGSTROM_PER_NANOMETRE
from fewstep.modalities.protein.released.cath import FILE as CATH_FILE
from fewstep.modalities.protein.released.cath import CathLabels
from fewstep.modalities.protein.sampling import ChainSampling
from fewstep.modalities.protein.student_sampling import StudentSampling
from fewstep.modalities.protein.times import student_grid

PRESETS = "fewstep.modalities.protein.presets"
CHECKPOINT = ".ckpt"
RESIDUES = 4096  # of a batch, padding and all
SHORTEST = 4

TeacherSampler = Literal["sde", "ode", "renoise"]
Sampling = ChainSampling | StudentSampling | FewStep
"""How chains are drawn: a teacher's solver, a student's steps with fresh noise, or any other rollout."""


@dataclass(frozen=True, kw_only=True)
class ChainGuidance:
    """``GuidedChains`` of networks by name; each further network is called once more per step.

    Args:
        scale: w; 1 is off. Without ``worse`` it leads towards the fold, which has to be told.
        worse: model folder or released file of the same network earlier in its training (autoguidance).
    """

    scale: float
    worse: Path | None = None


def steps_of(how: Sampling) -> int:
    """Calls of the network for one chain."""
    return len(how.times) if isinstance(how, FewStep) else how.num_steps


class ProteinModel:
    """Distilled students with their teacher.

    The folder holds ``pipeline.json`` (students with their rollouts, lengths they were trained on, how the
    teacher samples) and the model folders ``teacher`` and ``students/NAME``. Networks are loaded when they
    are first used.
    """

    def __init__(
        self, folder: Path, card: Mapping[str, Any], *, device: str = "cpu", cath: CathLabels | None = None
    ) -> None:
        self.folder, self.card, self.device, self.cath = folder, card, usable_device(device), cath
        self._denoisers: dict[str | Path, NetworkDenoiser] = {}

    @classmethod
    def load(cls, name: str | Path, *, device: str = "cpu", cath: CathLabels | None = None) -> "ProteinModel":
        """A bundled preset by name (``chains``), a folder like it, one network's folder, or a released file.

        Args:
            cath: labels of a released file, by which folds are then told.

        Raises:
            ValueError: for a name that is none of them.
            FileNotFoundError: for a .ckpt that is not there.
        """
        path = Path(name)
        if path.suffix == CHECKPOINT and not path.is_file():
            raise FileNotFoundError(f"{path} is missing; download or copy it there")
        if (path.suffix and path.is_file()) or (path / CARD).is_file():
            return cls(path, card_of_network(path), device=device, cath=cath)
        with as_file(files(PRESETS)) as presets:
            for folder in (path, presets / str(name)):
                if (folder / PIPELINE).is_file():
                    return cls(folder, read_pipeline(folder / PIPELINE), device=device, cath=cath)
            known = sorted(found.parent.name for found in presets.glob(f"*/{PIPELINE}"))
        raise ValueError(
            f"no protein model {str(name)!r}: give a folder with {PIPELINE} or {CARD}, a {CHECKPOINT} file, "
            f"or one of {', '.join(known) or '(none yet)'}"
        )

    @property
    def students(self) -> tuple[str, ...]:
        """Names of the students, the default one first; none of a teacher's own folder."""
        default = self.card["default_student"]
        others = sorted(set(self.card["students"]) - {default})
        return () if default is None else (str(default), *others)

    @property
    def has_teacher(self) -> bool:
        """Not where a student's own folder was loaded."""
        return not (self.card.get("single", False) and self.students)

    @property
    def default_steps(self) -> int:
        """Of the default student, or of the teacher where there is none."""
        return int(self.card["default_steps"])

    @property
    def lengths(self) -> tuple[int, int]:
        """Shortest and longest chain that the networks were trained on."""
        low, high = self.card["lengths"]
        return int(low), int(high)

    @property
    def teacher_sampling(self) -> ChainSampling:
        """The teacher's own."""
        return ChainSampling(**self.card[TEACHER])

    def identity(self, network: str) -> str:
        """Which weights these are: the digest of their file."""
        return identity_of(self._path(network))

    def sampling(
        self,
        *,
        student: str | None = None,
        steps: int | None = None,
        noise_scale: float | None = None,
        sampler: TeacherSampler | None = None,
    ) -> tuple[str, Sampling]:
        """The name of a network and how it is sampled; what is not given is the model's own.

        Args:
            student: one of ``students``, or ``teacher``.
            steps: calls of the network per design.
            noise_scale: on the standard deviation of all noise; 1 leaves it as in training.
            sampler: of a teacher; ``renoise`` is how students draw, also those in a released file.

        Raises:
            ValueError: for a student that is not there, or numbers that cannot be.
        """
        name = student or (self.students or (TEACHER,))[0]
        if name == TEACHER and not self.has_teacher:
            raise ValueError(f"{self.folder} holds a student alone; give the folder that it was packed into")
        if noise_scale is not None and not 0 <= noise_scale < float("inf"):
            raise ValueError(
                f"noise_scale={noise_scale} must be at least 0 and finite; 1 leaves the noise as it is"
            )
        if name == TEACHER:
            return name, self._teacher_draws(sampler, steps, noise_scale)
        if name not in self.students:
            known = ", ".join((*self.students, TEACHER))
            raise ValueError(f"student={name!r} is not one of this model's networks: {known}")
        if sampler is not None:
            raise ValueError(f"sampler={sampler!r} is for a teacher; {name} draws as it was distilled to")
        times = self._times(name, self.default_steps if steps is None else steps)
        scale = float(self.card["noise_scale"] if noise_scale is None else noise_scale)
        if self.card["students"][name]["renoise"] == "fresh":
            return name, StudentSampling(times=times, noise_scale=scale)
        return name, FewStep(times, renoise=self.card["students"][name]["renoise"], noise_scale=scale)

    def _teacher_draws(
        self, sampler: TeacherSampler | None, steps: int | None, noise_scale: float | None
    ) -> Sampling:
        if sampler == "renoise":
            times = student_grid(StudentSampling().num_steps if steps is None else steps)
            scale = self.card["noise_scale"] if noise_scale is None else noise_scale
            return StudentSampling(times=times, noise_scale=float(scale))
        own = self.teacher_sampling
        if sampler is not None:
            own = replace(own, stochastic=sampler == "sde")
        if noise_scale is not None and not own.stochastic:
            raise ValueError(f"noise_scale={noise_scale}: the ODE adds no noise that could be scaled")
        variance = own.noise_variance if noise_scale is None else noise_scale**2
        return replace(own, num_steps=own.num_steps if steps is None else steps, noise_variance=variance)

    def generate(
        self,
        lengths: Sequence[int],
        *,
        seeds: Sequence[int],
        student: str | None = None,
        steps: int | None = None,
        noise_scale: float | None = None,
        sampler: TeacherSampler | None = None,
        fold: str | None = None,
    ) -> list[Chain]:
        """A chain of CA atoms in angstrom for each length and seed; a seed's noise depends on nothing else.

        Args:
            student: one of ``students``, or ``teacher``; the default student by default.
            steps: calls of the network per design.
            noise_scale: on all noise; ``sampling`` says more, as of ``sampler``.
            fold: one of ``FOLD_CLASSES``, where the network was told them in training.

        Raises:
            ValueError: for lengths, seeds or settings that cannot be.
        """
        network, how = self.sampling(student=student, steps=steps, noise_scale=noise_scale, sampler=sampler)
        return self.sampled(network, how, lengths, seeds=seeds, fold=fold)

    @torch.inference_mode()
    def sampled(
        self,
        network: str,
        how: Sampling,
        lengths: Sequence[int],
        *,
        seeds: Sequence[int],
        fold: str | None = None,
        guidance: ChainGuidance | None = None,
    ) -> list[Chain]:
        """``generate`` by any network (``teacher`` or a student's name) and any way to draw from it."""
        _check(lengths, seeds)
        denoiser, chains = self._guided(network, guidance), {}
        for group in by_length(list(lengths), residues=RESIDUES):
            sizes = torch.tensor([lengths[i] for i in group], device=self.device)
            mask = torch.arange(int(sizes.max()), device=self.device) < sizes[:, None]
            condition = ChainCondition(mask, labels=self.labels(network, fold, batch=len(group)))
            generators = [torch.Generator().manual_seed(seeds[i]) for i in group]
            drawn = _draw(how, denoiser, condition, generators).float().cpu().numpy()
            for i, row in zip(group.tolist(), drawn, strict=True):
                chains[i] = row[: lengths[i]].astype(np.float64) * ANGSTROM_PER_NANOMETRE
        return [chains[i] for i in range(len(lengths))]

    def denoiser(self, network: str) -> NetworkDenoiser:
        """Of ``teacher`` or a student, loaded once."""
        return self._loaded(network, self._path(network))

    def _loaded(self, key: str | Path, path: Path) -> NetworkDenoiser:
        if key not in self._denoisers:
            self._denoisers[key] = chain_denoiser(load_transformer(path)[0].to(self.device))
        return self._denoisers[key]

    def _guided(self, network: str, guidance: ChainGuidance | None) -> Denoiser:
        denoiser = self.denoiser(network)
        if guidance is None:
            return denoiser
        worse = None if guidance.worse is None else self._loaded(guidance.worse, guidance.worse)
        return GuidedChains(
            denoiser,
            guidance_scale=guidance.scale,
            worse=worse,
            autoguidance_share=float(worse is not None),
        )

    def step_grids(self, student: str) -> dict[int, tuple[float, ...]]:
        """Numbers of steps that a student was distilled to, with the times of each."""
        grids = read_card(self._path(student)).step_grids
        return {int(steps): tuple(times) for steps, times in grids.items()}

    def knows_folds(self, network: str) -> bool:
        """Whether the network was told ``FOLD_CLASSES`` in training."""
        return network in self.card["folds"]

    def _fold_classes(self, network: str) -> tuple[int, int, int]:
        transformer = next(m for m in self.denoiser(network).modules() if isinstance(m, ProteinTransformer))
        return transformer.config.fold_classes

    def labels(self, network: str, fold: str | None, *, batch: int) -> Int[Tensor, " batch 3"] | None:
        """What the network is told of a fold, for each chain; None for nothing.

        Raises:
            ValueError: for a fold that there is not, or that the network does not know.
        """
        if fold is None:
            return None
        if self.cath is not None and self.folder.is_file():
            rows = self.cath.of(fold, self._fold_classes(network))
            return torch.tensor(rows, device=self.device).expand(batch, 3)
        if self.folder.is_file():
            raise ValueError(f"fold={fold!r}: this network knows CATH's; give Proteina's {CATH_FILE} as well")
        if fold not in FOLD_CLASSES:
            raise ValueError(f"fold={fold!r} must be one of {', '.join(FOLD_CLASSES)}")
        if not self.knows_folds(network):
            known = ", ".join(self.card["folds"]) or "none"
            raise ValueError(
                f"fold={fold!r}: {network} of {self.folder.name} was not trained on fold classes; networks "
                f"that were: {known}"
            )
        number = torch.full((batch,), FOLD_CLASSES.index(fold), device=self.device)
        return labels_of(number, self._fold_classes(network))

    def _path(self, network: str) -> Path:
        if self.card.get("single", False):
            return self.folder
        return self.folder / TEACHER if network == TEACHER else self.folder / STUDENTS / network

    def _times(self, name: str, steps: int) -> tuple[float, ...]:
        """Those of the student's card, or Proteina's grid of any number where the card has that grid."""
        grids = self.step_grids(name)
        if steps in grids:
            return grids[steps]
        on_grid = all(np.allclose(grid, student_grid(number)) for number, grid in grids.items())
        if not on_grid:
            raise ValueError(
                f"steps={steps}: student {name} was distilled to {', '.join(map(str, grids))} steps"
            )
        return student_grid(steps)


def identity_of(path: Path) -> str:
    """Digest of the weights of a model folder, or of a released file."""
    return file_sha256(path) if path.is_file() else read_card(path).weights_sha256


def _draw(
    how: Sampling, denoiser: Denoiser, condition: ChainCondition, generators: Generators
) -> Float[Tensor, " batch residue 3"]:
    if not isinstance(how, FewStep):
        return how.sample(denoiser, condition, generator=generators)
    noise: Callable[[int], Tensor] = lambda _: centred_noise(condition.mask, generators)  # noqa: E731
    return how.rollout(CentredDenoiser(denoiser), noise(0), condition, noises=noise)


def _check(lengths: Sequence[int], seeds: Sequence[int]) -> None:
    if not lengths or len(lengths) != len(seeds):
        raise ValueError(f"{len(lengths)} lengths and {len(seeds)} seeds must be as many, at least one")
    if min(lengths) < SHORTEST:
        raise ValueError(f"length {min(lengths)} is too short; use at least {SHORTEST} residues")
    check_seeds(seeds)
