"""Sockets that go half, and signals in the middle of a chunk, at a real server."""

import asyncio
import base64
import json
import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import httpx
import pytest
from websockets.asyncio.client import connect
from websockets.typing import Subprotocol

from fewstep.streaming.protocol import SUBPROTOCOL, unpack_frame
from tests.waiting import idle_until

PATH = "/v1/sessions/live/stream"
WAIT_SECONDS = 120.0
CHUNK_SECONDS, EXIT_SECONDS = 1.5, 30.0

pytestmark = pytest.mark.slow


@pytest.fixture
def impatient(tmp_path: Path, start_server: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A server that asks for signs of life every second."""
    monkeypatch.setenv("FEWSTEP_TEST", json.dumps({"PING_SECONDS": 1.0, "UNHEARD_SECONDS": 3.0}))
    running = start_server(tmp_path)
    yield running
    running.stop(signal.SIGKILL)


def silent(server: Any, request: str, *said: dict[str, Any]) -> socket.socket:
    """A connection of which nothing comes after this, not even an acknowledgement: its cable is cut."""
    host, port = server.address.split(":")
    line = socket.create_connection((host, int(port)), timeout=WAIT_SECONDS)
    line.sendall(f"GET {request} HTTP/1.1\r\nHost: {server.address}\r\n".encode())
    key = base64.b64encode(os.urandom(16)).decode()
    if said:
        upgrade = (
            f"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: {key}\r\n"
            f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: {SUBPROTOCOL}\r\n"
        )
        line.sendall(upgrade.encode())
    line.sendall(b"\r\n")
    assert not said or b" 101 " in line.recv(4096)
    for message in said:
        text = json.dumps(message).encode()
        assert len(text) < 126
        line.sendall(bytes([0x81, 0x80 | len(text), 0, 0, 0, 0]) + text)  # masked with zeros
    return line


def await_bytes(line: socket.socket, wanted: bytes) -> None:
    """Read until these have come, and nothing from then on."""
    seen = b""
    while wanted not in seen:
        part = line.recv(1024)
        assert part
        seen = seen[-len(wanted) :] + part


def viewers(server: Any) -> int:
    return httpx.get(server.url + "v1/sessions").json()[0]["viewers"]


@pytest.mark.parametrize("visible", [True, False])
def test_a_half_open_socket_is_noticed_and_forgotten(impatient: Any, visible: bool):
    """Also one that owes no acknowledgement, because its page was hidden."""
    hello, view = {"type": "hello", "role": "controller"}, {"type": "view", "visible": visible}
    with silent(impatient, PATH, hello, view) as line:
        await_bytes(line, b'"welcome"')
        idle_until(lambda: viewers(impatient) == 0)


def test_a_half_open_reader_of_plain_http_does_not_keep_the_engine_busy(impatient: Any):
    with silent(impatient, "/v1/sessions/live/live.mjpeg") as line:
        await_bytes(line, b"image/jpeg")
        idle_until(lambda: viewers(impatient) == 0)


def test_sigterm_in_the_middle_of_a_chunk_loses_nothing_that_was_recorded(
    tmp_path: Path, start_server: Any, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("FEWSTEP_TEST", json.dumps({"chunk_seconds": CHUNK_SECONDS}))
    server = start_server(tmp_path)
    recorded: list[int] = []
    told: list[dict[str, Any]] = []

    async def test() -> int | None:
        options = {"subprotocols": [Subprotocol(SUBPROTOCOL)], "proxy": None}
        async with connect(f"ws://{server.address}{PATH}", **options) as line:
            await line.send(json.dumps({"type": "hello"}))
            async for item in line:
                if isinstance(item, str):
                    told.append(json.loads(item))
                    if told[-1]["type"] == "model" or told[-1].get("model"):
                        await line.send(json.dumps({"type": "record.start"}))
                    continue
                frame = unpack_frame(item)[0]
                await line.send(json.dumps({"type": "ack", "seq": frame.seq}))
                recorded.extend([frame.seq] if frame.flags & 16 else [])
                if len(recorded) == 8:  # the second recorded chunk plays, and the third is being made
                    server.process.send_signal(signal.SIGTERM)
            return line.close_code

    began = time.monotonic()
    assert asyncio.run(asyncio.wait_for(test(), WAIT_SECONDS)) == 1001
    assert told[-1] == {"type": "bye", "reason": "shutdown"}
    _, errors = server.process.communicate(timeout=EXIT_SECONDS)
    assert (server.process.returncode, errors) == (0, "")
    assert time.monotonic() - began < WAIT_SECONDS
    (path,) = tmp_path.glob("rec_*.mp4")
    with av.open(str(path)) as container:
        frames = sum(1 for _ in container.decode(video=0))
    assert frames >= len(recorded)
    assert frames % 6 == 0  # whole chunks
    assert not list(tmp_path.glob("*.part.mp4"))
