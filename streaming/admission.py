"""Who gets a session, who waits and for how long; pure, clock and measurements are passed in."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """Limits of the service. Times in seconds; None means without limit."""

    max_sessions: int = 8
    """Own sessions at a time, beside the shared one."""
    max_queue: int = 8
    capacity_share: float = 0.9
    """How much of the measured frames per second is promised to sessions."""
    queue_timeout: float = 600.0
    queue_absence: float = 10.0
    """How long a place in the queue is kept for somebody whose connection is gone."""
    absence: float = 30.0
    """How long a session is kept for its absent controller."""
    idle: float = 300.0
    warn_share: float = 0.8
    session_max: float | None = 600.0
    """How long a session may last while others wait."""
    session_warning: float = 15.0

    def __post_init__(self) -> None:
        for name in ("max_sessions", "max_queue"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        if not 0 < self.capacity_share <= 1:
            raise ValueError(f"capacity_share must lie in (0, 1], got {self.capacity_share}")


def fits(
    rules: Rules, *, capacity_fps: float | None, promised_fps: float, fps: float, own_sessions: int
) -> bool:
    """Whether one more session of `fps` can be played without a stall for anybody.

    Nothing fits before the capacity was measured: that takes a few chunks of the shared session.
    """
    if capacity_fps is None or own_sessions >= rules.max_sessions:
        return False
    return promised_fps + fps <= rules.capacity_share * capacity_fps


def expected_wait(position: int, remaining: Sequence[float | None], rules: Rules) -> float | None:
    """Seconds until place `position` (1 is the head) can begin, if every session lasts as long as it may.

    `remaining` has what each session before the queue has left; None where there is no limit.
    """
    finite = sorted(seconds for seconds in remaining if seconds is not None)
    if not finite or rules.session_max is None:
        return None
    rounds, place = divmod(position - 1, len(finite))
    return finite[place] + rounds * rules.session_max
