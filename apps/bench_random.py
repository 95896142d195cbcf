"""`fewstep bench stream --random-weights`: speed of released students' shapes, with nothing to download."""

import argparse
import resource
import statistics
import time
from collections.abc import Callable
from typing import Any

from fewstep.apps.records import Record, Setting, finish, machine_settings

DEFINITIONS = """\
fps_end_to_end: frames per second in the steady state (window full, kernels warm): denoising steps, cache
  pass, decoding, frames as bytes on the host; no text encoder, no JPEG, no transport.
fps_denoise: the same without decoding. chunk_time_p50, p99: of whole chunks.
stage_time: milliseconds per chunk; the device is waited for after each stage.
time_to_first_frame: from creating a warm stream to the bytes of its first chunk.
floor: the arithmetic of transformer and decoder over the speed at which this device multiplies two square
  matrices of this dtype, measured here; share_of_floor is floor over the chunk's time.
peak_memory: of the device, on a CPU of the process.
"""
WARM, TIMED, TIMED_QUICK = 2, 40, 6
SIDE_CUDA, SIDE_CPU = 8192, 1024  # of the matrices whose product is timed
MEGABYTE, GIGA = 1e6, 1e9


def run(args: argparse.Namespace) -> int:
    """Measure and report."""
    from fewstep.modalities.video.random_weights import random_model, shape_of

    reduced = not args.device.startswith("cuda")
    shape = shape_of(args.model, reduced=reduced)
    if reduced:
        print(
            f"On {args.device}: a reduced shape ({shape.transformer.num_layers} layers of "
            f"{shape.transformer.dim}, {shape.width}x{shape.height}), not {args.model} itself."
        )
    model = random_model(shape, recipe_name=args.recipe, light=args.decoder == "taehv", device=args.device)
    records = measure(model, shape, chunks=TIMED_QUICK if args.quick else TIMED, args=args, reduced=reduced)
    print(DEFINITIONS)
    return finish(records, args, title="fewstep bench stream --random-weights")


def measure(model: Any, shape: Any, *, chunks: int, args: argparse.Namespace, reduced: bool) -> list[Record]:
    import torch

    from fewstep.modalities.video.random_weights import random_features

    config, steps, records = model.cache_config, model.default_steps, []
    shared: dict[str, Setting] = {
        **machine_settings(args.device),
        "model": args.model,
        "reduced": reduced,
        "recipe": args.recipe,
        "decoder": args.decoder,
        "dtype": str(model.dtype).removeprefix("torch."),
        "resolution": f"{shape.width}x{shape.height}",
        "layers": shape.transformer.num_layers,
        "dim": shape.transformer.dim,
        "steps": steps,
        "window": config.window,
        "chunks": chunks,
    }

    def add(name: str, value: float, unit: str, **settings: Setting) -> None:
        records.append(Record(name=name, value=value, unit=unit, settings={**shared, **settings}))

    wait = _waiter(args.device)
    features = random_features(shape)
    stream = model.stream(features, seed=0)
    for _ in range(WARM + config.window // config.chunk):
        stream.step()
    whole, decode, memory, latents = [], [], stream._memory, stream.step().latents
    for _ in range(chunks):
        wait()
        started = time.perf_counter()
        latents = stream.step().latents
        wait()
        whole.append(time.perf_counter() - started)
        started = time.perf_counter()
        with torch.inference_mode():
            memory = model.codec.decode_chunk(latents, memory)[1]
        wait()
        decode.append(time.perf_counter() - started)
    chunk, decoding = statistics.mean(whole), statistics.mean(decode)
    add("fps_end_to_end", model.chunk_frames / chunk, "frames/s")
    add("fps_denoise", model.chunk_frames / max(chunk - decoding, 1e-9), "frames/s")
    for percent in (50, 99):
        value = statistics.quantiles(whole, n=100, method="inclusive")[percent - 1]
        add(f"chunk_time_p{percent}", 1000 * value, "ms")
    add("stage_time", 1000 * (chunk - decoding), "ms/chunk", stage="denoise+cache")
    add("stage_time", 1000 * decoding, "ms/chunk", stage="decode")
    started = time.perf_counter()
    model.stream(features, seed=1).step()
    wait()
    add("time_to_first_frame", time.perf_counter() - started, "s")
    flops = _flops(model, shape, latents, memory)
    peak = _product_speed(args.device, model.dtype, wait)
    add("arithmetic", flops / GIGA, "GFLOP/chunk")
    add("product_speed", peak / GIGA, "GFLOP/s")
    add("floor", 1000 * flops / peak, "ms/chunk")
    add("share_of_floor", flops / peak / chunk, "x")
    add("peak_memory", _peak_bytes(args.device) / MEGABYTE, "MB")
    return records


def _flops(model: Any, shape: Any, latents: Any, memory: Any) -> float:
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from fewstep.modalities.video.random_weights import PIXELS_PER_TOKEN, chunk_flops

    config = model.cache_config
    tokens = (shape.height // PIXELS_PER_TOKEN) * (shape.width // PIXELS_PER_TOKEN)
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
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


def _waiter(device: str) -> Callable[[], None]:
    import torch

    return torch.cuda.synchronize if device.startswith("cuda") else lambda: None


def _peak_bytes(device: str) -> float:
    import torch

    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated()
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
