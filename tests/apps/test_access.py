"""Who may enter, how often a stranger may guess, and which other pages may ask."""

import argparse
from pathlib import Path
from typing import Any

import httpx
import pytest

from fewstep.apps import stream
from fewstep.apps.access import Access, Verdict, client_of
from fewstep.apps.front import create_front
from fewstep.apps.guard import allowed_host
from fewstep.streaming.limits import Buckets
from tests.apps.test_service_api import TOKEN, running
from tests.waiting import run

STREAM = "/v1/sessions/live/stream"
ORIGIN = "https://page.example"


@pytest.mark.parametrize(
    ("scope", "admitted"),
    [
        ({}, False),
        ({"subprotocols": ["fewstep.v1", f"bearer.{TOKEN}"]}, True),
        ({"subprotocols": ["fewstep.v1", "bearer."]}, False),
        ({"headers": [(b"authorization", f"bearer {TOKEN}".encode())]}, True),
        ({"headers": [(b"authorization", f"Basic {TOKEN}".encode())]}, False),
        ({"headers": [(b"cookie", f"a=b; fewstep-token={TOKEN}".encode())]}, True),
        ({"headers": [(b"cookie", b"=;;fewstep-token")]}, False),
        ({"query_string": f"token={TOKEN}".encode()}, False),
    ],
)
def test_a_socket_brings_the_token_in_a_header_and_never_in_its_address(
    scope: dict[str, Any], admitted: bool
):
    whole = {"type": "websocket", "path": "/v1/sessions/live/stream", "headers": [], **scope}
    assert (Access(TOKEN).judge(whole) is Verdict.ADMITTED) is admitted
    assert Access().judge(whole) is Verdict.ADMITTED


@pytest.mark.parametrize("token", ["a token with a blank", "ein-sehr-gro\u00dfes-Token", "\u0100" * 16])
def test_a_token_that_no_header_can_carry_is_refused(synthetic: Any, tmp_path: Path, token: str):
    with pytest.raises(ValueError, match="visible ASCII"):
        Access(token)

    async def test() -> None:
        async with running(synthetic, tmp_path) as here:
            assert (await here.http.post("/v1/auth", json={"token": token})).status_code == 422

    run(test)


def test_a_short_token_is_refused():
    with pytest.raises(ValueError, match="16 to 256"):
        Access("short")


def header(token: str) -> dict[str, Any]:
    return {"headers": [(b"authorization", f"Bearer {token}".encode())]}


def cookie(token: str) -> dict[str, Any]:
    return {"headers": [(b"cookie", f"fewstep-token={token}".encode())]}


def protocol(token: str) -> dict[str, Any]:
    return {"type": "websocket", "subprotocols": ["fewstep.v1", f"bearer.{token}"]}


def scope(client: str = "192.0.2.1", **fields: Any) -> dict[str, Any]:
    return {"type": "http", "path": STREAM, "headers": [], "client": (client, 1), **fields}


@pytest.mark.parametrize("way", [header, cookie, protocol])
def test_after_five_guesses_even_the_right_token_is_not_told(way: Any):
    door = Access(TOKEN)
    tried = [door.judge(scope(**way(f"guess-{number}"))) for number in range(7)]
    assert tried == [Verdict.REFUSED] * 5 + [Verdict.TOO_MANY] * 2
    assert door.judge(scope(**way(TOKEN))) is Verdict.TOO_MANY
    assert door.judge(scope("192.0.2.2", **way(TOKEN))) is Verdict.ADMITTED
    door._failures = Buckets(1e9, 5.0)  # a minute later
    assert door.judge(scope(**way(TOKEN))) is Verdict.ADMITTED


def test_many_guesses_in_one_request_are_many():
    door = Access(TOKEN)
    many = ["fewstep.v1", *(f"bearer.guess-{number}" for number in range(9)), f"bearer.{TOKEN}"]
    assert door.judge(scope(type="websocket", subprotocols=many)) is Verdict.TOO_MANY


def test_a_page_that_was_left_open_with_an_old_token_keeps_nobody_out():
    door, counted = Access(TOKEN), []
    door.when_wrong = lambda: counted.append(1)
    for _ in range(50):
        assert door.judge(scope(**cookie("the-token-of-yesterday"))) is Verdict.REFUSED
        assert door.judge(scope()) is Verdict.REFUSED
    assert door.judge(scope(**header(TOKEN))) is Verdict.ADMITTED
    assert len(counted) == 50


def test_limits_count_an_ipv6_network_as_one_client():
    assert client_of(scope("2001:db8:1:2:3::4")) == client_of(scope("2001:db8:1:2:ffff::"))
    assert client_of(scope("2001:db8:1:2::")) != client_of(scope("2001:db8:1:3::"))
    assert client_of(scope("::ffff:192.0.2.1")) == "192.0.2.1"
    assert client_of({}) == ""


def test_guesses_count_wherever_they_are_made(synthetic: Any, tmp_path: Path):
    async def test() -> None:
        async with running(synthetic, tmp_path, access=Access(TOKEN)) as here:
            answers = []
            for number in range(3):
                answers.append(await here.http.post("/v1/auth", json={"token": f"guess-{number}"}))
                guess = {"Authorization": f"Bearer other-{number}"}
                answers.append(await here.http.get("/v1/engine", headers=guess))
            assert [answer.status_code for answer in answers] == [401] * 5 + [429]
            assert answers[-1].json()["code"] == "rate_limited"
            assert here.service.counters.auth_failures == 5
            assert (await here.http.post("/v1/auth", json={"token": TOKEN})).status_code == 429

    run(test)


def test_a_page_of_a_trusted_origin_may_ask_and_read_and_no_other(synthetic: Any, tmp_path: Path):
    async def test() -> None:
        door = Access(TOKEN, origins=[ORIGIN])
        async with running(synthetic, tmp_path, access=door) as here:
            for origin, allowed in ((ORIGIN, True), ("https://evil.example", False)):
                asked = {"Origin": origin, "Access-Control-Request-Method": "POST"}
                asked |= {"Access-Control-Request-Headers": "authorization,content-type,resume-token"}
                answer = await here.http.options("/v1/sessions", headers=asked)
                assert (answer.status_code == 200) is allowed
                own = {"Origin": origin, "Authorization": f"Bearer {TOKEN}"}
                for answer in (
                    await here.http.get("/v1/engine", headers=own),
                    await here.http.get("/v1/engine", headers={"Origin": origin}),
                ):
                    assert answer.headers.get("access-control-allow-origin") == (origin if allowed else None)
                    assert "access-control-allow-credentials" not in answer.headers
                made = await here.http.post("/v1/sessions", json={}, headers=own)
                assert (made.status_code == 403) is not allowed

    run(test)


def test_a_front_lets_the_same_origins_read():
    class Nobody:
        ports = (None,)

    async def test() -> None:
        transport = httpx.ASGITransport(create_front(Nobody(), origins=[ORIGIN]))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as http:
            answer = await http.get("/v1/sessions", headers={"Origin": ORIGIN})
            assert answer.headers["access-control-allow-origin"] == ORIGIN
            asked = {"Origin": ORIGIN, "Access-Control-Request-Method": "POST"}
            assert (await http.options("/v1/sessions", headers=asked)).status_code == 200

    run(test)


@pytest.mark.parametrize("origin", ["*", "page.example", "https://page.example/", "null", "https://"])
def test_what_no_browser_sends_as_an_origin_is_refused(origin: str):
    with pytest.raises(ValueError, match="an origin is"):
        Access(origins=[origin])


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "0.0.0.0", "::", "192.0.2.7", "here.example"])
def test_the_address_that_is_printed_is_answered(host: str):
    args = argparse.ArgumentParser()
    stream.add_arguments(args)
    given = args.parse_args(["--host", host, "--token", TOKEN])
    shown = stream._shown(host)
    assert shown not in ("0.0.0.0", "[::]")  # which no browser can go to
    assert allowed_host(f"{shown}:8765", stream.make_access(given).hosts)


def test_what_is_not_there_is_a_problem_document_too(synthetic: Any, tmp_path: Path):
    async def test() -> None:
        async with running(synthetic, tmp_path) as here:
            for method, path, status in (
                ("GET", "/v1/nothing", 404),
                ("GET", "/static/nothing.js", 404),
                ("PUT", "/v1/sessions", 405),
            ):
                answer = await here.http.request(method, path)
                assert answer.status_code == status
                assert answer.headers["content-type"] == "application/problem+json"
                assert answer.json()["status"] == status

    run(test)
