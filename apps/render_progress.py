"""Work spread over processes under a progress bar."""

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

Job = TypeVar("Job")


def done_in_parallel(
    work: Callable[[Job], int],
    jobs: Sequence[Job],
    *,
    workers: int,
    title: str,
    done: int = 0,
    total: int | None = None,
) -> None:
    """Does all jobs; `work` returns how far one moves the bar, from `done` to `total` (default: to the end
    of the jobs, one step each).
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns) as progress:
        task = progress.add_task(title, total=done + len(jobs) if total is None else total, completed=done)
        for steps in _results(work, jobs, workers):
            progress.advance(task, steps)


def _results(work: Callable[[Job], int], jobs: Sequence[Job], workers: int) -> Iterator[int]:
    if workers == 1 or len(jobs) < 2:
        yield from map(work, jobs)
        return
    # Spawned, not forked: the parent may hold the threads of torch and of the progress bar.
    with multiprocessing.get_context("spawn").Pool(min(workers, len(jobs))) as pool:
        yield from pool.imap_unordered(work, jobs)
