"""Viewers of one stream over its WebSocket: greeted, limited, refused, stalled, vanished."""

import asyncio
import io
import json
from typing import Any

import httpx
import pytest
from PIL import Image
from websockets.typing import Origin

from fewstep.streaming.encoding import EncodedFrame
from fewstep.streaming.protocol import MAX_MESSAGE_BYTES, MAX_PROMPT_CHARACTERS
from tests.apps.stream_client import HELLO, PATH, close_code, dial, events, loaded, next_frame, say, wait_for
from tests.waiting import run

STALL_SECONDS, BACK_LIVE_SECONDS = 5.0, 0.5


def test_a_viewer_is_greeted_and_gets_frames_that_decode(shared_server: Any):
    async def test() -> None:
        async with dial(shared_server) as socket:
            await say(socket, **HELLO)
            first = json.loads(await socket.recv())
            assert first["type"] == "welcome"
            frames = [await next_frame(socket) for _ in range(8)]
            assert [frame.seq for frame in frames] == list(range(frames[0].seq, frames[0].seq + 8))
            with Image.open(io.BytesIO(frames[-1].payload)) as picture:
                assert picture.size == (96, 96)
                assert picture.convert("RGB").getextrema() != ((0, 0), (0, 0), (0, 0))

    run(test)


def test_bad_messages_get_an_error_and_the_third_one_closes(shared_server: Any):
    async def test() -> None:
        async with dial(shared_server) as socket:
            await say(socket, **HELLO)
            await loaded(socket)
            before = httpx.get(shared_server.url + "v1/sessions/live").json()
            for text in ("", "   ", "x" * (MAX_PROMPT_CHARACTERS + 1)):
                await say(socket, type="prompt", text=text)
                error = await wait_for(socket, "error")
                assert error["code"] in ("prompt_empty", "prompt_too_long")
            await socket.send("{broken")
            assert (await wait_for(socket, "error"))["code"] == "invalid_json"
            await socket.send(b"\x00\x01")
            assert "binary" in (await wait_for(socket, "error"))["message"]
            await say(socket, type="launch")
            assert "unknown message type" in (await wait_for(socket, "error"))["message"]
            assert await close_code(socket) == 4400
            after = httpx.get(shared_server.url + "v1/sessions/live").json()
            keys = ("seed", "steps", "sink", "prompt", "steering")
            assert {key: after[key] for key in keys} == {key: before[key] for key in keys}

    run(test)


def test_an_oversized_message_closes_the_connection(shared_server: Any):
    async def test() -> None:
        async with dial(shared_server) as socket:
            await say(socket, **HELLO)
            await say(socket, type="prompt", text="x" * (MAX_MESSAGE_BYTES + 1))
            assert await close_code(socket) == 1009

    run(test)


@pytest.mark.parametrize(
    ("path", "options", "hello", "code"),
    [
        (PATH, {"subprotocols": None}, None, 4406),
        ("/v1/sessions/other/stream", {}, None, 4404),
        (PATH, {"origin": Origin("https://evil.example")}, None, 4403),
        (PATH, {}, {"type": "pause"}, 4400),
        (PATH, {}, {**HELLO, "codecs": ["h264"]}, 4406),
        ("/v1/sessions/" + "x" * 22 + "/stream", {}, None, 4404),
        (PATH, {}, {**HELLO, "session": "other"}, 4404),
    ],
)
def test_wrong_handshakes_are_closed_with_their_code(
    shared_server: Any, path: str, options: dict[str, Any], hello: dict[str, Any] | None, code: int
):
    async def test() -> None:
        async with dial(shared_server, path, **options) as socket:
            if hello is not None:
                await say(socket, **hello)
            assert await close_code(socket) == code

    run(test)


def test_a_viewer_may_watch_but_not_steer(shared_server: Any):
    async def test() -> None:
        async with dial(shared_server) as socket:
            await say(socket, **{**HELLO, "role": "viewer"})
            await say(socket, type="ping", t=1.5)
            assert (await wait_for(socket, "pong"))["t"] == 1.5
            await say(socket, type="pause")
            assert (await wait_for(socket, "error"))["code"] == "forbidden"

    run(test)


def test_a_flood_of_messages_is_limited_and_then_closed(shared_server: Any):
    async def test() -> None:
        async with dial(shared_server) as socket:
            await say(socket, **HELLO)
            for number in range(200):
                await say(socket, type="ping", t=float(number))
            assert await close_code(socket) == 4429

    run(test)


def test_a_reader_that_stops_does_not_hold_up_another_and_comes_back_live(shared_server: Any):
    async def test() -> None:
        async with dial(shared_server) as slow, dial(shared_server) as quick:
            await say(slow, **HELLO)
            await say(quick, **HELLO)
            held = [(await next_frame(slow, ack=False)).seq for _ in range(3)]
            newest = (await next_frame(quick, lambda frame: frame.seq >= held[-1] + 24)).seq
            await say(slow, type="ack", seq=held[-1])
            assert (await next_frame(slow)).seq >= newest

    run(test)


def test_http_errors_are_problem_documents(shared_server: Any):
    for path in ("v1/sessions/other", "v1/recordings/rec_x.mp4", "v1/recordings/..%2Fsecret"):
        answer = httpx.get(shared_server.url + path)
        assert answer.status_code == 404
    problem = httpx.get(shared_server.url + "v1/recordings/nothing.mp4")
    assert problem.headers["content-type"] == "application/problem+json"
    assert problem.json()["code"] == "unknown_recording"


@pytest.mark.slow
def test_a_viewer_that_stops_reading_for_five_seconds_is_live_again_within_half_a_second(server: Any):
    async def test() -> None:
        async with dial(server) as stalled, dial(server) as quick:
            await say(stalled, **HELLO)
            await say(quick, **HELLO)
            newest = 0

            async def read() -> None:
                nonlocal newest
                async for event in events(quick):
                    if isinstance(event, EncodedFrame):
                        newest = event.seq

            reader = asyncio.create_task(read())
            await next_frame(stalled)
            begun = newest
            await asyncio.sleep(STALL_SECONDS)
            resumed, live = asyncio.get_running_loop().time(), newest
            assert live > begun + 10  # the other viewer went on meanwhile
            await next_frame(stalled, lambda frame: frame.seq >= live)
            assert asyncio.get_running_loop().time() - resumed < BACK_LIVE_SECONDS
            reader.cancel()

    run(test)


@pytest.mark.slow
def test_a_client_that_vanishes_in_the_middle_of_a_frame_is_forgotten(server: Any):
    async def test() -> None:
        for _ in range(20):
            socket = await dial(server)
            await say(socket, **HELLO)
            await socket.recv()
            socket.transport.abort()
        async with dial(server) as watcher:
            await say(watcher, **HELLO)
            while httpx.get(server.url + "v1/sessions").json()[0]["viewers"] != 1:
                await asyncio.sleep(0.1)
            await next_frame(watcher)

    run(test)
