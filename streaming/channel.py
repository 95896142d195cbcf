"""Messages between the server and its engine process: JSON and binary parts, nothing pickled."""

import asyncio
import json
import socket
import struct
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from fewstep.streaming.host import Control, Recorded, RecordOrder, Step
from fewstep.streaming.takes import Restart

PREFIX = struct.Struct("<II")
Fields = dict[str, Any]


def pack(fields: Mapping[str, Any], blobs: Sequence[bytes] = ()) -> bytes:
    """One message: two lengths, the JSON, the sizes of the parts, the parts."""
    text = json.dumps({**fields, "blobs": [len(blob) for blob in blobs]}).encode()
    return b"".join([PREFIX.pack(len(text), sum(map(len, blobs))), text, *blobs])


def unpack(text: bytes, body: bytes) -> tuple[Fields, list[bytes]]:
    """Inverse of `pack`, after the two lengths."""
    fields = json.loads(text)
    blobs, position = [], 0
    for length in fields.pop("blobs"):
        blobs.append(body[position : position + length])
        position += length
    return fields, blobs


async def read_message(reader: asyncio.StreamReader) -> tuple[Fields, list[bytes]]:
    """The next message; `IncompleteReadError` or `ConnectionError` when the other side is gone."""
    text, body = PREFIX.unpack(await reader.readexactly(PREFIX.size))
    return unpack(await reader.readexactly(text), await reader.readexactly(body))


class WorkerChannel:
    """The engine process's blocking end; any of its threads may send."""

    def __init__(self, connection: socket.socket) -> None:
        self._file = connection.makefile("rb")
        self._connection = connection
        self._sending = threading.Lock()

    def receive(self) -> Fields | None:
        """The next message, or None when the server is gone."""
        prefix = self._file.read(PREFIX.size)
        if len(prefix) < PREFIX.size:
            return None
        text, body = PREFIX.unpack(prefix)
        return unpack(self._file.read(text), self._file.read(body))[0]

    def send(self, fields: Mapping[str, Any], blobs: Sequence[bytes] = ()) -> None:
        with self._sending:
            self._connection.sendall(pack(fields, blobs))


def control_fields(control: Control) -> Fields:
    return asdict(control)


def control_from(fields: Mapping[str, Any]) -> Control:
    """Inverse of `control_fields`."""
    restart, record = fields["restart"], fields["record"]
    return Control(
        restart=None if restart is None else Restart(**restart),
        prompt=fields["prompt"],
        h264=fields["h264"],
        record=None if record is None else RecordOrder(**record),
    )


def step_fields(step: Step) -> tuple[Fields, list[bytes]]:
    """The step's numbers, and its pictures as binary parts: all JPEG, then all H.264."""
    recorded = None if step.recorded is None else asdict(step.recorded)
    fields = {"seconds": step.seconds, "window": step.window, "recorded": recorded}
    return {**fields, "frames": len(step.jpeg)}, [*step.jpeg, *(step.h264 or [])]


def step_from(fields: Mapping[str, Any], blobs: Sequence[bytes]) -> Step:
    """Inverse of `step_fields`."""
    count, recorded = fields["frames"], fields["recorded"]
    return Step(
        jpeg=list(blobs[:count]),
        h264=list(blobs[count:]) or None,
        seconds=fields["seconds"],
        window=fields["window"],
        recorded=None if recorded is None else Recorded(**recorded),
    )
