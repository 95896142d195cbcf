"""docs/serving.md names what the code has: flags, paths, metrics, events and limits."""

import argparse
import json
import re
from pathlib import Path
from typing import Any

import pytest

from fewstep.apps import access, bench_serve, guard, sessions_api, stream, video
from fewstep.apps.metrics_page import collect
from fewstep.apps.server import create_app
from fewstep.modalities.video.acceleration import SWITCHES
from fewstep.streaming import audience, fanout, limits, protocol, recording
from fewstep.streaming.admission import Rules
from fewstep.streaming.room import EngineRoom
from fewstep.streaming.service import StreamService
from fewstep.streaming.takes import Start

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "serving.md").read_text()
UNLISTED = {"/", "/v1/sessions/{session_id}/stream"}
"""The page and its WebSocket, which OpenAPI does not have."""
OPENAPI = "/openapi.json"


@pytest.fixture
def service(tmp_path: Path) -> StreamService:
    def none() -> Any:
        raise AssertionError("nobody loads a model here")

    return StreamService(EngineRoom(none), start=Start(), record_dir=tmp_path)


def test_its_flags_are_the_commands_own() -> None:
    parser = argparse.ArgumentParser()
    known = {"--json"}  # of every measurement
    for module in (stream, video, bench_serve):
        parser = argparse.ArgumentParser()
        module.add_arguments(parser)
        known |= {option for action in parser._actions for option in action.option_strings}
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", PAGE)) <= known


def test_its_accelerations_are_those_that_there_are() -> None:
    section = PAGE.split("## Faster on a GPU")[1].split("\n## ")[0]
    rows = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    named = [name for row in rows for name in re.findall(r"`([^`]+)`", row)]
    assert len(named) > 3
    assert set(named) <= SWITCHES.keys()
    late = re.findall(r"`([^`]+)`", section.split("With ")[1].split(" a chunk is")[0])
    assert set(late) == {name for name, how in SWITCHES.items() if how.overlapped_decoding}


def test_its_paths_are_the_servers(service: StreamService) -> None:
    named = set(re.findall(r"`((?:GET|POST|DELETE) /[^`]*)`", PAGE))
    paths = create_app(service).openapi()["paths"]
    served = {f"{method.upper()} {path}" for path, methods in paths.items() for method in methods}
    assert named == served | {f"GET {path}" for path in (*UNLISTED, OPENAPI)}


def test_its_metrics_are_those_that_there_are(service: StreamService) -> None:
    pytest.importorskip("prometheus_client", reason="needs prometheus-client")
    named = set(re.findall(r"`(fewstep_\w+)`", PAGE)) - {"fewstep_replica_up"}
    assert named == {family.name for family in collect(service)}


def test_the_dashboard_asks_for_metrics_and_labels_that_there_are(service: StreamService) -> None:
    pytest.importorskip("prometheus_client", reason="needs prometheus-client")
    ends = {"counter": ["_total"], "gauge": [""], "histogram": ["_bucket"]}
    there: dict[str, set[str]] = {}
    for family in collect(service):
        labels = {*getattr(family, "_labelnames"), *(["le"] if family.type == "histogram" else [])}  # noqa: B009
        there.update({family.name + end: labels for end in ends[family.type]})
    panels = json.loads((ROOT / "docs" / "grafana.json").read_text())["panels"]
    queries = [target["expr"] for panel in panels for target in panel["targets"]]
    asked = {name for query in queries for name in re.findall(r"fewstep_\w+", query)}
    assert asked <= set(there)
    assert len(asked) > 15
    for query in queries:
        (name,) = set(re.findall(r"fewstep_\w+", query))
        grouped = re.search(r"by \(([\w, ]+)\)", query)
        assert set(grouped.group(1).split(", ") if grouped else ()) <= there[name], query


def test_its_events_are_those_that_are_logged() -> None:
    paths = [path for room in ("streaming", "apps") for path in (ROOT / room).glob("*.py")]
    logged = {name for path in paths for name in re.findall(r'about\("([\w.]+)"', path.read_text())}
    section = PAGE.split("## Logs")[1].split("\n## ")[0]
    assert set(re.findall(r"`(\w+\.\w+)`", section)) == logged


@pytest.mark.parametrize(
    "phrase",
    [
        f"{guard.MAX_BODY_BYTES:,} bytes | 413",
        f"{protocol.MAX_MESSAGE_BYTES:,} bytes | close 1009",
        f"1 to {protocol.MAX_PROMPT_CHARACTERS:,} characters",
        f"{guard.REQUESTS_PER_SECOND:g} a second, {guard.REQUEST_BURST:g} at once | 429",
        f"{60 * sessions_api.CREATIONS_PER_SECOND:g} a minute | 429",
        f"{60 * access.FAILURES_PER_SECOND:g} a minute | 429",
        f"{limits.MESSAGE_RATE:g} a second, {limits.MESSAGE_BURST:g} at once; {limits.ACK_RATE:g} ack",
        f"within {limits.STRIKE_SECONDS:g} s | close 4400",
        f"| {guard.CONNECTIONS}, and {guard.CONNECTIONS_PER_CLIENT} per address | close {guard.TOO_MANY}",
        f"viewers of one session, players included | {audience.MOST_VIEWERS}, and "
        f"{audience.VIEWERS_PER_CLIENT} per address |",
        f"| {Rules().absence:g} s without its controller",
        f"{Rules().session_warning:g} s after a warning",
        f"{recording.MAX_BYTES >> 30} GiB, and {recording.MIN_FREE_BYTES >> 30} GiB must stay free",
        f"acknowledges nothing for {fanout.ACK_TIMEOUT_SECONDS:g} s",
        f"every {stream.PING_SECONDS:g} s",
        f"{access.TOKEN_LENGTHS[0]} to {access.TOKEN_LENGTHS[1]} visible ASCII",
        f"{bench_serve.FULL.viewers} viewers of one stream, {bench_serve.FULL.sessions} people",
        f"stall for {bench_serve.FULL.stall:g} s, {bench_serve.FULL.reconnects} reconnects in "
        f"{bench_serve.FULL.storm:g} s",
    ],
)
def test_its_numbers_are_the_codes(phrase: str) -> None:
    assert phrase in " ".join(PAGE.split())


def test_its_webrtc_limits_are_the_codes() -> None:
    webrtc = pytest.importorskip("fewstep.streaming.webrtc", reason="needs aiortc", exc_type=ImportError)
    assert f"WebRTC viewers | {webrtc.MOST_PEERS}, and {webrtc.PEERS_PER_CLIENT} per address" in PAGE
