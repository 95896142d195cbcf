"""A server process of this machine, and clients that put it under load."""

import asyncio
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

SUBPROTOCOL = "fewstep.v1"
HEADER_SEQ = slice(8, 12)
PATIENCE_SECONDS = 120.0
PROCESSES = Path("/proc")


class Server:
    """A running `fewstep stream` of this machine."""

    def __init__(self, process: "subprocess.Popen[str]", address: str) -> None:
        self.pid = process.pid
        self.address = address

    def memory(self) -> int:
        """Resident bytes of the server and its engine."""
        return sum(_resident(pid) for pid in (self.pid, *_children(self.pid)))

    def open_files(self) -> int:
        return len(os.listdir(PROCESSES / f"{self.pid}/fd"))


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


@asynccontextmanager
async def watching(server: Server, count: int) -> AsyncIterator[list[Client]]:
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


async def until(condition: Callable[[], bool]) -> None:
    """Wait for it, but not for ever: what is measured next tells what was not reached."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(PATIENCE_SECONDS):
            while not condition():
                await asyncio.sleep(0.05)


def _resident(pid: int) -> int:
    for line in (PROCESSES / f"{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return 1024 * int(line.split()[1])
    return 0


def _children(pid: int) -> list[int]:
    return [int(child) for child in (PROCESSES / f"{pid}/task/{pid}/children").read_text().split()]
