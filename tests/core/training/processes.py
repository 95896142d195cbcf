"""Two processes on one machine: forked, so that nothing is imported twice."""

import io
import multiprocessing
import os
import socket
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection

import torch
from torch import distributed as dist

SECONDS = 120


def in_two_processes(run: Callable[..., object], *arguments: object) -> list[object]:
    """``run(rank, *arguments)`` in each of two processes that find each other; what each returned."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("fork")
    ends = [context.Pipe(duplex=False) for _ in range(2)]
    processes = [
        context.Process(target=_child, args=(rank, port, ends[rank][1], run, arguments)) for rank in range(2)
    ]
    for process in processes:
        process.start()
    try:
        results = []
        for receive, _ in ends:
            if not receive.poll(SECONDS):
                raise TimeoutError(f"a process said nothing for {SECONDS} s")
            worked, result = torch.load(io.BytesIO(receive.recv_bytes()), weights_only=False)
            if not worked:
                raise AssertionError(result)
            results.append(result)
        return results
    finally:
        for process in processes:
            process.join(5)
            if process.is_alive():
                process.kill()


def _child(rank: int, port: int, send: Connection, run: Callable[..., object], arguments: tuple) -> None:
    os.environ.update(
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        WORLD_SIZE="2",
        NODE_RANK="0",
        LOCAL_RANK=str(rank),
        GLOO_SOCKET_IFNAME="lo",
    )
    torch.set_num_threads(1)
    try:
        answer = True, run(rank, *arguments)
    except BaseException:
        answer = False, f"process {rank}:\n{traceback.format_exc()}"
    # as bytes: tensors in shared memory would vanish with this process
    written = io.BytesIO()
    torch.save(answer, written)
    send.send_bytes(written.getvalue())
    if dist.is_initialized():
        dist.destroy_process_group()
