"""The engine's side of a session: load the model, then one blocking `step` per chunk."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fewstep.streaming.encoding import encode_jpeg
from fewstep.streaming.engine import VideoModel, VideoStream, WindowState
from fewstep.streaming.recording import Recorder
from fewstep.streaming.takes import Restart


@dataclass(frozen=True, slots=True, kw_only=True)
class Control:
    """What holds for one chunk; taken once at its boundary, so nothing changes inside it."""

    restart: Restart | None
    features: Any
    """Encoded prompt to switch to, or None to keep the present one."""
    recorder: Recorder | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A generated chunk, encoded."""

    payloads: list[bytes]
    seconds: dict[str, float]
    window: dict[str, Any]


class EngineHost:
    """Owns the model and its stream. Everything here runs on one thread."""

    def __init__(self, load: Callable[[], VideoModel]) -> None:
        self._load = load
        self._model: VideoModel | None = None
        self._stream: VideoStream | None = None
        self._features: Any = None
        self._take: Restart | None = None

    def load(self) -> VideoModel:
        self._model = self._load()
        return self._model

    def step(self, control: Control) -> Step:
        """Apply the control, generate one chunk, encode it and record it."""
        began = time.perf_counter()
        stream = self._prepare(control)
        chunk = stream.step()
        generated = time.perf_counter()
        payloads = [encode_jpeg(frame) for frame in chunk.frames]
        encoded = time.perf_counter()
        if control.recorder is not None:
            control.recorder.write(chunk.frames)
        seconds = {**chunk.seconds, "encode": encoded - generated, "total": time.perf_counter() - began}
        return Step(payloads=payloads, seconds=seconds, window=_describe(chunk.window))

    def forget(self) -> None:
        """Drop a stream that failed; the next control must restart."""
        self._stream = None

    def _prepare(self, control: Control) -> VideoStream:
        assert self._model is not None, "step before load"
        if control.features is not None:
            self._features = control.features
        take = control.restart
        if take is None:
            assert self._stream is not None, "the first control must restart"
            if control.features is not None:
                self._stream.set_prompt(control.features)
            return self._stream
        same = self._take is not None and (take.steps, take.sink) == (self._take.steps, self._take.sink)
        if self._stream is not None and same:
            self._stream.reset(take.seed)
            self._stream.set_prompt(self._features)
        else:
            self._stream = self._model.stream(
                self._features, seed=take.seed, steps=take.steps, sink_mode=take.sink
            )
        self._take = take
        return self._stream


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
