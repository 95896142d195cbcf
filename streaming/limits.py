"""How much a client may send and how often it may be wrong; pure, the clock is passed in."""

from collections import deque

MESSAGE_RATE, MESSAGE_BURST = 40.0, 80.0
ACK_RATE, ACK_BURST = 120.0, 240.0
STRIKES, STRIKE_SECONDS = 3, 10.0


class TokenBucket:
    """`rate` tokens a second, at most `burst` saved up."""

    def __init__(self, rate: float, burst: float) -> None:
        self.rate = rate
        self.burst = burst
        self._tokens = burst
        self._then: float | None = None

    def take(self, now: float) -> bool:
        """Spend one token; False when there is none."""
        if self._then is not None:
            self._tokens = min(self.burst, self._tokens + (now - self._then) * self.rate)
        self._then = now
        if self._tokens < 1.0:
            return False
        self._tokens -= 1.0
        return True


class Strikes:
    """Bad messages within the last `STRIKE_SECONDS`."""

    def __init__(self) -> None:
        self._times: deque[float] = deque(maxlen=STRIKES)

    def add(self, now: float) -> bool:
        """Count one; True when it is the last one allowed."""
        self._times.append(now)
        return len(self._times) == STRIKES and now - self._times[0] <= STRIKE_SECONDS
