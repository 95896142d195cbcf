"""The synthetic model, and a live session running on it."""

import asyncio
import contextlib
import importlib.util
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from fewstep.streaming.encoding import EncodedFrame
from fewstep.streaming.engine_thread import EngineThread
from fewstep.streaming.fanout import Viewer
from fewstep.streaming.protocol import unpack_frame
from fewstep.streaming.room import EngineRoom
from fewstep.streaming.service import StreamService
from fewstep.streaming.session import LiveSession
from fewstep.streaming.takes import Start


@pytest.fixture(scope="session")
def synthetic() -> ModuleType:
    path = Path(__file__).with_name("synthetic.py")
    spec = importlib.util.spec_from_file_location("synthetic", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def synthetic_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine in a process of its own finds the synthetic model by its name."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))


class Watching:
    """A viewer that draws everything at once; it keeps its frames, and what it was told and when."""

    def __init__(self, session: LiveSession, role: str = "controller") -> None:
        self.frames: list[EncodedFrame] = []
        self.told: list[tuple[float, dict[str, Any]]] = []
        self.session = session
        self.viewer = Viewer(role, wake=self.drain)
        session.attach(self.viewer)

    def drain(self) -> None:
        while (item := self.viewer.take(0.0)) is not None:
            if isinstance(item, str):
                self.told.append((time.monotonic(), json.loads(item)))
            else:
                self.frames.append(unpack_frame(item)[0])
                self.viewer.ack(self.frames[-1].seq, 0.0)

    def first(self, **fields: Any) -> tuple[float, dict[str, Any]] | None:
        """The first message with these fields, and when it came."""
        return next((told for told in self.told if fields.items() <= told[1].items()), None)


@pytest.fixture
def watch() -> type[Watching]:
    """`watch(session)` attaches a viewer."""
    return Watching


@pytest.fixture
def live(tmp_path: Path) -> Callable[..., AbstractAsyncContextManager[LiveSession]]:
    """`async with live(model) as session`: loaded and running, closed afterwards."""

    @contextlib.asynccontextmanager
    async def run(model: Any, **start: Any) -> AsyncIterator[LiveSession]:
        room = EngineRoom(lambda: EngineThread(lambda: model))
        folder = tmp_path / "recordings"
        service = StreamService(room, start=Start(**start), record_dir=folder)
        task = asyncio.create_task(service.run())
        try:
            while service.shared.state == "starting" and not task.done():
                await asyncio.sleep(0.001)
            yield service.shared
        finally:
            await service.close()
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    return run
