"""A session's pictures as plain HTTP bodies without end: MJPEG and fragmented MP4."""

import asyncio
from collections.abc import AsyncIterator

from fewstep.streaming.encoding import EncodedFrame
from fewstep.streaming.h264 import LiveMp4
from fewstep.streaming.protocol import Flags
from fewstep.streaming.session import LiveSession
from fewstep.streaming.tap import Tap

BOUNDARY = "fewstep-frame"
MJPEG_TYPE = f"multipart/x-mixed-replace; boundary={BOUNDARY}"


async def live_mjpeg(session: LiveSession, client: str) -> AsyncIterator[bytes]:
    """Parts with the boundary behind each: browsers show a part only when they have seen its end."""
    yield f"--{BOUNDARY}\r\n".encode()
    async with Tap(session, client=client) as tap:
        async for frame in tap:
            head = f"Content-Type: image/jpeg\r\nContent-Length: {len(frame.payload)}\r\n\r\n"
            yield head.encode() + frame.payload + f"\r\n--{BOUNDARY}\r\n".encode()


async def live_mp4(session: LiveSession, client: str) -> AsyncIterator[bytes]:
    """A chunk at a time, from the first whole one on."""
    group: list[bytes] = []
    writer: LiveMp4 | None = None
    async with Tap(session, client=client, h264=True) as tap:
        async for frame in tap:
            if frame.flags & Flags.FIRST_OF_CHUNK and group:
                writer = writer or LiveMp4(frame.fps)
                data = await asyncio.to_thread(writer.add, group)
                group = []
                if data:
                    yield data
            _collect(group, frame)


def _collect(group: list[bytes], frame: EncodedFrame) -> None:
    """Pictures of one chunk; those before its key picture are of no use."""
    if frame.h264 is not None and (group or frame.flags & Flags.FIRST_OF_CHUNK):
        group.append(frame.h264)
