"""How long a session may stay; pure, the clock is passed in."""

from dataclasses import dataclass
from typing import Literal

from fewstep.streaming.admission import Rules

End = Literal["queue_timeout", "idle_timeout", "max_duration"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Warning:
    """The session ends for this reason in `seconds`, unless something happens."""

    reason: End
    seconds: float


class Tenure:
    """The clocks of one session. All times are of one monotonic clock, so a wrong date does no harm."""

    def __init__(self, rules: Rules, now: float) -> None:
        self._rules = rules
        self._created = now
        self._admitted: float | None = None
        self._absent_since: float | None = now

    def admitted(self, now: float) -> None:
        self._admitted = now

    def present(self, controlled: bool, now: float) -> None:
        """Whether somebody who may steer is attached."""
        if controlled:
            self._absent_since = None
        elif self._absent_since is None:
            self._absent_since = now

    def called(self, now: float) -> None:
        """Somebody who may steer was here for a moment, without staying: over HTTP."""
        if self._absent_since is not None:
            self._absent_since = now

    def remaining(self, now: float) -> float | None:
        """Seconds left if others wait; None without a limit."""
        if self._rules.session_max is None or self._admitted is None:
            return None
        return max(0.0, self._admitted + self._rules.session_max - now)

    def verdict(self, now: float, *, heard: float, contended: bool) -> End | Warning | None:
        """What is to happen to the session now. `heard` is when a viewer last sent anything."""
        rules = self._rules
        if self._admitted is None:
            waited = now - self._created > rules.queue_timeout
            return "queue_timeout" if waited or self._away(now) > rules.queue_absence else None
        if self._away(now) > rules.absence:
            return "idle_timeout"
        silent = now - max(heard, self._admitted)
        if silent > rules.idle:
            return "idle_timeout"
        left = self.remaining(now) if contended else None
        if left is not None and left <= 0:
            return "max_duration"
        if left is not None and left <= rules.session_warning:
            return Warning(reason="max_duration", seconds=left)
        if silent > rules.warn_share * rules.idle:
            return Warning(reason="idle_timeout", seconds=rules.idle - silent)
        return None

    def _away(self, now: float) -> float:
        return 0.0 if self._absent_since is None else now - self._absent_since
