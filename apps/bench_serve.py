"""`fewstep bench serve`: the server under many viewers, several people and bad lines."""

import argparse
import asyncio
import contextlib
import itertools
import json
import os
import platform
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fewstep.apps.records import Record, Setting, finish

DEFINITIONS = """\
Everything runs on the loopback interface of this machine: the server, its engine and all clients share its
cores. Clients acknowledge each frame at once and do not decode it.
viewer_fps: frames per second at each of the viewers of one stream; the slowest and the median viewer.
frame_interval: milliseconds between frames at a viewer, over all viewers; `limit` is twice the frame period.
memory_growth: resident memory of server and engine after the run over that when all viewers had frames.
dropped: share of frames that were left out because a viewer was slow.
stall_recovery: a viewer reads nothing for `stall` seconds; from reading again until it has a frame as new as
  the newest one another viewer had at that moment.
queue_order: share of queued sessions that began in the order in which they had come.
queue_wait: seconds in the queue, while each session before it is ended after `turn` seconds.
reconnects_refused: connections of a storm that got no greeting; every second one hangs up without goodbye.
left_over: viewers, and open files of the server, after the storm beyond those before it.
"""
SUBPROTOCOL = "fewstep.v1"
HEADER_SEQ = slice(8, 12)
PATIENCE_SECONDS, START_SECONDS = 120.0, 600.0
SETTLE_SECONDS = 3.0
MEGABYTE = 1e6


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How much load, and for how long."""

    viewers: int
    seconds: float
    stall: float
    sessions: int
    turn: float
    reconnects: int
    storm: float


FULL = Plan(viewers=64, seconds=30.0, stall=5.0, sessions=8, turn=1.0, reconnects=200, storm=10.0)
QUICK = Plan(viewers=8, seconds=5.0, stall=2.0, sessions=3, turn=0.5, reconnects=20, storm=2.0)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = DEFINITIONS
    parser.add_argument("--model", default="driving", help="bundled preset or model folder (%(default)s)")
    parser.add_argument("--viewers", type=int, help="of one stream (64, quick: 8)")


def run(args: argparse.Namespace) -> int:
    """Measure and report; the load ends by itself after at most a few minutes."""
    plan = QUICK if args.quick else FULL
    if args.viewers is not None:
        if not 1 <= args.viewers <= 120:
            raise ValueError(f"--viewers must be in 1..120, got {args.viewers}")
        plan = Plan(**{**plan.__dict__, "viewers": args.viewers})
    with started_server([args.model]) as server:
        records = asyncio.run(measure(server, plan, model=args.model))
    print(DEFINITIONS)
    return finish(records, args, title="fewstep bench serve")


class Server:
    """A running `fewstep stream` of this machine."""

    def __init__(self, process: "subprocess.Popen[str]", address: str) -> None:
        self.pid = process.pid
        self.address = address

    def memory(self) -> int:
        """Resident bytes of the server and its engine."""
        return sum(_resident(pid) for pid in (self.pid, *_children(self.pid)))

    def open_files(self) -> int:
        return len(os.listdir(f"/proc/{self.pid}/fd"))


@contextmanager
def started_server(arguments: list[str], command: list[str] | None = None) -> Iterator[Server]:
    """`fewstep stream` on a free port of the loopback interface; ended afterwards."""
    command = command or [sys.executable, "-P", "-m", "fewstep.apps.cli", "stream"]
    with tempfile.TemporaryDirectory() as folder:
        options = ["--port", "0", "--record-dir", folder, "--max-sessions", "1", "--max-queue", "16"]
        process = subprocess.Popen([*command, *arguments, *options], stdout=subprocess.PIPE, text=True)
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            found = re.search(r"http://([\d.]+:\d+)/", line)
            if found is None:
                raise RuntimeError(f"the server did not start: {line!r}")
            yield Server(process, found.group(1))
        finally:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            if process.stdout is not None:
                process.stdout.close()


class Client:
    """One connection: remembers when its frames came."""

    def __init__(self, socket: Any) -> None:
        self.socket = socket
        self.times: list[float] = []
        self.newest = -1
        self.dropped = self.sent = 0
        self.fps = 0.0

    async def hello(self, **fields: Any) -> None:
        await self.socket.send(json.dumps({"type": "hello", "role": "viewer", "codecs": ["jpeg"], **fields}))

    async def receive(self) -> dict[str, Any] | None:
        """The next message, or None after a frame, which is acknowledged."""
        item = await self.socket.recv()
        if isinstance(item, str):
            message = json.loads(item)
            if message["type"] == "stats":
                self.sent, self.dropped = message["sent"], message["dropped"]
            model = message.get("model") if message["type"] == "welcome" else message
            if message["type"] in ("welcome", "model") and model:
                self.fps = model["fps"]
            return message
        self.newest = int.from_bytes(item[HEADER_SEQ], "little")
        self.times.append(time.perf_counter())
        await self.socket.send(json.dumps({"type": "ack", "seq": self.newest}))
        return None

    async def watch(self) -> None:
        while True:
            await self.receive()


@asynccontextmanager
async def client(server: Server, session: str = "live", **hello: Any) -> AsyncIterator[Client]:
    from websockets.asyncio.client import connect
    from websockets.typing import Subprotocol

    url = f"ws://{server.address}/v1/sessions/{session}/stream"
    async with connect(url, subprotocols=[Subprotocol(SUBPROTOCOL)], proxy=None, open_timeout=60) as socket:
        connected = Client(socket)
        await connected.hello(**hello)
        yield connected


async def measure(server: Server, plan: Plan, *, model: str) -> list[Record]:
    """All records, one scenario after the other."""
    shared: dict[str, Setting] = {
        "model": model,
        "machine": platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "load_average": round(os.getloadavg()[0], 2),
    }
    records: list[Record] = []

    def add(name: str, value: float, unit: str, **settings: Setting) -> None:
        records.append(Record(name=name, value=value, unit=unit, settings={**shared, **settings}))

    async with asyncio.timeout(START_SECONDS), client(server) as first:
        while len(first.times) < 2 * first.fps + 1:
            await first.receive()
    await _crowd(server, plan, add)
    await _stall(server, plan, add)
    await _queue(server, plan, add)
    await _storm(server, plan, add)
    return records


async def _crowd(server: Server, plan: Plan, add: Any) -> None:
    async with _watching(server, plan.viewers) as viewers:
        await _until(lambda: all(len(viewer.times) > 3 for viewer in viewers))
        await asyncio.sleep(SETTLE_SECONDS)
        before, begun = server.memory(), time.perf_counter()
        await asyncio.sleep(plan.seconds)
        ended, after = time.perf_counter(), server.memory()
        fps = viewers[0].fps
    times = [[moment for moment in viewer.times if begun <= moment <= ended] for viewer in viewers]
    rates = sorted(len(moments) / (ended - begun) for moments in times)
    gaps = sorted(1000 * (b - a) for moments in times for a, b in itertools.pairwise(moments))
    settings: dict[str, Setting] = {"viewers": plan.viewers, "seconds": plan.seconds, "fps": fps}
    add("viewer_fps", rates[0], "frames/s", viewer="slowest", **settings)
    add("viewer_fps", statistics.median(rates), "frames/s", viewer="median", **settings)
    for percent in (50, 99):
        value = gaps[min(len(gaps) - 1, int(percent / 100 * len(gaps)))]
        add("frame_interval", value, "ms", percentile=percent, limit=2000 / fps, **settings)
    sent, dropped = sum(v.sent for v in viewers), sum(v.dropped for v in viewers)
    add("dropped", 100 * dropped / max(1, sent + dropped), "%", **settings)
    add("memory_growth", (after - before) / MEGABYTE, "MB", **settings)


async def _stall(server: Server, plan: Plan, add: Any) -> None:
    async with _watching(server, 1) as (other,), client(server) as stalled:
        while not stalled.times:
            await stalled.receive()
        await asyncio.sleep(plan.stall)
        resumed, live = time.perf_counter(), other.newest
        async with asyncio.timeout(PATIENCE_SECONDS):
            while stalled.newest < live:
                await stalled.receive()
    add("stall_recovery", time.perf_counter() - resumed, "s", stall=plan.stall)


async def _queue(server: Server, plan: Plan, add: Any) -> None:
    """One place, and a queue behind it: each session is ended a moment after it began."""
    import httpx

    began: list[int] = []
    waits: list[float] = []

    async def take_part(number: int, made: dict[str, Any]) -> None:
        created = time.perf_counter()
        async with (
            client(server, made["id"], role="controller", resume=made["resume_token"]) as member,
            asyncio.timeout(PATIENCE_SECONDS),
        ):
            while not member.times:
                await member.receive()
            began.append(number)
            waits.append(time.perf_counter() - created)
            await asyncio.sleep(plan.turn)
            await member.socket.send(json.dumps({"type": "stop"}))

    async with httpx.AsyncClient(base_url=f"http://{server.address}", timeout=60, trust_env=False) as http:
        async with _watching(server, 1):
            made = [(await http.post("/v1/sessions", json={})).json() for _ in range(plan.sessions)]
            await asyncio.gather(*(take_part(number, one) for number, one in enumerate(made)))
    in_order = sum(a == b for a, b in zip(began, sorted(began), strict=True))
    add("queue_order", 100 * in_order / plan.sessions, "%", sessions=plan.sessions, turn=plan.turn)
    add("queue_wait", statistics.median(waits), "s", sessions=plan.sessions, turn=plan.turn, of="median")
    add("queue_wait", max(waits), "s", sessions=plan.sessions, turn=plan.turn, of="last")


async def _storm(server: Server, plan: Plan, add: Any) -> None:
    import httpx

    refused = 0

    async def come_and_go(number: int) -> None:
        nonlocal refused
        await asyncio.sleep(plan.storm * number / plan.reconnects)
        try:
            async with client(server) as visitor:
                await visitor.receive()
                if number % 2:
                    visitor.socket.transport.abort()
        except (OSError, TimeoutError, EOFError):
            refused += 1

    async def viewers() -> int:
        async with httpx.AsyncClient(timeout=60, trust_env=False) as http:
            sessions = (await http.get(f"http://{server.address}/v1/sessions")).json()
        return sum(session["viewers"] for session in sessions)

    async with _watching(server, 1) as (watcher,):
        await _until(lambda: len(watcher.times) > 3)
        people, files, begun = await viewers(), server.open_files(), time.perf_counter()
        await asyncio.gather(*(come_and_go(number) for number in range(plan.reconnects)))
        seconds = time.perf_counter() - begun
        meanwhile = sum(moment > begun for moment in watcher.times) / seconds
        await asyncio.sleep(SETTLE_SECONDS)
        settings: dict[str, Setting] = {"reconnects": plan.reconnects, "seconds": plan.storm}
        add("reconnects_refused", refused, "connections", **settings)
        add("left_over", await viewers() - people, "viewers", **settings)
        add("left_over", server.open_files() - files, "files", **settings)
        add("viewer_fps", meanwhile, "frames/s", viewer="during the storm", fps=watcher.fps, **settings)


@asynccontextmanager
async def _watching(server: Server, count: int) -> AsyncIterator[list[Client]]:
    """So many viewers of the shared stream, each reading all the time."""

    async with contextlib.AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(client(server)) for _ in range(count)]
        tasks = [asyncio.create_task(one.watch()) for one in clients]
        try:
            yield clients
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


async def _until(condition: Any) -> None:
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not condition():
            await asyncio.sleep(0.05)


def _resident(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return 1024 * int(line.split()[1])
    return 0


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
