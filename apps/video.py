"""`fewstep video`: write a video from a prompt, or from a script of prompts, to a file."""

import argparse
import json
import os
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewstep.apps.stream import load_model

if TYPE_CHECKING:
    import numpy as np

    from fewstep.streaming.engine import VideoModel
    from fewstep.streaming.script import Script

PROMPTS_HELP = "prompt switches, one 'TIME PROMPT' per line (seconds or m:ss), or a live stream's script.json"
MAX_SECONDS = 24 * 3600


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("prompt", nargs="?", help="what should be seen (the model's own default)")
    parser.add_argument("-o", "--output", type=Path, required=True, help="MP4 file to write")
    parser.add_argument("--seconds", type=float, default=10.0, help="length (%(default)s)")
    parser.add_argument("--prompts", type=Path, help=PROMPTS_HELP)
    parser.add_argument("--replay", type=Path, help="make a live recording again, from its own MP4 or .json")
    parser.add_argument("--model", default="driving", help="bundled preset or model folder (%(default)s)")
    parser.add_argument("--device", default="cpu", help="device of the model (%(default)s)")
    parser.add_argument("--seed", type=int, help="seed of the noise (0, or the script's)")
    parser.add_argument("--steps", type=int, help="denoising steps per chunk (the model's default)")
    parser.add_argument("--sink", choices=("ema", "first", "none"), help="sink mode (ema, or the script's)")


def run(args: argparse.Namespace) -> int:
    """Generate, encode, and put the file in place at once when it is complete."""
    if not 0 < args.seconds <= MAX_SECONDS:
        raise ValueError(f"--seconds must be above 0 and at most {MAX_SECONDS}, got {args.seconds}")
    if args.output.suffix.lower() != ".mp4":
        raise ValueError(f"--output must end in .mp4, got {args.output.name!r}")
    if not args.output.parent.is_dir():
        raise FileNotFoundError(f"--output: no folder {args.output.parent}")
    if args.replay is not None:
        return _replay(args)
    text = None if args.prompts is None else args.prompts.read_text(encoding="utf-8")
    model = load_model(args.model, args.device)
    script = _script(args, model, text)
    num_frames = max(1, round(args.seconds * model.fps))
    write_video(model, script, num_frames=num_frames, output=args.output)
    print(f"{args.output}: {num_frames} frames, {num_frames / model.fps:.1f} s, seed {script.seed}")
    return 0


def _replay(args: argparse.Namespace) -> int:
    """Seed, prompts and their chunks are in the file; the model must be the one that made it."""
    from fewstep.streaming.model_info import describe
    from fewstep.streaming.script import replay

    if args.prompt is not None or args.prompts is not None or args.seed is not None:
        raise ValueError("--replay has its own prompts and seed; leave out PROMPT, --prompts and --seed")
    metadata = _recorded(args.replay)
    model = load_model(args.model, args.device)
    made, here = metadata.get("weights_sha256"), describe(model).weights_sha256
    if made is not None and here is not None and made != here:
        raise ValueError(
            f"--replay: {metadata.get('model')!r} made it with weights {made[:12]}, these are {here[:12]}; "
            "give its --model"
        )
    write_frames(model, replay(model, metadata), metadata, num_frames=metadata["frames"], output=args.output)
    print(f"{args.output}: {metadata['frames']} frames, as recorded")
    return 0


def _recorded(path: Path) -> dict[str, Any]:
    from fewstep.streaming.recording import read_metadata
    from fewstep.streaming.script import segments

    if not path.is_file():
        raise FileNotFoundError(f"--replay: no file {path}")
    metadata = json.loads(path.read_text("utf-8")) if path.suffix == ".json" else read_metadata(path)
    total = sum(frames for _, _, frames in segments(metadata))
    if metadata.get("frames") != total:
        raise ValueError(f"--replay: {path} says {metadata.get('frames')} frames but its takes have {total}")
    return metadata


def write_video(model: "VideoModel", script: "Script", *, num_frames: int, output: Path) -> None:
    """The first `num_frames` frames of the script."""
    from fewstep.streaming.script import perform

    metadata = {"title": script.cues[0].prompt, "model": model.card.get("name"), "fps": model.fps}
    frames = (chunk.frames for chunk in perform(model, script))
    write_frames(model, frames, metadata | script.to_dict(), num_frames=num_frames, output=output)


def write_frames(
    model: "VideoModel",
    chunks: "Iterator[np.ndarray]",
    metadata: Mapping[str, Any],
    *,
    num_frames: int,
    output: Path,
) -> None:
    """The first `num_frames` frames of the chunks, written beside `output` and renamed when whole."""
    from fewstep.streaming.recording import Mp4Writer

    part = output.with_name(f".{output.stem}.{secrets.token_hex(4)}.part.mp4")
    writer = Mp4Writer(part, fps=model.fps, width=model.width, height=model.height, metadata=metadata)
    try:
        with _progress() as progress:
            task = progress.add_task("generating", total=num_frames, fps=0.0)
            done = 0
            for chunk in chunks:
                frames = chunk[: num_frames - done]
                writer.write(frames)
                done += len(frames)
                progress.advance(task, len(frames))
                progress.update(task, fps=progress.tasks[0].speed or 0.0)
                if done == num_frames:
                    break
        writer.close()
        part.replace(output)
    finally:
        if part.exists():
            os.unlink(part)


def _script(args: argparse.Namespace, model: "VideoModel", text: str | None) -> "Script":
    from fewstep.streaming.protocol import clean_prompt
    from fewstep.streaming.script import Script, parse_cues, parse_script, place_cues
    from fewstep.streaming.takes import checked_take

    given = None if text is None or args.prompts.suffix != ".json" else parse_script(text)
    if given is not None and args.prompt is not None:
        raise ValueError("give either PROMPT or a script.json, not both")
    if given is not None:
        cues = given.cues
    else:
        timed = [] if text is None else parse_cues(text)
        if args.prompt is not None or all(seconds > 0 for seconds, _ in timed):
            timed = [(0.0, clean_prompt(args.prompt or model.default_prompt)), *timed]
        cues = place_cues(timed, fps=model.fps, chunk_frames=model.chunk_frames)
    take = checked_take(
        model,
        seed=_first(args.seed, given and given.seed, 0),
        steps=_first(args.steps, given and given.steps, model.default_steps),
        sink=_first(args.sink, given and given.sink, "ema"),
    )
    return Script(seed=take.seed, steps=take.steps, sink=take.sink, cues=cues)


def _first(*choices: Any) -> Any:
    return next(choice for choice in choices if choice is not None)


def _progress() -> Any:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("frames, {task.fields[fps]:.1f} per second,"),
        TimeRemainingColumn(),
        TextColumn("left"),
    )
