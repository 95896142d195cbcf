"""Who watches a stream over its WebSocket, and steers it."""

import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed
from websockets.typing import Subprotocol

from fewstep.streaming.encoding import EncodedFrame
from fewstep.streaming.protocol import SUBPROTOCOL, Flags, unpack_frame

HELLO = {"type": "hello", "role": "controller", "codecs": ["jpeg"]}
PATH = "/v1/sessions/live/stream"


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
    raise AssertionError("closed before the model was there")


async def next_frame(
    socket: ClientConnection, wanted: Callable[[EncodedFrame], bool] = lambda frame: True, *, ack: bool = True
) -> EncodedFrame:
    """The next one that is wanted."""
    async for event in events(socket, ack=ack):
        if isinstance(event, EncodedFrame) and wanted(event):
            return event
    raise AssertionError("closed before such a frame")


def is_recorded(frame: EncodedFrame) -> bool:
    return bool(frame.flags & Flags.RECORDING)


async def close_code(socket: ClientConnection) -> int | None:
    try:
        async for _ in socket:
            pass
    except ConnectionClosed:
        pass
    return socket.close_code


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
