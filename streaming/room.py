"""The engine room: one engine for all sessions, shared chunk by chunk, replaced when it is lost."""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable
from typing import Protocol, runtime_checkable

from fewstep.streaming.engine_errors import EngineLost
from fewstep.streaming.events import about
from fewstep.streaming.host import Control, Step
from fewstep.streaming.metrics import StreamMetrics
from fewstep.streaming.model_info import ModelInfo
from fewstep.streaming.turns import Turns

log = logging.getLogger(__name__)

FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS = 0.25, 30.0
STEADY_STEPS = 20
"""After so many chunks an engine counts as sound, and the next loss is answered at once again."""


@runtime_checkable
class Engine(Protocol):
    """`EngineProcess` and `EngineThread`."""

    gone: "asyncio.Future[EngineLost]"

    @property
    def pid(self) -> int | None: ...
    async def load(self) -> ModelInfo: ...
    async def encode(self, prompt: str) -> None: ...
    async def warm(self) -> None: ...
    async def step(self, session: str, control: Control) -> Step: ...
    async def stop_recording(self, session: str) -> None: ...
    async def forget(self, session: str) -> None: ...
    def kill(self) -> None: ...
    async def close(self) -> None: ...


class EngineRoom:
    """`run` it once. `when_lost` is called with the reason each time the engine is gone, `when_up` each time
    one has been loaded.
    """

    def __init__(self, make: Callable[[], Engine]) -> None:
        self.info: ModelInfo | None = None
        self.engine: Engine | None = None
        self.speed = StreamMetrics()
        """Over all sessions: what the engine can do, and what a chunk takes."""
        self.sharers = 1
        """How many sessions ask for chunks at present."""
        self.restarts: Counter[str] = Counter()
        self.when_lost: Callable[[EngineLost], None] = lambda error: None
        self.when_up: Callable[[], None] = lambda: None
        self._make = make
        self._turns = Turns()
        self._steps = 0
        self._loading: Engine | None = None
        self._closed = False

    @property
    def up(self) -> bool:
        """Whether an engine is loaded and answers."""
        return self.engine is not None and not self.engine.gone.done()

    async def run(self) -> None:
        """Keep an engine loaded until cancelled. Raises what the very first loading raises."""
        wait = FIRST_WAIT_SECONDS
        while not self._closed:
            engine = self._loading = self._make()
            try:
                self.info = await engine.load()
            except Exception as error:
                await engine.close()
                if self._closed:
                    return
                if self.info is None:
                    raise
                said = f"the engine cannot be loaded again; next try in {wait:.1f} s"
                log.error("%s", said, exc_info=error, extra=about("engine.not_loaded"))
            else:
                self.engine, self._steps = engine, 0
                log.info("the model %s is loaded", self.info.name, extra=about("engine.loaded"))
                self.when_up()
                reason = await engine.gone
                if self._closed:
                    return
                log.error("%s; loading a fresh one in %.2f s", reason, wait, extra=about("engine.lost"))
                self.restarts[reason.cause] += 1
                self.when_lost(reason)
                await engine.close()
                if self._steps >= STEADY_STEPS:
                    wait = FIRST_WAIT_SECONDS
            await asyncio.sleep(wait)
            wait = min(LONGEST_WAIT_SECONDS, 2 * wait)

    async def step(self, session: str, control: Control, *, deadline: float) -> Step:
        """One chunk for this session, in its turn."""
        async with self._turns.take(deadline):
            step = await self._present().step(session, control)
        self._steps += 1
        self.speed.add_chunk(len(step.jpeg), step.seconds["total"])
        return step

    async def encode(self, prompt: str) -> None:
        await self._present().encode(prompt)

    async def warm(self) -> None:
        await self._present().warm()

    async def stop_recording(self, session: str) -> None:
        """Close the session's file; a lost engine has left it as it was."""
        if self.engine is not None and self.up:
            try:
                await self.engine.stop_recording(session)
            except EngineLost:
                pass

    async def forget(self, session: str) -> None:
        if self.engine is not None and self.up:
            try:
                await self.engine.forget(session)
            except EngineLost:
                pass

    def kill(self) -> None:
        """End an engine that does not answer, and do not load another; who waits for it learns it is lost."""
        self._closed = True
        for engine in self._engines():
            engine.kill()

    async def close(self) -> None:
        self._closed = True
        for engine in self._engines():
            await engine.close()

    def _engines(self) -> set[Engine]:
        """Which there are: one that is loaded, or is being loaded, or both for a moment."""
        return {engine for engine in (self.engine, self._loading) if engine is not None}

    def _present(self) -> Engine:
        if self.engine is None:
            raise EngineLost("loading", "the model is still loading")
        return self.engine
