"""What ``pipeline.json`` says of a model, and what it would say of one network alone."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fewstep.core.checkpoints import read_card
from fewstep.modalities.protein.model_folder import knows_folds, trained_lengths
from fewstep.modalities.protein.sampling import ChainSampling
from fewstep.modalities.protein.student_sampling import NOISE_SCALE

PIPELINE = "pipeline.json"
TEACHER, STUDENTS = "teacher", "students"
KEYS = {"lengths", "folds", "students", "default_student", "default_steps", "noise_scale", TEACHER}
RELEASED_LENGTHS = [50, 256]  # of most of Proteina's models


def card_of_network(path: Path) -> dict[str, Any]:
    """What a pipeline.json would say of one network alone."""
    card: dict[str, Any] = {
        "single": True,
        "lengths": RELEASED_LENGTHS,
        "folds": [],
        "students": {},
        "default_student": None,
        "noise_scale": NOISE_SCALE,
        TEACHER: asdict(ChainSampling()),
        "default_steps": ChainSampling().num_steps,
    }
    if path.is_file():
        return card
    own = read_card(path)
    name = "student" if own.step_grids else TEACHER
    card |= {"lengths": trained_lengths(own) or RELEASED_LENGTHS, "folds": [name] if knows_folds(own) else []}
    if own.step_grids:
        steps = max(map(int, own.step_grids))
        students = {name: {"renoise": renoise_of(own.training)}}
        card |= {"students": students, "default_student": name, "default_steps": steps}
    return card


def read_pipeline(path: Path) -> dict[str, Any]:
    """What a packed folder says of itself.

    Raises:
        ValueError: the file is damaged, or of another version.
    """
    try:
        card = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}); pack the model again") from error
    missing = KEYS - set(card) if isinstance(card, dict) else KEYS
    if missing:
        raise ValueError(f"{path} lacks {', '.join(sorted(missing))}; pack the model again")
    return card


def renoise_of(training: Any) -> str:
    """How a student goes on between its steps, from the configuration it was distilled with."""
    try:
        return str(training["model"]["init_args"]["roles"]["init_args"]["renoise"])
    except (KeyError, TypeError):
        return "fresh"
