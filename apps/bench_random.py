"""`fewstep bench stream --random-weights`: speed of released students' shapes, with nothing to download."""

import argparse
import os
import resource
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from fewstep.apps import acceleration, bench_acceleration, bench_ratios
from fewstep.apps.bench_process import resident_bytes
from fewstep.apps.ranks import Rank, in_group
from fewstep.apps.records import Record, Setting, finish, machine_settings

DEFINITIONS = """\
fps_end_to_end: frames per second in the steady state (window full, kernels warm): denoising steps, cache
  pass, decoding, frames as bytes on the host; no text encoder, no JPEG, no transport. The accelerations of
  accelerate are on (see --accelerate).
fps_encoded: the same with every frame encoded as JPEG and as H.264, as the live stream does it: beside the
  denoising of the next chunk where decoding overlaps. encode_share is its chunk's time over that without.
fps_denoise: fps_end_to_end without decoding. chunk_time_p50, p99: of whole chunks.
stage_time: milliseconds per chunk in the serial order; the device is waited for after each stage; encode is
  JPEG and H.264 on the host, as it took in fps_encoded.
time_to_first_frame: from creating a warm stream to the bytes of its first chunk.
floor: the arithmetic of transformer and decoder over the speed at which this device multiplies two square
  matrices of this dtype, measured here, and over the number of processes; share_of_floor is floor over the
  chunk's time.
processes: devices that share a chunk's tokens, started by torchrun; the first one decodes and measures.
attention: the kernel taken, by inputs on a CPU; on a GPU the fastest of attention_time, milliseconds of one
  call of a chunk over the window and one over the prompt.
peak_memory: of the device, on a CPU of the process. memory_growth, with --frames: the largest memory in use
  over so many frames more, over that at their beginning.
"""
WARM, TIMED, TIMED_QUICK = 2, 40, 6
LAST_BEGIN = (
    330.0  # seconds after its start at which a run on a GPU begins its last acceleration, to end by 480
)
SIDE_CUDA, SIDE_CPU = 8192, 1024  # of the matrices whose product is timed
ROUNDS, ROUNDS_CUDA, ROUNDS_QUICK = 6, 2, 2  # of every acceleration in turn with none; GPUs vary little
MEGABYTE, GIGA = 1e6, 1e9
DEFINITIONS += bench_acceleration.DEFINITIONS


def run(args: argparse.Namespace) -> int:
    """Measure and report, alone or with the other processes that torchrun started."""
    began, rank = time.perf_counter(), Rank.of(os.environ)
    args.device = rank.device(args.device)
    if rank.size > 1 and (args.ratios or args.compare != "none"):
        raise ValueError("accelerations are compared in one process; give several --compare none")
    with in_group(rank, args.device):
        return _run(args, rank, began)


def _run(args: argparse.Namespace, rank: Rank, began: float) -> int:
    from fewstep.modalities.video.acceleration import PLAIN, Acceleration
    from fewstep.modalities.video.random_weights import random_features, random_model, shape_of

    reduced = not args.device.startswith("cuda")
    shape = shape_of(args.model, reduced=reduced)
    acceleration.check(args.accelerate, args.device)
    names = (
        bench_ratios.names_of(args) if args.ratios else bench_acceleration.compared(args.compare, args.device)
    )
    if reduced and not rank.rank:
        print(
            f"On {args.device}: a reduced shape ({shape.transformer.num_layers} layers of "
            f"{shape.transformer.dim}, {shape.width}x{shape.height}), not {args.model} itself."
        )

    def model(how: Any) -> Any:
        light = args.decoder == "taehv"
        made = random_model(shape, recipe_name=args.recipe, light=light, device=args.device, acceleration=how)
        if rank.size > 1:
            from fewstep.modalities.video.sequence_parallel import share_out

            share_out(made)
        return made

    shared = _shared(shape, args, reduced) | {"processes": rank.size}
    records: list[Record] = []

    def add(name: str, value: float, unit: str, **settings: Setting) -> None:
        records.append(Record(name=name, value=value, unit=unit, settings={**shared, **settings}))

    made = model(Acceleration() if args.ratios else acceleration.chosen(args.accelerate))
    choice = acceleration.choose_attention(made)
    shared["attention"] = acceleration.shown(choice)
    for backend, milliseconds in choice.milliseconds.items():
        add("attention_time", milliseconds, "ms", backend=backend)
    if args.ratios:
        features = random_features(shape)
        settings = {"dtype": str(made.dtype).removeprefix("torch."), "window": made.cache_config.window}
        own = partial(add, **settings)
        bench_ratios.measure(made, features, names, quick=args.quick, device=args.device, add=own)
        print(bench_ratios.DEFINITIONS)
        return finish(records, args, title="fewstep bench stream --random-weights --ratios")
    chunks = TIMED_QUICK if args.quick else TIMED
    measure(made, shape, chunks=chunks, frames=args.frames, device=args.device, add=add, processes=rank.size)
    if rank.rank:
        return 0
    del made  # before there are others
    if names:
        rounds = ROUNDS_QUICK if args.quick else ROUNDS if reduced else ROUNDS_CUDA
        features, wait = random_features(shape), waiter(args.device)
        limited = not reduced and args.compare is None
        until = began + LAST_BEGIN if limited else None
        bench_acceleration.measure(
            model(PLAIN), features, names, rounds=rounds, add=add, wait=wait, until=until
        )
    print(DEFINITIONS)
    return finish(records, args, title="fewstep bench stream --random-weights")


def _shared(shape: Any, args: argparse.Namespace, reduced: bool) -> dict[str, Setting]:
    return {
        **machine_settings(args.device),
        "model": args.model,
        "reduced": reduced,
        "recipe": args.recipe,
        "decoder": args.decoder,
        "accelerate": args.accelerate,
        "resolution": f"{shape.width}x{shape.height}",
        "layers": shape.transformer.num_layers,
        "dim": shape.transformer.dim,
    }


def measure(
    model: Any,
    shape: Any,
    *,
    chunks: int,
    device: str,
    add: Callable[..., None],
    frames: int | None = None,
    processes: int = 1,
) -> None:
    """The figures end to end, all but those of single accelerations."""
    from fewstep.modalities.video.overlapped import OverlappedStream
    from fewstep.modalities.video.random_weights import random_features

    config, wait, features = model.cache_config, waiter(device), random_features(shape)
    settings: dict[str, Setting] = {
        "dtype": str(model.dtype).removeprefix("torch."),
        "steps": model.default_steps,
        "window": config.window,
        "chunks": chunks,
    }
    stream = model.stream(features, seed=0)
    for _ in range(WARM + config.window // config.chunk):
        stream.step()
    whole = [_timed_step(stream, wait) for _ in range(chunks)]
    chunk = statistics.mean(whole)
    add("fps_end_to_end", model.chunk_frames / chunk, "frames/s", **settings)
    for percent in (50, 99):
        value = statistics.quantiles(whole, n=100, method="inclusive")[percent - 1]
        add(f"chunk_time_p{percent}", 1000 * value, "ms", **settings)
    _encoded(stream, model, chunks, chunk, wait, partial(add, **settings))
    if frames is not None:
        growth = _growth(stream, -(-frames // model.chunk_frames), device)
        add("memory_growth", 100 * growth, "%", **settings, frames=frames)

    serial = stream.serial if isinstance(stream, OverlappedStream) else stream
    denoising, decoding, latents, memory = _stages(serial, chunks, wait)
    add("fps_denoise", model.chunk_frames / denoising, "frames/s", **settings)
    add("stage_time", 1000 * denoising, "ms/chunk", stage="denoise+cache", **settings)
    add("stage_time", 1000 * decoding, "ms/chunk", stage="decode", **settings)
    held = _peak_bytes(device)
    del stream, serial  # the figures are those of one stream
    started = time.perf_counter()
    model.stream(features, seed=1).step()
    wait()
    add("time_to_first_frame", time.perf_counter() - started, "s", **settings)
    flops = _flops(model, shape, latents, memory)
    peak = _product_speed(device, model.dtype, wait)
    add("arithmetic", flops / GIGA, "GFLOP/chunk", **settings)
    add("product_speed", peak / GIGA, "GFLOP/s", **settings)
    floor = flops / peak / processes
    add("floor", 1000 * floor, "ms/chunk", **settings)
    add("share_of_floor", floor / chunk, "x", **settings)
    add("peak_memory", held / MEGABYTE, "MB", **settings)


def _timed_step(stream: Any, wait: Callable[[], None], deliver: Any = None) -> float:
    """Seconds of the next chunk."""
    wait()
    started = time.perf_counter()
    stream.step(deliver)
    wait()
    return time.perf_counter() - started


def _encoded(
    stream: Any, model: Any, chunks: int, without: float, wait: Callable[[], None], add: Callable[..., None]
) -> None:
    """The same with JPEG and H.264, whose encoder is left out where FFmpeg lacks it."""
    from fewstep.streaming.encoding import ChunkEncoding
    from fewstep.streaming.h264 import H264Encoder, available

    h264 = H264Encoder(fps=model.fps, width=model.width, height=model.height) if available() else None
    encodings = [ChunkEncoding(h264) for _ in range(chunks)]
    chunk = statistics.mean(_timed_step(stream, wait, encoding) for encoding in encodings)
    encoded = "jpeg" if h264 is None else "jpeg+h264"
    add("fps_encoded", model.chunk_frames / chunk, "frames/s", encoded=encoded)
    add("encode_share", chunk / without, "x", encoded=encoded)
    seconds = statistics.mean(encoding.seconds for encoding in encodings)
    add("stage_time", 1000 * seconds, "ms/chunk", stage="encode", encoded=encoded)


def _stages(stream: Any, chunks: int, wait: Callable[[], None]) -> tuple[float, float, Any, Any]:
    """Seconds per chunk of denoising and of decoding, the last latents, and the decoder's memory before."""
    denoise, decode, memory, latents = [], [], stream.memory, None
    for _ in range(chunks):
        wait()
        started = time.perf_counter()
        made = stream.make()
        stream.take(made)
        wait()
        denoise.append(time.perf_counter() - started)
        latents = made.latents.clone()
        started = time.perf_counter()
        memory = stream.decode(latents, memory).memory
        wait()
        decode.append(time.perf_counter() - started)
    return statistics.mean(denoise), statistics.mean(decode), latents, memory


def _flops(model: Any, shape: Any, latents: Any, memory: Any) -> float:
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from fewstep.modalities.video.random_weights import PIXELS_PER_TOKEN, chunk_flops

    config = model.cache_config
    tokens = (shape.height // PIXELS_PER_TOKEN) * (shape.width // PIXELS_PER_TOKEN)
    uncompiled = torch.compiler.set_stance("force_eager")  # or nothing is counted
    with torch.inference_mode(), uncompiled, FlopCounterMode(display=False) as counter:
        model.codec.decode_chunk(latents, memory)
    passes = model.default_steps + 1
    network = chunk_flops(
        shape.transformer, tokens=tokens, chunk=config.chunk, window=config.window, passes=passes
    )
    return network + counter.get_total_flops()


def _product_speed(device: str, dtype: Any, wait: Callable[[], None]) -> float:
    """Operations per second of the best of five products of two square matrices."""
    import torch

    side = SIDE_CUDA if device.startswith("cuda") else SIDE_CPU
    a = torch.randn(side, side, device=device, dtype=dtype)
    seconds = []
    for _ in range(5):
        wait()
        started = time.perf_counter()
        torch.mm(a, a)
        wait()
        seconds.append(time.perf_counter() - started)
    return 2 * side**3 / min(seconds)


def waiter(device: str) -> Callable[[], None]:
    """What waits for all that the device was given to do."""
    import torch

    return partial(torch.cuda.synchronize, device) if device.startswith("cuda") else lambda: None


def _growth(stream: Any, chunks: int, device: str) -> float:
    """How much more memory is in use at most while a stream goes on than when it begins to, as a share."""
    before = largest = _bytes_in_use(device)
    for _ in range(chunks):
        stream.step()
        largest = max(largest, _bytes_in_use(device))
    return largest / before - 1


def _bytes_in_use(device: str) -> int:
    import torch

    return torch.cuda.memory_allocated(device) if device.startswith("cuda") else resident_bytes()


def _peak_bytes(device: str) -> float:
    import torch

    if device.startswith("cuda"):
        return float(torch.cuda.max_memory_allocated(device))
    return 1024.0 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
