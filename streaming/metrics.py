"""What a running stream knows about its own speed; every history is bounded."""

from collections import deque

from fewstep.streaming.histogram import Histogram

HISTORY_CHUNKS = 64
SMOOTHING = 0.2
WARM_UP_CHUNKS = 2
CHUNK_BUCKETS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0, 2.0, 5.0)


class StreamMetrics:
    """Counters, and the recent chunk times that pacing needs.

    Generated FPS counts frames over the wall time of generation alone; displayed FPS is the page's business.
    """

    def __init__(self) -> None:
        self.frames_generated = 0
        self.capacity_fps: float | None = None
        self.chunk_histogram = Histogram(CHUNK_BUCKETS)
        self._chunk_seconds: deque[float] = deque(maxlen=HISTORY_CHUNKS)
        self._chunks = 0

    def add_chunk(self, frames: int, seconds: float) -> None:
        """Count a chunk of `frames` that took `seconds`, encoding included."""
        self.frames_generated += frames
        self._chunks += 1
        self.chunk_histogram.observe(seconds)
        if self._chunks <= WARM_UP_CHUNKS:
            return
        self._chunk_seconds.append(seconds)
        fps = frames / seconds
        before = fps if self.capacity_fps is None else self.capacity_fps
        self.capacity_fps = before + SMOOTHING * (fps - before)

    def chunk_seconds_p90(self) -> float | None:
        """90th percentile of recent chunk times; None until warm."""
        if not self._chunk_seconds:
            return None
        ordered = sorted(self._chunk_seconds)
        return ordered[min(len(ordered) - 1, int(0.9 * len(ordered)))]
