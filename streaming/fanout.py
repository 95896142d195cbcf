"""One viewer's way out: a latest-frame slot, ack credits and a short queue, so that nobody makes us wait."""

import json
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from typing import Any

from fewstep.streaming.encoding import EncodedFrame
from fewstep.streaming.protocol import BadMessage, pack_frame

CREDITS = 3
QUEUE_LIMIT = 64
ACK_TIMEOUT_SECONDS = 10.0


class Viewer:
    """Outgoing state of one connection.

    At most `CREDITS` frames are under way unacknowledged; meanwhile newer frames overwrite the slot. Awaiting
    the socket alone would not do: megabytes fit into kernel buffers before a write blocks. Telemetry needs a
    credit too and only its latest message is kept.
    """

    def __init__(self, role: str, *, wake: Callable[[], None] = lambda: None) -> None:
        self.role = role
        self.visible = True
        self.sent = 0
        self.dropped = 0
        self.rtt_seconds: float | None = None
        self.closing: tuple[int, str] | None = None
        self._wake = wake
        self._slot: EncodedFrame | None = None
        self._in_flight: deque[tuple[int, float]] = deque(maxlen=CREDITS)
        self._last_sent: int | None = None
        self._queue: deque[str] = deque()
        self._telemetry: OrderedDict[str, Mapping[str, Any]] = OrderedDict()

    def offer(self, frame: EncodedFrame) -> None:
        """Show this frame as soon as there is a credit, unless a newer one comes first."""
        if not self.visible:
            return
        if self._slot is not None:
            self.dropped += 1
        self._slot = frame
        self._wake()

    @property
    def queued(self) -> int:
        """Messages that wait to be sent."""
        return len(self._queue)

    def post(self, message: Mapping[str, Any]) -> None:
        """Queue a message that must not be lost; a viewer that lets the queue fill is closed."""
        if len(self._queue) >= QUEUE_LIMIT:
            self.close(4008, "too slow: its message queue is full")
            return
        self._queue.append(json.dumps(message, separators=(",", ":")))
        self._wake()

    def post_latest(self, message: Mapping[str, Any]) -> None:
        """Send this unless a newer message of its type replaces it first."""
        self._telemetry[message["type"]] = message
        self._telemetry.move_to_end(message["type"])
        self._wake()

    def take(self, now: float) -> str | bytes | None:
        """The next thing to send, or None while there is nothing or no credit."""
        if self._queue:
            return self._queue.popleft()
        if len(self._in_flight) >= CREDITS:
            return None
        if self._telemetry:
            _, message = self._telemetry.popitem(last=False)
            return json.dumps(message, separators=(",", ":"))
        if self._slot is None:
            return None
        frame, self._slot = self._slot, None
        self._in_flight.append((frame.seq, now))
        self._last_sent = frame.seq
        self.sent += 1
        return pack_frame(frame, sent_us=time.time_ns() // 1000)

    def ack(self, seq: int, now: float) -> None:
        """Free the credits of every frame up to `seq`."""
        if self._last_sent is None or seq > self._last_sent:
            raise BadMessage("out_of_range", f"ack: frame {seq} was never sent", ref="ack")
        while self._in_flight and self._in_flight[0][0] <= seq:
            _, sent_at = self._in_flight.popleft()
            self.rtt_seconds = now - sent_at
        self._wake()

    def set_visible(self, visible: bool) -> None:
        """A hidden page draws nothing and acknowledges nothing; neither is held against it."""
        self.visible = visible
        if visible:
            self._in_flight.clear()
        else:
            self._slot = None
        self._wake()

    def stalled(self, now: float) -> bool:
        """True when a visible viewer owes an acknowledgement for too long."""
        return self.visible and bool(self._in_flight) and now - self._in_flight[0][1] > ACK_TIMEOUT_SECONDS

    def close(self, code: int, reason: str) -> None:
        """Ask the connection to end with this code once the queue is sent."""
        if self.closing is None:
            self.closing = (code, reason)
        self._wake()
