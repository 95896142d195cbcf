"""HTTP for programs: sessions, steering, pictures, metrics, and what is refused."""

import asyncio
import contextlib
import io
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import av
import httpx
import pytest
from PIL import Image

from fewstep.apps.access import Access
from fewstep.apps.guard import MAX_BODY_BYTES
from fewstep.apps.server import create_app
from fewstep.streaming import audience, h264
from fewstep.streaming.admission import Rules
from fewstep.streaming.engine_thread import EngineThread
from fewstep.streaming.fanout import Viewer
from fewstep.streaming.room import EngineRoom
from fewstep.streaming.service import StreamService
from fewstep.streaming.takes import Start
from fewstep.streaming.tap import Tap
from tests.waiting import SECONDS, run, until

TOKEN = "a-token-of-enough-letters"


class Running:
    """A service on the synthetic model, and an HTTP client that calls its application directly."""

    def __init__(self, service: StreamService, http: httpx.AsyncClient, app: Any) -> None:
        self.service, self.http, self.app = service, http, app

    def watch(self) -> Viewer:
        """Somebody who looks at the shared session and acknowledges everything."""
        viewer = Viewer("viewer", deaf=True, wake=lambda: drain(viewer))
        self.service.shared.attach(viewer)
        return viewer


def drain(viewer: Viewer) -> None:
    while (frame := viewer.take_frame(0.0)) is not None:
        viewer.ack(frame.seq, 0.0)


@contextlib.asynccontextmanager
async def running(
    synthetic: Any, folder: Path, *, rules: Rules | None = None, access: Access | None = None
) -> AsyncIterator[Running]:
    model = synthetic.SyntheticModel(fps=60.0, size=32)
    service = StreamService(
        EngineRoom(lambda: EngineThread(lambda: model)), start=Start(seed=1), record_dir=folder, rules=rules
    )
    app = create_app(service, access=access)
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=60) as http:
        task = asyncio.create_task(service.run())
        try:
            await until(lambda: service.shared.state == "paused")
            yield Running(service, http, app)
        finally:
            await service.close()
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


def test_a_session_is_created_steered_and_ended_with_its_token(synthetic: Any, tmp_path: Path):
    async def test() -> None:
        async with running(synthetic, tmp_path) as here:
            here.watch()
            await until(lambda: here.service.room.speed.capacity_fps is not None)
            made = await here.http.post("/v1/sessions", json={"seed": 2**63 - 1, "prompt": "snow"})
            assert made.status_code == 201
            session, token = made.json()["id"], {"Resume-Token": made.json()["resume_token"]}
            path = f"/v1/sessions/{session}"
            await until(lambda: here.service.guests[session].session.state == "paused")
            assert (await here.http.get(path)).json()["seed"] == 2**63 - 1
            assert (await here.http.post(path + "/prompt", json={"text": "sea"})).status_code == 403
            accepted = await here.http.post(path + "/prompt", json={"text": "sea"}, headers=token)
            assert (accepted.status_code, accepted.json()) == (202, {"rev": 2})
            refused = await here.http.post(path + "/prompt", json={"text": "  "}, headers=token)
            assert (refused.status_code, refused.json()["code"]) == (422, "prompt_empty")
            assert (await here.http.post(path + "/pause", headers=token)).json()["pause"][0] == "user"
            reset = await here.http.post(path + "/reset", json={"steps": 3}, headers=token)
            assert (reset.status_code, reset.json()["code"]) == (422, "out_of_range")
            assert (await here.http.delete(path)).status_code == 403
            assert (await here.http.delete(path, headers=token)).status_code == 204
            await until(lambda: not here.service.guests)
            assert (await here.http.get(path)).status_code == 404
            assert (await here.http.delete("/v1/sessions/live")).status_code == 403

    run(test)


def test_a_token_shown_with_any_request_is_a_sign_of_life(
    synthetic: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    async def test() -> None:
        async with running(synthetic, tmp_path, rules=Rules(max_sessions=0)) as here:
            made = (await here.http.post("/v1/sessions", json={})).json()
            called: list[str] = []
            monkeypatch.setattr(here.service, "called", lambda session: called.append(session.id))
            path, token = f"/v1/sessions/{made['id']}", {"Resume-Token": made["resume_token"]}
            assert (await here.http.get(path)).json()["queue"]["position"] == 1
            await here.http.get(path, headers={"Resume-Token": "x"})
            assert called == []
            await here.http.get(path, headers=token)
            await here.http.post(path + "/pause", headers=token)
            assert called == [made["id"]] * 2

    run(test)


def test_players_count_as_viewers_and_are_as_many_at_most(
    synthetic: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(audience, "MOST_VIEWERS", 1)

    async def test() -> None:
        async with running(synthetic, tmp_path) as here:
            here.watch()
            for name in ("live.mjpeg", "live.mp4"):
                answer = await here.http.get(f"/v1/sessions/live/{name}")
                assert (answer.status_code, answer.json()["code"]) == (503, "server_full")

    run(test)


def test_one_address_has_not_all_the_places(synthetic: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(audience, "VIEWERS_PER_CLIENT", 1)

    async def test() -> None:
        async with running(synthetic, tmp_path) as here:
            session = here.service.shared
            async with Tap(session, client="127.0.0.1"):  # as which the tests' client comes
                answer = await here.http.get("/v1/sessions/live/live.mjpeg")
                assert (answer.status_code, answer.json()["code"]) == (503, "server_full")
                assert session.audience.has_room("192.0.2.1")
            assert session.audience.has_room("127.0.0.1")

    run(test)


def test_sessions_are_counted_by_network_where_everybody_has_many_addresses(synthetic: Any, tmp_path: Path):
    async def test() -> None:
        async with running(synthetic, tmp_path, rules=Rules(max_sessions=0)) as here:
            answers = []
            for number in range(11):
                transport = httpx.ASGITransport(here.app, client=(f"2001:db8::{number:x}", 1))
                async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as http:
                    answers.append((await http.post("/v1/sessions", json={})).status_code)
            assert 429 not in answers[:10]
            assert answers[10] == 429

    run(test)


def test_a_full_house_and_a_hasty_guest_are_told_when_to_come_back(synthetic: Any, tmp_path: Path):
    async def test() -> None:
        async with running(synthetic, tmp_path, rules=Rules(max_sessions=0, max_queue=1)) as here:
            answers = [await here.http.post("/v1/sessions", json={}) for _ in range(11)]
            assert [answer.status_code for answer in answers] == [202] + [503] * 9 + [429]
            assert answers[0].json()["position"] == 1
            assert answers[1].json()["code"] == "server_full"
            assert int(answers[1].headers["retry-after"]) > 0
            assert answers[1].headers["content-type"] == "application/problem+json"

    run(test)


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        ({"seed": -1}, {}, 422),
        ({"seed": 2**63}, {}, 422),
        ({"seed": True}, {}, 422),
        ({"seed": "1"}, {}, 422),
        ({"steps": 1.5}, {}, 422),
        ({"extra": 1}, {}, 422),
        ([], {}, 422),
        ({}, {"Origin": "https://evil.example"}, 403),
        ({}, {"Host": "evil.example"}, 400),
        ({"prompt": "x" * MAX_BODY_BYTES}, {}, 413),
    ],
)
def test_bad_requests_are_refused_and_change_nothing(
    synthetic: Any, tmp_path: Path, body: Any, headers: dict[str, str], status: int
):
    async def test() -> None:
        async with running(synthetic, tmp_path) as here:
            answer = await here.http.post("/v1/sessions", json=body, headers=headers)
            assert answer.status_code == status
            assert not here.service.guests

    run(test)


def test_a_body_without_a_length_is_counted_as_it_comes(synthetic: Any, tmp_path: Path):
    async def endless() -> AsyncIterator[bytes]:
        for _ in range(100):
            yield b" " * 4096

    async def test() -> None:
        async with running(synthetic, tmp_path) as here:
            answer = await here.http.post("/v1/sessions", content=endless())
            assert answer.status_code == 413

    run(test)


def test_where_a_token_is_needed_only_the_page_itself_is_open(synthetic: Any, tmp_path: Path):
    async def test() -> None:
        async with running(synthetic, tmp_path, access=Access(TOKEN)) as here:
            for path in ("/", "/healthz", "/static/js/main.js"):
                assert (await here.http.get(path)).status_code == 200
            for path in ("/metrics", "/readyz", "/v1/engine", "/v1/sessions/live", "/openapi.json"):
                assert (await here.http.get(path)).status_code == 401
            bearer = {"Authorization": f"Bearer {TOKEN}"}
            assert (await here.http.get("/v1/engine", headers=bearer)).status_code == 200
            entered = await here.http.post("/v1/auth", json={"token": TOKEN})
            assert entered.status_code == 204
            cookie = entered.headers["set-cookie"].lower()
            assert "httponly" in cookie
            assert "samesite=strict" in cookie
            assert (await here.http.get("/v1/engine")).status_code == 200

    run(test)


def test_metrics_can_be_scraped_and_name_no_session(synthetic: Any, tmp_path: Path):
    parser = pytest.importorskip("prometheus_client.parser", reason="needs prometheus-client")

    async def test() -> None:
        async with running(synthetic, tmp_path) as here:
            here.watch()
            await until(lambda: here.service.room.speed.frames_generated > 30)
            answer = await here.http.get("/metrics")
            families = {family.name: family for family in parser.text_string_to_metric_families(answer.text)}
            values = {sample.name: sample.value for family in families.values() for sample in family.samples}
            assert values["fewstep_engine_up"] == 1
            assert values["fewstep_viewers"] == 1
            assert values["fewstep_frames_generated_total"] > 30
            assert values["fewstep_chunk_seconds_count"] >= 5
            assert families["fewstep_sessions"].type == "gauge"
            labels = {key for family in families.values() for s in family.samples for key in s.labels}
            assert labels <= {"version", "model", "state", "cause", "reason", "type", "code", "codec", "le"}

    run(test)


def test_readiness_follows_the_engine_and_the_shutdown(synthetic: Any, tmp_path: Path):
    async def test() -> None:
        async with running(synthetic, tmp_path) as here:
            assert (await here.http.get("/readyz")).status_code == 200
            await here.service.close()
            answer = await here.http.get("/readyz")
            assert (answer.status_code, answer.json()["code"]) == (503, "shutting_down")
            assert (await here.http.get("/healthz")).status_code == 200
            refused = await here.http.post("/v1/sessions", json={})
            assert (refused.status_code, refused.json()["code"]) == (503, "shutting_down")

    run(test)


async def body_of(here: Running, path: str, enough: Callable[[bytes], bool]) -> bytes:
    """What comes from an endless response until it is enough; then the reader hangs up."""
    received = bytearray()
    gone = asyncio.Event()

    async def receive() -> dict[str, Any]:
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        received.extend(message.get("body", b""))
        if enough(bytes(received)):
            gone.set()

    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "GET",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": [(b"host", b"localhost")],
        "client": ("127.0.0.1", 1),
        "server": ("localhost", 80),
        "scheme": "http",
    }
    async with asyncio.timeout(SECONDS):
        await here.app(scope, receive, send)
    return bytes(received)


def test_mjpeg_shows_pictures_to_whoever_reads_and_leaves_nothing_behind(synthetic: Any, tmp_path: Path):
    async def test() -> None:
        async with running(synthetic, tmp_path) as here:
            boundary = b"--fewstep-frame\r\n"
            body = await body_of(here, "/v1/sessions/live/live.mjpeg", lambda data: data.count(boundary) > 8)
            parts = body.split(boundary)[1:-1]
            for part in parts:
                head, _, picture = part.partition(b"\r\n\r\n")
                assert b"image/jpeg" in head
                with Image.open(io.BytesIO(picture)) as opened:
                    assert opened.size == (32, 32)
            assert not here.service.shared.viewers

    run(test)


def test_live_mp4_is_a_video_that_players_can_join(synthetic: Any, tmp_path: Path):
    async def test() -> None:
        async with running(synthetic, tmp_path) as here:
            body = await body_of(here, "/v1/sessions/live/live.mp4", lambda data: data.count(b"moof") > 4)
            with av.open(io.BytesIO(body), "r") as container:
                frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
            assert len(frames) >= 12
            assert frames[0].shape == (32, 32, 3)
            assert not here.service.shared.viewers

    run(test)


def test_without_an_encoder_what_needs_it_says_so_and_is_not_offered(
    synthetic: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(h264, "ENCODER", "no-such-encoder")

    async def test() -> None:
        async with running(synthetic, tmp_path) as here:
            assert (await here.http.get("/v1/engine")).json()["transports"] == ["websocket"]
            for answer in (
                await here.http.get("/v1/sessions/live/live.mp4"),
                await here.http.post("/v1/sessions/live/webrtc/offer", json={"sdp": ""}),
            ):
                assert (answer.status_code, answer.json()["code"]) == (501, "unsupported")
                assert "pip install --force-reinstall av" in answer.json()["detail"]

    run(test)


@pytest.mark.parametrize(
    "path",
    [
        *("/", "/healthz", "/readyz", "/metrics", "/v1/engine", "/v1/recordings", "/v1/sessions"),
        *("/v1/sessions/live", "/v1/sessions/none", "/v1/recordings/none.mp4"),
    ],
)
def test_monitors_may_ask_for_the_headers_alone(path: str, synthetic: Any, tmp_path: Path):
    async def test() -> None:
        async with running(synthetic, tmp_path) as here:
            whole, headers = await here.http.get(path), await here.http.head(path)
            assert headers.status_code == whole.status_code == (404 if "none" in path else 200)
            assert headers.headers["content-type"] == whole.headers["content-type"]
            described = here.app.openapi()["paths"].values()
            assert not any("head" in operations for operations in described)

    run(test)


def test_a_real_server_sends_no_body_to_who_asked_for_headers(shared_server: Any):
    with httpx.Client(base_url=shared_server.url) as http:  # one connection: a body would be the next answer
        for path in ("healthz", "metrics", "healthz"):
            answer = http.head(path)
            assert (answer.status_code, answer.content) == (200, b"")
            assert int(answer.headers["content-length"]) > 0
