"""From training runs to the folder that makes pictures: weights in half precision, prompts, and numbers."""

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from fewstep.core.checkpoints import READABLE, Card, read_card, save_model
from fewstep.modalities.image.classifier import load_classifier
from fewstep.modalities.image.model_folder import load_codec, load_transformer
from fewstep.modalities.image.pipeline import CODEC, PROMPTS, STUDENTS, TEACHER
from fewstep.modalities.objects.captions import Attributes, canonical_caption
from fewstep.modalities.video.packing import copy_in_few_colours
from fewstep.modalities.video.pipeline_card import PIPELINE
from fewstep.modalities.video.text import TextEncoder

STORAGE = "bfloat16"
CURVES = "training"
CLASSIFIER = "classifier"
SIZE = 64
EXAMPLES = (
    Attributes(category="mug", colour="blue"),
    Attributes(category="chair", colour="red"),
    Attributes(category="teapot", colour="green"),
    Attributes(category="car", colour="yellow"),
    Attributes(category="duck", colour="orange"),
    Attributes(category="boat", colour="white"),
    Attributes(category="lamp", colour="pink"),
    Attributes(category="vase", colour="purple"),
)


def pack_objects(
    folder: Path,
    *,
    codec: Path,
    teacher: Path,
    students: Mapping[str, Path],
    default_student: str,
    default_steps: int,
    teacher_steps: int,
    classifier: Path | None = None,
    curves: Mapping[str, Path] | None = None,
) -> None:
    """Write the model folder of the world of objects whole, or not at all; an older one is replaced.

    Args:
        students: model folders by name; all must have been distilled with one guidance scale.
        teacher_steps: the teacher's own number of steps.
        classifier: what `fewstep eval image` measures with; without it the folder cannot be evaluated.
        curves: pictures of training curves by name of the run.
    """
    cards = {name: read_card(path) for name, path in students.items()}
    if default_student not in cards:
        raise ValueError(f"student={default_student!r} is not among {', '.join(cards) or '(none)'}")
    grids = cards[default_student].step_grids
    if str(default_steps) not in grids:
        raise ValueError(
            f"steps={default_steps}: {default_student} has grids for {', '.join(grids) or 'no'} steps"
        )
    scales = {name: card.guidance.scale for name, card in cards.items()}
    if len(set(scales.values())) > 1:
        raise ValueError(f"students learned different guidance scales {scales}; pack those of one scale")
    pipeline = {
        "name": "objects",
        "height": SIZE,
        "width": SIZE,
        "students": {name: {"rollout": rollout_of(card)} for name, card in cards.items()},
        "default_student": default_student,
        "default_steps": default_steps,
        "default_prompt": canonical_caption(EXAMPLES[0]),
        "example_prompts": [canonical_caption(example) for example in EXAMPLES],
        "teacher": {"num_steps": teacher_steps, "guidance_scale": scales[default_student], "shift": 1.0},
    }
    texts = ["", *pipeline["example_prompts"]]
    features = TextEncoder()(texts)
    known = {text: row.half().contiguous() for text, row in zip(texts, features, strict=True)}
    folder.parent.mkdir(parents=True, exist_ok=True)
    if folder.exists() and not (folder / PIPELINE).is_file():
        raise ValueError(f"{folder} exists and is no image model folder; choose another or delete it")
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as scratch:
        partial = Path(scratch) / "new"
        partial.mkdir()
        _store(partial / CODEC, codec, load_codec(codec))
        _store(partial / TEACHER, teacher, load_transformer(teacher))
        for name, path in students.items():
            _store(partial / STUDENTS / name, path, load_transformer(path))
        if classifier is not None:
            _store(partial / CLASSIFIER, classifier, load_classifier(classifier))
        (partial / CURVES).mkdir()
        for name, picture in (curves or {}).items():
            copy_in_few_colours(picture, partial / CURVES / f"{name}.png")
        save_file(known, partial / PROMPTS)
        (partial / PROMPTS).chmod(READABLE)
        (partial / PIPELINE).write_text(json.dumps(pipeline, indent=1) + "\n")
        packed = {CODEC, TEACHER, STUDENTS, CLASSIFIER, CURVES, PROMPTS, PIPELINE}
        for extra in folder.glob("*") if folder.exists() else ():  # measurements and samples stay
            if extra.name not in packed:
                copy = shutil.copytree if extra.is_dir() else shutil.copy2
                copy(extra, partial / extra.name)
        if folder.exists():
            os.replace(folder, Path(scratch) / "old")
        os.replace(partial, folder)


def rollout_of(card: Card) -> str:
    """How a student goes on between its steps, by the configuration it was distilled with."""
    if card.config.get("two_times"):
        return "flow_map"
    training: Any = card.training
    try:
        return str(training["model"]["init_args"]["roles"]["init_args"]["renoise"])
    except (KeyError, TypeError) as error:
        raise ValueError(
            "a student's card does not say how it was distilled (model.init_args.roles.init_args.renoise); "
            "train it with fewstep train and ImageRoles"
        ) from error


def _store(folder: Path, source: Path, network: Any) -> None:
    save_model(folder, network, replace(read_card(source), storage_dtype=STORAGE))
