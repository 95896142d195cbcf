"""The engine on threads of this process: for tests, and where one process must do."""

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from fewstep.streaming.engine import VideoModel
from fewstep.streaming.engine_errors import EngineLost, StepFailed, lost
from fewstep.streaming.events import about
from fewstep.streaming.host import Control, EngineHost, Step
from fewstep.streaming.model_info import ModelInfo

log = logging.getLogger(__name__)


class EngineThread:
    """The same interface as `EngineProcess`; it cannot be lost, only closed."""

    def __init__(self, load: Callable[[], VideoModel]) -> None:
        self._host = EngineHost(load)
        self._engine = ThreadPoolExecutor(max_workers=1, thread_name_prefix="fewstep-engine")
        self._text = ThreadPoolExecutor(max_workers=1, thread_name_prefix="fewstep-text")
        self.gone: asyncio.Future[EngineLost] = asyncio.get_running_loop().create_future()
        self.pid = None

    async def load(self) -> ModelInfo:
        return await asyncio.get_running_loop().run_in_executor(self._engine, self._host.load)

    async def encode(self, prompt: str) -> None:
        await asyncio.get_running_loop().run_in_executor(self._text, self._host.encode, prompt)

    async def warm(self) -> None:
        await asyncio.get_running_loop().run_in_executor(self._text, self._host.warm)

    async def step(self, session: str, control: Control) -> Step:
        loop = asyncio.get_running_loop()
        if self.gone.done():
            raise self.gone.result()
        try:
            return await loop.run_in_executor(self._engine, self._host.step, session, control)
        except Exception as error:  # whatever a model raises ends the take, not the server
            log.error("the engine failed", exc_info=error, extra=about("engine.failed", session))
            raise StepFailed(f"{type(error).__name__}: {error}") from error

    async def stop_recording(self, session: str) -> None:
        if not self.gone.done():
            loop = asyncio.get_running_loop()
            await loop.run_in_executor(self._engine, self._host.stop_recording, session)

    async def forget(self, session: str) -> None:
        if not self.gone.done():
            await asyncio.get_running_loop().run_in_executor(self._engine, self._host.forget, session)

    def kill(self) -> None:
        """A thread cannot be killed; whoever waits for it waits until its chunk is made."""

    async def close(self) -> None:
        if not self.gone.done():
            self.gone.set_result(lost("closed"))
        for pool in (self._engine, self._text):
            await asyncio.to_thread(pool.shutdown, wait=True, cancel_futures=True)
