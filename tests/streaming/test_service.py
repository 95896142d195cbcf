"""Several people, one engine: no cross-talk, first come first served, and who may steer what."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from fewstep.streaming.admission import Rules
from fewstep.streaming.encoding import encode_jpeg
from fewstep.streaming.engine_thread import EngineThread
from fewstep.streaming.protocol import BadMessage
from fewstep.streaming.room import EngineRoom
from fewstep.streaming.script import Script, perform
from fewstep.streaming.service import StreamService
from fewstep.streaming.takes import Start
from tests.waiting import run, until


@contextlib.asynccontextmanager
async def served(model: Any, folder: Path, rules: Rules | None = None) -> AsyncIterator[StreamService]:
    service = StreamService(
        EngineRoom(lambda: EngineThread(lambda: model)), start=Start(seed=1), record_dir=folder, rules=rules
    )
    running = asyncio.create_task(service.run())
    try:
        await until(lambda: service.shared.state == "paused")
        yield service
    finally:
        await service.close()
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def measured(service: StreamService, watch: Any) -> None:
    """Watch the shared session until the engine's speed is known, as a first visitor would."""
    watcher = watch(service.shared)
    await until(lambda: service.room.speed.capacity_fps is not None)
    service.shared.detach(watcher.viewer)


def alone(model: Any, script: dict[str, Any], frames: int) -> list[bytes]:
    """The script's first frames without any service."""
    chunks = perform(model, Script.from_dict(script))
    made: list[bytes] = []
    while len(made) < frames:
        made += [encode_jpeg(frame) for frame in next(chunks).frames]
    return made[:frames]


def test_sessions_that_share_the_engine_show_byte_for_byte_what_each_shows_alone(
    tmp_path: Path, synthetic: Any, watch: Any
):
    async def test() -> None:
        async with served(synthetic.SyntheticModel(fps=40.0, size=32), tmp_path) as service:
            await measured(service, watch)
            first = service.create(Start(seed=11, prompt="a red ball over the sea")).session
            second = service.create(Start(seed=22, steps=4)).session
            one, two, shared = watch(first), watch(second), watch(service.shared)
            await until(lambda: len(one.frames) > 12)
            first.prompt("snow at night")
            await until(lambda: min(len(one.frames), len(two.frames), len(shared.frames)) > 48)
            for watcher, session in ((one, first), (two, second)):
                script = session.ready().timeline.script()
                wanted = alone(synthetic.SyntheticModel(fps=40.0, size=32), script, len(watcher.frames))
                assert [frame.payload for frame in watcher.frames] == wanted
            assert first.ready().timeline.script()["cues"][-1]["prompt"] == "snow at night"
            assert {frame.revision for frame in two.frames} == {1}

    run(test)


def test_the_queue_is_first_come_first_served_and_everybody_knows_their_place(
    tmp_path: Path, synthetic: Any, watch: Any
):
    async def test() -> None:
        rules = Rules(max_sessions=1, max_queue=2, session_max=100.0)
        async with served(synthetic.SyntheticModel(size=16), tmp_path, rules) as service:
            await measured(service, watch)
            guests = [service.create(Start()) for _ in range(3)]
            with pytest.raises(BadMessage, match="all places are taken"):
                service.create(Start())
            watchers = [watch(guest.session) for guest in guests]
            await until(lambda: guests[0].session.state == "running")
            assert [guest.session.state for guest in guests[1:]] == ["queued", "queued"]
            await until(lambda: watchers[2].first(type="queue", position=2, depth=2) is not None)
            told = watchers[1].first(type="queue", position=1)
            assert told is not None
            assert 95 <= told[1]["eta_s"] <= 100
            with pytest.raises(BadMessage, match="waits in the queue"):
                guests[1].session.prompt("too early")
            await service.end(guests[0].session.id)
            await until(lambda: guests[1].session.state == "running")
            assert guests[2].session.state == "queued"
            await until(lambda: watchers[2].first(type="queue", position=1, depth=1) is not None)
            assert watchers[0].viewer.closing == (4410, "client_stop")
            await service.end(guests[1].session.id)
            await until(lambda: len(watchers[2].frames) > 6)
            assert service.counters.sessions == {"client_stop": 2, "rejected": 1}

    run(test)


def test_nobody_is_admitted_beyond_what_the_engine_can_do(tmp_path: Path, synthetic: Any, watch: Any):
    async def test() -> None:
        # 6 frames take at least 0.25 s: below 24 frames/s, of which the shared session has 12.
        model = synthetic.SyntheticModel(fps=12.0, chunk_seconds=0.25, size=8)
        async with served(model, tmp_path) as service:
            await measured(service, watch)
            guest = service.create(Start())
            watch(guest.session)
            await asyncio.sleep(0.6)
            assert guest.session.state == "queued"

    run(test)


def test_an_own_session_is_steered_with_its_token_alone_and_resumes_at_the_live_edge(
    tmp_path: Path, synthetic: Any, watch: Any
):
    async def test() -> None:
        rules = Rules(absence=60.0)
        async with served(synthetic.SyntheticModel(fps=60.0, size=16), tmp_path, rules) as service:
            await measured(service, watch)
            guest = service.create(Start())
            session = guest.session
            assert not service.may_control(session, None)
            assert not service.may_control(session, "x" * 43)
            assert service.may_control(session, guest.resume_token)
            assert service.may_control(service.shared, None)
            before = watch(session)
            await until(lambda: len(before.frames) > 20)
            session.detach(before.viewer)
            spectator = watch(session, "viewer")
            await until(lambda: len(spectator.frames) > 20)
            after = watch(session)
            await until(lambda: len(after.frames) > 5)
            assert after.frames[0].seq >= spectator.frames[20].seq
            session.audience.replace_controllers()
            assert after.viewer.closing == (4409, "taken over by another connection")
            assert spectator.viewer.closing is None

    run(test)


def test_an_abandoned_session_ends_and_the_engine_forgets_it(tmp_path: Path, synthetic: Any, watch: Any):
    async def test() -> None:
        rules = Rules(absence=0.3)
        async with served(synthetic.SyntheticModel(size=16), tmp_path, rules) as service:
            await measured(service, watch)
            guest = service.create(Start())
            watcher = watch(guest.session)
            await until(lambda: len(watcher.frames) > 6)
            engine = service.room.engine
            assert isinstance(engine, EngineThread)
            assert set(engine._host._seats) == {"live", guest.session.id}
            guest.session.detach(watcher.viewer)
            await until(lambda: guest.session.state == "ended" and not service.guests)
            await until(lambda: set(engine._host._seats) == {"live"})
            assert service.counters.sessions == {"idle_timeout": 1}
            assert service.find(guest.session.id) is None

    run(test)


def test_a_session_that_is_steered_over_http_alone_stays_as_long_as_it_is(
    tmp_path: Path, synthetic: Any, watch: Any
):
    async def test() -> None:
        rules = Rules(absence=0.5, queue_absence=0.5, max_sessions=1)
        async with served(synthetic.SyntheticModel(size=16), tmp_path, rules) as service:
            await measured(service, watch)
            guests = [service.create(Start()) for _ in range(2)]
            for _ in range(12):
                for guest in guests:
                    service.called(guest.session)
                await asyncio.sleep(0.1)
            assert [guest.session.state for guest in guests] == ["paused", "queued"]
            await until(lambda: not service.guests)
            assert service.counters.sessions == {"idle_timeout": 1, "queue_timeout": 1}

    run(test)


def test_who_leaves_the_queue_while_a_place_becomes_free_is_passed_over(tmp_path: Path, synthetic: Any):
    async def test() -> None:
        async with served(synthetic.SyntheticModel(size=16), tmp_path, Rules(max_sessions=0)) as service:
            first = service.create(Start()).session
            leaving = asyncio.create_task(first.close("client_stop"))
            await asyncio.sleep(0)
            assert first.state == "ended"
            assert service.queue_depth == 1  # for the rest of this moment
            service.rules = Rules(max_sessions=1)
            assert service.create(Start()).session.state == "starting"
            await leaving

    run(test)


def test_a_start_that_the_model_cannot_do_is_told_and_ends_that_session_alone(
    tmp_path: Path, synthetic: Any, watch: Any
):
    async def test() -> None:
        async with served(synthetic.SyntheticModel(size=16), tmp_path) as service:
            await measured(service, watch)
            watcher = watch(service.create(Start(steps=3)).session)
            await until(lambda: watcher.first(type="error", code="out_of_range") is not None)
            await until(lambda: not service.guests)
            again = watch(service.shared)
            await until(lambda: len(again.frames) > 12)

    run(test)
