"""A session's frames for a reader that cannot acknowledge: the way its bytes go out is its only brake."""

import asyncio
import time
from collections.abc import AsyncIterator
from types import TracebackType

from fewstep.streaming.encoding import EncodedFrame
from fewstep.streaming.fanout import Viewer
from fewstep.streaming.session import LiveSession


class Tap:
    """`async with Tap(session) as tap`, then iterate; ends when the session does."""

    def __init__(self, session: LiveSession, *, h264: bool = False, client: str = "") -> None:
        self._session = session
        self._woken = asyncio.Event()
        self._viewer = Viewer("viewer", h264=h264, deaf=True, client=client, wake=self._woken.set)

    async def __aenter__(self) -> "Tap":
        self._session.attach(self._viewer)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._session.detach(self._viewer)

    async def __aiter__(self) -> AsyncIterator[EncodedFrame]:
        """Frame by frame; the next one is taken only when the reader has dealt with the last."""
        while self._viewer.closing is None:
            self._woken.clear()
            while (frame := self._viewer.take_frame(time.monotonic())) is not None:
                yield frame
                self._viewer.ack(frame.seq, time.monotonic())
            await self._woken.wait()
