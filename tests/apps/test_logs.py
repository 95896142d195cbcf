"""The server's log as JSON lines: what each line has, and what never gets into one."""

import asyncio
import json
import logging
import subprocess
import sys
import warnings
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.typing import Subprotocol

from fewstep.apps.logs import AT_LEAST, CHATTER, JsonLines, adopt, configure, leave_out_chatter
from fewstep.streaming.events import about

TOKEN = "a-token-that-nobody-should-read"
WRONG_TOKEN = "a-token-that-does-not-fit-the-door"
PROMPT = "a prompt that nobody should read"
KEYS = {"time", "level", "event", "session", "logger", "message"}
SECONDS = 120.0


@pytest.fixture
def own_logging() -> Iterator[None]:
    """What a test configures is undone."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.captureWarnings(False)


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.usefixtures("own_logging")
def test_every_line_is_an_object_with_the_same_keys(capsys: pytest.CaptureFixture[str]):
    configure("info", as_json=True)
    ours, theirs = logging.getLogger("fewstep.streaming.session"), logging.getLogger("somebody.else")
    ours.info("session %s is %s", "live", "running", extra=about("session.state", "live"))
    theirs.warning('two\nlines, a "quote" and \u00fcmlaut \ud800')
    try:
        raise ValueError("because")
    except ValueError as error:
        ours.error("it failed", exc_info=error, extra=about("engine.failed"))
    ours.debug("not asked for")
    first, second, third = lines(capsys.readouterr().err)
    assert set(first) == set(second) == KEYS
    assert set(third) == {*KEYS, "error"}
    assert datetime.fromisoformat(first["time"]).tzinfo is not None
    assert (first["level"], first["event"], first["session"]) == ("info", "session.state", "live")
    assert (second["level"], second["event"], second["session"]) == ("warning", "somebody.else", None)
    assert second["message"].startswith("two\nlines")
    assert (third["event"], third["session"]) == ("engine.failed", None)
    assert third["error"].endswith("ValueError: because")


@pytest.mark.usefixtures("own_logging")
def test_a_librarys_chatter_stays_out_at_every_level(capsys: pytest.CaptureFixture[str]):
    configure("debug", as_json=True)
    for name in AT_LEAST:
        logger = logging.getLogger(f"{name}.part")
        logger.setLevel(logging.DEBUG)  # as uvicorn does with its own
        logger.debug("> TEXT %s", PROMPT)
    logging.getLogger("uvicorn.access").info('%s - "%s %s" %d', "::1", "GET", f"/?token={TOKEN}", 200)
    (line,) = lines(capsys.readouterr().err)
    assert line["message"] == '::1 - "GET /" 200'


@pytest.mark.usefixtures("own_logging")
def test_a_library_that_prints_by_itself_writes_as_all_others(capsys: pytest.CaptureFixture[str]):
    configure("warning", as_json=True)
    loud = logging.getLogger("loud.part")
    loud.addHandler(logging.StreamHandler())
    loud.propagate = False
    adopt("loud")
    loud.warning("once")
    warnings.simplefilter("always")
    warnings.warn("of Python's", stacklevel=1)
    first, second = lines(capsys.readouterr().err)
    assert (first["logger"], first["message"]) == ("loud.part", "once")
    assert second["logger"] == "py.warnings"
    assert "of Python's" in second["message"]


@pytest.mark.parametrize(("name", "phrase"), CHATTER.items())
def test_of_these_loggers_only_what_nobody_can_act_on_is_left_out(name: str, phrase: str):
    leave_out_chatter()
    for text, kept in ((f"{phrase}x", False), ("news", True)):
        record = logging.LogRecord(name, logging.WARNING, __file__, 1, text, None, None)
        assert bool(logging.getLogger(name).filter(record)) is kept


@pytest.mark.slow
def test_an_engine_with_a_real_model_writes_json_alone(tmp_path: Path):
    """Loaded, with its text encoder, for which libraries are imported that have much to say."""
    code = (
        "import warnings; from fewstep.apps.stream import load_in_engine;"
        "model = load_in_engine('driving', 'cpu', 'default', None, 'warning', True); model.warm_text();"
        "import logging; logging.getLogger('torch.part').warning('said'); warnings.warn('warned')"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert [line["logger"] for line in lines(done.stderr)] == ["torch.part", "py.warnings"]


def test_plain_records_of_any_kind_can_be_written():
    record = logging.LogRecord("name", logging.INFO, __file__, 1, "%s", (Path("x"),), None)
    assert json.loads(JsonLines().format(record))["message"] == "x"


async def told(socket: ClientConnection, kind: str) -> None:
    """Draw everything until a message of this kind comes."""
    async for item in socket:
        if isinstance(item, bytes):
            await socket.send(json.dumps({"type": "ack", "seq": int.from_bytes(item[8:12], "little")}))
        elif json.loads(item)["type"] == kind:
            return
    raise AssertionError(f"closed before {kind}")


async def use_everything(server: Any) -> dict[str, Any]:
    """Every way in which a token or a prompt reaches a server; the session that was made."""
    bearer = {"Authorization": f"Bearer {TOKEN}"}
    async with httpx.AsyncClient(base_url=server.url, timeout=60, trust_env=False) as http:
        while (answer := await http.get(f"/v1/engine?token={TOKEN}")).status_code == 503:
            await asyncio.sleep(0.1)
        assert answer.status_code == 401
        assert (await http.post("/v1/auth", json={"token": WRONG_TOKEN})).status_code == 401
        assert (await http.post("/v1/auth", json={"token": TOKEN})).status_code == 204
        while (await http.get("/readyz")).status_code != 200:
            await asyncio.sleep(0.1)
        made = (await http.post("/v1/sessions", json={"prompt": PROMPT})).json()
        address = f"ws://{server.address}{made['ws_url']}?token={TOKEN}"
        offered = [Subprotocol("fewstep.v1"), Subprotocol(f"bearer.{TOKEN}")]
        async with connect(address, subprotocols=offered, additional_headers=bearer, proxy=None) as socket:
            hello = {"type": "hello", "role": "controller", "resume": made["resume_token"]}
            await socket.send(json.dumps(hello))
            await socket.send(json.dumps({"type": "prompt", "text": PROMPT}))
            await told(socket, "prompt.applied")
            await socket.send(json.dumps({"type": "prompt", "text": PROMPT, PROMPT: PROMPT}))
            await told(socket, "error")
            # The synthetic model fails on this word.
            await socket.send(json.dumps({"type": "prompt", "text": f"raise {PROMPT}"}))
            await told(socket, "prompt.rejected")
        resume = {"Resume-Token": made["resume_token"]}
        assert (await http.delete(f"/v1/sessions/{made['id']}", headers=resume)).status_code == 204
    return made


@pytest.mark.parametrize(
    "arguments",
    [
        ("--log-json",),
        pytest.param((), marks=pytest.mark.slow),
        pytest.param(("--log-json", "--replicas", "1"), marks=pytest.mark.slow),
    ],
    ids=["json", "text", "replica"],
)
def test_neither_tokens_nor_prompts_get_into_the_log(
    start_server: Any, tmp_path: Path, arguments: tuple[str, ...]
):
    server = start_server(tmp_path, *arguments, "--token", TOKEN, "--log-level", "debug")

    async def limited() -> dict[str, Any]:
        async with asyncio.timeout(SECONDS):
            return await use_everything(server)

    try:
        made = asyncio.run(limited())
    finally:
        code, log = server.stop()
    assert code == 0
    for secret in (TOKEN, WRONG_TOKEN, PROMPT, made["resume_token"]):
        assert secret not in log
    assert made["id"] in log
    if arguments:
        entries = lines(log)
        assert all(entry.keys() >= KEYS for entry in entries)
        events = {entry["event"] for entry in entries if entry["session"] == made["id"]}
        assert {"session.state", "session.failed"} <= events
        assert {entry["event"] for entry in entries} >= {"engine.loaded", "uvicorn.access"}
