"""What can go wrong with an engine, as its sessions are told."""

from collections.abc import Mapping
from typing import Any


class StepFailed(RuntimeError):
    """The model raised; its state is as it was before the step, and a new take may begin."""


class EngineLost(RuntimeError):
    """The engine is gone, with the state of every session in it; a fresh one has to be loaded."""

    def __init__(self, cause: str, text: str) -> None:
        super().__init__(text)
        self.cause = cause


CAUSES = {
    "died": "the engine process ended unexpectedly",
    "hung": "the engine process did not answer any more and was stopped",
    "memory": "the engine ran out of memory and was stopped",
    "device": "the engine's device failed and the engine was stopped",
    "closed": "the engine was closed",
}
PASSED_ON: dict[str, type[Exception]] = {
    "ValueError": ValueError,
    "FileNotFoundError": FileNotFoundError,
    "ImportError": ImportError,
    "OSError": OSError,
}


def lost(cause: str) -> EngineLost:
    return EngineLost(cause, CAUSES[cause])


def passed_on(error: Mapping[str, Any]) -> Exception:
    """An error of loading or encoding as it was raised in the other process, where its kind matters."""
    kinds = (PASSED_ON[name] for name in error["family"] if name in PASSED_ON)
    kind = next(kinds, None)
    return RuntimeError(f"{error['name']}: {error['text']}") if kind is None else kind(error["text"])
