"""The command that streams: what it refuses, how it ends, and what a kill leaves behind."""

import asyncio
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import av
import httpx
import pytest

from fewstep.streaming.recording import read_metadata
from tests.apps.stream_client import (
    HELLO,
    children,
    close_code,
    dial,
    is_recorded,
    loaded,
    next_frame,
    say,
    wait_for,
)
from tests.waiting import run


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--host", "0.0.0.0"], "ssh -L"),
        (["--port", "99999"], "--port"),
        (["--seed", "-1"], "--seed"),
        (["--prompt", "  "], "empty"),
    ],
)
def test_impossible_arguments_are_refused_in_one_line(arguments: list[str], message: str, capsys: Any):
    from fewstep.apps.cli import main

    assert main(["stream", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_taken_port_is_refused_in_one_line(capsys: Any):
    from fewstep.apps.cli import main

    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert main(["stream", "--port", str(taken.getsockname()[1])]) == 2
    assert "choose another --port" in capsys.readouterr().err


def test_a_model_that_does_not_exist_ends_the_command_with_its_reason(tmp_path: Path):
    arguments = ["stream", "no-such-model", "--port", "0"]
    code = f"import sys; from fewstep.apps.cli import main; sys.exit(main({arguments}))"
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], capture_output=True, text=True, cwd=tmp_path, timeout=60
    )
    assert done.returncode == 2
    assert "no-such-model" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_server_can_be_imported_without_torch():
    modules = "fewstep.apps.server, fewstep.apps.stream, fewstep.apps.video"
    code = f"import sys, {modules}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "False", done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_says_goodbye_finishes_the_recording_and_exits_with_zero(
    server: Any, number: int, tmp_path: Path
):
    async def test() -> None:
        async with dial(server) as socket:
            await say(socket, **HELLO)
            await loaded(socket)
            await say(socket, type="record.start")
            for _ in range(8):
                await next_frame(socket, is_recorded)
            stopping = asyncio.create_task(asyncio.to_thread(server.stop, number))
            assert (await wait_for(socket, "bye"))["reason"] == "shutdown"
            assert await close_code(socket) == 1001
            code, errors = await stopping
            assert (code, errors) == (0, "")

    run(test)
    (recording,) = tmp_path.glob("rec_*.mp4")
    with av.open(str(recording)) as container:
        assert sum(1 for _ in container.decode(video=0)) >= 8


@pytest.mark.slow
def test_a_server_killed_while_recording_loses_less_than_a_second_and_leaves_no_engine(
    tmp_path: Path, start_server: Any
):
    recorded = 40

    async def test() -> None:
        first = start_server(tmp_path)
        async with dial(first) as socket:
            await say(socket, **HELLO)
            await loaded(socket)
            engines = children(first.process.pid)
            await say(socket, type="record.start")
            for _ in range(recorded):
                await next_frame(socket, is_recorded)
            first.process.kill()
            first.process.communicate()
        assert len(engines) == 1
        while any(Path(f"/proc/{pid}").exists() for pid in engines):
            await asyncio.sleep(0.05)
        second = start_server(tmp_path)
        try:
            while not (files := httpx.get(second.url + "v1/recordings").json()):
                await asyncio.sleep(0.1)
        finally:
            second.stop()
        path = tmp_path / files[0]["name"]
        metadata = read_metadata(path)
        assert metadata["recovered"] is True
        assert metadata["frames"] >= recorded - 12  # one second of the synthetic model
        with av.open(str(path)) as container:
            assert sum(1 for _ in container.decode(video=0)) == metadata["frames"]

    run(test)
