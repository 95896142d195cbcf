"""How much a client may send and how often it may be wrong; pure, the clock is passed in but to `Buckets`."""

import time
from collections import OrderedDict, deque

MESSAGE_RATE, MESSAGE_BURST = 40.0, 80.0
ACK_RATE, ACK_BURST = 120.0, 240.0
STRIKES, STRIKE_SECONDS = 3, 10.0
KEYS_KEPT = 1024


class TokenBucket:
    """`rate` tokens a second, at most `burst` saved up."""

    def __init__(self, rate: float, burst: float) -> None:
        self.rate = rate
        self.burst = burst
        self._tokens = burst
        self._then: float | None = None

    def take(self, now: float) -> bool:
        """Spend one token; False when there is none."""
        if not self.left(now):
            return False
        self._tokens -= 1.0
        return True

    def left(self, now: float) -> bool:
        """Whether there is a token to spend."""
        if self._then is not None:
            self._tokens = min(self.burst, self._tokens + (now - self._then) * self.rate)
        self._then = now
        return self._tokens >= 1.0


class Buckets:
    """A bucket for each key, such as an address; the longest unused one is forgotten when there are many."""

    def __init__(self, rate: float, burst: float) -> None:
        self._rate, self._burst = rate, burst
        self._buckets: OrderedDict[str, TokenBucket] = OrderedDict()

    def take(self, key: str) -> bool:
        """Spend one of this key's tokens now."""
        bucket = self._buckets.setdefault(key, TokenBucket(self._rate, self._burst))
        self._buckets.move_to_end(key)
        if len(self._buckets) > KEYS_KEPT:
            self._buckets.popitem(last=False)
        return bucket.take(time.monotonic())

    def left(self, key: str) -> bool:
        """Whether this key could spend one now."""
        return key not in self._buckets or self._buckets[key].left(time.monotonic())


class Strikes:
    """Bad messages within the last `STRIKE_SECONDS`."""

    def __init__(self) -> None:
        self._times: deque[float] = deque(maxlen=STRIKES)

    def add(self, now: float) -> bool:
        """Count one; True when it is the last one allowed."""
        self._times.append(now)
        return len(self._times) == STRIKES and now - self._times[0] <= STRIKE_SECONDS
