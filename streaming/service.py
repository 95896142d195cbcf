"""The service: one shared session that always plays, and sessions of people's own, admitted or queued."""

import asyncio
import hmac
import logging
import re
import secrets
import string
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fewstep.streaming.admission import Rules, expected_wait, fits
from fewstep.streaming.archive import Archive, recover
from fewstep.streaming.engine_errors import EngineLost
from fewstep.streaming.protocol import BadMessage
from fewstep.streaming.room import EngineRoom
from fewstep.streaming.service_metrics import Counters
from fewstep.streaming.session import SESSION_ID, LiveSession
from fewstep.streaming.takes import Start
from fewstep.streaming.tenure import Tenure, Warning

log = logging.getLogger(__name__)

LOOK_SECONDS = 0.25
ID = re.compile(r"[A-Za-z0-9_-]{22}")
LETTERS = string.ascii_uppercase + string.ascii_lowercase
RESUME_BYTES = 32
RETRY_SECONDS = 10
CHUNK_SECONDS = 2.0
"""How long a shutdown waits for the chunk that is being made."""


class Guest:
    """A session of somebody's own: its token, its clocks, its place in the queue."""

    def __init__(self, session: LiveSession, tenure: Tenure) -> None:
        self.session = session
        self.tenure = tenure
        self.resume_token = secrets.token_urlsafe(RESUME_BYTES)
        self.told: dict[str, Any] | None = None
        self.warned: str | None = None
        self.created = time.monotonic()


class StreamService:
    """`run` it once; `create`, `find` and `end` sessions meanwhile; `close` ends all.

    Args:
        replica: number of this server where several are behind one address; the first one's shared session is
            the one that is shown, and it alone finishes what a crash left in the common folder.
    """

    def __init__(
        self,
        room: EngineRoom,
        *,
        start: Start,
        record_dir: Path,
        rules: Rules | None = None,
        replica: int | None = None,
    ) -> None:
        self.room = room
        self.rules = rules or Rules()
        self.counters = Counters()
        self.draining = False
        self.guests: dict[str, Guest] = {}
        self.shared = LiveSession(room, start=start, record_dir=record_dir)
        self._record_dir = record_dir
        self._replica = replica
        self._queue: deque[Guest] = deque()
        self._tasks: set[asyncio.Task[None]] = set()
        room.when_lost = self._engine_lost
        room.when_up = self._engine_up

    # life

    async def run(self) -> None:
        """Serve until cancelled. Raises what loading the model, or the shared session's start, raises."""
        if not self._replica:
            self.counters.recovered += len(await asyncio.to_thread(recover, self._record_dir))
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self.room.run())
                group.create_task(self.shared.run())
                group.create_task(self._look_after())
        except BaseExceptionGroup as failed:
            raise first_of(failed) from None

    async def close(self) -> None:
        """Finish recordings, say goodbye everywhere, end the engine."""
        self.draining = True
        self._queue.clear()
        closing = asyncio.gather(*(session.close() for session in self.sessions()))
        try:
            async with asyncio.timeout(CHUNK_SECONDS):
                await asyncio.shield(closing)
        except (
            TimeoutError
        ):  # the chunk under way takes too long to wait for; what was written before it stays
            self.room.kill()
            await closing
        for task in self._tasks:
            task.cancel()
        await self.room.close()

    # sessions

    def sessions(self) -> list[LiveSession]:
        """The shared one first, then the others in order of creation."""
        return [self.shared, *(guest.session for guest in self.guests.values())]

    def find(self, session_id: str) -> LiveSession | None:
        """The session of this name; what cannot be a name is not looked up."""
        if session_id == SESSION_ID:
            return self.shared
        guest = self.guests.get(session_id) if ID.fullmatch(session_id) else None
        return None if guest is None else guest.session

    def create(self, start: Start) -> Guest:
        """A session of one's own, at once or in the queue. `BadMessage` when there is no place."""
        if self.draining:
            raise BadMessage("shutting_down", "the server is being stopped")
        queued = bool(self._queue) or not self._fits()
        if queued and len(self._queue) >= self.rules.max_queue:
            self.counters.sessions["rejected"] += 1
            raise BadMessage("server_full", f"all places are taken; try again in {RETRY_SECONDS} s")
        session = LiveSession(
            self.room,
            start=start,
            record_dir=self._record_dir,
            session_id=new_id(self._replica),
            state="queued",
        )
        guest = Guest(session, Tenure(self.rules, time.monotonic()))
        self.guests[session.id] = guest
        task = asyncio.get_running_loop().create_task(self._host(guest))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        self._queue.append(guest)
        self._promote()
        return guest

    async def end(self, session_id: str, reason: str = "client_stop") -> bool:
        """End a session of somebody's own; False when there is none."""
        guest = self.guests.get(session_id)
        if guest is None:
            return False
        await guest.session.close(reason)
        return True

    def may_control(self, session: LiveSession, resume: str | None) -> bool:
        """Anybody steers the shared session; one's own needs its resume token."""
        guest = self.guests.get(session.id)
        if guest is None:
            return True
        return resume is not None and hmac.compare_digest(guest.resume_token.encode(), resume.encode())

    def called(self, session: LiveSession) -> None:
        """Who may steer has asked over HTTP: as much a sign of life as a message."""
        session.heard = time.monotonic()
        if (guest := self.guests.get(session.id)) is not None:
            guest.tenure.called(session.heard)

    def place(self, session: LiveSession) -> dict[str, Any] | None:
        """The `queue` message of a session that waits."""
        for position, guest in enumerate(self._queue, start=1):
            if guest.session is session:
                now = time.monotonic()
                running = [other.tenure.remaining(now) for other in self._admitted()]
                wait = expected_wait(position, running, self.rules)
                told = {"type": "queue", "position": position, "depth": len(self._queue)}
                return told | {"eta_s": None if wait is None else round(wait)}
        return None

    @property
    def is_replica(self) -> bool:
        """Whether requests come through a front, on this machine alone."""
        return self._replica is not None

    @property
    def archive(self) -> Archive:
        """Finished recordings are the same for everybody."""
        return self.shared.archive

    @property
    def queue_depth(self) -> int:
        return len(self._queue)

    def _admitted(self) -> Iterator[Guest]:
        return (guest for guest in self.guests.values() if guest.session.life.live)

    def _fits(self) -> bool:
        info = self.room.info
        if info is None or not self.room.up:
            return False
        own = sum(1 for _ in self._admitted())
        capacity, shared = self.room.speed.capacity_fps, self.shared.audience.looking
        if capacity is None and not own and not shared:
            return self.rules.max_sessions > 0  # nobody else is there: the first one measures the engine
        return fits(
            self.rules,
            capacity_fps=capacity,
            promised_fps=(own + (shared or not self._replica)) * info.fps,
            fps=info.fps,
            own_sessions=own,
        )

    async def _host(self, guest: Guest) -> None:
        """A session's whole life, from the queue to where it is forgotten."""
        session = guest.session
        try:
            await session.run()
        except BadMessage as error:
            told = {"type": "error", "code": error.code, "message": str(error), "retryable": False}
            session.audience.tell(told)
            await session.close("rejected")
        finally:
            if guest in self._queue:
                self._queue.remove(guest)
            self.guests.pop(session.id, None)
            self.counters.sessions[session.failure or "shutdown"] += 1

    # what happens by itself

    async def _look_after(self) -> None:
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            self._promote()
            self._count_sharers()
            now = time.monotonic()
            for guest in list(self.guests.values()):
                self._judge(guest, now)
                self._tell_place(guest)

    def _promote(self) -> None:
        """First come, first served."""
        while self._queue and self._fits():
            guest = self._queue.popleft()
            if guest.session.state != "queued":  # it was ended a moment ago
                continue
            guest.tenure.admitted(time.monotonic())
            self.counters.queue_wait.observe(time.monotonic() - guest.created)
            guest.session.admit()

    def _count_sharers(self) -> None:
        busy = sum(1 for session in self.sessions() if session.state in ("starting", "running"))
        self.room.sharers = max(1, busy)

    def _judge(self, guest: Guest, now: float) -> None:
        session = guest.session
        guest.tenure.present(session.audience.controlled, now)
        verdict = guest.tenure.verdict(now, heard=session.heard, contended=bool(self._queue))
        if isinstance(verdict, Warning):
            if guest.warned != verdict.reason:
                detail = f"this session ends in {verdict.seconds:.0f} s"
                session.audience.tell({"type": "notice", "code": verdict.reason, "detail": detail})
            guest.warned = verdict.reason
        elif verdict is not None:
            task = asyncio.get_running_loop().create_task(session.close(verdict))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        else:
            guest.warned = None

    def _tell_place(self, guest: Guest) -> None:
        place = self.place(guest.session)
        if place is not None and place != guest.told:
            guest.told = place
            guest.session.audience.tell(place, latest=True)

    def _engine_lost(self, error: EngineLost) -> None:
        for session in self.sessions():
            session.engine_lost(error)

    def _engine_up(self) -> None:
        for session in self.sessions():
            session.wake()


def new_id(replica: int | None) -> str:
    """A session's name; its first letter says which replica has it."""
    name = secrets.token_urlsafe(16)
    return name if replica is None else LETTERS[replica] + name[1:]


def replica_of(session_id: str) -> int | None:
    """The replica that made a session of this name, if any did."""
    place = LETTERS.find(session_id[:1]) if session_id else -1
    return None if place < 0 else place


def first_of(group: BaseExceptionGroup[Any]) -> BaseException:
    """The first plain exception in a group of groups."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
