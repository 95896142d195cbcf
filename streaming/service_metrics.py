"""Counters of the whole service, kept as plain numbers; a page of metrics is made from them on request."""

from collections import Counter

from fewstep.streaming.histogram import Histogram

WAIT_BUCKETS = (0.1, 1.0, 5.0, 15.0, 60.0, 180.0, 600.0)
RTT_BUCKETS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0)
LAG_BUCKETS = (0.001, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 1.0)


class Counters:
    """What has happened since the server began."""

    def __init__(self) -> None:
        self.sessions: Counter[str] = Counter()
        self.messages: Counter[str] = Counter()
        self.bad_messages: Counter[str] = Counter()
        self.closes: Counter[int] = Counter()
        self.auth_failures = 0
        self.recovered = 0
        self.webrtc_peers = 0
        """Those who watch over WebRTC now, or are about to."""
        self.queue_wait = Histogram(WAIT_BUCKETS)
        self.ack_rtt = Histogram(RTT_BUCKETS)
        self.loop_lag = Histogram(LAG_BUCKETS)

    def count_wrong_token(self) -> None:
        self.auth_failures += 1
