"""The states of a session and every way from one to another; nothing else changes a state."""

from collections.abc import Callable
from typing import Literal, get_args

State = Literal["queued", "starting", "running", "paused", "failed", "stopping", "ended"]
Event = Literal["admit", "chunk", "pause", "resume", "fail", "engine_lost", "restart", "stop", "finish"]
STATES: tuple[State, ...] = get_args(State)
EVENTS: tuple[Event, ...] = get_args(Event)
LIVE: tuple[State, ...] = ("starting", "running", "paused", "failed")

TABLE: dict[tuple[State, Event], State] = {
    ("queued", "admit"): "starting",
    ("starting", "chunk"): "running",
    ("running", "chunk"): "running",
    ("paused", "chunk"): "paused",  # the chunk that was under way when the pause came
    ("running", "pause"): "paused",
    ("paused", "resume"): "running",
    **{(state, "fail"): "failed" for state in ("starting", "running", "paused")},
    **{(state, "engine_lost"): "starting" for state in LIVE},
    **{(state, "restart"): state for state in ("starting", "running", "paused")},
    ("failed", "restart"): "starting",
    **{(state, "stop"): "stopping" for state in ("queued", *LIVE)},
    ("stopping", "finish"): "ended",
}


class IllegalTransition(RuntimeError):
    """An event that means nothing in this state: a bug in the caller, never a user's doing."""


class Lifecycle:
    """Where a session stands. `changed` is called after each change of state, with the new one."""

    def __init__(self, state: State, *, changed: Callable[[State], None] = lambda state: None) -> None:
        self.state: State = state
        self._changed = changed

    def on(self, event: Event) -> State:
        """Follow the table, or raise `IllegalTransition`."""
        after = TABLE.get((self.state, event))
        if after is None:
            raise IllegalTransition(f"no {event} in state {self.state}")
        if after != self.state:
            self.state = after
            self._changed(after)
        return after

    def allows(self, event: Event) -> bool:
        return (self.state, event) in TABLE

    @property
    def live(self) -> bool:
        """Neither waiting nor on its way out."""
        return self.state in LIVE
