"""The engine in a process of its own: it may hang, be killed or run out of memory, the server lives on."""

import asyncio
import json
import socket
import statistics
import subprocess
import sys
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fewstep.streaming.channel import control_fields, pack, read_message, step_from
from fewstep.streaming.engine_errors import EngineLost, StepFailed, lost, passed_on
from fewstep.streaming.host import Control, Step
from fewstep.streaming.model_info import ModelInfo

WORKER = "fewstep.streaming.worker"
CLOSE_SECONDS = 3.0
OVERSLEPT_SECONDS = 0.5
STEPS_KEPT = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSource:
    """What the engine process calls to get its model; names instead of objects, so nothing is pickled."""

    module: str
    function: str
    arguments: tuple[str | int | float | None, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """When an engine counts as hung: no sign of life, or one step far longer than its others."""

    load_seconds: float = 600.0
    silence_seconds: float = 30.0
    first_step_seconds: float = 600.0
    """Kernels may be compiled and memory touched for the first time, on a machine that is busy besides."""
    step_seconds: float = 60.0
    step_factor: float = 20.0
    look_seconds: float = 0.5


class EngineProcess:
    """The server's handle. `gone` is done, with the cause, as soon as the process is no longer of use."""

    def __init__(self, source: ModelSource, *, patience: Patience = Patience()) -> None:
        self._source = source
        self._patience = patience
        self._process: subprocess.Popen[bytes] | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._waiting: dict[int, asyncio.Future[tuple[dict[str, Any], list[bytes]]]] = {}
        self._count = 0
        self._heard = time.monotonic()
        self._loaded = False
        self._step_began: float | None = None
        self._step_seconds: deque[float] = deque(maxlen=STEPS_KEPT)
        self._tasks: list[asyncio.Task[None]] = []
        self.gone: asyncio.Future[EngineLost] = asyncio.get_running_loop().create_future()

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    async def load(self) -> ModelInfo:
        """Start the process and load the model in it; raises what loading raises."""
        ours, theirs = socket.socketpair()
        with theirs:
            source = json.dumps(
                {
                    "module": self._source.module,
                    "function": self._source.function,
                    "arguments": list(self._source.arguments),
                }
            )
            command = [sys.executable, "-P", "-m", WORKER, str(theirs.fileno()), source]
            self._process = subprocess.Popen(command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)
        reader, self._writer = await asyncio.open_connection(sock=ours)
        self._heard = time.monotonic()
        self._tasks = [asyncio.create_task(self._listen(reader)), asyncio.create_task(self._watch())]
        fields, _ = await self._ask("load")
        _raise(fields)
        self._loaded = True
        return ModelInfo.from_dict(fields["info"])

    async def encode(self, prompt: str) -> None:
        """Have the prompt's features ready; raises what the text encoder raises."""
        _raise((await self._ask("encode", prompt=prompt))[0])

    async def warm(self) -> None:
        """Load the text encoder; what fails here will fail again at the first prompt."""
        await self._ask("warm")

    async def step(self, session: str, control: Control) -> Step:
        """One chunk. `StepFailed` when the model raised, `EngineLost` when the process is gone."""
        began = self._step_began = time.monotonic()
        try:
            fields, blobs = await self._ask("step", session=session, control=control_fields(control))
        finally:
            self._step_began = None
        error = fields.get("error")
        if error is not None and error["fatal"] is not None:
            self._lose(error["fatal"])
            raise lost(error["fatal"])
        if error is not None:
            raise StepFailed(f"{error['name']}: {error['text']}")
        self._step_seconds.append(time.monotonic() - began)
        return step_from(fields, blobs)

    async def stop_recording(self, session: str) -> None:
        await self._ask("stop_recording", session=session)

    async def forget(self, session: str) -> None:
        await self._ask("forget", session=session)

    def kill(self) -> None:
        """End the process now; `gone` follows when it has ended, and nobody reads what it still writes."""
        if self._process is not None:
            self._process.kill()

    async def close(self) -> None:
        """End the process, by force if it must be."""
        self._lose("closed")
        for task in self._tasks:
            task.cancel()
        if self._process is not None:
            await asyncio.to_thread(_end, self._process)

    async def _ask(self, kind: str, **fields: Any) -> tuple[dict[str, Any], list[bytes]]:
        if self.gone.done():
            raise self.gone.result()
        assert self._writer is not None, "ask before load"
        self._count += 1
        number = self._count
        answer = self._waiting[number] = asyncio.get_running_loop().create_future()
        try:
            self._writer.write(pack({"kind": kind, "id": number, **fields}))
            return await answer
        finally:
            self._waiting.pop(number, None)

    async def _listen(self, reader: asyncio.StreamReader) -> None:
        try:
            while True:
                fields, blobs = await read_message(reader)
                self._heard = time.monotonic()
                if fields["kind"] == "answer":
                    waiting = self._waiting.pop(fields["id"], None)
                    if waiting is not None and not waiting.done():
                        waiting.set_result((fields, blobs))
        except (asyncio.IncompleteReadError, OSError):
            self._lose("died")

    async def _watch(self) -> None:
        """Look now and then whether the engine hangs. Time that we slept through ourselves does not count."""
        looked = time.monotonic()
        while not self.gone.done():
            await asyncio.sleep(self._patience.look_seconds)
            now, before = time.monotonic(), looked
            looked = now
            overslept = now - before - self._patience.look_seconds
            if overslept > OVERSLEPT_SECONDS:
                self._heard += overslept
                if self._step_began is not None:
                    self._step_began += overslept
            if self._hangs(now):
                self._lose("hung")

    def _hangs(self, now: float) -> bool:
        patience = self._patience
        # While it loads, importing a large library may hold the interpreter for long.
        if now - self._heard > (patience.silence_seconds if self._loaded else patience.load_seconds):
            return True
        if self._step_began is None:
            return False
        if not self._step_seconds:
            return now - self._step_began > patience.first_step_seconds
        usual = statistics.median(self._step_seconds)
        return now - self._step_began > max(patience.step_seconds, patience.step_factor * usual)

    def _lose(self, cause: str) -> None:
        """Everybody who waits learns it now; the process is killed, so that its memory is free again."""
        if self.gone.done():
            return
        self.gone.set_result(lost(cause))
        for answer in self._waiting.values():
            if not answer.done():
                answer.set_exception(lost(cause))
        self._waiting.clear()
        if self._writer is not None:
            self._writer.close()
        if self._process is not None and cause != "closed":
            self._process.kill()


def _raise(fields: Mapping[str, Any]) -> None:
    if "error" in fields:
        raise passed_on(fields["error"])


def _end(process: subprocess.Popen[bytes]) -> None:
    """The closed socket tells it; a process that does not listen is killed."""
    try:
        process.wait(CLOSE_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
