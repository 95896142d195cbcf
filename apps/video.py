"""`fewstep video`: write a video from a prompt, or from a script of prompts, to a file."""

import argparse
import json
import os
import secrets
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewstep.apps import acceleration
from fewstep.apps.files import check_output, read_text
from fewstep.apps.ranks import Rank, in_group
from fewstep.apps.stream import load_model
from fewstep.apps.video_start import described

if TYPE_CHECKING:
    import numpy as np

    from fewstep.streaming.engine import VideoModel
    from fewstep.streaming.script import Script

EPILOG = """\
Several processes make one video together, each on a device of its own; the first one writes it:
  torchrun --nproc-per-node 2 -m fewstep.apps.cli video "a red ball" -o out.mp4 --device cuda
"""
PROMPTS_HELP = "prompt switches, one 'TIME PROMPT' per line (seconds or m:ss), or a live stream's script.json"
REFRESH_HELP = "at a new prompt, read the frames in the window again under it (the model's own way)"
START_HELP = "go on from a picture, or from the last frames of a video; they come first, prompts after them"
MAX_SECONDS = 24 * 3600


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EPILOG
    parser.add_argument("prompt", nargs="?", help="what should be seen (the model's own default)")
    parser.add_argument("-o", "--output", type=Path, required=True, help="MP4 file to write")
    parser.add_argument("--seconds", type=float, default=10.0, help="length (%(default)s)")
    parser.add_argument("--prompts", type=Path, help=PROMPTS_HELP)
    parser.add_argument("--refresh", action=argparse.BooleanOptionalAction, help=REFRESH_HELP)
    parser.add_argument("--start", type=Path, metavar="FILE", help=START_HELP)
    parser.add_argument(
        "--replay",
        type=Path,
        help="make a recording, or a video of this command, again, from its MP4 or .json",
    )
    parser.add_argument("--model", default="driving", help="bundled preset or model folder (%(default)s)")
    parser.add_argument("--device", default="cpu", help="device of the model (%(default)s)")
    acceleration.add_arguments(parser)
    parser.add_argument("--seed", type=int, help="seed of the noise (0, or the script's)")
    parser.add_argument("--steps", type=int, help="denoising steps per chunk (the model's default)")
    parser.add_argument("--sink", choices=("ema", "first", "none"), help="sink mode (ema, or the script's)")


def run(args: argparse.Namespace) -> int:
    """Generate, encode, and put the file in place at once when it is complete."""
    if not 0 < args.seconds <= MAX_SECONDS:
        raise ValueError(f"--seconds must be above 0 and at most {MAX_SECONDS}, got {args.seconds}")
    check_output(args.output, ".mp4")
    acceleration.check(args.accelerate, args.device)
    if args.accelerate == "overlapped_decoding":
        raise ValueError(
            "--accelerate overlapped_decoding: a script's prompts would come a chunk late; it is for stream"
        )
    rank = Rank.of(os.environ)
    with in_group(rank, rank.device(args.device)):
        return (_generate if args.replay is None else _replay)(args, rank)


def _generate(args: argparse.Namespace, rank: Rank) -> int:
    text = None if args.prompts is None else read_text(args.prompts, "--prompts")
    model = _model(args, rank)
    script = _script(args, model, text)
    num_frames = max(1, round(args.seconds * model.fps))
    late = [cue for cue in script.cues if cue.chunk * model.chunk_frames >= num_frames]
    if late and not rank.rank:
        seconds = late[0].chunk * model.chunk_frames / model.fps
        print(
            f"fewstep: {len(late)} of {len(script.cues)} prompts never show: from {seconds:.1f} s on, "
            f"and --seconds is {args.seconds:g}",
            file=sys.stderr,
        )
    _make(args, rank, model, script, num_frames, refresh=args.refresh)
    if not rank.rank:
        print(f"{args.output}: {num_frames} frames, {num_frames / model.fps:.1f} s, seed {script.seed}")
    return 0


def _make(
    args: argparse.Namespace,
    rank: Rank,
    model: "VideoModel",
    script: "Script",
    num_frames: int,
    *,
    refresh: bool | None,
) -> None:
    """The script's video, with what `--replay` needs to make it again."""
    from fewstep.streaming.model_info import describe

    metadata = {"title": script.cues[0].prompt, "model": model.card.get("name"), "fps": model.fps}
    metadata |= script.to_dict() | {"frames": num_frames}
    start = None
    if args.start is not None:
        start = _start(args.start, model, rank)
        metadata["start"] = described(args.start)
    if refresh is not None:
        metadata["refresh"] = refresh
    chunks = _chunks(model, script, start, refresh)
    if rank.rank:
        _follow(chunks, num_frames)
        return
    metadata["weights_sha256"] = describe(model).weights_sha256
    write_frames(model, chunks, metadata, num_frames=num_frames, output=args.output)


def _model(args: argparse.Namespace, rank: Rank) -> "VideoModel":
    """As this rank needs it: only the first one decodes."""
    decoder = None if rank.rank else args.decoder_device
    model: Any = load_model(args.model, rank.device(args.device), args.accelerate, decoder, scripted=True)
    if rank.size > 1:
        from fewstep.modalities.video.sequence_parallel import share_out

        share_out(model)
    return model


def _start(path: Path, model: Any, rank: Rank) -> Any:
    """The latents to begin from, the first rank's in all of them: another decoder device rounds otherwise."""
    from fewstep.apps.video_start import start_latents

    latents = start_latents(model, path).clone()
    if rank.size > 1:
        from torch import distributed as dist

        dist.broadcast(latents, src=0)
    return latents


def _chunks(
    model: "VideoModel", script: "Script", start: Any, refresh: bool | None
) -> "Iterator[np.ndarray]":
    """Frames of the start, if there is one, and of the script."""
    from fewstep.streaming.script import perform

    started: list[np.ndarray] = []

    def switch(stream: Any, features: Any) -> None:
        stream.set_prompt(features, refresh=refresh)

    begin = None if start is None else lambda stream: started.append(stream.begin_from(start))
    for chunk in perform(model, script, begin=begin, switch=None if refresh is None else switch):
        if started:
            yield started.pop()
        yield chunk.frames


def _follow(chunks: "Iterator[np.ndarray]", num_frames: int) -> None:
    """Help with as many frames as the first rank writes."""
    left = num_frames
    while left > 0:
        left -= len(next(chunks))


def _replay(args: argparse.Namespace, rank: Rank) -> int:
    """Seed, prompts and their chunks are in the file; the model must be the one that made it."""
    from fewstep.streaming.model_info import describe
    from fewstep.streaming.script import Script, replay

    if args.prompt is not None or args.prompts is not None or args.seed is not None:
        raise ValueError("--replay has its own prompts and seed; leave out PROMPT, --prompts and --seed")
    if args.refresh is not None:
        raise ValueError("--replay makes what was recorded; leave out --refresh")
    metadata = _recorded(args.replay)
    _check_start(args.start, metadata.get("start"))
    model = _model(args, rank)
    made, here = metadata.get("weights_sha256"), describe(model).weights_sha256
    if made is not None and here is not None and made != here:
        raise ValueError(
            f"--replay: {metadata.get('model')!r} made it with weights {made[:12]}, these are {here[:12]}; "
            "give its --model"
        )
    num_frames = metadata["frames"]
    if "takes" not in metadata:  # a video of this command
        _make(args, rank, model, Script.from_dict(metadata), num_frames, refresh=metadata.get("refresh"))
    elif rank.rank:
        _follow(replay(model, metadata), num_frames)
    else:
        write_frames(model, replay(model, metadata), metadata, num_frames=num_frames, output=args.output)
    if not rank.rank:
        print(f"{args.output}: {num_frames} frames, as recorded")
    return 0


def _json(path: Path) -> Any:
    try:
        return json.loads(read_text(path, "--replay"))
    except ValueError as error:
        raise ValueError(f"--replay: {path} is not JSON ({error})") from error


def _check_start(given: Path | None, recorded: Mapping[str, Any] | None) -> None:
    """What the recording began from is not in it, so it has to be given again, and the same."""
    if recorded is None:
        if given is not None:
            raise ValueError("--replay makes what was recorded, which began from nothing; leave out --start")
    elif given is None:
        raise ValueError(f"--replay: it began from {recorded['file']}; give that file as --start")
    elif given.is_file() and described(given)["sha256"] != recorded["sha256"]:
        raise ValueError(f"--replay: --start {given} is not the {recorded['file']} that it began from")


def _recorded(path: Path) -> dict[str, Any]:
    from fewstep.streaming.recording import read_metadata
    from fewstep.streaming.script import segments

    if not path.is_file():
        raise FileNotFoundError(f"--replay: no file {path}")
    if path.suffix == ".json":
        metadata = _json(path)
    else:
        metadata = read_metadata(path)
    if not isinstance(metadata, dict):
        raise ValueError(f"--replay: {path} is not a recording's metadata")
    if "cues" in metadata and "takes" not in metadata and isinstance(metadata.get("frames"), int):
        return metadata
    total = sum(frames for _, _, frames in segments(metadata))
    if metadata.get("frames") != total:
        raise ValueError(f"--replay: {path} says {metadata.get('frames')} frames but its takes have {total}")
    return metadata


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
            timed = [(0.0, clean_prompt(_first(args.prompt, model.default_prompt))), *timed]
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
