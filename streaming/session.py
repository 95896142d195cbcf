"""One live session: a stream generated just in time, played at its own rate, shown to everyone attached.

All state lives on the event loop. The engine runs on a thread of its own and sees a snapshot of the controls
once per chunk. Every controller may steer; the latest message wins.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fewstep.streaming import messages
from fewstep.streaming.archive import Archive
from fewstep.streaming.encoding import EncodedFrame
from fewstep.streaming.engine import VideoModel
from fewstep.streaming.fanout import Viewer
from fewstep.streaming.host import Control, EngineHost, Step
from fewstep.streaming.messages import Message
from fewstep.streaming.metrics import StreamMetrics
from fewstep.streaming.playout import PlayoutClock, lead_seconds
from fewstep.streaming.prompts import PromptDesk, Revision
from fewstep.streaming.protocol import BadMessage, Steer, clean_prompt
from fewstep.streaming.steering import Steering
from fewstep.streaming.takes import Restart, Start, check_size, checked_take, given_or_drawn
from fewstep.streaming.timeline import Timeline

log = logging.getLogger(__name__)

SESSION_ID = "live"
NO_VIEWER_GRACE_SECONDS = 2.0


@dataclass(slots=True, kw_only=True)
class Ready:
    """What exists once the model is loaded."""

    model: VideoModel
    desk: PromptDesk
    timeline: Timeline
    clock: PlayoutClock
    steering: Steering
    take: Restart
    """The take that was last asked for; it holds from its first chunk."""
    opening: Revision | None
    """The prompt of the very first chunk, which nothing may supersede; None afterwards."""


class LiveSession:
    """See the module docstring. `run` it once; `attach` viewers at any time; `close` ends it."""

    def __init__(self, load: Callable[[], VideoModel], *, start: Start, record_dir: Path) -> None:
        self.state = "loading"
        self.failure: str | None = None
        self.viewers: set[Viewer] = set()
        self.metrics = StreamMetrics()
        self.archive = Archive(record_dir)
        self.last_frame: EncodedFrame | None = None
        self._start = start
        self._host = EngineHost(load)
        self._engine = ThreadPoolExecutor(max_workers=1, thread_name_prefix="fewstep-engine")
        self._ready: Ready | None = None
        self._restart: Restart | None = None
        self._user_paused = False
        self._unwatched = True
        self._buffer: deque[EncodedFrame] = deque()
        self._chunk_turn = asyncio.Event()
        self._frame_turn = asyncio.Event()
        self._jobs: set[asyncio.Task[None]] = set()

    # life

    async def run(self) -> None:
        """Load the model, then generate and play until cancelled. Raises what loading raises."""
        try:
            ready = await self._load()
        except Exception as error:
            self._fail("load_failed", error)
            raise
        if self.state == "ended":
            return
        self._ready = ready
        self._restart = ready.take
        self.state = "running"
        self._broadcast(messages.model_message(ready.model))
        self._announce()
        async with asyncio.TaskGroup() as group:
            group.create_task(self._generate(ready))
            group.create_task(self._play(ready))
            group.create_task(self._report(ready))

    async def close(self, reason: str = "shutdown") -> None:
        """Finish a running recording, say goodbye to every viewer, release the threads."""
        if self.state == "ended":
            return
        self.state = "ended"
        await self._stop_recording()
        for viewer in self.viewers:
            viewer.post({"type": "bye", "reason": reason})
            viewer.close(1001, reason)
        for job in self._jobs:
            job.cancel()
        if self._ready is not None:
            await asyncio.to_thread(self._ready.desk.close)
        await asyncio.to_thread(self._engine.shutdown, wait=True, cancel_futures=True)

    async def _load(self) -> Ready:
        model = await asyncio.get_running_loop().run_in_executor(self._engine, self._host.load)
        start = self._start
        steps = model.default_steps if start.steps is None else start.steps
        take = checked_take(model, seed=given_or_drawn(start.seed), steps=steps, sink=start.sink)
        desk = PromptDesk(model.encode_prompt, model.warm_text)
        revision, _ = desk.accept(clean_prompt(start.prompt or model.default_prompt), "start")
        await desk.prepare(revision)
        return Ready(
            model=model,
            desk=desk,
            timeline=Timeline(model),
            clock=PlayoutClock(model.fps),
            steering=Steering(model.steering),
            take=take,
            opening=desk.take_ready(),
        )

    # viewers

    def attach(self, viewer: Viewer) -> None:
        """Greet a viewer and show it the picture of the moment."""
        self.viewers.add(viewer)
        viewer.post(self.welcome(viewer.role))
        if self.last_frame is not None:
            viewer.offer(self.last_frame)
        self._count_watchers()

    def detach(self, viewer: Viewer) -> None:
        """Forget a viewer; when it was the last one the engine rests soon."""
        self.viewers.discard(viewer)
        asyncio.get_running_loop().call_later(NO_VIEWER_GRACE_SECONDS, self._count_watchers)

    def set_visible(self, viewer: Viewer, visible: bool) -> None:
        """A page was hidden or shown again."""
        viewer.set_visible(visible)
        if visible and self.last_frame is not None:
            viewer.offer(self.last_frame)
        self._count_watchers()

    def _count_watchers(self) -> None:
        """Without anybody looking the engine rests; a hidden page counts only while it records."""
        watched = any(viewer.visible or self.archive.active for viewer in self.viewers)
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
        self._restart = ready.take = checked_take(
            ready.model,
            seed=ready.take.seed if seed is None else seed,
            steps=ready.take.steps if steps is None else steps,
            sink=ready.take.sink if sink is None else sink,
        )
        self._announce()

    def reseed(self, seed: int | None) -> None:
        """Restart under this seed, or under one drawn now."""
        self.restart(seed=given_or_drawn(seed))

    def prompt(self, text: str, *, source: str = "text", ref: str | None = None) -> None:
        """Accept a prompt; it holds from the first chunk begun after its encoding is ready."""
        ready = self.ready()
        revision, replaced = ready.desk.accept(clean_prompt(text), source)
        if replaced is not None:
            self._broadcast({"type": "prompt.superseded", "rev": replaced.rev})
        accepted = {"type": "prompt.accepted", "rev": revision.rev, "text": revision.text, "source": source}
        self._broadcast(accepted | {"eta_chunk": ready.timeline.chunks, "id": ref})
        job = asyncio.get_running_loop().create_task(self._prepare(ready.desk, revision))
        self._jobs.add(job)
        job.add_done_callback(self._jobs.discard)

    def steer(self, message: Steer) -> None:
        """Change one attribute; the canonical caption of the new state is the new prompt."""
        caption = self.ready().steering.apply(message)
        self.prompt(caption, source="steer", ref=message.id)
        self._announce()

    def start_recording(self) -> None:
        """Record from the next chunk on."""
        self.archive.start(self.ready().model, self._metadata())
        self._broadcast(self.archive.status())

    async def stop_recording(self) -> None:
        if not self.archive.active:
            raise BadMessage("not_recording", "record.stop: nothing is being recorded", ref="record.stop")
        await self._stop_recording()

    def ready(self) -> Ready:
        """The loaded model and what belongs to it, or `BadMessage` while there is none."""
        if self._ready is None:
            raise BadMessage("engine_not_ready", "the model is still loading; try again in a moment")
        return self._ready

    # what it says about itself

    def welcome(self, role: str) -> Message:
        ready = self._ready
        return messages.welcome_message(
            session=SESSION_ID,
            role=role,
            seq=0 if ready is None else ready.timeline.seq,
            state=self.status(),
            model=None if ready is None else messages.model_message(ready.model),
            prompts=[] if ready is None else list(ready.timeline.markers),
            record=self.archive.status(),
        )

    def status(self) -> Message:
        ready = self._ready
        return messages.state_message(
            state=self.state,
            pause=self.pause_reasons,
            reason=self.failure,
            take=None if ready is None else ready.take,
            prompt=None if ready is None else ready.timeline.prompt,
            steering={} if ready is None else ready.steering.state,
        )

    def _metadata(self) -> dict[str, Any]:
        ready = self.ready()
        fields = {"title": "fewstep live stream", "model": str(ready.model.card.get("name", "model"))}
        script = ready.timeline.script() if ready.timeline.chunks else {}
        return {**fields, "fps": ready.model.fps, **script, "prompts": list(ready.timeline.markers)}

    def _announce(self) -> None:
        """Tell everyone the state, and let both loops look at it again."""
        if self._ready is not None and self.pause_reasons:
            self._ready.clock.halt()
        self._broadcast(self.status())
        self._chunk_turn.set()
        self._frame_turn.set()

    def _broadcast(self, message: Message, *, latest: bool = False) -> None:
        for viewer in self.viewers:
            (viewer.post_latest if latest else viewer.post)(message)

    # the loops

    async def _generate(self, ready: Ready) -> None:
        loop = asyncio.get_running_loop()
        while True:
            if not self._wants_chunk(ready):
                self._chunk_turn.clear()
                await self._chunk_turn.wait()
                continue
            revision = ready.opening or ready.desk.take_ready()
            ready.opening = None
            features = None if revision is None else revision.features
            restart, self._restart = self._restart, None
            control = Control(restart=restart, features=features, recorder=self.archive.recorder)
            try:
                step = await loop.run_in_executor(self._engine, self._host.step, control)
            except Exception as error:  # whatever a model raises ends the take, not the server
                log.error("the engine failed at chunk %d", ready.timeline.chunks, exc_info=error)
                self._host.forget()
                self._fail("engine_error", error)
                continue
            if self.state == "ended":  # while the chunk was being made
                return
            self._publish(ready, step, control=control, revision=revision)
            if ready.timeline.chunks == 1:
                ready.desk.warm()  # not before: the first frame should not wait for it
            if self.archive.full is not None:
                await self._stop_recording()

    def _wants_chunk(self, ready: Ready) -> bool:
        if self.state == "ended":
            return False
        if self.state == "failed":
            return self._restart is not None
        if self.pause_reasons:
            return ready.timeline.chunks == 0
        chunk_duration = ready.model.chunk_frames / ready.clock.rate
        lead = lead_seconds(self.metrics.chunk_seconds_p90(), chunk_duration)
        return len(self._buffer) / ready.clock.rate < lead

    def _publish(self, ready: Ready, step: Step, *, control: Control, revision: Revision | None) -> None:
        index = ready.timeline.chunks
        frames = ready.timeline.add(
            step, restart=control.restart, revision=revision, recording=control.recorder is not None
        )
        self._buffer.extend(frames)
        self.metrics.add_chunk(len(frames), step.seconds["total"])
        if self.metrics.capacity_fps is not None:
            ready.clock.limit(self.metrics.capacity_fps)
        if revision is not None:
            self._broadcast({"type": "prompt.applied", **ready.timeline.markers[-1]})
        buffered = len(self._buffer) / ready.clock.rate
        self._broadcast(messages.chunk_message(step, index=index, buffered_seconds=buffered), latest=True)
        self._broadcast({"type": "window", "chunk": index, **step.window}, latest=True)
        if control.restart is not None:
            self.state, self.failure = "running", None
        if control.restart is not None or revision is not None:
            self._announce()
        self._frame_turn.set()

    async def _play(self, ready: Ready) -> None:
        while True:
            if not self._buffer or self.pause_reasons:
                self._frame_turn.clear()
                await self._frame_turn.wait()
                continue
            delay = ready.clock.delay(time.monotonic())
            if delay > 0:
                await asyncio.sleep(delay)
                continue
            self.last_frame = self._buffer.popleft()
            ready.clock.advance(time.monotonic())
            self.metrics.frames_played += 1
            for viewer in self.viewers:
                viewer.offer(self.last_frame)
            self._chunk_turn.set()

    async def _report(self, ready: Ready) -> None:
        while True:
            await asyncio.sleep(1.0)
            for viewer in self.viewers:
                stats = messages.stats_message(
                    viewer, metrics=self.metrics, clock=ready.clock, viewers=len(self.viewers)
                )
                viewer.post_latest(stats)
            if self.archive.active:
                self._broadcast(self.archive.status(), latest=True)

    async def _prepare(self, desk: PromptDesk, revision: Revision) -> None:
        try:
            await desk.prepare(revision)
        except (ValueError, ImportError, OSError) as error:
            desk.discard(revision)
            rejected = {"type": "prompt.rejected", "rev": revision.rev, "code": "prompt_refused"}
            self._broadcast(rejected | {"message": str(error)})
        self._chunk_turn.set()

    async def _stop_recording(self) -> None:
        if self.archive.active:
            await self.archive.stop(self._engine, self._metadata())
            self._broadcast(self.archive.status())
            self._count_watchers()

    def _fail(self, code: str, error: Exception) -> None:
        self.state = "failed"
        self.failure = f"{type(error).__name__}: {error}"
        retryable = code != "load_failed"
        self._broadcast({"type": "error", "code": code, "message": self.failure, "retryable": retryable})
        self._announce()
