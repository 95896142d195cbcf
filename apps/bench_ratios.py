"""`fewstep bench stream --ratios`: what each shortcut of a stream is worth against none, all in one run."""

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fewstep.apps import bench_acceleration, bench_uncached
from fewstep.apps.bench_acceleration import Add

if TYPE_CHECKING:
    from fewstep.modalities.video.pipeline import VideoModel

DEFINITIONS = bench_uncached.DEFINITIONS + bench_acceleration.DEFINITIONS
NAMES = (
    "static_steps",
    "fused_projections",
    "static+fused",
    "overlapped_decoding",
    "int8",
    "int8_weights",
)
"""Beside the cache against none: static and fused steps against the plain one, overlapped decoding against
serial, eight bits against the model's own dtype."""
ROUNDS, ROUNDS_QUICK = 18, 2


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--ratios",
        action="store_true",
        help="measure only what shortcuts gain, by turns: the cache, and static and fused steps, overlapped "
        "decoding and eight bits, or those of --compare",
    )


def names_of(args: argparse.Namespace) -> list[str]:
    """Which accelerations are compared."""
    if args.compare is None:
        return bench_acceleration.runnable(NAMES, args.device)
    return bench_acceleration.compared(args.compare, args.device)


def measure(
    model: "VideoModel", features: Any, names: Sequence[str], *, quick: bool, device: str, add: Add
) -> None:
    """All of them, each in turn with what it is measured against."""
    from fewstep.apps.bench_random import waiter
    from fewstep.modalities.video.acceleration import PLAIN

    rounds = ROUNDS_QUICK if quick else ROUNDS
    bench_uncached.measure(model, features, steps=model.default_steps, rounds=rounds, add=add)
    plain = model.with_acceleration(PLAIN)
    bench_acceleration.measure(plain, features, names, rounds=rounds, add=add, wait=waiter(device))
