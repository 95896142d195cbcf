"""Released students as model folders of our own, and the digests that say whether a folder is whole."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from fewstep.core.checkpoints import DTYPES, READABLE, Guidance
from fewstep.modalities.video.model_folder import save_codec, save_transformer
from fewstep.modalities.video.parts import PROMPTS, TEXT_ENCODER, TOKENIZER, Parts, read_card
from fewstep.modalities.video.pipeline_card import PIPELINE
from fewstep.modalities.video.released.recipes import Recipe
from fewstep.modalities.video.text import check_prompt
from fewstep.modalities.video.umt5 import UMT5Text

DIGESTS = "files"  # in pipeline.json: path within the folder -> SHA-256


def convert(
    parts: Parts,
    recipe: Recipe,
    out: Path,
    *,
    source: str,
    prompts: Sequence[str] = (),
    storage_dtype: str = "bfloat16",
) -> None:
    """Write a folder that every command accepts. Its ``pipeline.json`` comes last: without it a folder is not
    taken for a model.

    Args:
        source: where the parts came from, for the card.
        prompts: whose features are stored beside the default prompt's, so that a stream starts without the
            11 GB of UMT5.

    Raises:
        ValueError: ``out`` holds something else, a prompt is empty or too long, there is no text encoder to
            go with the student, or a weight is not finite.
    """
    if storage_dtype not in DTYPES:
        raise ValueError(f"storage_dtype={storage_dtype!r} must be one of {', '.join(DTYPES)}")
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file; choose a folder")
    if out.exists() and any(out.iterdir()) and not (out / PIPELINE).is_file():
        raise ValueError(f"{out} exists and is no model folder (it has no {PIPELINE}); choose another")
    prompts = [check_prompt(prompt) for prompt in prompts]
    if not isinstance(parts.text, UMT5Text):
        raise ValueError(
            "there is no text encoder; put text_encoder and tokenizer of Wan2.1-T2V-1.3B-Diffusers, or Wan's "
            "models_t5_umt5-xxl-enc-bf16.pth and google/umt5-xxl, beside the transformer"
        )
    for name, network in (
        ("student", parts.student),
        ("decoder", parts.codec),
        ("text encoder", parts.text.parts[1]),
    ):
        _check_finite(name, network)
    out.mkdir(parents=True, exist_ok=True)
    (out / PIPELINE).unlink(missing_ok=True)
    training: dict[str, Any] = {"source": source, "paper": recipe.paper}
    save_transformer(
        out / "student",
        parts.student,
        training=training,
        metrics={},
        step_grids={int(steps): times for steps, times in parts.card["step_grids"].items()},
        guidance=Guidance(scale=1.0, baked=True),
        licence=recipe.licence,
        storage_dtype=storage_dtype,
    )
    save_codec(out / "codec", parts.codec, training=training, metrics={}, storage_dtype=storage_dtype)
    tokenizer, encoder = parts.text.parts
    tokenizer.save_pretrained(out / TOKENIZER)
    encoder.save_pretrained(out / TEXT_ENCODER)
    wanted = list(dict.fromkeys([parts.card["default_prompt"], *prompts]))
    features = {prompt: parts.text([prompt])[0].to(torch.float16).contiguous() for prompt in wanted}
    save_file(features, out / PROMPTS)
    (out / PROMPTS).chmod(READABLE)
    record = dict(parts.card) | {"example_prompts": wanted, DIGESTS: digests(out)}
    (out / PIPELINE).write_text(json.dumps(record, indent=1) + "\n")


def _check_finite(name: str, network: nn.Module) -> None:
    for parameter, value in network.state_dict().items():
        if value.is_floating_point() and not value.isfinite().all():
            raise ValueError(
                f"{parameter} of the {name} holds numbers that are not finite; its file is damaged, or of a "
                "training that diverged"
            )


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file of a folder, but for its ``pipeline.json``."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / PIPELINE)
    found = {}
    for path in files:
        with path.open("rb") as file:
            found[path.relative_to(folder).as_posix()] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def problems(folder: Path) -> list[str]:
    """What is wrong with a converted folder, a line each; none for a whole one.

    Raises:
        ValueError: the folder is no model folder, or says no digests.
    """
    path = folder / PIPELINE
    if not path.is_file():
        raise ValueError(
            f"{folder} is no model folder: it has no {PIPELINE}; convert one with `fewstep models`"
        )
    known = read_card(folder).get(DIGESTS)
    if not isinstance(known, dict):
        raise ValueError(f"{path} says no digests of its files; only converted models do")
    found = digests(folder)
    lines = [f"{name} is missing; convert the model again" for name in known if name not in found]
    lines += [f"{name} is not of this model; remove it" for name in found if name not in known]
    differing = [name for name in known if name in found and found[name] != known[name]]
    return lines + [f"{name} differs from what was converted; convert the model again" for name in differing]
