"""Anything at all, sent to every endpoint and as every message: no 5xx, no change, no crash."""

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.websockets import WebSocket

from fewstep.apps.viewer_socket import ViewerSocket
from fewstep.streaming.protocol import MESSAGES, BadMessage, parse_message
from fewstep.streaming.room import EngineRoom
from fewstep.streaming.service import StreamService
from fewstep.streaming.takes import Start

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(allow_nan=True),
    st.text(max_size=30),
    st.sampled_from(
        [2**63, 2**63 - 1, -1, "", " ", "ema", "\x00", "\ud800", "../../etc/passwd", "ArrowLeft"]
    ),
)
ANYTHING = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
)
FIELDS = sorted({name for model in MESSAGES.values() for name in model.model_fields} - {"type"})
NEARLY = st.builds(
    lambda kind, fields: {"type": kind, **fields},
    st.sampled_from([*MESSAGES, "launch", ""]),
    st.dictionaries(st.sampled_from([*FIELDS, "extra"]), ANYTHING, max_size=4),
)
TEXTS = st.one_of(
    NEARLY.map(json.dumps),
    ANYTHING.map(json.dumps),
    st.text(max_size=200),
    st.integers(1, 3000).map(lambda depth: "[" * depth),
    st.sampled_from(['{"type":"ack","seq":1e400}', "{" * 9000, '{"type":"ping","t":NaN}', "\ufeff{}"]),
)
QUICK, LONG = 200, 6000
PATIENT = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large]


def parses_or_refuses(text: str) -> None:
    refusal = None
    try:
        parse_message(text)
    except BadMessage as error:
        refusal = error
    assert refusal is None or (refusal.code and len(str(refusal)) < 1000)


@settings(deadline=None, max_examples=QUICK)
@given(text=TEXTS)
def test_every_text_is_a_message_or_a_bad_message(text: str):
    parses_or_refuses(text)


@pytest.mark.slow
@settings(deadline=None, max_examples=LONG, suppress_health_check=PATIENT)
@given(text=TEXTS)
def test_thousands_of_texts_are_messages_or_bad_messages(text: str):
    parses_or_refuses(text)


class Client:
    """What an ASGI server would pass on of a connection: these messages come, and then the client is gone."""

    def __init__(self, events: list[dict[str, Any]]) -> None:
        self.events = [{"type": "websocket.connect"}, *events]
        self.closed: int | None = None

    async def receive(self) -> dict[str, Any]:
        await asyncio.sleep(0)
        return self.events.pop(0) if self.events else {"type": "websocket.disconnect", "code": 1006}

    async def send(self, message: Any) -> None:
        if message["type"] == "websocket.accept":
            assert message["subprotocol"] == "fewstep.v1"
        if message["type"] == "websocket.close":
            self.closed = message["code"]

    def socket(self) -> WebSocket:
        scope = {"type": "websocket", "path": "/", "headers": [], "subprotocols": ["fewstep.v1"]}
        return WebSocket(scope, self.receive, self.send)


def serve_all(service: Any, texts: list[Any]) -> Client:
    """One connection that says hello as a viewer and then all of this."""
    hello = {"type": "websocket.receive", "text": json.dumps({"type": "hello", "role": "viewer"})}
    events = [hello, *({"type": "websocket.receive", "text": text} for text in texts)]
    client = Client(events)
    asyncio.run(ViewerSocket(client.socket(), service()).serve("live"))
    return client


@settings(deadline=None, max_examples=40)
@given(texts=st.lists(TEXTS, max_size=12))
def test_a_viewer_who_says_anything_changes_nothing_and_leaves_nothing_behind(texts: list[str]):
    made: list[StreamService] = []

    def service() -> StreamService:
        def refuse() -> Any:
            raise AssertionError("no engine is needed")

        made.append(StreamService(EngineRoom(refuse), start=Start(seed=1), record_dir=Path("unused")))
        return made[-1]

    client = serve_all(service, texts)
    assert client.closed in (None, 1009, 4400, 4429)
    assert not made[0].shared.viewers
    assert made[0].shared.state == "starting"
    assert not made[0].guests


def fuzz_openapi(url: str, cases: int) -> None:
    schemathesis = pytest.importorskip("schemathesis", reason="needs schemathesis")
    schema = schemathesis.openapi.from_url(url + "openapi.json").exclude(path_regex="live|recordings$")
    for result in schema.get_all_operations():
        operation = result.ok()

        @settings(deadline=None, max_examples=cases, suppress_health_check=PATIENT, database=None)
        @given(case=operation.as_strategy())
        def probe(case: Any) -> None:
            answer = case.call()
            assert answer.status_code < 500 or answer.status_code in (501, 503), answer.text

        probe()


@pytest.mark.slow
def test_a_few_requests_of_every_kind_are_answered(shared_server: Any):
    fuzz_openapi(shared_server.url, 4)
    assert httpx.get(shared_server.url + "healthz").status_code == 200


@pytest.mark.slow
def test_hundreds_of_requests_of_every_kind_are_answered(server: Any):
    fuzz_openapi(server.url, 400)
    assert httpx.get(server.url + "healthz").status_code == 200
