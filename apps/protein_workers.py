"""Who makes which shards of `fewstep protein`: this process, ranks of torchrun, or Ray's workers."""

import importlib
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from fewstep.apps.protein_designs import Maker, Request
from fewstep.apps.ranks import Rank

INSTALL = "--ray needs the package ray: pip install 'fewstep[scale]'"
REPORT_EVERY = 10.0  # seconds, where no bar can be drawn


def make_here(maker: Maker, rank: Rank) -> int:
    """This rank's unfinished shards, one after the other; returns the number of designs made."""
    todo = maker.folder.unfinished(worker=rank.rank, workers=rank.size)
    mine = range(rank.rank, len(maker.folder), rank.size)
    total = sum(len(maker.folder.designs(shard)) for shard in mine)
    ahead = sum(len(maker.folder.designs(shard)) for shard in todo)
    made = 0
    with progress_of(total, done=total - ahead, shown=rank.rank == 0) as advance:
        for shard in todo:
            count = maker.make(shard)
            made += count
            advance(count)
    return made


def make_with_ray(request: Request, todo: Sequence[int], *, workers: int, total: int, done: int) -> int:
    """Shards by ``workers`` actors of Ray, each with a model of its own; a lost actor's shard is made again.

    An existing cluster is used where RAY_ADDRESS names one, else one is started on this machine.

    Raises:
        ImportError: without ray.
    """
    try:
        ray: Any = importlib.import_module("ray")
        pools: Any = importlib.import_module("ray.util.actor_pool")
    except ImportError as error:
        raise ImportError(INSTALL) from error
    gpus = 1 if request.device.startswith("cuda") else 0
    started = not ray.is_initialized()
    if started:
        ray.init(num_cpus=None if "RAY_ADDRESS" in os.environ else workers, include_dashboard=False)
    remote_maker = ray.remote(num_cpus=1, num_gpus=gpus, max_restarts=-1, max_task_retries=-1)(Maker)
    # Ray shows each actor its own GPU as the first one
    here = replace(request, out=request.out.resolve(), device="cuda" if gpus else request.device)
    try:
        pool = pools.ActorPool([remote_maker.remote(here) for _ in range(max(1, min(workers, len(todo))))])
        made = 0
        with progress_of(total, done=done, shown=True) as advance:
            counts: Any = pool.map_unordered(lambda actor, shard: actor.make.remote(shard), list(todo))
            for count in counts:
                made += count
                advance(count)
        return made
    finally:
        if started:
            ray.shutdown()


@contextmanager
def progress_of(total: int, *, done: int, shown: bool) -> Iterator:
    """A bar with designs per second and the time left; without a terminal a line now and then."""
    console = Console(stderr=True)
    started, counts = time.monotonic(), {"made": 0, "reported": 0.0}
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[speed]}"),
        TimeRemainingColumn(),
    )
    with Progress(
        *columns, console=console, transient=True, disable=not (shown and console.is_terminal)
    ) as bar:
        task = bar.add_task("designs", total=total, completed=done, speed="")

        def advance(count: int) -> None:
            counts["made"] += count
            seconds = time.monotonic() - started
            speed = counts["made"] / max(seconds, 1e-9)
            bar.update(task, advance=count, speed=f"{speed:.3g} designs/s")
            if shown and not console.is_terminal and seconds - counts["reported"] > REPORT_EVERY:
                counts["reported"] = seconds
                left = (total - done - counts["made"]) / speed
                line = f"{done + counts['made']:.0f} of {total} designs, {speed:.3g}/s, {left:.0f} s left"
                console.print(line, highlight=False)

        yield advance
