"""`fewstep image`: write a picture, or several, from a prompt."""

import argparse
import os
import secrets
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

    from fewstep.modalities.image.pipeline import ImageModel

MAX_COUNT = 1000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("prompt", nargs="?", help="what should be seen (the model's own default)")
    parser.add_argument("-o", "--output", type=Path, required=True, help="PNG file to write")
    parser.add_argument(
        "--count", type=int, default=1, help="pictures; NAME-1.png, NAME-2.png, ... if above 1"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the first picture's noise (%(default)s)")
    parser.add_argument("--steps", type=int, help="denoising steps (the model's default)")
    parser.add_argument("--student", help="which student, or 'teacher' (the model's default)")
    parser.add_argument("--model", default="objects", help="bundled preset or model folder (%(default)s)")
    parser.add_argument("--device", default="cpu", help="device of the model (%(default)s)")


def run(args: argparse.Namespace) -> int:
    """Generate, and put each file in place at once when it is complete."""
    from fewstep.modalities.image.pipeline import ImageModel

    if args.output.suffix.lower() != ".png":
        raise ValueError(f"--output must end in .png, got {args.output.name!r}")
    if not args.output.parent.is_dir():
        raise FileNotFoundError(f"--output: no folder {args.output.parent}")
    if not 1 <= args.count <= MAX_COUNT:
        raise ValueError(f"--count must be 1 to {MAX_COUNT}, got {args.count}")
    model = ImageModel.load(args.model, device=args.device)
    pictures = _pictures(args, model)
    for number, picture in enumerate(pictures):
        output = args.output
        if args.count > 1:
            output = output.with_name(f"{output.stem}-{number + 1}{output.suffix}")
        write_picture(output, picture)
        print(f"{output}: {picture.shape[1]}x{picture.shape[0]}, seed {args.seed + number}")
    return 0


def _pictures(args: argparse.Namespace, model: "ImageModel") -> "np.ndarray":
    prompts = [model.default_prompt if args.prompt is None else args.prompt] * args.count
    seeds = list(range(args.seed, args.seed + args.count))
    if args.student == "teacher":
        return model.teacher_samples(prompts, seeds=seeds, num_steps=args.steps)
    return model.generate(prompts, seeds=seeds, steps=args.steps, student=args.student)


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
