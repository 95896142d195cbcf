import asyncio
import io
import json
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import av
import httpx
import pytest
from PIL import Image
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed
from websockets.typing import Origin, Subprotocol

from fewstep.apps.guard import allowed_host, same_origin
from fewstep.streaming.encoding import EncodedFrame
from fewstep.streaming.protocol import MAX_MESSAGE_BYTES, MAX_PROMPT_CHARACTERS, SUBPROTOCOL, unpack_frame
from fewstep.streaming.recording import read_metadata

HELLO = {"type": "hello", "role": "controller", "codecs": ["jpeg"]}
PATH = "/v1/sessions/live/stream"
SECONDS = 120.0
"""How long a test waits for what must happen; reached only by a failure or on a machine that is busy."""


def dial(server: Any, path: str = PATH, **options: Any) -> Any:
    options = {"subprotocols": [Subprotocol(SUBPROTOCOL)], "proxy": None, **options}
    return connect(f"ws://{server.address}{path}", **options)


async def say(socket: ClientConnection, **message: Any) -> None:
    await socket.send(json.dumps(message))


async def events(
    socket: ClientConnection, *, ack: bool = True
) -> AsyncIterator[dict[str, Any] | EncodedFrame]:
    async for item in socket:
        if isinstance(item, str):
            yield json.loads(item)
            continue
        frame = unpack_frame(item)[0]
        if ack:
            await say(socket, type="ack", seq=frame.seq)
        yield frame


async def wait_for(socket: ClientConnection, kind: str) -> dict[str, Any]:
    async for event in events(socket):
        if isinstance(event, dict) and event["type"] == kind:
            return event
    raise AssertionError(f"closed before {kind}")


async def loaded(socket: ClientConnection) -> None:
    """Until the server has said what its model is, in the welcome or after it."""
    async for event in events(socket):
        if isinstance(event, dict) and (event["type"] == "model" or event.get("model")):
            return


async def close_code(socket: ClientConnection) -> int | None:
    try:
        async for _ in socket:
            pass
    except ConnectionClosed:
        pass
    return socket.close_code


def run(test: Any) -> None:
    async def limited() -> None:
        async with asyncio.timeout(SECONDS):
            await test()

    asyncio.run(limited())


def test_a_viewer_is_greeted_and_gets_frames_that_decode(shared_server: Any):
    async def test() -> None:
        async with dial(shared_server) as socket:
            await say(socket, **HELLO)
            first = json.loads(await socket.recv())
            assert first["type"] == "welcome"
            frames = []
            async for event in events(socket):
                if isinstance(event, EncodedFrame):
                    frames.append(event)
                if len(frames) == 8:
                    break
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
            held: list[int] = []
            async for event in events(slow, ack=False):
                held += [event.seq] if isinstance(event, EncodedFrame) else []
                if len(held) == 3:
                    break
            newest = 0
            async for event in events(quick):
                newest = event.seq if isinstance(event, EncodedFrame) else newest
                if newest >= held[-1] + 24:
                    break
            await say(slow, type="ack", seq=held[-1])
            async for event in events(slow):
                if isinstance(event, EncodedFrame):
                    assert event.seq >= newest
                    break

    run(test)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_says_goodbye_finishes_the_recording_and_exits_with_zero(
    server: Any, number: int, tmp_path: Path
):
    async def test() -> None:
        async with dial(server) as socket:
            await say(socket, **HELLO)
            await loaded(socket)
            await say(socket, type="record.start")
            seen = 0
            async for event in events(socket):
                seen += isinstance(event, EncodedFrame) and bool(event.flags & 16)
                if seen == 8:
                    break
            stopping = asyncio.create_task(asyncio.to_thread(server.stop, number))
            assert (await wait_for(socket, "bye"))["reason"] == "shutdown"
            assert await close_code(socket) == 1001
            code, errors = await stopping
            assert (code, errors) == (0, "")

    run(test)
    (recording,) = tmp_path.glob("rec_*.mp4")
    with av.open(str(recording)) as container:
        assert sum(1 for _ in container.decode(video=0)) >= 8


def test_http_answers_carry_the_security_headers_and_no_page_names_another_host(shared_server: Any):
    page = httpx.get(shared_server.url)
    assert page.status_code == 200
    policy = page.headers["content-security-policy"]
    assert "default-src 'self'" in policy
    assert "unsafe" not in policy
    assert page.headers["x-content-type-options"] == "nosniff"
    web = Path(str(sys.modules["fewstep.apps"].__path__[0])) / "web"
    for path in web.rglob("*"):
        if path.suffix in (".html", ".css", ".js"):
            text = path.read_text()
            assert "http://" not in text
            assert "https://" not in text
    assert httpx.get(shared_server.url + "docs").status_code == 404


def test_http_errors_are_problem_documents(shared_server: Any):
    for path in ("v1/sessions/other", "v1/recordings/rec_x.mp4", "v1/recordings/..%2Fsecret"):
        answer = httpx.get(shared_server.url + path)
        assert answer.status_code == 404
    problem = httpx.get(shared_server.url + "v1/recordings/nothing.mp4")
    assert problem.headers["content-type"] == "application/problem+json"
    assert problem.json()["code"] == "unknown_recording"


def test_a_foreign_host_header_is_refused(shared_server: Any):
    assert httpx.get(shared_server.url, headers={"Host": "rebind.example"}).status_code == 400


@pytest.mark.parametrize(
    ("host", "allowed"),
    [
        ("127.0.0.1:8765", True),
        ("localhost", True),
        ("LOCALHOST:1", True),
        ("[::1]:8765", True),
        ("", False),
        ("example.org", False),
        ("127.0.0.1.example.org", False),
        ("localhost@example.org", False),
        ("[", False),
    ],
)
def test_only_loopback_names_are_hosts(host: str, allowed: bool):
    assert allowed_host(host) is allowed


def test_the_origin_must_be_our_own_page():
    assert same_origin(None, "localhost:1")
    assert same_origin("http://localhost:1", "localhost:1")
    assert not same_origin("http://localhost:2", "localhost:1")
    assert not same_origin("null", "localhost:1")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--host", "0.0.0.0"], "ssh -L"),
        (["--port", "99999"], "--port"),
        (["--seed", "-1"], "--seed"),
        (["--prompt", "  "], "empty"),
    ],
)
def test_impossible_arguments_are_refused_in_one_line(arguments: list[str], message: str, capsys: Any):
    from fewstep.apps.cli import main

    assert main(["stream", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_taken_port_is_refused_in_one_line(shared_server: Any, capsys: Any):
    from fewstep.apps.cli import main

    assert main(["stream", "--port", shared_server.address.split(":")[1]]) == 2
    assert "choose another --port" in capsys.readouterr().err


def test_a_model_that_does_not_exist_ends_the_command_with_its_reason(tmp_path: Path):
    arguments = ["stream", "no-such-model", "--port", "0"]
    code = f"import sys; from fewstep.apps.cli import main; sys.exit(main({arguments}))"
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], capture_output=True, text=True, cwd=tmp_path, timeout=60
    )
    assert done.returncode == 2
    assert "no-such-model" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_server_can_be_imported_without_torch():
    modules = "fewstep.apps.server, fewstep.apps.stream, fewstep.apps.video"
    code = f"import sys, {modules}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "False", done.stderr


STALL_SECONDS, BACK_LIVE_SECONDS = 5.0, 0.5


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
            async for event in events(stalled):
                if isinstance(event, EncodedFrame):
                    break
            begun = newest
            await asyncio.sleep(STALL_SECONDS)
            resumed, live = asyncio.get_running_loop().time(), newest
            assert live > begun + 10  # the other viewer went on meanwhile
            async for event in events(stalled):
                if isinstance(event, EncodedFrame) and event.seq >= live:
                    break
            assert asyncio.get_running_loop().time() - resumed < BACK_LIVE_SECONDS
            reader.cancel()

    run(test)


@pytest.mark.slow
def test_a_server_killed_while_recording_loses_less_than_a_second_and_leaves_no_engine(
    tmp_path: Path, start_server: Any
):
    async def test() -> None:
        first = start_server(tmp_path)
        async with dial(first) as socket:
            await say(socket, **HELLO)
            await loaded(socket)
            engines = children(first.process.pid)
            await say(socket, type="record.start")
            recorded = 0
            async for event in events(socket):
                recorded += isinstance(event, EncodedFrame) and bool(event.flags & 16)
                if recorded == 40:
                    break
            first.process.kill()
            first.process.communicate()
        assert len(engines) == 1
        while any(Path(f"/proc/{pid}").exists() for pid in engines):
            await asyncio.sleep(0.05)
        second = start_server(tmp_path)
        try:
            while not (files := httpx.get(second.url + "v1/recordings").json()):
                await asyncio.sleep(0.1)
        finally:
            second.stop()
        path = tmp_path / files[0]["name"]
        metadata = read_metadata(path)
        assert metadata["recovered"] is True
        assert metadata["frames"] >= recorded - 12  # one second of the synthetic model
        with av.open(str(path)) as container:
            assert sum(1 for _ in container.decode(video=0)) == metadata["frames"]

    run(test)


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


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
            async for event in events(watcher):
                if isinstance(event, EncodedFrame):
                    break

    run(test)
