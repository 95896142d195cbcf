"""When a frame is shown and when the next chunk is begun; pure, the clock is passed in."""

LEAD_FACTOR = 1.15
LEAD_SLACK_SECONDS = 0.05
RATE_SHARE = 0.95
STALL_FRAMES = 1.5


class PlayoutClock:
    """Deadlines `t0 + n / rate` for frames; after a stall it starts anew instead of catching up in a burst.

    `fps` is the model's own rate. `rate` is what is played: lower when generation cannot keep up, so that a
    slow machine shows smooth slow motion.
    """

    def __init__(self, fps: float) -> None:
        if not fps > 0:
            raise ValueError(f"fps must be positive, got {fps}")
        self.fps = fps
        self.rate = fps
        self.underruns = 0
        self.stall_seconds = 0.0
        self._next: float | None = None
        self._last: float | None = None

    def delay(self, now: float) -> float:
        """Seconds from `now` until the next frame is due; 0 when it is due or late."""
        return 0.0 if self._next is None else max(0.0, self._next - now)

    def advance(self, now: float) -> None:
        """Note that a frame was shown at `now`."""
        period = 1.0 / self.rate
        if self._last is not None and now - self._last > STALL_FRAMES / self.rate:
            self.underruns += 1
            self.stall_seconds += now - self._last - period
        late = self._next is None or now - self._next > period
        self._next = (now if late or self._next is None else self._next) + period
        self._last = now

    def halt(self) -> None:
        """Forget the deadline: the time until the next frame is a pause, not a stall."""
        self._next = None
        self._last = None

    def limit(self, capacity: float) -> None:
        """Play no faster than `RATE_SHARE` of `capacity`, the frames per second generation reaches alone."""
        self.rate = min(self.fps, RATE_SHARE * capacity)


def lead_seconds(chunk_seconds_p90: float | None, chunk_duration: float) -> float:
    """How much buffered video is left when the next chunk must be begun.

    Never more than one chunk: a prompt would otherwise wait behind frames generated too early.
    """
    if chunk_seconds_p90 is None:
        return chunk_duration
    return min(chunk_duration, LEAD_FACTOR * chunk_seconds_p90 + LEAD_SLACK_SECONDS)
