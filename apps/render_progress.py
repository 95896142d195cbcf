"""Work spread over processes under a progress bar."""

import multiprocessing
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
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
    context, others = multiprocessing.get_context("spawn"), multiprocessing.active_children()
    with ProcessPoolExecutor(min(workers, len(jobs)), mp_context=context) as pool:
        try:
            with _ignored_interrupts():
                futures = [pool.submit(work, job) for job in jobs]
            for future in as_completed(futures):
                yield future.result()
        except BrokenProcessPool as error:
            raise ChildProcessError(
                "a process was killed, perhaps for want of memory; take fewer --workers, and give the "
                "command again: what is done stays done"
            ) from error
        except BaseException:  # an interruption above all: what is half done is not waited for
            for child in multiprocessing.active_children():
                if child not in others:
                    child.terminate()
            raise


@contextmanager
def _ignored_interrupts() -> Iterator[None]:
    """Processes begun meanwhile leave Ctrl-C to their parent, and have nothing to say about it."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
