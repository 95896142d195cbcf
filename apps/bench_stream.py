"""`fewstep bench stream`: how fast the live stream is made, and what its shortcuts are worth."""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewstep.apps import acceleration, bench_acceleration, bench_ratios, bench_uncached
from fewstep.apps.bench_acceleration import Add
from fewstep.apps.bench_uncached import SEED, STREAM, Uncached, add_speedup, timed_chunk, warm_stream
from fewstep.apps.ranks import Rank
from fewstep.apps.records import Record, Setting, finish, machine_settings

if TYPE_CHECKING:
    from fewstep.modalities.video.pipeline import VideoModel

DEFINITIONS = """\
fps_end_to_end: frames per second of a stream made as fast as possible, chunk after chunk in one thread of
  control: denoising, cache write, decoding and JPEG; no transport. The window is full before.
realtime_factor: fps_end_to_end over the model's playback rate.
frame_interval: a chunk's seconds spread evenly over its frames; percentiles over frames, of the same chunks.
stage_time: mean milliseconds per frame of each stage; decode_batched is 8 streams decoded in one call. The
  pass of a finished chunk into the cache is one with the next first step, in denoise; cache is the writing.
time_to_first_frame: until the first JPEG. start=warm: from creating a stream in a process that has streamed
  before, median. start=cold: from starting a new Python process, imports and loading included.
peak_memory, memory_growth: resident memory of a fresh process that only streams; growth is the largest value
  after the first 60 frames over the value then.
speedup_vs_teacher: frames per second of the stream over those of the bidirectional teacher at its own number
  of steps with guidance over its clip; decoding and JPEG included in both, medians of runs in turn. Not of
  models that come without their teacher, as released students do.
"""
DEFINITIONS += bench_uncached.DEFINITIONS + bench_acceleration.DEFINITIONS

RANDOM = {"recipe": "reward-forcing", "decoder": "taehv", "accelerate": "default", "frames": None}
"""Flags that go with --random-weights, and their defaults."""
DECODE_BATCH = 8
MEGABYTE = 1e6


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How much is measured."""

    chunks: int  # timed per number of steps
    rounds: int  # of the comparison in turn, CHUNKS_IN_A_ROW each; of every acceleration too
    teacher_clips: int
    starts: int
    long_frames: int


FULL = Plan(chunks=150, rounds=18, teacher_clips=9, starts=9, long_frames=10_000)
QUICK = Plan(chunks=30, rounds=3, teacher_clips=1, starts=3, long_frames=600)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = DEFINITIONS
    parser.add_argument("--model", default="driving", help="bundled preset or model folder (%(default)s)")
    parser.add_argument("--device", default="cpu", help="device of the model (%(default)s)")
    parser.add_argument("--threads", type=int, help="threads of torch (its own default)")
    parser.add_argument(
        "--random-weights",
        action="store_true",
        help="measure a released student's shapes (--model wan2.1-1.3b or -14b); a CPU runs a reduced shape",
    )
    random = parser.add_argument_group("with --random-weights")
    random.add_argument("--recipe", help="how it generates (%(default)s)")
    random.add_argument("--decoder", choices=("taehv", "wan"), help="what decodes (%(default)s)")
    random.add_argument(
        "--accelerate", metavar="NAME", help="the acceleration of the figures end to end (%(default)s)"
    )
    random.add_argument("--frames", type=int, help="stream so many frames more, and say how memory grew")
    parser.set_defaults(**RANDOM)
    bench_acceleration.add_arguments(parser)
    bench_ratios.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Measure and report."""
    from fewstep.modalities.video.pipeline import VideoModel

    for name in ("threads", "frames"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise ValueError(f"--{name} must be at least 1, got {getattr(args, name)}")
    if args.random_weights:
        from fewstep.apps import bench_random

        with torch_threads(args.threads):
            return bench_random.run(args)
    _check_real(args)
    if Rank.of(os.environ).size > 1:
        raise ValueError("several processes measure --random-weights together; start one for other figures")
    if args.ratios:
        return _ratios(args)
    plan = QUICK if args.quick else FULL
    names = bench_acceleration.compared(args.compare, args.device)
    with torch_threads(args.threads):
        model = VideoModel.load(args.model, device=args.device)
        records = measure(model, plan, name=args.model, device=args.device, accelerations=names)
    print(DEFINITIONS)
    return finish(records, args, title="fewstep bench stream")


def _check_real(args: argparse.Namespace) -> None:
    from fewstep.modalities.video.random_weights import SHAPES

    if args.model in SHAPES and not Path(args.model).exists():
        raise ValueError(
            f"--model {args.model} is a shape without weights; add --random-weights to measure it, or give "
            "the folder of a converted student"
        )
    given = [f"--{name}" for name, default in RANDOM.items() if getattr(args, name) != default]
    if given:
        raise ValueError(f"{', '.join(given)} goes with --random-weights; add it, or leave this out")


def _ratios(args: argparse.Namespace) -> int:
    from fewstep.modalities.video.pipeline import VideoModel

    names = bench_ratios.names_of(args)
    with torch_threads(args.threads):
        model = VideoModel.load(args.model, device=args.device)
        records, add = _collector(model, name=args.model, device=args.device)
        features = model.encode_prompt(model.default_prompt)
        bench_ratios.measure(model, features, names, quick=args.quick, device=args.device, add=add)
    print(bench_ratios.DEFINITIONS)
    return finish(records, args, title="fewstep bench stream --ratios")


def measure(
    model: "VideoModel", plan: Plan, *, name: str, device: str, accelerations: Sequence[str]
) -> list[Record]:
    """All records, each stage of measuring after the other, so that no two disturb each other."""
    records, add = _collector(model, name=name, device=device)
    for steps in model.steps_available:
        _speed(model, plan, steps, add)
    _decode_batched(model, plan, add)
    _comparisons(model, plan, add)
    _accelerations(model, plan, accelerations, device, add)
    for steps in model.steps_available:
        seconds = statistics.median(_first_frame(model, steps) for _ in range(plan.starts))
        add("time_to_first_frame", seconds, "s", steps=steps, start="warm")
    _alone(model, plan, name, device, add)
    return records


def _collector(model: "VideoModel", *, name: str, device: str) -> tuple[list[Record], Add]:
    """Records, with the settings that they share, and what adds one."""
    config = model.cache_config
    shared: dict[str, Setting] = {
        **machine_settings(device),
        "model": name,
        "dtype": str(model.dtype).removeprefix("torch."),
        "attention": acceleration.shown(acceleration.choose_attention(model)),
        "resolution": f"{model.width}x{model.height}",
        "sink": config.sink_mode,
        "window": config.window,
        "seed": SEED,
    }
    records: list[Record] = []

    def add(record: str, value: float, unit: str, **settings: Setting) -> None:
        records.append(Record(name=record, value=value, unit=unit, settings={**shared, **settings}))

    return records, add


def _speed(model: "VideoModel", plan: Plan, steps: int, add: Any) -> None:
    stream = warm_stream(model, model.encode_prompt(model.default_prompt), steps)
    chunk_seconds, stages = [], {"denoise": 0.0, "cache": 0.0, "decode": 0.0, "encode": 0.0}
    frames = 0
    for _ in range(plan.chunks):
        seconds = timed_chunk(stream)
        chunk_seconds.append(sum(seconds.values()))
        frames += model.chunk_frames
        for stage, value in seconds.items():
            stages[stage] += value
    fps = frames / sum(chunk_seconds)
    includes = STREAM
    add("fps_end_to_end", fps, "frames/s", steps=steps, includes=includes, frames=frames)
    add("realtime_factor", fps / model.fps, "x", steps=steps, includes=includes, frames=frames)
    intervals = [1000 * seconds / model.chunk_frames for seconds in chunk_seconds]
    for percent in (50, 99):
        value = _percentile(intervals, percent)
        add(f"frame_interval_p{percent}", value, "ms", steps=steps, includes=includes, frames=frames)
    for stage, value in stages.items():
        add("stage_time", 1000 * value / frames, "ms/frame", steps=steps, includes=stage, frames=frames)


def _decode_batched(model: "VideoModel", plan: Plan, add: Any) -> None:
    import torch

    from fewstep.modalities.video.pipeline import to_bytes

    features = model.encode_prompt(model.default_prompt)
    chunk = warm_stream(model, features, model.default_steps).step().latents
    latents = chunk.expand(DECODE_BATCH, -1, -1, -1, -1).contiguous()
    memory = model.codec.memory(DECODE_BATCH, *latents.shape[-2:])
    seconds = []
    with torch.inference_mode():
        for _ in range(max(3, plan.starts)):
            started = time.perf_counter()
            pixels, memory = model.codec.decode_chunk(latents, memory)
            to_bytes(pixels)
            seconds.append(time.perf_counter() - started)
    frames = DECODE_BATCH * model.chunk_frames
    add("stage_time", 1000 * statistics.median(seconds) / frames, "ms/frame", includes="decode_batched")


def _comparisons(model: "VideoModel", plan: Plan, add: Any) -> None:
    """Stream, uncached student and teacher in turn: whatever else the machine does weighs on all of them."""
    from fewstep.modalities.video.teacher import has_teacher

    features = model.encode_prompt(model.default_prompt)
    streams = {steps: warm_stream(model, features, steps) for steps in model.steps_available}
    uncached = {steps: Uncached(model, stream, features, steps) for steps, stream in streams.items()}
    cached_seconds: dict[int, list[dict[str, float]]] = {steps: [] for steps in streams}
    uncached_seconds: dict[int, list[dict[str, float]]] = {steps: [] for steps in streams}
    teacher = TeacherClips(model) if has_teacher(model) else None
    clip_seconds = []
    for number in range(plan.rounds):
        for steps, stream in streams.items():
            cached_seconds[steps] += [timed_chunk(stream) for _ in range(bench_acceleration.CHUNKS_IN_A_ROW)]
            uncached_seconds[steps] += [
                uncached[steps].timed_chunk() for _ in range(bench_acceleration.CHUNKS_IN_A_ROW)
            ]
        if teacher is not None and number % -(-plan.rounds // plan.teacher_clips) == 0:
            clip_seconds.append(teacher.timed_clip())
    for steps in streams:
        add_speedup(cached_seconds[steps], uncached_seconds[steps], add, steps=steps, rounds=plan.rounds)
    if teacher is None:
        return
    teacher_frame = statistics.median(clip_seconds) / teacher.frames
    add("teacher_fps", 1 / teacher_frame, "frames/s", **teacher.settings, includes="denoise+decode+jpeg")
    for steps in streams:
        settings = {"steps": steps, "rounds": plan.rounds}
        whole = statistics.median(sum(seconds.values()) for seconds in cached_seconds[steps])
        ratio = teacher_frame / (whole / model.chunk_frames)
        add("speedup_vs_teacher", ratio, "x", **settings, **teacher.settings, includes=STREAM)


def _accelerations(model: "VideoModel", plan: Plan, names: Sequence[str], device: str, add: Any) -> None:
    from fewstep.apps.bench_random import waiter
    from fewstep.modalities.video.acceleration import PLAIN

    if names:
        features = model.encode_prompt(model.default_prompt)
        plain, wait = model.with_acceleration(PLAIN), waiter(device)
        bench_acceleration.measure(plain, features, names, rounds=plan.rounds, add=add, wait=wait)


class TeacherClips:
    """The teacher making clips as it was meant to: its own number of steps, with guidance."""

    def __init__(self, model: "VideoModel") -> None:
        from fewstep.modalities.video.teacher import Teacher

        self._teacher = Teacher.load(model)
        self._features = model.encode_prompt(model.default_prompt)[None]
        self.frames = self._teacher.pixel_frames
        settings = self._teacher.settings
        self.settings: dict[str, Setting] = {
            "teacher_steps": settings.num_steps,
            "teacher_guidance": float(settings.guidance_scale),
            "teacher_frames": self.frames,
        }
        self._teacher.sample(self._features, seeds=[SEED], num_steps=1)  # warm

    def timed_clip(self) -> float:
        """Seconds of one clip, decoding and JPEG included."""
        from fewstep.streaming.encoding import encode_jpeg

        started = time.perf_counter()
        for frame in self._teacher.decode(self._teacher.sample(self._features, seeds=[SEED]))[0]:
            encode_jpeg(frame)
        return time.perf_counter() - started


def _first_frame(model: "VideoModel", steps: int) -> float:
    from fewstep.streaming.encoding import encode_jpeg

    features = model.encode_prompt(model.default_prompt)
    started = time.perf_counter()
    encode_jpeg(model.stream(features, seed=SEED, steps=steps).step().frames[0])
    return time.perf_counter() - started


def _alone(model: "VideoModel", plan: Plan, name: str, device: str, add: Any) -> None:
    """A fresh process that does nothing but stream: cold start and memory."""
    import torch

    steps = model.default_steps
    request = {"model": name, "device": device, "steps": steps, "frames": plan.long_frames}
    request["threads"] = torch.get_num_threads()
    command = [sys.executable, "-P", "-m", "fewstep.apps.bench_process", json.dumps(request)]
    started = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        first = time.perf_counter() - started
        answer = process.stdout.read()
    if process.returncode:
        raise RuntimeError(f"the streaming process ended with exit code {process.returncode}")
    memory = json.loads(answer)
    add("time_to_first_frame", first, "s", steps=steps, start="cold")
    settings = {"steps": steps, "frames": plan.long_frames}
    add("peak_memory", memory["peak"] / MEGABYTE, "MB", **settings)
    add("memory_growth", 100 * (memory["largest"] / memory["settled"] - 1), "%", **settings)


def _percentile(values: list[float], percent: int) -> float:
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]


@contextmanager
def torch_threads(count: int | None) -> Iterator[None]:
    """Run with `count` threads, then go back; None changes nothing."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
