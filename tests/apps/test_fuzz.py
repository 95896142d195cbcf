"""Anything at all, sent to every endpoint and as every message: no 5xx, no change, no crash."""

import asyncio
import contextlib
import gc
import json
import logging
from collections import Counter
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.websockets import WebSocket

from fewstep.apps import access, guard, sessions_api
from fewstep.apps.server import create_app
from fewstep.apps.viewer_socket import ViewerSocket
from fewstep.streaming.admission import Rules
from fewstep.streaming.engine_thread import EngineThread
from fewstep.streaming.fanout import Viewer
from fewstep.streaming.protocol import MESSAGES, BadMessage, parse_message
from fewstep.streaming.room import EngineRoom
from fewstep.streaming.service import Guest, StreamService
from fewstep.streaming.session import LiveSession
from fewstep.streaming.takes import Start
from tests.waiting import until

log = logging.getLogger(__name__)

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
    st.builds(
        lambda kind, depth: f'{{"type":"{kind}","id":' + '{"a":' * depth + "1" + "}" * (depth + 1),
        st.sampled_from(list(MESSAGES)),
        st.integers(1, 900),
    ),
    st.integers(300, 5000).map(lambda digits: f'{{"type":"ack","seq":{"9" * digits}}}'),
    st.sampled_from(['{"type":"ack","seq":1e400}', "{" * 9000, '{"type":"ping","t":NaN}', "\ufeff{}"]),
)
QUICK, LONG = 200, 6000
HTTP_QUICK, HTTP_LONG = 4, 250
SOCKETS_QUICK, SOCKETS_LONG = 10, 250
STRAYS = 2
"""Objects that a frame or a timer may still hold when the last request is over, after however many."""
ASKED_FOR = 10_000
"""Texts, messages and requests of the long run together, at least."""
EXCUSED = ("server_full", "unsupported")
"""What is no fault of the server: all places taken, and an optional package that is not there."""
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


def refused(text: str) -> bool:
    try:
        parse_message(text)
    except BadMessage:
        return True
    return False


class Client:
    """What an ASGI server would pass on of a connection: these messages come, and then the client is gone."""

    def __init__(self, role: str, said: list[str | bytes]) -> None:
        hello = json.dumps({"type": "hello", "role": role})
        events = [{"type": "websocket.receive", self._kind(item): item} for item in (hello, *said)]
        self.events: list[dict[str, Any]] = [{"type": "websocket.connect"}, *events]
        self.closed: int | None = None
        self.told: Counter[str] = Counter()

    @staticmethod
    def _kind(item: str | bytes) -> str:
        return "text" if isinstance(item, str) else "bytes"

    async def receive(self) -> dict[str, Any]:
        await asyncio.sleep(0)
        return self.events.pop(0) if self.events else {"type": "websocket.disconnect", "code": 1006}

    async def send(self, message: Any) -> None:
        if message["type"] == "websocket.accept":
            assert message["subprotocol"] == "fewstep.v1"
        if message["type"] == "websocket.close":
            self.closed = message["code"]
        if message.get("text"):
            self.told[json.loads(message["text"])["type"]] += 1

    def socket(self) -> WebSocket:
        scope = {"type": "websocket", "path": "/", "headers": [], "subprotocols": ["fewstep.v1"]}
        return WebSocket(scope, self.receive, self.send)


class House:
    """A service on the synthetic model and its application, in one event loop; no limit of rate."""

    def __init__(self, synthetic: Any, folder: Path) -> None:
        self.loop = asyncio.new_event_loop()
        self.sent = 0
        model = synthetic.SyntheticModel(fps=60.0, size=16)
        self.service = self.do(self._made(lambda: EngineThread(lambda: model), folder))
        self.app = create_app(self.service)
        self.http = httpx.AsyncClient(transport=httpx.ASGITransport(self.app), base_url="http://localhost")
        self._running = self.loop.create_task(self.service.run())
        self.do(self.calm())
        self.before = self.census()

    async def _made(self, make: Any, folder: Path) -> StreamService:
        rules = Rules(max_sessions=0, max_queue=4)  # whoever wants a session waits, and takes no time
        return StreamService(EngineRoom(make), start=Start(seed=1), record_dir=folder, rules=rules)

    def do(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.loop.run_until_complete(asyncio.wait_for(work, 60))

    async def calm(self) -> None:
        """Until nothing is under way, on the engine's thread neither.

        A chunk still being made there while Hypothesis draws the next example would draw random numbers
        itself: beartype looks at one element of each list, chosen with `random.getrandbits`. Hypothesis takes
        that for a strategy that is not reproducible, and warns.
        """
        while self.service.shared.state != "paused" or self.service.shared._jobs:
            await asyncio.sleep(0.001)
            if not self.service.shared.viewers:
                self.service.shared._count_watchers()  # at once instead of after two seconds
        await self.service.room.forget("nobody")  # comes after the chunk under way

    def state(self) -> Any:
        """What a client can change."""
        status = self.service.shared.status()
        recording = self.service.shared.archive.order
        return {**status, "recording": recording, "guests": sorted(self.service.guests)}

    def census(self) -> dict[str, int]:
        """What would grow if a request left something behind."""
        gc.collect()
        kinds = (LiveSession, Viewer, Guest, Client)
        found = Counter(type(thing).__name__ for thing in gc.get_objects() if type(thing) in kinds)
        return {**found, "tasks": len(asyncio.all_tasks(self.loop))}

    def visit(self, role: str, said: list[str | bytes]) -> Client:
        """One connection to the shared session that says hello in this role and then all of this."""
        client = Client(role, said)
        self.sent += len(said)
        self.do(ViewerSocket(client.socket(), self.service).serve("live"))
        return client

    def close(self) -> None:
        self.do(self.http.aclose())
        self.do(self.service.close())
        self._running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            self.do(self._running)  # pyright: ignore[reportArgumentType]
        self.loop.close()


@pytest.fixture
def house(synthetic: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[House]:
    for module, name in (
        (guard, "REQUEST_BURST"),
        (sessions_api, "CREATION_BURST"),
        (access, "FAILURE_BURST"),
    ):
        monkeypatch.setattr(module, name, 1e9)
    opened = House(synthetic, tmp_path)
    yield opened
    opened.close()


def left_as_it_was(house: House) -> None:
    house.do(house.calm())
    assert not house.service.shared.viewers
    assert not house.service.guests
    grown = {kind: count - house.before.get(kind, 0) for kind, count in house.census().items()}
    assert max(grown.values()) <= STRAYS, grown


def fuzz_sockets(house: House, examples: int) -> None:
    """Watchers who say anything, and controllers who say only nonsense, change nothing; controllers who say
    anything get what they ask for, and the service lives on."""
    common = settings(deadline=None, max_examples=examples, suppress_health_check=PATIENT, database=None)
    said = st.lists(TEXTS | st.binary(max_size=40), max_size=12)
    nonsense = st.lists(TEXTS.filter(refused) | st.binary(max_size=40), max_size=12)
    codes = (None, 1009, 4400, 4429)

    @common
    @given(said=said)
    def watcher(said: list[str | bytes]) -> None:
        before = house.state()
        assert house.visit("viewer", said).closed in codes
        house.do(house.calm())
        assert house.state() == before

    @common
    @given(said=nonsense)
    def nonsensical(said: list[str | bytes]) -> None:
        before = house.state()
        client = house.visit("controller", said)
        assert client.closed in codes
        assert client.told["error"] >= min(len(said), 1)
        house.do(house.calm())
        assert house.state() == before

    @common
    @given(said=said)
    def controller(said: list[str | bytes]) -> None:
        assert house.visit("controller", said).closed in codes
        house.do(house.calm())
        assert house.service.room.up

    for probe in (watcher, nonsensical, controller):
        probe()


def fuzz_openapi(house: House, examples: int) -> None:
    """Requests drawn from the OpenAPI document: what is refused changes nothing, what is made is undone."""
    schemathesis = pytest.importorskip("schemathesis", reason="needs schemathesis")
    # Whoever was there before is soon gone from the state, too.
    house.do(until(lambda: "no_viewers" in house.service.shared.pause_reasons))
    for result in schemathesis.openapi.from_dict(house.app.openapi()).get_all_operations():
        fuzz_operation(house, result.ok(), examples)


def fuzz_operation(house: House, operation: Any, examples: int) -> None:
    endless = ".m" in operation.path  # live.mjpeg and live.mp4 of a session that is there

    @settings(deadline=None, max_examples=examples, suppress_health_check=PATIENT, database=None)
    @given(case=operation.as_strategy(), shared=st.booleans())
    def probe(case: Any, shared: bool) -> None:
        if shared and not endless and "session_id" in (case.path_parameters or {}):
            case.path_parameters["session_id"] = "live"
        request = case.as_transport_kwargs(base_url="http://localhost")
        request.pop("cookies", None)
        before = house.state()
        answer = house.do(house.http.request(**request, timeout=30))
        house.sent += 1
        assert answer.status_code < 500 or answer.json()["code"] in EXCUSED, answer.text
        house.do(house.calm())
        if answer.status_code >= 400:
            assert house.state() == before
        if answer.status_code in (201, 202) and "resume_token" in answer.text:
            made = answer.json()
            token = {"Resume-Token": made["resume_token"]}
            assert house.do(house.http.delete(f"/v1/sessions/{made['id']}", headers=token)).is_success
            house.do(asyncio.sleep(0))

    probe()


def test_whoever_says_anything_changes_nothing_and_leaves_nothing_behind(house: House):
    fuzz_sockets(house, SOCKETS_QUICK)
    left_as_it_was(house)


def test_a_few_requests_of_every_kind_are_answered(house: House):
    fuzz_openapi(house, HTTP_QUICK)
    left_as_it_was(house)


@pytest.mark.slow
def test_ten_thousand_messages_and_requests_change_nothing_and_leave_nothing_behind(house: House):
    @settings(deadline=None, max_examples=LONG, suppress_health_check=PATIENT, database=None)
    @given(text=TEXTS)
    def texts(text: str) -> None:
        house.sent += 1
        parses_or_refuses(text)

    parts = []
    for part in (texts, lambda: fuzz_sockets(house, SOCKETS_LONG), lambda: fuzz_openapi(house, HTTP_LONG)):
        before = house.sent
        part()
        parts.append(house.sent - before)
    left_as_it_was(house)
    log.info("%d texts, %d messages and %d requests", *parts)
    assert house.sent >= ASKED_FOR
