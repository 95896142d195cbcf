"""One viewer's way out: a latest-frame slot, ack credits and a short queue, so that nobody makes us wait."""

import json
import math
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from typing import Any

from fewstep.streaming.encoding import EncodedFrame
from fewstep.streaming.protocol import BadMessage, Flags, pack_frame

CREDITS, MOST_CREDITS = 3, 12
GROUP_LIMIT = 64
ROUND_TRIPS = 8
QUEUE_LIMIT = 64
ACK_TIMEOUT_SECONDS = 10.0


class Viewer:
    """Outgoing state of one connection.

    Only as many frames as there are `credits` are under way unacknowledged; meanwhile newer frames replace
    the one that waits. Awaiting the socket alone would not do: megabytes fit into kernel buffers before a
    write blocks. Telemetry needs a credit too and only its latest message is kept.
    """

    def __init__(
        self,
        role: str,
        *,
        h264: bool = False,
        deaf: bool = False,
        client: str = "",
        wake: Callable[[], None] = lambda: None,
    ) -> None:
        self.role = role
        self.client = client
        self.deaf = deaf
        self.h264 = h264
        self.visible = True
        self.sent = 0
        self.sent_h264 = 0
        """How many of those as H.264."""
        self.dropped = 0
        self.rtt_seconds: float | None = None
        self._round_trips: deque[float] = deque(maxlen=ROUND_TRIPS)
        self.closing: tuple[int, str] | None = None
        self._wake = wake
        self._waiting: deque[EncodedFrame] = deque()
        self._in_flight: deque[tuple[int, float]] = deque()
        self._last_sent: int | None = None
        self._queue: deque[str] = deque()
        self._telemetry: OrderedDict[str, Mapping[str, Any]] = OrderedDict()
        self._fps = 0.0
        self._broken = True  # the next H.264 picture sent must be a key picture

    @property
    def credits(self) -> int:
        """How many frames may be under way: enough to fill the line, never enough to build up a lag."""
        if not self._round_trips:
            return CREDITS
        shortest = min(self._round_trips)  # a stall makes the line no longer
        return max(CREDITS, min(MOST_CREDITS, math.ceil(shortest * self._fps) + 2))

    def offer(self, frame: EncodedFrame) -> None:
        """Show this frame as soon as there is a credit, unless a newer one comes first.

        A JPEG replaces whatever waits. An H.264 picture needs those before it, so they wait together, and
        all give way to the next key picture.
        """
        if not self.visible:
            return
        self._fps = frame.fps
        delta = self.h264 and frame.h264 is not None and not frame.flags & Flags.FIRST_OF_CHUNK
        if not delta or len(self._waiting) >= GROUP_LIMIT:
            self.dropped += len(self._waiting)
            self._waiting.clear()
            self._broken = delta or frame.h264 is None
        if delta and self._broken:
            self.dropped += 1
            return
        self._waiting.append(frame)
        self._wake()

    @property
    def queued(self) -> int:
        """Messages that wait to be sent."""
        return len(self._queue)

    def post(self, message: Mapping[str, Any]) -> None:
        """Queue a message that must not be lost; a viewer that lets the queue fill is closed."""
        if self.deaf:
            return
        if len(self._queue) >= QUEUE_LIMIT:
            self.close(4008, "too slow: its message queue is full")
            return
        self._queue.append(json.dumps(message, separators=(",", ":")))
        self._wake()

    def post_latest(self, message: Mapping[str, Any]) -> None:
        """Send this unless a newer message of its type replaces it first."""
        if self.deaf:
            return
        self._telemetry[message["type"]] = message
        self._telemetry.move_to_end(message["type"])
        self._wake()

    def take(self, now: float) -> str | bytes | None:
        """The next thing to send, or None while there is nothing or no credit."""
        if self._queue:
            return self._queue.popleft()
        if len(self._in_flight) >= self.credits:
            return None
        if self._telemetry:
            _, message = self._telemetry.popitem(last=False)
            return json.dumps(message, separators=(",", ":"))
        frame = self.take_frame(now)
        if frame is None:
            return None
        h264 = self.h264 and frame.h264 is not None
        return pack_frame(frame, sent_us=time.time_ns() // 1000, h264=h264)

    def take_frame(self, now: float) -> EncodedFrame | None:
        """The next frame alone, for a reader that takes no messages."""
        if not self._waiting or len(self._in_flight) >= self.credits:
            return None
        frame = self._waiting.popleft()
        self._in_flight.append((frame.seq, now))
        self._last_sent = frame.seq
        self.sent += 1
        self.sent_h264 += self.h264 and frame.h264 is not None
        return frame

    def ack(self, seq: int, now: float) -> None:
        """Free the credits of every frame up to `seq`."""
        if self._last_sent is None or seq > self._last_sent:
            raise BadMessage("out_of_range", f"ack: frame {seq} was never sent", ref="ack")
        while self._in_flight and self._in_flight[0][0] <= seq:
            _, sent_at = self._in_flight.popleft()
            self.rtt_seconds = now - sent_at
            self._round_trips.append(self.rtt_seconds)
        self._wake()

    def set_visible(self, visible: bool) -> None:
        """A hidden page draws nothing and acknowledges nothing; neither is held against it."""
        self.visible = visible
        if visible:
            self._in_flight.clear()
        else:
            self._waiting.clear()
            self._broken = True
        self._wake()

    def stalled(self, now: float) -> bool:
        """True when a visible viewer owes an acknowledgement for too long."""
        return self.visible and bool(self._in_flight) and now - self._in_flight[0][1] > ACK_TIMEOUT_SECONDS

    def close(self, code: int, reason: str) -> None:
        """Ask the connection to end with this code once the queue is sent."""
        if self.closing is None:
            self.closing = (code, reason)
        self._wake()
