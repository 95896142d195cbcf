"""The synthetic model, and a live session running on it."""

import asyncio
import contextlib
import importlib.util
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

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
def live(tmp_path: Path) -> Callable[..., AbstractAsyncContextManager[LiveSession]]:
    """`async with live(model) as session`: loaded and running, closed afterwards."""

    @contextlib.asynccontextmanager
    async def run(model: Any, **start: Any) -> AsyncIterator[LiveSession]:
        session = LiveSession(lambda: model, start=Start(**start), record_dir=tmp_path / "recordings")
        task = asyncio.create_task(session.run())
        try:
            while session.state == "loading":
                await asyncio.sleep(0.001)
            yield session
        finally:
            await session.close()
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    return run
