"""Work in several processes that somebody ends before its time."""

import os
import signal
import threading
import time
from pathlib import Path

import pytest

from fewstep.apps.render_progress import done_in_parallel

LONG = 600  # seconds that nothing here waits for
# The work is `eval`: what a test's own module defines, spawned processes cannot import.
SLEEP = f"__import__('time').sleep({LONG})"
DIE = "__import__('signal').raise_signal(9)"
pytestmark = pytest.mark.slow  # processes are spawned


def test_a_killed_process_is_told_and_not_waited_for():
    begun = time.monotonic()
    with pytest.raises(ChildProcessError, match="take fewer --workers"):
        done_in_parallel(eval, [SLEEP, DIE], workers=2, title="test")
    assert time.monotonic() - begun < LONG


def test_an_interruption_ends_all_at_once_and_silently(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    paths = [tmp_path / name for name in "ab"]
    jobs = [f"(__import__('pathlib').Path({str(path)!r}).touch(), {SLEEP})" for path in paths]

    def interrupt() -> None:
        while not all(path.exists() for path in paths):
            time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    begun = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        done_in_parallel(eval, jobs, workers=2, title="test")
    assert time.monotonic() - begun < LONG
    assert "Traceback" not in capfd.readouterr().err


def test_what_fails_in_a_process_is_what_is_raised():
    with pytest.raises(ValueError, match="no room"):
        done_in_parallel(eval, ["int('no room')", SLEEP], workers=2, title="test")
