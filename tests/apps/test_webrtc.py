"""WebRTC on the loopback interface, both ends in this process: what arrives, is refused, and is left."""

import asyncio
import contextlib
import hashlib
import os
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from fewstep.apps import webrtc_api
from fewstep.apps.access import Access
from fewstep.apps.front import create_front
from fewstep.apps.server import create_app
from fewstep.apps.webrtc_api import REACHED_AT
from fewstep.streaming.engine_thread import EngineThread
from fewstep.streaming.room import EngineRoom
from fewstep.streaming.service import StreamService
from fewstep.streaming.takes import Start
from tests.apps.webrtc_watcher import Watcher
from tests.waiting import SECONDS, run, until

PROMPT, OTHER = "the first colour", "another colour"
TOLERANCE = 12  # of 255: limited range, halved chroma and quantisation
PATH = "/v1/sessions/live/webrtc/offer"
NOTHING = "v=0\r\no=- 1 1 IN IP4 0.0.0.0\r\ns=-\r\nt=0 0\r\n"

needs_aiortc = pytest.mark.skipif(not webrtc_api.available(), reason="needs aiortc: pip install aiortc")


def colour(prompt: str) -> np.ndarray:
    """What the whole picture shows under a prompt."""
    return np.frombuffer(hashlib.sha256(prompt.encode()).digest()[:3], np.uint8).astype(int)


class Here:
    """A service whose pictures have one colour, and an HTTP client that calls its application directly."""

    def __init__(self, service: StreamService, app: Any, http: httpx.AsyncClient) -> None:
        self.service, self.app, self.http = service, app, http

    async def offer(self, sdp: str) -> httpx.Response:
        return await self.http.post(PATH, json={"sdp": sdp})

    @property
    def empty(self) -> bool:
        return not self.service.shared.viewers and not self.service.counters.webrtc_peers


@contextlib.asynccontextmanager
async def running(
    synthetic: Any, folder: Path, access: Access | None = None, replica: int | None = None
) -> AsyncIterator[Here]:
    model = synthetic.SyntheticModel(fps=30.0, size=64)
    model.texture = lambda features: np.full((64, 64, 3), np.frombuffer(features[:3], np.uint8), np.uint8)
    room = EngineRoom(lambda: EngineThread(lambda: model))
    start = Start(seed=1, prompt=PROMPT)
    service = StreamService(room, start=start, record_dir=folder, replica=replica)
    app = create_app(service, access=access)
    http = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1", timeout=60)
    async with http:
        task = asyncio.create_task(service.run())
        try:
            await until(lambda: service.shared.state == "paused")
            yield Here(service, app, http)
        finally:
            await service.close()
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def shows(watcher: Watcher, wanted: np.ndarray) -> bool:
    frame = await watcher.picture()
    assert frame.shape == (64, 64, 3)
    return bool(np.abs(frame - wanted).max() <= TOLERANCE)


@contextlib.asynccontextmanager
async def watching(here: Here) -> AsyncIterator[Watcher]:
    watcher = Watcher()
    try:
        await watcher.accept(await here.offer(await watcher.offer()))
        yield watcher
    finally:
        await watcher.connection.close()


async def unsent(*_: Any) -> None:
    """What becomes of data on a dead line."""


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


@needs_aiortc
def test_the_picture_arrives_follows_the_prompt_and_leaves_nothing_behind(synthetic: Any, tmp_path: Path):
    assert np.abs(colour(PROMPT) - colour(OTHER)).max() > 4 * TOLERANCE, "the test tells them apart"

    async def once(here: Here) -> None:
        async with watching(here) as watcher, asyncio.timeout(SECONDS):
            here.service.shared.prompt(PROMPT)
            while not await shows(watcher, colour(PROMPT)):
                pass
            assert here.service.shared.state == "running"
            assert [viewer.h264 for viewer in here.service.shared.viewers] == [True]
            assert here.service.counters.webrtc_peers == 1
            here.service.shared.prompt(OTHER)
            while not await shows(watcher, colour(OTHER)):
                pass
        await until(lambda: here.empty)

    async def test() -> None:
        async with running(synthetic, tmp_path) as here:
            await once(here)  # loads what is loaded once
            tasks, files = len(asyncio.all_tasks()), open_files()
            await once(here)
            await until(lambda: here.service.shared.state == "paused")
            await until(lambda: len(asyncio.all_tasks()) <= tasks)
            assert open_files() <= files
            page = (await here.http.get("/metrics")).text
            assert "fewstep_webrtc_peers 0.0" in page
            sent = [
                line
                for line in page.splitlines()
                if line.startswith('fewstep_frames_sent_total{codec="h264"}')
            ]
            assert float(sent[0].split()[1]) > 10

    run(test)


@needs_aiortc
def test_it_listens_where_it_was_reached_and_sends_to_nobody_who_was_only_named(
    synthetic: Any, tmp_path: Path
):
    async def test() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as bystander:
            bystander.bind(("127.0.0.1", 0))
            bystander.setblocking(False)
            port = bystander.getsockname()[1]
            async with running(synthetic, tmp_path) as here:
                watcher = Watcher()
                lines = (await watcher.offer()).splitlines()
                named = [line for line in lines if line.startswith("a=candidate:")]
                assert named
                fields = named[0].split()
                fields[4:6] = "127.0.0.1", str(port)
                kept = [line for line in lines if line not in named]
                answer = await here.offer("\r\n".join([*kept, " ".join(fields), ""]))
                sdp = await watcher.accept(answer)
                candidates = [line.split() for line in sdp.splitlines() if line.startswith("a=candidate:")]
                assert {(c[4], c[7]) for c in candidates} == {("127.0.0.1", "host")}
                async with asyncio.timeout(SECONDS):
                    await shows(watcher, colour(PROMPT))
                with pytest.raises(BlockingIOError):
                    bystander.recv(1)
                await watcher.connection.close()
                await until(lambda: here.empty)

    run(test)


class OneReplica:
    ports = (1,)


def client_of_front(app: Any, monkeypatch: pytest.MonkeyPatch, address: str) -> httpx.AsyncClient:
    """Of the front before this replica, reached at this address, and claiming another."""
    inner = httpx.AsyncClient(transport=httpx.ASGITransport(app))
    with monkeypatch.context() as patch:
        patch.setattr(httpx, "AsyncClient", lambda **_: inner)
        front = create_front(OneReplica())
    claim = {REACHED_AT: "127.0.0.9"}
    return httpx.AsyncClient(
        transport=httpx.ASGITransport(front), base_url=f"http://{address}", headers=claim, timeout=60
    )


@needs_aiortc
@pytest.mark.parametrize(("replica", "listens"), [(0, "127.0.0.2"), (None, "127.0.0.1")])
def test_a_replica_listens_where_its_front_was_reached_and_others_believe_no_such_header(
    synthetic: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, replica: int | None, listens: str
):
    async def test() -> None:
        async with running(synthetic, tmp_path, Access(hosts=["127.0.0.2"]), replica) as here:
            through = client_of_front(here.app, monkeypatch, "127.0.0.2")
            watcher = Watcher()
            async with through, asyncio.timeout(SECONDS):
                sdp = await watcher.accept(
                    await Here(here.service, here.app, through).offer(await watcher.offer())
                )
                (candidate,) = [line.split() for line in sdp.splitlines() if line.startswith("a=candidate:")]
                assert candidate[4] == listens
                while not await shows(watcher, colour(PROMPT)):
                    pass
            await watcher.connection.close()
            await until(lambda: here.empty)

    run(test)


@needs_aiortc
def test_the_end_of_the_session_ends_the_connection(synthetic: Any, tmp_path: Path):
    from aiortc.mediastreams import MediaStreamError

    async def test() -> None:
        async with running(synthetic, tmp_path) as here, watching(here) as watcher:
            async with asyncio.timeout(SECONDS):
                await shows(watcher, colour(PROMPT))
                await here.service.shared.close()
                with contextlib.suppress(MediaStreamError):
                    while True:
                        await watcher.receiver.track.recv()
            await until(lambda: here.empty)

    run(test)


@needs_aiortc
def test_a_viewer_that_vanishes_is_noticed_and_forgotten(
    synthetic: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from aioice import ice

    monkeypatch.setattr(ice, "CONSENT_INTERVAL", 0.05)
    monkeypatch.setattr(ice, "CONSENT_FAILURES", 1)

    async def test() -> None:
        async with running(synthetic, tmp_path) as here, watching(here) as watcher:
            async with asyncio.timeout(SECONDS):
                await shows(watcher, colour(PROMPT))
            line = watcher.receiver.transport.transport.iceGatherer._connection
            line._query_consent_task.cancel()
            for end in line._protocols:  # as if its network were gone: nothing in, nothing out
                end.datagram_received = end.send_stun = lambda *_: None
                end.send_data = unsent
            await until(lambda: here.empty)

    run(test)


@needs_aiortc
def test_what_is_no_offer_of_one_h264_video_is_refused_and_leaves_nothing(synthetic: Any, tmp_path: Path):
    async def test() -> None:
        async with running(synthetic, tmp_path) as here:
            good = Watcher()
            offer = await good.offer()
            other = Watcher("video/VP8")
            bad = {
                "": 422,
                "v=0": 422,
                "\x00\ud7ff{}": 422,
                NOTHING: 422,
                offer.replace("recvonly", "sendonly"): 422,
                offer.replace("m=video", "m=audio"): 422,
                offer + offer[offer.index("m=video") :]: 422,
                offer.replace("a=ice-pwd", "a=ice-nothing"): 422,
                await other.offer(): 415,
            }
            for sdp, status in bad.items():
                answer = await here.offer(sdp)
                assert (answer.status_code, here.empty) == (status, True), (sdp, answer.text)
                assert answer.json()["detail"].startswith("sdp: ")
            for watcher in (good, other):
                await watcher.connection.close()

    run(test)


@needs_aiortc
def test_places_are_limited_and_given_back_by_who_never_comes(
    synthetic: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from fewstep.streaming import webrtc

    monkeypatch.setattr(webrtc, "PEERS_PER_CLIENT", 1)
    monkeypatch.setattr(webrtc, "CONNECT_SECONDS", 0.5)

    async def test() -> None:
        async with running(synthetic, tmp_path) as here:
            first = Watcher()
            offer = await first.offer()
            assert (await here.offer(offer)).status_code == 200
            refused = await here.offer(offer)
            assert (refused.status_code, refused.json()["code"]) == (503, "server_full")
            await until(lambda: here.empty)
            assert (await here.offer(offer)).status_code == 200
            await until(lambda: here.empty)
            await first.connection.close()

    run(test)


def test_the_door_is_the_same_as_everywhere(synthetic: Any, tmp_path: Path):
    async def test() -> None:
        async with running(synthetic, tmp_path, Access("a-token-of-enough-letters")) as here:
            assert (await here.offer(NOTHING)).status_code == 401
        async with running(synthetic, tmp_path) as here:
            foreign = {"Origin": "https://evil.example"}
            assert (await here.http.post(PATH, json={"sdp": ""}, headers=foreign)).status_code == 403
            assert (await here.http.post(PATH.replace("live", "none"), json={"sdp": ""})).status_code == 404
            assert (await here.http.post(PATH, json={"sdp": "x" * 40_000})).status_code == 422

    run(test)


def test_without_the_package_the_answer_names_it(
    synthetic: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delitem(sys.modules, "fewstep.streaming.webrtc", raising=False)
    monkeypatch.setitem(sys.modules, "aiortc", None)
    monkeypatch.setattr("fewstep.apps.server.available", lambda: False)

    async def test() -> None:
        async with running(synthetic, tmp_path) as here:
            answer = await here.offer(NOTHING)
            assert (answer.status_code, answer.json()["code"]) == (501, "unsupported")
            assert answer.json()["detail"] == "WebRTC needs a package: pip install 'fewstep[webrtc]'"
            assert (await here.http.get("/v1/engine")).json()["transports"] == ["websocket"]

    run(test)


def test_the_server_says_what_it_can(synthetic: Any, tmp_path: Path):
    async def test() -> None:
        async with running(synthetic, tmp_path) as here:
            said = (await here.http.get("/v1/engine")).json()["transports"]
            assert said == ["websocket", *["webrtc"] * webrtc_api.available()]

    run(test)
