"""Two servers behind one address: a session stays where it is, and one that dies takes only its own along."""

import json
import os
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.typing import Origin, Subprotocol

from fewstep.apps import webrtc_api
from fewstep.apps.replicas import arguments_of
from fewstep.streaming.encoding import EncodedFrame
from fewstep.streaming.protocol import SUBPROTOCOL, unpack_frame
from fewstep.streaming.service import LETTERS, new_id, replica_of
from tests.apps.stream_client import children, close_code
from tests.apps.webrtc_watcher import Watcher
from tests.waiting import idle_until, run

TOKEN = "a-token-of-enough-letters"
BEARER = {"Authorization": f"Bearer {TOKEN}"}


def test_a_sessions_name_says_which_replica_has_it():
    for number in range(len(LETTERS)):
        name = new_id(number)
        assert len(name) == 22
        assert replica_of(name) == number
    assert new_id(0) != new_id(0)
    assert replica_of("") is None
    assert replica_of("-x") is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--replicas", "0"], "--replicas must be in 1..16"),
        (["--replicas", "2", "--device", "cuda:1"], "without a number"),
        (["--replicas", "2", "--in-process"], "--in-process"),
    ],
)
def test_impossible_replicas_are_refused_in_one_line(arguments: list[str], message: str, capsys: Any):
    from fewstep.apps.cli import main

    assert main(["stream", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.slow
def test_what_every_replica_refuses_ends_the_front_too(capfd: Any):
    from fewstep.apps.cli import main

    assert main(["stream", "no-such-model", "--replicas", "2", "--port", "0"]) == 2
    lines = capfd.readouterr().err.splitlines()
    assert "no-such-model" in lines[0]
    assert lines[-1] == "fewstep: error: a replica does not start, for the reason above"


def test_each_replica_gets_its_device_and_never_the_token_on_its_command_line():
    import argparse

    from fewstep.apps.stream import add_arguments

    parser = argparse.ArgumentParser()
    add_arguments(parser)
    args = parser.parse_args(["--replicas", "2", "--device", "cuda", "--token", TOKEN, "--prompt=-x"])
    given = [arguments_of(args, number, ["here.example"]) for number in range(2)]
    assert [words[words.index("--device") + 1] for words in given] == ["cuda:0", "cuda:1"]
    for words in given:
        again = parser.parse_args(words[1:])
        assert (again.prompt, again.allowed_host, again.port) == ("-x", ["here.example"], 0)
        assert TOKEN not in " ".join(words)


@pytest.mark.parametrize(
    ("flags", "decoders"),
    [
        (["--device", "cuda"], [None, None]),
        (["--device", "cuda", "--decoder-device", "cuda"], ["cuda:2", "cuda:3"]),
        (["--device", "cuda", "--decoder-device", "cuda:5"], ["cuda:5", "cuda:5"]),
        (["--device", "cuda", "--decoder-device", "cpu"], ["cpu", "cpu"]),
        (["--decoder-device", "cuda"], ["cuda:0", "cuda:1"]),
    ],
)
def test_each_replica_is_accelerated_and_decodes_on_a_device_that_is_free(
    flags: list[str], decoders: list[str | None]
):
    import argparse

    from fewstep.apps.stream import add_arguments

    parser = argparse.ArgumentParser()
    add_arguments(parser)
    args = parser.parse_args(["--replicas", "2", "--accelerate", "last_step", *flags])
    given = [parser.parse_args(arguments_of(args, number, [])[1:]) for number in range(2)]
    assert [one.decoder_device for one in given] == decoders
    assert {one.accelerate for one in given} == {"last_step"}


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory, start_server: Any) -> Iterator[Any]:
    folder = tmp_path_factory.mktemp("replicas")
    running = start_server(folder, "--replicas", "2", "--token", TOKEN, "--max-sessions", "2")
    idle_until(lambda: replicas_ready(running) == [True, True])
    yield running
    assert running.stop(signal.SIGTERM)[0] == 0


def replicas_ready(server: Any) -> list[bool]:
    answer = httpx.get(server.url + "readyz", headers=BEARER)
    return answer.json()["replicas"] if answer.status_code == 200 else []


def dial(server: Any, session: str, **options: Any) -> Any:
    return connect(
        f"ws://{server.address}/v1/sessions/{session}/stream",
        **{
            "subprotocols": [Subprotocol(SUBPROTOCOL), Subprotocol(f"bearer.{TOKEN}")],
            "proxy": None,
            **options,
        },
    )


async def frames(line: ClientConnection, hello: dict[str, Any]) -> AsyncIterator[EncodedFrame]:
    await line.send(json.dumps({"type": "hello", **hello}))
    async for item in line:
        if isinstance(item, bytes):
            frame = unpack_frame(item)[0]
            await line.send(json.dumps({"type": "ack", "seq": frame.seq}))
            yield frame


def create(server: Any) -> dict[str, Any]:
    answer = httpx.post(server.url + "v1/sessions", json={"seed": 5}, headers=BEARER)
    assert answer.status_code in (201, 202), answer.text
    return answer.json()


@pytest.mark.slow
def test_sessions_spread_stay_and_are_found_again_with_their_token(house: Any):
    assert httpx.get(house.url + "v1/sessions").status_code == 401
    assert httpx.get(house.url, headers={"Host": "evil.example"}).status_code == 400
    assert "fewstep" in httpx.get(house.url).text
    made = [create(house) for _ in range(2)]
    assert {replica_of(one["id"]) for one in made} == {0, 1}
    listed = {one["id"] for one in httpx.get(house.url + "v1/sessions", headers=BEARER).json()}
    assert listed == {"live", *(one["id"] for one in made)}

    async def test() -> None:
        for one in made:
            hello, newest = {"resume": one["resume_token"]}, 0
            async with dial(house, one["id"]) as line:
                async for frame in frames(line, hello):
                    newest = frame.seq
                    if newest >= 6:
                        break
            async with dial(house, one["id"]) as line:  # and goes on where it was
                async for again in frames(line, hello):
                    assert again.seq >= newest
                    break
            async with dial(house, one["id"]) as line:
                await line.send(json.dumps({"type": "hello", "resume": "x" * 43}))
                assert await close_code(line) == 4401
            path = f"{house.url}v1/sessions/{one['id']}"
            token = {**BEARER, "Resume-Token": one["resume_token"]}
            assert httpx.get(path, headers=BEARER).json()["seed"] == 5
            assert httpx.get(path + "/frame.jpg", headers=BEARER).content[:2] == b"\xff\xd8"
            assert httpx.post(path + "/prompt", json={"text": "x" * 70_000}, headers=token).status_code == 413
            assert httpx.post(path + "/prompt", json={"text": "snow"}, headers=token).json() == {"rev": 2}
            assert httpx.delete(path, headers=token).status_code == 204
        async with dial(house, "live", origin=Origin("https://evil.example")) as line:
            assert await close_code(line) == 4403
        async with dial(house, "live", subprotocols=[Subprotocol(SUBPROTOCOL)]) as line:
            assert await close_code(line) == 4401

    run(test)
    up = httpx.get(house.url + "metrics").text
    assert 'fewstep_replica_up{replica="1"} 1' in up
    assert "fewstep_engine_up 1" in httpx.get(house.url + "replicas/1/metrics", headers=BEARER).text


@pytest.mark.slow
@pytest.mark.skipif(not webrtc_api.available(), reason="needs aiortc: pip install aiortc")
def test_the_picture_comes_over_webrtc_from_the_replica_that_has_the_session(house: Any):
    made = [create(house) for _ in range(2)]

    async def test() -> None:
        for one in made:
            watcher = Watcher()
            path = f"{house.url}v1/sessions/{one['id']}"
            offer = {"sdp": await watcher.offer()}
            await watcher.accept(httpx.post(f"{path}/webrtc/offer", json=offer, headers=BEARER, timeout=60))
            assert (await watcher.picture()).shape == (96, 96, 3)
            await watcher.connection.close()
            token = {**BEARER, "Resume-Token": one["resume_token"]}
            assert httpx.delete(path, headers=token).status_code == 204

    run(test)


@pytest.mark.slow
def test_a_dead_replica_is_taken_out_the_other_goes_on_and_a_fresh_one_comes(house: Any):
    made = {replica_of(one["id"]): one for one in [create(house), create(house)]}
    first, second = children(house.process.pid)

    async def test() -> None:
        async with dial(house, made[0]["id"]) as doomed, dial(house, made[1]["id"]) as other:
            async for _ in frames(doomed, {"resume": made[0]["resume_token"]}):
                break
            stream = frames(other, {"resume": made[1]["resume_token"]})
            async for _ in stream:
                break
            os.kill(first, signal.SIGKILL)
            assert await close_code(doomed) == 1012
            seen = 0
            async for _ in stream:
                seen += 1
                if seen == 12:
                    break
        async with dial(house, made[0]["id"]) as line:
            assert await close_code(line) == 4404

    run(test)
    assert httpx.get(f"{house.url}v1/sessions/{made[0]['id']}", headers=BEARER).status_code == 404
    assert httpx.get(house.url + "v1/sessions/live", headers=BEARER).status_code == 200
    idle_until(lambda: replicas_ready(house) == [True, True])
    assert second in children(house.process.pid)
    assert replica_of(create(house)["id"]) == 0


@pytest.mark.slow
def test_replicas_do_not_outlive_a_front_that_is_killed(tmp_path: Path, start_server: Any):
    server = start_server(tmp_path, "--replicas", "1")
    idle_until(lambda: httpx.get(server.url + "readyz").status_code == 200)
    (replica,) = children(server.process.pid)
    server.process.kill()
    server.process.communicate()
    idle_until(lambda: not Path(f"/proc/{replica}").exists())
