"""The engine in a process of its own: what sessions see when it is killed, hangs or runs out of memory."""

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from fewstep.streaming.encoding import encode_jpeg
from fewstep.streaming.engine_process import EngineProcess, ModelSource, Patience
from fewstep.streaming.protocol import Flags
from fewstep.streaming.recording import read_metadata
from fewstep.streaming.room import EngineRoom
from fewstep.streaming.script import Script, perform
from fewstep.streaming.service import StreamService
from fewstep.streaming.takes import Start
from tests.waiting import run, until

TOLD_SECONDS = 2.0
SOURCE = ModelSource(module="synthetic", function="SyntheticModel", arguments=(60.0, 0.0, None, 32))
PATIENT = Patience()
HASTY = Patience(step_seconds=1.5, step_factor=1.0, look_seconds=0.1)


pytestmark = pytest.mark.usefixtures("synthetic_path")


@contextlib.asynccontextmanager
async def served(
    folder: Path, watch: Any, patience: Patience = PATIENT
) -> AsyncIterator[tuple[StreamService, Any]]:
    room = EngineRoom(lambda: EngineProcess(SOURCE, patience=patience))
    service = StreamService(room, start=Start(seed=5), record_dir=folder)
    running = asyncio.create_task(service.run())
    watcher = watch(service.shared)
    try:
        await until(lambda: len(watcher.frames) > 12)
        yield service, watcher
    finally:
        await service.close()
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


def resets(watcher: Any) -> list[int]:
    return [place for place, frame in enumerate(watcher.frames) if frame.flags & Flags.RESET]


def test_a_killed_engine_is_told_at_once_and_the_same_take_begins_anew_on_a_fresh_one(
    tmp_path: Path, watch: Any, synthetic: Any, caplog: Any
):
    async def test() -> None:
        async with served(tmp_path, watch) as (service, watcher):
            service.shared.prompt("a red ball over the sea")
            await until(lambda: watcher.frames[-1].revision == 2)
            service.shared.start_recording()
            # Long enough for the file to have its first second: what is younger than one may be lost.
            await until(lambda: sum(bool(frame.flags & Flags.RECORDING) for frame in watcher.frames) > 150)
            engine = service.room.engine
            assert engine is not None
            killed = time.monotonic()
            os.kill(engine.pid or 0, signal.SIGKILL)
            await until(lambda: watcher.first(type="error", code="engine_lost") is not None)
            told = watcher.first(type="error", code="engine_lost")
            assert told is not None
            assert told[0] - killed < TOLD_SECONDS
            assert "fresh" in told[1]["message"]
            await until(lambda: len(resets(watcher)) == 2)
            await until(lambda: len(watcher.frames) > resets(watcher)[1] + 20)
            assert service.shared.status()["state"] == "running"
            assert service.room.restarts == {"died": 1}
            script = Script.from_dict(service.shared.ready().timeline.script())
            assert (script.seed, script.cues[0].prompt) == (5, "a red ball over the sea")
            model = synthetic.SyntheticModel(size=32)
            chunks = perform(model, script)
            wanted = [encode_jpeg(frame) for _ in range(3) for frame in next(chunks).frames]
            again = watcher.frames[resets(watcher)[1] :]
            assert [frame.payload for frame in again[:18]] == wanted
            seqs = [frame.seq for frame in watcher.frames]
            assert seqs == sorted(set(seqs))
            # What was recorded until then is there, in the same folder.
            await until(lambda: len(service.archive.finished()) == 1)
            path = tmp_path / service.archive.finished()[0]["name"]
            recorded = sum(bool(frame.flags & Flags.RECORDING) for frame in watcher.frames)
            assert read_metadata(path)["frames"] >= recorded - 60  # one second

    run(test)


@pytest.mark.parametrize(("fault", "cause"), [("memory", "memory"), ("hang", "hung")])
def test_what_the_engine_cannot_bear_is_given_up_and_not_tried_for_ever(
    tmp_path: Path, watch: Any, fault: str, cause: str, caplog: Any
):
    async def test() -> None:
        async with served(tmp_path, watch, HASTY) as (service, watcher):
            service.shared.prompt(f"please {fault} now")
            await until(lambda: watcher.first(type="error", code="engine_lost") is not None)
            await until(lambda: watcher.first(type="prompt.rejected", rev=2) is not None)
            count = len(watcher.frames)
            await until(lambda: len(watcher.frames) > count + 20)
            assert service.room.restarts == {cause: 1}
            assert {frame.revision for frame in watcher.frames} == {1}

    run(test)


def test_a_model_that_raises_keeps_its_engine_and_gives_up_the_prompt(
    tmp_path: Path, watch: Any, caplog: Any
):
    async def test() -> None:
        async with served(tmp_path, watch) as (service, watcher):
            service.shared.prompt("please raise now")
            await until(lambda: watcher.first(type="error", code="engine_error") is not None)
            assert service.shared.state == "failed"
            service.shared.restart()
            count = len(watcher.frames)
            await until(lambda: len(watcher.frames) > count + 20)
            assert service.shared.state == "running"
            assert service.room.restarts == {}
            assert {frame.revision for frame in watcher.frames} == {1}

    run(test)


@pytest.mark.parametrize(
    ("source", "error", "text"),
    [
        (ModelSource(module="synthetic", function="refuse", arguments=()), ValueError, "no such model"),
        (ModelSource(module="no_such_module", function="x", arguments=()), ImportError, "no_such_module"),
    ],
)
def test_what_loading_raises_is_raised_here_too(source: ModelSource, error: type[Exception], text: str):
    async def test() -> None:
        engine = EngineProcess(source)
        with pytest.raises(error, match=text):
            await engine.load()
        await engine.close()

    run(test)


def test_a_shutdown_does_not_wait_for_a_model_that_is_being_loaded(tmp_path: Path):
    engines: list[EngineProcess] = []

    def make() -> EngineProcess:
        engines.append(EngineProcess(ModelSource(module="synthetic", function="never", arguments=())))
        return engines[-1]

    async def test() -> None:
        service = StreamService(EngineRoom(make), start=Start(), record_dir=tmp_path)
        running = asyncio.create_task(service.run())
        await until(lambda: bool(engines) and engines[0].pid is not None)
        await service.close()
        assert not Path(f"/proc/{engines[0].pid}").exists()
        running.cancel()
        (ended,) = await asyncio.gather(running, return_exceptions=True)
        assert isinstance(ended, asyncio.CancelledError)
        assert len(engines) == 1

    run(test)
