"""The session's one timeline: it numbers frames and chunks and remembers which prompt held from where."""

from collections import deque
from typing import Any

from fewstep.streaming.encoding import EncodedFrame
from fewstep.streaming.host import Step
from fewstep.streaming.model_info import ModelInfo
from fewstep.streaming.prompts import Revision
from fewstep.streaming.protocol import Flags
from fewstep.streaming.script import Cue, Script
from fewstep.streaming.takes import Restart

MARKERS_KEPT = 64
CUES_KEPT = 4096


class Timeline:
    """`seq`, `chunks` and time run on for the session's life; each restart begins a new take and script."""

    def __init__(self, model: ModelInfo) -> None:
        self.seq = 0
        self.chunks = 0
        self.prompt: Revision | None = None
        self.markers: deque[dict[str, Any]] = deque(maxlen=MARKERS_KEPT)
        self._model = model
        self.take: Restart | None = None
        self._take_chunks = 0
        self._cues: deque[Cue] = deque(maxlen=CUES_KEPT)

    def add(
        self, step: Step, *, restart: Restart | None, revision: Revision | None, recording: bool
    ) -> list[EncodedFrame]:
        """Number the frames of a finished chunk and note what took effect with it."""
        if restart is not None:
            self.take, self._take_chunks = restart, 0
            self._cues.clear()
        if revision is not None:
            self.prompt = revision
            self.markers.append(self._marker(revision))
        assert self.prompt is not None, "the first chunk needs a prompt"
        if restart is not None or revision is not None:
            late = 0 if restart is not None else self._model.chunks_ahead
            self._cues.append(Cue(self._take_chunks + late, self.prompt.text))
        always = Flags.KEY | (Flags.RECORDING if recording else Flags(0))
        first = Flags.FIRST_OF_CHUNK
        first |= Flags.FIRST_OF_PROMPT if revision is not None else Flags(0)
        first |= Flags.RESET if restart is not None else Flags(0)
        h264 = [None] * len(step.jpeg) if step.h264 is None else step.h264
        frames = [
            self._frame(payload, also, always | first if number == 0 else always)
            for number, (payload, also) in enumerate(zip(step.jpeg, h264, strict=True))
        ]
        self.chunks += 1
        self._take_chunks += 1
        return frames

    def script(self) -> dict[str, Any]:
        """The present take: replayed by `fewstep video --prompts`, it gives the same frames."""
        if self.take is None:
            raise ValueError("nothing has been generated yet")
        take = self.take
        # After thousands of switches the oldest cues are gone; what is left begins the script.
        cues = (Cue(0, self._cues[0].prompt), *list(self._cues)[1:])
        script = Script(seed=take.seed, steps=take.steps, sink=take.sink, cues=cues)
        return script.to_dict() | {"chunks": self._take_chunks}

    def _marker(self, revision: Revision) -> dict[str, Any]:
        return {
            "rev": revision.rev,
            "text": revision.text,
            "source": revision.source,
            "chunk": self.chunks,
            "first_seq": self.seq,
            "pts_us": self._pts_us(),
            "mode": "keep",
        }

    def _frame(self, payload: bytes, h264: bytes | None, flags: Flags) -> EncodedFrame:
        assert self.prompt is not None
        frame = EncodedFrame(
            seq=self.seq,
            chunk=self.chunks,
            revision=self.prompt.rev,
            flags=int(flags),
            width=self._model.width,
            height=self._model.height,
            fps=self._model.fps,
            pts_us=self._pts_us(),
            payload=payload,
            h264=h264,
        )
        self.seq += 1
        return frame

    def _pts_us(self) -> int:
        return round(self.seq * 1e6 / self._model.fps)
