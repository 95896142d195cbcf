"""`fewstep image`: write a picture, or several, from a prompt."""

import argparse
import math
import os
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fewstep.apps.files import check_output, read_text

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from fewstep.modalities.image.pipeline import ImageModel

MAX_COUNT, MAX_PICTURES = 1000, 10_000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("prompt", nargs="?", help="what should be seen (the model's own default)")
    parser.add_argument("-o", "--output", type=Path, required=True, help="PNG file to write")
    parser.add_argument("--prompts", type=Path, metavar="FILE", help="a prompt per line, instead of PROMPT")
    parser.add_argument(
        "--count", type=int, default=1, help="pictures per prompt; NAME-1.png, NAME-2.png, ... if above 1"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the first picture's noise (%(default)s)")
    parser.add_argument("--steps", type=int, help="denoising steps (the model's default)")
    parser.add_argument("--student", help="which student, or 'teacher' (the model's default)")
    parser.add_argument("--guidance", type=float, help="of the teacher; 1 is none (the model's default)")
    parser.add_argument("--model", default="objects", help="bundled preset or model folder (%(default)s)")
    parser.add_argument("--device", default="cpu", help="device of the model (%(default)s)")


def run(args: argparse.Namespace) -> int:
    """Generate, and put each file in place at once when it is complete."""
    from fewstep.modalities.image.pipeline import BATCH, ImageModel, check_seeds

    check_output(args.output, ".png")
    if not 1 <= args.count <= MAX_COUNT:
        raise ValueError(f"--count must be 1 to {MAX_COUNT}, got {args.count}")
    if args.guidance is not None and args.student != "teacher":
        raise ValueError("--guidance is the teacher's, students have theirs learned; add --student teacher")
    if args.guidance is not None and not math.isfinite(args.guidance):
        raise ValueError(f"--guidance must be a number, got {args.guidance}")
    prompts = _prompts(args)
    model = ImageModel.load(args.model, device=args.device)
    every = [
        model.default_prompt if prompt is None else prompt for prompt in prompts for _ in range(args.count)
    ]
    seeds = list(range(args.seed, args.seed + args.count)) * len(prompts)
    features = model.encode_prompts(every)
    check_seeds(every, seeds)
    for start in range(0, len(every), BATCH):  # what is made is written: an interruption costs one batch
        batch = slice(start, start + BATCH)
        pictures = _pictures(args, model, features[batch], seeds[batch])
        for number, picture in enumerate(pictures, start):
            output = args.output
            if len(every) > 1:
                output = output.with_name(f"{output.stem}-{number + 1}{output.suffix}")
            write_picture(output, picture)
            said = f", {every[number]}" if args.prompts is not None else ""
            print(f"{output}: {picture.shape[1]}x{picture.shape[0]}, seed {seeds[number]}{said}")
    return 0


def _prompts(args: argparse.Namespace) -> list[str | None]:
    if args.prompts is None:
        return [args.prompt]
    if args.prompt is not None:
        raise ValueError("give either PROMPT or --prompts, not both")
    lines = [line.strip() for line in read_text(args.prompts, "--prompts").splitlines()]
    found: list[str | None] = [line for line in lines if line and not line.startswith("#")]
    if not found:
        raise ValueError(f"--prompts: {args.prompts} holds no prompt; write one per line")
    if len(found) * args.count > MAX_PICTURES:
        raise ValueError(
            f"--prompts: {len(found)} prompts with --count {args.count} are more than {MAX_PICTURES} pictures"
        )
    return found


def _pictures(
    args: argparse.Namespace, model: "ImageModel", features: "Tensor", seeds: Sequence[int]
) -> "np.ndarray":
    if args.student == "teacher":
        latents = model.teacher_latents(
            features, seeds=seeds, num_steps=args.steps, guidance_scale=args.guidance
        )
    else:
        latents = model.student_latents(features, seeds=seeds, steps=args.steps, student=args.student)
    return model.decode(latents)


def write_picture(path: Path, picture: "np.ndarray") -> None:
    """A PNG, written beside `path` and renamed when whole."""
    from PIL import Image

    part = path.with_name(f".{path.stem}.{secrets.token_hex(4)}.part.png")
    try:
        Image.fromarray(picture).save(part)
        part.replace(path)
    finally:
        if part.exists():
            os.unlink(part)
