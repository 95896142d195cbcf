"""One live session: a stream generated just in time, played at its own rate, shown to everyone attached.

All state lives on the event loop. The engine sees a snapshot of the controls once per chunk. Everybody who
may steer the session may do so at any time; the latest message wins.
"""

import asyncio
import logging
import time
from pathlib import Path
from typing import Any

from fewstep.streaming import messages
from fewstep.streaming.archive import Archive
from fewstep.streaming.audience import Audience
from fewstep.streaming.encoding import EncodedFrame
from fewstep.streaming.engine_errors import EngineLost, StepFailed
from fewstep.streaming.events import about
from fewstep.streaming.fanout import Viewer
from fewstep.streaming.host import Control, Step
from fewstep.streaming.lifecycle import Lifecycle, State
from fewstep.streaming.messages import Message
from fewstep.streaming.production import Production
from fewstep.streaming.prompts import PromptDesk, Revision
from fewstep.streaming.protocol import BadMessage, Steer, clean_prompt
from fewstep.streaming.reporting import report
from fewstep.streaming.room import EngineRoom
from fewstep.streaming.takes import Start, check_size, checked_take, given_or_drawn

log = logging.getLogger(__name__)

SESSION_ID = "live"
NO_VIEWER_GRACE_SECONDS = 2.0
GONE, ENDED = 1001, 4410
INNOCENT = ("died", "closed", "loading")
"""Causes of a loss that are no fault of the chunk that was being made."""


class LiveSession:
    """See the module docstring. `run` it once; `attach` viewers at any time; `close` ends it."""

    def __init__(
        self,
        room: EngineRoom,
        *,
        start: Start,
        record_dir: Path,
        session_id: str = SESSION_ID,
        state: State = "starting",
    ) -> None:
        self.id = session_id
        self.life = Lifecycle(state, changed=self._state_changed)
        self.failure: str | None = None
        self.audience = Audience()
        self.archive = Archive(record_dir)
        self.frames_generated = 0
        self.frames_played = 0
        self.heard = time.monotonic()
        """When a viewer last sent anything."""
        self._start = start
        self._room = room
        self._ready: Production | None = None
        self._user_paused = False
        self._unwatched = True
        self._turn = asyncio.Event()
        self._frame_turn = asyncio.Event()
        self._jobs: set[asyncio.Task[None]] = set()
        self._ended = asyncio.Event()

    # life

    @property
    def state(self) -> State:
        return self.life.state

    async def run(self) -> None:
        """Generate and play until closed. What the start asks for and the model cannot do is raised."""
        while not self._ended.is_set() and (self._room.info is None or self.state == "queued"):
            await self._wait()
        if self._ended.is_set() or self._room.info is None:
            return
        ready = self._ready = Production(self._room.info, self._start, self._room.encode)
        self.audience.tell(messages.model_message(ready.model))
        self._announce()
        async with asyncio.TaskGroup() as group:
            loops = [self._generate(ready), self._play(ready), report(self, ready, self._room.speed)]
            tasks = [group.create_task(loop) for loop in loops]
            await self._ended.wait()
            for task in tasks:
                task.cancel()

    async def close(self, reason: str = "shutdown") -> None:
        """Finish a running recording, say goodbye to every viewer, give back what the engine holds."""
        if not self.life.allows("stop"):
            return
        self.life.on("stop")
        await self._stop_recording()
        self.failure = reason
        self.audience.dismiss(reason, GONE if reason == "shutdown" else ENDED)
        for job in self._jobs:
            job.cancel()
        self.life.on("finish")
        self._ended.set()
        self.wake()
        await self._room.forget(self.id)

    def admit(self) -> None:
        """Its place in the queue has come."""
        self.life.on("admit")
        self._announce()

    def engine_lost(self, error: EngineLost) -> None:
        """All the engine knew is gone; the same take begins anew as soon as there is another."""
        if not self.life.live:
            return
        self.life.on("engine_lost")
        self.failure = str(error)
        message = f"{error}; the take begins anew on a fresh one"
        self.audience.tell({"type": "error", "code": "engine_lost", "message": message, "retryable": True})
        if self._ready is not None:
            self._ready.begin_anew()
        self._in_background(self._stop_recording())
        self._announce()

    # viewers

    @property
    def viewers(self) -> set[Viewer]:
        return self.audience.viewers

    @property
    def last_frame(self) -> EncodedFrame | None:
        return self.audience.last_frame

    def attach(self, viewer: Viewer) -> None:
        """Greet a viewer and show it the picture of the moment."""
        self.audience.add(viewer, self.welcome(viewer.role))
        self._count_watchers()

    def detach(self, viewer: Viewer) -> None:
        """Forget a viewer; when it was the last one the engine rests soon."""
        self.audience.remove(viewer)
        asyncio.get_running_loop().call_later(NO_VIEWER_GRACE_SECONDS, self._count_watchers)

    def set_visible(self, viewer: Viewer, visible: bool) -> None:
        """A page was hidden or shown again."""
        viewer.set_visible(visible)
        if visible:
            self.audience.show_last(viewer)
        self._count_watchers()

    def _count_watchers(self) -> None:
        """Without anybody looking the engine rests; a hidden page counts only while it records."""
        watched = self.audience.looking or (bool(self.viewers) and self.archive.active)
        if watched == self._unwatched:
            self._unwatched = not watched
            self._announce()

    # controls

    @property
    def pause_reasons(self) -> list[str]:
        return ["user"] * self._user_paused + ["no_viewers"] * self._unwatched

    def pause(self) -> None:
        """Freeze the picture now, and generation at the next chunk boundary."""
        self.ready()
        self._user_paused = True
        self._announce()

    def resume(self) -> None:
        self.ready()
        self._user_paused = False
        self._announce()

    def restart(
        self,
        *,
        seed: int | None = None,
        steps: int | None = None,
        sink: str | None = None,
        width: int | None = None,
        height: int | None = None,
    ) -> None:
        """Begin a new take at the next chunk boundary; what is None stays as it is."""
        ready = self.ready()
        check_size(ready.model, width, height)
        take = checked_take(
            ready.model,
            seed=ready.take.seed if seed is None else seed,
            steps=ready.take.steps if steps is None else steps,
            sink=ready.take.sink if sink is None else sink,
        )
        ready.begin(take)
        self.life.on("restart")
        self._announce()

    def reseed(self, seed: int | None) -> None:
        """Restart under this seed, or under one drawn now."""
        self.restart(seed=given_or_drawn(seed))

    def prompt(self, text: str, *, source: str = "text", ref: str | None = None) -> int:
        """Accept a prompt; it holds from the first chunk begun after its encoding is ready. Its revision."""
        ready = self.ready()
        revision, replaced = ready.desk.accept(clean_prompt(text), source)
        if replaced is not None:
            self.audience.tell({"type": "prompt.superseded", "rev": replaced.rev})
        accepted = {"type": "prompt.accepted", "rev": revision.rev, "text": revision.text, "source": source}
        self.audience.tell(accepted | {"eta_chunk": ready.eta_chunk, "id": ref})
        self._in_background(self._prepare(ready.desk, revision))
        return revision.rev

    def steer(self, message: Steer) -> None:
        """Change one attribute; the canonical caption of the new state is the new prompt."""
        caption = self.ready().steering.apply(message)
        self.prompt(caption, source="steer", ref=message.id)
        self._announce()

    def start_recording(self) -> None:
        """Record from the next chunk on."""
        model = self.ready().model
        self.archive.start(messages.recording_metadata(model))
        self.audience.tell(self.archive.status())

    async def stop_recording(self) -> None:
        if not self.archive.active:
            raise BadMessage("not_recording", "record.stop: nothing is being recorded", ref="record.stop")
        await self._stop_recording()

    @property
    def underruns(self) -> int:
        return 0 if self._ready is None else self._ready.clock.underruns

    @property
    def stall_seconds(self) -> float:
        return 0.0 if self._ready is None else self._ready.clock.stall_seconds

    def ready(self) -> Production:
        """The model and what belongs to it, or `BadMessage` while there is none or no more."""
        if self.state in ("stopping", "ended"):
            raise BadMessage("session_ended", "the session has ended; begin another")
        if self.state == "queued":
            raise BadMessage("engine_not_ready", "the session still waits in the queue")
        if self._ready is None:
            raise BadMessage("engine_not_ready", "the model is still loading; try again in a moment")
        return self._ready

    # what it says about itself

    def welcome(self, role: str) -> Message:
        return messages.welcome_message(
            session=self.id,
            role=role,
            production=self._ready,
            state=self.status(),
            record=self.archive.status(),
        )

    def status(self) -> Message:
        return messages.state_message(
            state=self.state, pause=self.pause_reasons, reason=self.failure, production=self._ready
        )

    def _state_changed(self, state: State) -> None:
        log.info("session %s is %s", self.id, state, extra=about("session.state", self.id))

    def _announce(self) -> None:
        """Tell everyone the state, and let both loops look at it again."""
        if self.state == "running" and self.pause_reasons:
            self.life.on("pause")
        elif self.state == "paused" and not self.pause_reasons:
            self.life.on("resume")
        if self._ready is not None and self.state != "running":
            self._ready.clock.halt()
        self.audience.tell(self.status())
        self.wake()

    def wake(self) -> None:
        """Let both loops look at what has changed."""
        self._turn.set()
        self._frame_turn.set()

    async def _wait(self) -> None:
        self._turn.clear()
        await self._turn.wait()

    # the loops

    async def _generate(self, ready: Production) -> None:
        while True:
            if not self._wants_chunk(ready):
                await self._wait()
                continue
            control, revision = ready.next_control(h264=self.audience.wants_h264, record=self.archive.order)
            deadline = time.monotonic() + ready.buffered_seconds
            try:
                step = await self._room.step(self.id, control, deadline=deadline)
            except EngineLost as error:  # `engine_lost` tells the viewers
                if error.cause in INNOCENT:
                    ready.put_back(control, revision)
                else:
                    self._give_up(ready, control, revision, error)
                await asyncio.sleep(0)
                continue
            except StepFailed as error:
                if not self.life.live:
                    return
                said = f"session {self.id} failed at chunk {ready.timeline.chunks}: {error}"
                log.error("%s", said, extra=about("session.failed", self.id))
                self._give_up(ready, control, revision, error)
                self._fail(error)
                continue
            if not self.life.live:  # it was closed while the chunk was made
                return
            self._publish(ready, step, control=control, revision=revision)
            if ready.timeline.chunks == 1:
                self._in_background(self._warm())  # not before: the first frame should not wait for it
            if self.archive.full is not None:
                await self._stop_recording()

    def _wants_chunk(self, ready: Production) -> bool:
        if not self._room.up:
            return False
        if self.state == "starting":
            return ready.restart is not None
        return self.state == "running" and ready.wants_chunk(self._room.speed, self._room.sharers)

    def _publish(self, ready: Production, step: Step, *, control: Control, revision: Revision | None) -> None:
        index = ready.timeline.chunks
        added = ready.add(step, control=control, revision=revision)
        self.frames_generated += len(added.frames)
        self.archive.note(step.recorded)
        if self._room.speed.capacity_fps is not None:
            ready.clock.limit(self._room.speed.capacity_fps / self._room.sharers)
        for message in added.news:
            self.audience.tell(message)
        chunk = messages.chunk_message(step, index=index, buffered_seconds=ready.buffered_seconds)
        self.audience.tell(chunk, latest=True)
        self.audience.tell({"type": "window", "chunk": index, **step.window}, latest=True)
        first = self.state == "starting"
        self.life.on("chunk")
        if first:
            self.failure = None
        if first or control.restart is not None or added.news:
            self._announce()
        self._frame_turn.set()

    async def _play(self, ready: Production) -> None:
        while True:
            if not ready.buffer or self.state == "paused":
                self._frame_turn.clear()
                await self._frame_turn.wait()
                continue
            delay = ready.clock.delay(time.monotonic())
            if delay > 0:
                await asyncio.sleep(delay)
                continue
            ready.clock.advance(time.monotonic())
            self.frames_played += 1
            self.audience.show(ready.buffer.popleft())
            self._turn.set()

    async def _prepare(self, desk: PromptDesk, revision: Revision) -> None:
        try:
            await desk.prepare(revision)
        except (ValueError, ImportError, OSError, RuntimeError) as error:
            desk.discard(revision)
            self.audience.tell(messages.rejected_message(revision.rev, "prompt_refused", error))
        self._turn.set()

    def _give_up(
        self, ready: Production, control: Control, revision: Revision | None, error: Exception
    ) -> None:
        given_up = ready.take_back(control, revision)
        if given_up is not None:
            self.audience.tell(messages.rejected_message(given_up.rev, "engine_error", error))

    async def _warm(self) -> None:
        try:
            await self._room.warm()
        except EngineLost:
            pass

    def _in_background(self, work: Any) -> None:
        job = asyncio.get_running_loop().create_task(work)
        self._jobs.add(job)
        job.add_done_callback(self._jobs.discard)

    async def _stop_recording(self) -> None:
        if self.archive.active:
            await self.archive.stop(lambda: self._room.stop_recording(self.id))
            self.audience.tell(self.archive.status())
            self._count_watchers()

    def _fail(self, error: StepFailed) -> None:
        self.life.on("fail")
        self.failure = str(error)
        told = {"type": "error", "code": "engine_error", "message": self.failure, "retryable": True}
        self.audience.tell(told)
        self._announce()
