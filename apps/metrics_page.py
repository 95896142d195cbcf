"""The service's numbers as a page for Prometheus. No label names a session, so their number is fixed."""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from fastapi.responses import Response

from fewstep import __version__
from fewstep.apps.problems import problem
from fewstep.streaming.lifecycle import STATES
from fewstep.streaming.service import StreamService

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric


def render(service: StreamService) -> Response:
    """The page, or a problem that says which package is missing."""
    try:
        from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
        from prometheus_client.registry import Collector
    except ImportError:
        return problem(501, "unsupported", "metrics need a package: pip install prometheus-client")

    class ServiceCollector(Collector):
        def collect(self) -> "Iterable[Metric]":
            return collect(service)

    registry = CollectorRegistry(auto_describe=False)
    registry.register(ServiceCollector())
    return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)


def collect(service: StreamService) -> "Iterator[Metric]":
    """Everything, from the numbers that the service keeps anyway."""
    from prometheus_client.core import (
        CounterMetricFamily,
        GaugeMetricFamily,
        HistogramMetricFamily,
    )

    room, counters, sessions = service.room, service.counters, service.sessions()
    info = room.info
    build = GaugeMetricFamily("fewstep_build_info", "version and model", labels=["version", "model"])
    build.add_metric([__version__, info.name if info else ""], 1)
    yield build
    states = GaugeMetricFamily("fewstep_sessions", "sessions by state", labels=["state"])
    for state in STATES:
        states.add_metric([state], sum(session.state == state for session in sessions))
    yield states
    gauges = {
        "engine_up": ("1 while the engine answers", float(room.up)),
        "queue_depth": ("sessions that wait", service.queue_depth),
        "viewers": ("connections that watch", sum(len(session.viewers) for session in sessions)),
        "capacity_fps": ("frames per second the engine can make", room.speed.capacity_fps or 0.0),
        "realtime_factor": ("generation time over media time", _realtime_factor(service)),
        "webrtc_peers": ("connections that watch over WebRTC, or are about to", counters.webrtc_peers),
        "recordings_active": ("recordings that run", sum(s.archive.active for s in sessions)),
    }
    for name, (text, value) in gauges.items():
        yield GaugeMetricFamily(f"fewstep_{name}", text, value=value)
    plain = {
        "frames_generated": ("frames made", room.speed.frames_generated),
        "auth_failures": ("wrong tokens", counters.auth_failures),
        "recordings_recovered": ("recordings finished after a crash", counters.recovered),
        "frames_dropped": ("frames that a slow viewer did not get", _over_viewers(service, "dropped")),
        "playout_underruns": ("times the picture stopped", sum(s.underruns for s in sessions)),
        "playout_stall_seconds": ("for how long", sum(s.stall_seconds for s in sessions)),
    }
    for name, (text, value) in plain.items():
        yield CounterMetricFamily(f"fewstep_{name}", text, value=value)
    h264 = _over_viewers(service, "sent_h264")
    codecs = {"jpeg": _over_viewers(service, "sent") - h264, "h264": h264}
    labelled = {
        "frames_sent": ("frames sent, by codec", "codec", codecs),
        "engine_restarts": ("engines lost, by cause", "cause", room.restarts),
        "sessions_ended": ("sessions of one's own that ended, by reason", "reason", counters.sessions),
        "ws_messages": ("messages from clients", "type", counters.messages),
        "bad_messages": ("messages refused", "reason", counters.bad_messages),
        "ws_closed": ("connections we closed", "code", counters.closes),
    }
    for name, (text, label, values) in labelled.items():
        family = CounterMetricFamily(f"fewstep_{name}", text, labels=[label])
        for key, value in values.items():
            family.add_metric([str(key)], value)
        yield family
    histograms = {
        "queue_wait_seconds": ("time in the queue", counters.queue_wait),
        "ack_rtt_seconds": ("from a frame's sending to its acknowledgement", counters.ack_rtt),
        "event_loop_lag_seconds": ("how late the event loop wakes", counters.loop_lag),
        "chunk_seconds": ("time to make a chunk, encoding included", room.speed.chunk_histogram),
    }
    for name, (text, histogram) in histograms.items():
        yield HistogramMetricFamily(
            f"fewstep_{name}", text, buckets=histogram.cumulative(), sum_value=histogram.total
        )


def _realtime_factor(service: StreamService) -> float:
    info, capacity = service.room.info, service.room.speed.capacity_fps
    return info.fps / capacity if info is not None and capacity else 0.0


def _over_viewers(service: StreamService, name: str) -> int:
    return sum(session.audience.total(name) for session in service.sessions())
