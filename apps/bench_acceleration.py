"""Each switch of `Acceleration` against none: what it gains, and what it changes (part of `bench stream`)."""

import argparse
import math
import statistics
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from fewstep.apps.records import Setting

if TYPE_CHECKING:
    from fewstep.modalities.video.pipeline import VideoModel

DEFINITIONS = """\
acceleration: seconds per chunk of the stream with every switch off over those with this one on (and what it
  needs), medians over rounds in turn of four chunks each; denoising, cache, decoding, bytes on the host.
  velocity_error: of a first chunk at each of its times, the norm of the difference from the plain network's
  over the norm, mean. psnr: dB of all frames of two streams of one seed, each gone its own way; first_psnr:
  of the first chunk; "-" where no byte differs. levels: largest difference of a colour, of 255.
"""
CHUNKS_IN_A_ROW = 4  # of each in its turn: a live stream, too, finds its weights in the processor's cache
SETTLE_CHUNKS = 2  # beyond a full window, before anything is timed
COMPARED_CHUNKS = 4  # beyond a full window, whose frames are compared
COMPILED_ON_CPU = "compiling for a CPU takes minutes; name it with --compare to measure it"

Add = Callable[..., None]
Wait = Callable[[], None]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--compare",
        metavar="NAMES",
        help="accelerations to measure against none, separated by commas, or 'none' "
        "(all that this device can do, without compiling for a CPU)",
    )


def compared(names: str | None, device: str) -> list[str]:
    """The names asked for, which have to run on `device`; None is all that do, and says what does not."""
    from fewstep.modalities.video.acceleration import SWITCHES

    if names == "none":
        return []
    if names is None:
        return runnable(SWITCHES, device)
    found = names.split(",")
    for name in found:
        if name not in SWITCHES:
            raise ValueError(f"--compare {name!r} is unknown; choose from {', '.join(SWITCHES)}, or none")
        if reason := SWITCHES[name].why_not(device):
            raise ValueError(f"--compare {name}: {reason}")
    return found


def runnable(names: Iterable[str], device: str) -> list[str]:
    """Those of the names that `device` can do in reasonable time; says why of the others."""
    from fewstep.modalities.video.acceleration import SWITCHES

    found = []
    for name in names:
        reason = SWITCHES[name].why_not(device)
        if SWITCHES[name].compiled and not device.startswith("cuda"):
            reason = reason or COMPILED_ON_CPU
        if reason:
            print(f"{name}: not measured; {reason}")
        else:
            found.append(name)
    return found


def measure(
    plain: "VideoModel",
    features: Any,
    names: Iterable[str],
    *,
    rounds: int,
    add: Add,
    wait: Wait,
    until: float | None = None,
) -> None:
    """One record per acceleration; `plain` is a model with every switch off. None is begun once
    `time.perf_counter` passes `until`.
    """
    from fewstep.modalities.video.acceleration import SWITCHES
    from fewstep.modalities.video.fidelity import Original

    config = plain.cache_config
    filled = -(-config.window // config.chunk)
    reference = _warm(plain, features, filled)
    original = Original(plain, features, chunks=filled + COMPARED_CHUNKS)
    model = stream = None
    for name in names:
        if until is not None and time.perf_counter() > until:
            print(f"{name}: not measured; the time of this run is over; name it with --compare to measure it")
            continue
        del model, stream  # a device is to hold one of them at a time
        if SWITCHES[name].compiled:
            _forget_compiled()
        model = plain.with_acceleration(SWITCHES[name])
        found = original.fidelity(model)
        stream = _warm(model, features, filled)
        seconds: dict[str, list[float]] = {"plain": [], "accelerated": []}
        for _ in range(rounds):
            seconds["plain"].append(_timed(reference, wait))
            seconds["accelerated"].append(_timed(stream, wait))
        before, after = (statistics.median(values) for values in seconds.values())
        settings: dict[str, Setting] = {
            "acceleration": name,
            "plain_ms": 1000 * before,
            "ms": 1000 * after,
            "velocity_error": found.velocity_error,
            "first_psnr": _finite(found.first_psnr),
            "psnr": _finite(found.psnr),
            "levels": found.levels,
            "rounds": rounds,
        }
        add("acceleration", before / after, "x", **settings)


def _forget_compiled() -> None:
    """What was compiled for the networks before: torch compiles the same layers for eight kinds of inputs at
    most, and then runs them as they are.
    """
    import torch

    torch.compiler.reset()


def _warm(model: "VideoModel", features: Any, filled: int) -> Any:
    stream = model.stream(features)
    for _ in range(filled + SETTLE_CHUNKS):
        stream.step()
    return stream


def _timed(stream: Any, wait: Wait) -> float:
    """Seconds per chunk of the next few."""
    wait()
    started = time.perf_counter()
    for _ in range(CHUNKS_IN_A_ROW):
        stream.step()
    wait()
    return (time.perf_counter() - started) / CHUNKS_IN_A_ROW


def _finite(decibels: float) -> float | None:
    return decibels if math.isfinite(decibels) else None
