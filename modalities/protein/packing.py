"""The folder that ``fewstep protein`` loads: a teacher, its students, and their numbers."""

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path

from fewstep.core.checkpoints import Card, read_card, save_model
from fewstep.modalities.protein.model_folder import knows_folds, load_transformer, trained_lengths
from fewstep.modalities.protein.pipeline_card import PIPELINE, STUDENTS, TEACHER, renoise_of
from fewstep.modalities.protein.sampling import ChainSampling
from fewstep.modalities.protein.student_sampling import NOISE_SCALE
from fewstep.modalities.video.packing import copy_in_few_colours

STORAGE = "bfloat16"
CURVES = "training"


def pack_chains(
    folder: Path,
    *,
    teacher: Path,
    students: Mapping[str, Path],
    default_student: str,
    default_steps: int = 16,
    noise_scale: float = NOISE_SCALE,
    teacher_sampling: ChainSampling | None = None,
    curves: Mapping[str, Path] | None = None,
) -> None:
    """Write the model folder whole, or not at all; an older one is replaced, its other files kept.

    Args:
        students: model folders by name.
        noise_scale: of the students' noise in use.
        teacher_sampling: of the teacher by default.
        curves: pictures of training curves by name of the run.

    Raises:
        ValueError: for a default student or number of steps that is not there, or a folder that is no model.
    """
    cards = {name: read_card(path) for name, path in students.items()}
    if default_student not in cards:
        raise ValueError(f"student={default_student!r} is not among {', '.join(cards) or '(none)'}")
    grids = cards[default_student].step_grids
    if str(default_steps) not in grids:
        raise ValueError(
            f"steps={default_steps}: {default_student} has grids for {', '.join(grids) or 'no'} steps"
        )
    if folder.exists() and not (folder / PIPELINE).is_file():
        raise ValueError(f"{folder} exists and is no protein model folder; choose another or delete it")
    pipeline = {
        "name": folder.name,
        "lengths": _lengths(read_card(teacher)),
        "folds": [name for name, card in {TEACHER: read_card(teacher), **cards}.items() if knows_folds(card)],
        "students": {name: {"renoise": renoise_of(card.training)} for name, card in cards.items()},
        "default_student": default_student,
        "default_steps": default_steps,
        "noise_scale": noise_scale,
        TEACHER: asdict(teacher_sampling or ChainSampling()),
    }
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as scratch:
        partial = Path(scratch) / "new"
        partial.mkdir()
        _store(partial / TEACHER, teacher)
        for name, path in students.items():
            _store(partial / STUDENTS / name, path)
        (partial / CURVES).mkdir()
        for name, picture in (curves or {}).items():
            copy_in_few_colours(picture, partial / CURVES / f"{name}.png")
        (partial / PIPELINE).write_text(json.dumps(pipeline, indent=1) + "\n")
        packed = {TEACHER, STUDENTS, CURVES, PIPELINE}
        for extra in folder.glob("*") if folder.exists() else ():  # measurements and samples stay
            if extra.name not in packed:
                copy = shutil.copytree if extra.is_dir() else shutil.copy2
                copy(extra, partial / extra.name)
        if folder.exists():
            os.replace(folder, Path(scratch) / "old")
        os.replace(partial, folder)


def _lengths(teacher: Card) -> list[int]:
    """Of the shortest and the longest chain that the teacher was trained on."""
    lengths = trained_lengths(teacher)
    if lengths is None:
        raise ValueError("the teacher's card does not say what lengths it was trained on; use fewstep train")
    return lengths


def _store(folder: Path, source: Path) -> None:
    network, card = load_transformer(source)
    save_model(folder, network, replace(card, storage_dtype=STORAGE))
