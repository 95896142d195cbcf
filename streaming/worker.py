"""The engine process: `python -m fewstep.streaming.worker FD SOURCE` answers requests over a socket.

Steps run one after the other on one thread, prompts are encoded on another, and the main thread listens, so
that the end of the server is noticed at once: then the process ends too.
"""

import contextlib
import gc
import importlib
import json
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from fewstep.streaming.channel import WorkerChannel, control_from, step_fields
from fewstep.streaming.host import EngineHost

BEAT_SECONDS = 0.5
SWITCH_SECONDS = 0.001
OUT_OF_MEMORY = ("can't allocate memory", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
DEVICE_FAILED = ("CUDA error: ", "CUBLAS_STATUS_", "CUDNN_STATUS_")

log = logging.getLogger(__name__)


def main(descriptor: int, source: str) -> None:
    # Ctrl-C in a terminal reaches the whole group; the server decides when this process ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.setswitchinterval(SWITCH_SECONDS)
    channel = WorkerChannel(socket.socket(fileno=descriptor))
    threading.Thread(target=_beat, args=(channel,), daemon=True).start()
    where = json.loads(source)
    Worker(channel, lambda: _load(**where)).serve()
    os._exit(0)


def _load(module: str, function: str, arguments: list[Any]) -> Any:
    return getattr(importlib.import_module(module), function)(*arguments)


def _beat(channel: WorkerChannel) -> None:
    """Says that the interpreter still runs; a thread that holds it for good silences this one."""
    with contextlib.suppress(OSError):  # the server is gone, and so is this process in a moment
        while True:
            channel.send({"kind": "beat"})
            time.sleep(BEAT_SECONDS)


class Worker:
    """Dispatches requests. Answers carry the request's id, and either a result or an error."""

    def __init__(self, channel: WorkerChannel, load: Callable[[], Any]) -> None:
        self._channel = channel
        self._host = EngineHost(load)
        self._engine = ThreadPoolExecutor(max_workers=1, thread_name_prefix="fewstep-engine")
        self._text = ThreadPoolExecutor(max_workers=1, thread_name_prefix="fewstep-text")

    def serve(self) -> None:
        """Until the server is gone."""
        while (request := self._channel.receive()) is not None:
            beside = request["kind"] in ("encode", "warm")
            (self._text if beside else self._engine).submit(self._answer, request)

    def _answer(self, request: dict[str, Any]) -> None:
        try:
            fields, blobs = self._perform(request)
        except Exception as error:  # whatever a model raises is the server's to judge
            log.debug("request %s failed", request["kind"], exc_info=error)
            fields, blobs = {"error": describe_error(error)}, []
            del error
            gc.collect()  # the traceback held tensors
        self._channel.send({"kind": "answer", "id": request["id"], **fields}, blobs)

    def _perform(self, request: dict[str, Any]) -> tuple[dict[str, Any], list[bytes]]:
        host = self._host
        match request["kind"]:
            case "load":
                return {"info": host.load().to_dict()}, []
            case "encode":
                host.encode(request["prompt"])
            case "warm":
                host.warm()
            case "step":
                return step_fields(host.step(request["session"], control_from(request["control"])))
            case "stop_recording":
                host.stop_recording(request["session"])
            case "forget":
                host.forget(request["session"])
        return {}, []


def describe_error(error: BaseException) -> dict[str, Any]:
    """Type and text; `fatal` is the cause for which the engine must start afresh, or None."""
    name = type(error).__name__
    family = [base.__name__ for base in type(error).__mro__]
    return {"name": name, "family": family, "text": str(error), "fatal": fatal_cause(error)}


def fatal_cause(error: BaseException) -> str | None:
    """Why no further chunk can come of this process; torch's errors by name, so that it need not be imported.

    Memory comes back only with a fresh process. After any other error of CUDA every later call fails too.
    """
    text = str(error)
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return "memory"
    if isinstance(error, RuntimeError) and any(phrase in text for phrase in OUT_OF_MEMORY):
        return "memory"
    if isinstance(error, RuntimeError) and any(phrase in text for phrase in DEVICE_FAILED):
        return "device"
    return None


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
