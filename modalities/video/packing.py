"""From training runs to the folder that streams: weights in half precision, prompts, and the numbers that
belong to them.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image
from safetensors.torch import save_file

from fewstep.core.checkpoints import READABLE, read_card, save_model
from fewstep.modalities.video.cache import CacheConfig
from fewstep.modalities.video.captions import (
    MANOEUVRES,
    PALETTES,
    SPEEDS,
    Attributes,
    all_attributes,
    canonical_caption,
)
from fewstep.modalities.video.driving import FPS, IMAGE_SIZE
from fewstep.modalities.video.model_folder import load_codec, load_transformer
from fewstep.modalities.video.pipeline import PIPELINE, PROMPTS
from fewstep.modalities.video.text import TextEncoder

STORAGE = "bfloat16"
COLOURS = 64  # of a picture of curves
CURVES = "training"
KEYS: dict[str, dict[str, str]] = {
    "manoeuvre": {"ArrowLeft": "left", "ArrowRight": "right"},
    "speed": {"ArrowUp": "fast", "ArrowDown": "slow"},
    "palette": {},
}
EXAMPLES = (
    Attributes(palette="meadow", manoeuvre="centre", speed="slow"),
    Attributes(palette="desert", manoeuvre="left", speed="fast"),
    Attributes(palette="snow", manoeuvre="weave", speed="slow"),
    Attributes(palette="night", manoeuvre="right", speed="fast"),
)


def steering() -> dict[str, Any]:
    """Axes with their keys, and the canonical caption of every combination (values joined in the order of
    the axes).
    """
    values = {"manoeuvre": MANOEUVRES, "speed": SPEEDS, "palette": PALETTES}
    axes = [{"name": name, "values": list(values[name]), "keys": KEYS[name]} for name in values]
    prompts = {f"{a.manoeuvre}|{a.speed}|{a.palette}": canonical_caption(a) for a in all_attributes()}
    default = EXAMPLES[0]
    return {
        "axes": axes,
        "prompts": prompts,
        "default": {"manoeuvre": default.manoeuvre, "speed": default.speed, "palette": default.palette},
    }


def pack_driving(
    folder: Path,
    *,
    codec: Path,
    teacher: Path,
    student: Path,
    default_steps: int,
    teacher_steps: int,
    curves: Mapping[str, Path] | None = None,
) -> None:
    """Write the model folder of the driving world whole, or not at all; an older one is replaced."""
    card = read_card(student)
    if str(default_steps) not in card.step_grids:
        raise ValueError(
            f"steps={default_steps}: the student has grids for {', '.join(card.step_grids)} steps"
        )
    roles: Any = card.training["model"]
    arguments = roles["init_args"]["roles"]["init_args"]
    cache = CacheConfig(**arguments["cache"])
    pipeline = {
        "name": "driving",
        "fps": FPS,
        "height": IMAGE_SIZE,
        "width": IMAGE_SIZE,
        "cache": vars(cache),
        "step_grids": card.step_grids,
        "default_steps": default_steps,
        "default_prompt": canonical_caption(EXAMPLES[0]),
        "example_prompts": [canonical_caption(example) for example in EXAMPLES],
        "steering": steering(),
        "teacher": {
            "num_steps": teacher_steps,
            "guidance_scale": card.guidance.scale,
            "clip_frames": arguments["score_chunks"] * cache.chunk,
            "shift": 1.0,
        },
    }
    prompts = sorted(set(pipeline["steering"]["prompts"].values()))
    features = TextEncoder()(["", *prompts])
    known = {prompt: row.half().contiguous() for prompt, row in zip(["", *prompts], features, strict=True)}
    folder.parent.mkdir(parents=True, exist_ok=True)
    if folder.exists() and not (folder / PIPELINE).is_file():
        raise ValueError(f"{folder} exists and is no video model folder; choose another or delete it")
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as scratch:
        partial = Path(scratch) / "new"
        partial.mkdir()
        for name, source in (("codec", codec), ("teacher", teacher), ("student", student)):
            network = load_codec(source) if name == "codec" else load_transformer(source)
            save_model(partial / name, network, replace(read_card(source), storage_dtype=STORAGE))
        (partial / CURVES).mkdir()
        for name, picture in (curves or {}).items():
            copy_in_few_colours(picture, partial / CURVES / f"{name}.png")
        save_file(known, partial / PROMPTS)
        (partial / PROMPTS).chmod(READABLE)
        (partial / PIPELINE).write_text(json.dumps(pipeline, indent=1) + "\n")
        for extra in folder.glob("*") if folder.exists() else ():  # measurements and samples stay
            if extra.name not in {"codec", "teacher", "student", CURVES, PROMPTS, PIPELINE}:
                copy = shutil.copytree if extra.is_dir() else shutil.copy2
                copy(extra, partial / extra.name)
        if folder.exists():
            os.replace(folder, Path(scratch) / "old")
        os.replace(partial, folder)


def copy_in_few_colours(picture: Path, copy: Path) -> None:
    """Copy a picture of lines and text with a palette: a third of the space, and no difference to see."""
    with Image.open(picture) as full:
        full.convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE).save(copy, optimize=True)
