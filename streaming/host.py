"""The engine's side: one loaded model, and for each session its stream; one blocking `step` per chunk."""

import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from av.error import FFmpegError

from fewstep.streaming.encoding import ChunkEncoding
from fewstep.streaming.engine import Undo, VideoModel, VideoStream, WindowState
from fewstep.streaming.h264 import H264Encoder, available
from fewstep.streaming.journal import begin_line, cue_line, take_line
from fewstep.streaming.model_info import ModelInfo, chunks_ahead, describe
from fewstep.streaming.recording import Recorder
from fewstep.streaming.takes import Restart

PROMPTS_KEPT = 64
CUES_KEPT = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordOrder:
    """Record to `path`, from the first chunk whose control says so until one that does not."""

    path: str
    metadata: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Control:
    """What holds for one chunk; taken once at its boundary, so nothing changes inside it."""

    restart: Restart | None = None
    prompt: str | None = None
    """Prompt to switch to, or None to keep the present one; a restart always names it."""
    h264: bool = False
    """Whether somebody wants the frames as H.264 too."""
    record: RecordOrder | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """How a recording stands after a chunk; `full` says why it takes no more."""

    frames: int
    bytes: int
    full: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A generated chunk, encoded."""

    jpeg: list[bytes]
    h264: list[bytes] | None
    seconds: dict[str, float]
    window: dict[str, Any]
    recorded: Recorded | None


@dataclass(slots=True, kw_only=True)
class Seat:
    """What belongs to one session. Replaced as a whole after a step that succeeded, so never half of it."""

    stream: VideoStream
    take: Restart
    cues: tuple[tuple[int, str], ...]
    """Which prompt holds from which chunk of the take on."""
    h264: H264Encoder | None = None
    recorder: Recorder | None = None
    recording: str | None = None

    @property
    def prompt(self) -> str:
        return self.cues[-1][1]

    def script(self) -> dict[str, Any]:
        cues = [{"chunk": chunk, "prompt": prompt} for chunk, prompt in self.cues]
        return {"seed": self.take.seed, "steps": self.take.steps, "sink": self.take.sink, "cues": cues}


class EngineHost:
    """Owns the model. `encode` may run beside `step`; everything else runs on one thread."""

    def __init__(self, load: Callable[[], VideoModel]) -> None:
        self._load = load
        self._loaded: VideoModel | None = None
        self._seats: dict[str, Seat] = {}
        self._features: OrderedDict[str, Any] = OrderedDict()

    @property
    def _model(self) -> VideoModel:
        assert self._loaded is not None, "step before load"
        return self._loaded

    def load(self) -> ModelInfo:
        self._loaded = self._load()
        return describe(self._loaded)

    def encode(self, prompt: str) -> None:
        """Have the prompt's features ready for `step`; raises what the encoder raises."""
        if prompt not in self._features:
            self._features[prompt] = self._model.encode_prompt(prompt)
            if len(self._features) > PROMPTS_KEPT:
                self._features.popitem(last=False)

    def warm(self) -> None:
        """Load the text encoder, so that the first prompt of one's own does not wait for it."""
        self._model.warm_text()

    def step(self, session: str, control: Control) -> Step:
        """Apply the control, generate one chunk, encode it and record it.

        When the model raises, or its chunk cannot be encoded, the session's stream, prompt and counters are
        as they were before.
        """
        began = time.perf_counter()
        before = self._seats.get(session)
        stream, undo = self._prepare(before, control)
        encoding = ChunkEncoding(self._h264_encoder(before) if control.h264 and available() else None)
        try:
            chunk = stream.step(encoding)
        except BaseException:
            undo()
            raise
        del undo  # it may hold a copy of the window
        shows = chunk.index + chunks_ahead(self._model)
        self._seats[session] = seat = _seat_after(before, control, stream, shows)
        seat.h264 = encoding.encoder
        recorded = self._record(seat, control, chunk.index, chunk.frames)
        seconds = {**chunk.seconds, "encode": encoding.seconds, "total": time.perf_counter() - began}
        window = _describe(chunk.window)
        return Step(jpeg=encoding.jpeg, h264=encoding.h264, seconds=seconds, window=window, recorded=recorded)

    def stop_recording(self, session: str) -> None:
        """Close the file of a recording that no further chunk will close."""
        seat = self._seats.get(session)
        if seat is not None:
            _stop_recording(seat)

    def forget(self, session: str) -> None:
        """Drop a session's stream; its next control must restart."""
        self.stop_recording(session)
        self._seats.pop(session, None)

    def _prepare(self, before: Seat | None, control: Control) -> tuple[VideoStream, Undo]:
        """The stream that the next chunk comes from, set to its prompt, and what takes that back."""
        take = control.restart
        if take is None:
            assert before is not None, "the first control must restart"
            if control.prompt is None:
                return before.stream, _nothing
            undo = before.stream.set_prompt(self._features_of(control.prompt))
            return before.stream, undo or partial(self._set_back, before)
        assert control.prompt is not None, "a restart names its prompt"
        # A stream of its own, not a reset one: should its first chunk fail, the old take is still whole.
        features = self._features_of(control.prompt)
        stream = self._model.stream(features, seed=take.seed, steps=take.steps, sink_mode=take.sink)
        return stream, _nothing

    def _set_back(self, seat: Seat) -> None:
        seat.stream.set_prompt(self._features_of(seat.prompt))

    def _features_of(self, prompt: str) -> Any:
        self.encode(prompt)
        return self._features[prompt]

    def _h264_encoder(self, before: Seat | None) -> H264Encoder:
        if before is not None and before.h264 is not None:
            return before.h264
        return H264Encoder(fps=self._model.fps, width=self._model.width, height=self._model.height)

    def _record(self, seat: Seat, control: Control, index: int, frames: Any) -> Recorded | None:
        order = control.record
        if order is None or order.path != seat.recording:
            _stop_recording(seat)
        if order is None:
            return None
        if not available():
            return Recorded(frames=0, bytes=0, full="no_encoder")
        try:
            recorder = self._recorder(seat, order, control, index)
        except (OSError, FFmpegError) as error:
            return Recorded(frames=0, bytes=0, full=f"disk_error: {error.strerror}")
        recorder.write(frames)
        return Recorded(frames=recorder.frames, bytes=recorder.bytes, full=recorder.full)

    def _recorder(self, seat: Seat, order: RecordOrder, control: Control, index: int) -> Recorder:
        """The session's recorder, its journal up to date with this chunk."""
        if seat.recorder is not None:
            if control.restart is not None:
                take = take_line(seat.recorder.frames, **asdict(seat.take), prompt=seat.prompt)
                seat.recorder.journal.add(take)
            elif control.prompt is not None:
                seat.recorder.journal.add(cue_line(*seat.cues[-1]))
            return seat.recorder
        model = self._model
        begin = begin_line(order.metadata, script=seat.script(), first_chunk=index)
        seat.recorder = Recorder(
            Path(order.path), fps=model.fps, width=model.width, height=model.height, begin=begin
        )
        seat.recording = order.path
        return seat.recorder


def _nothing() -> None:
    """There is nothing to take back."""


def _seat_after(before: Seat | None, control: Control, stream: VideoStream, shows: int) -> Seat:
    """The session's seat once a chunk was made under this control, whose prompt shows from ``shows`` on."""
    if control.restart is None:
        assert before is not None
        if control.prompt is None:
            return before
        # After thousands of switches the oldest are forgotten; what is left begins the script.
        kept = before.cues[-CUES_KEPT:]
        cues = ((0, kept[0][1]), *kept[1:], (shows, control.prompt))
        return replace(before, cues=cues)
    assert control.prompt is not None
    cues = ((0, control.prompt),)
    if before is None:
        return Seat(stream=stream, take=control.restart, cues=cues)
    return replace(before, stream=stream, take=control.restart, cues=cues)


def _stop_recording(seat: Seat) -> None:
    if seat.recorder is not None:
        seat.recorder.close()
    seat.recorder = seat.recording = None


def _describe(window: WindowState) -> dict[str, Any]:
    return {
        "latent": [int(index) for index in window.window_frames],
        "sink": {
            "frames": [int(index) for index in window.sink_frames],
            "decay": float(window.decay),
            "drift": float(window.drift),
        },
        "evicted": [int(index) for index in window.evicted],
    }
