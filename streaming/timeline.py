"""The session's one timeline: it numbers frames and chunks and remembers which prompt held from where."""

from collections import deque
from typing import Any, NamedTuple

from fewstep.streaming.encoding import EncodedFrame
from fewstep.streaming.host import Step
from fewstep.streaming.model_info import ModelInfo
from fewstep.streaming.prompts import Revision
from fewstep.streaming.protocol import Flags
from fewstep.streaming.script import Cue, Script
from fewstep.streaming.takes import Restart

MARKERS_KEPT = 64
CUES_KEPT = 4096


class Added(NamedTuple):
    """The frames of a chunk, and what is to be told of the prompts that it shows or that never show."""

    frames: list[EncodedFrame]
    news: list[dict[str, Any]]


class Timeline:
    """`seq`, `chunks` and time run on for the session's life; each restart begins a new take and script."""

    def __init__(self, model: ModelInfo) -> None:
        self.seq = 0
        self.chunks = 0
        self.prompt: Revision | None = None
        """The latest that a chunk was made under; of a stream that is ahead it shows later."""
        self.shown: Revision | None = None
        self._coming: deque[tuple[int, Revision]] = deque()
        """Those not shown yet, each with the chunk that will."""
        self.markers: deque[dict[str, Any]] = deque(maxlen=MARKERS_KEPT)
        self._model = model
        self.take: Restart | None = None
        self._take_chunks = 0
        self._cues: deque[Cue] = deque(maxlen=CUES_KEPT)

    def add(
        self, step: Step, *, restart: Restart | None, revision: Revision | None, recording: bool
    ) -> Added:
        """Number the frames of a finished chunk and note what took effect with it."""
        if restart is not None:
            self.take, self._take_chunks = restart, 0
            self._cues.clear()
        late = 0 if restart is not None else self._model.chunks_ahead
        if revision is not None:
            self.prompt = revision
            self._coming.append((self.chunks + late, revision))
        assert self.prompt is not None, "the first chunk needs a prompt"
        if restart is not None or revision is not None:
            self._cues.append(Cue(self._take_chunks + late, self.prompt.text))
        news = self._arrivals(all_of_them=restart is not None)
        always = Flags.KEY | (Flags.RECORDING if recording else Flags(0))
        first = Flags.FIRST_OF_CHUNK
        first |= Flags.FIRST_OF_PROMPT if news else Flags(0)
        first |= Flags.RESET if restart is not None else Flags(0)
        h264 = [None] * len(step.jpeg) if step.h264 is None else step.h264
        frames = [
            self._frame(payload, also, always | first if number == 0 else always)
            for number, (payload, also) in enumerate(zip(step.jpeg, h264, strict=True))
        ]
        self.chunks += 1
        self._take_chunks += 1
        return Added(frames, news)

    def _arrivals(self, *, all_of_them: bool) -> list[dict[str, Any]]:
        """The prompt that shows from the next chunk on; a new take shows the latest and none before it."""
        due = []
        while self._coming and (all_of_them or self._coming[0][0] <= self.chunks):
            due.append(self._coming.popleft()[1])
        if not due:
            return []
        *unseen, shown = due
        self.shown = shown
        self.markers.append(self._marker(shown))
        superseded = [{"type": "prompt.superseded", "rev": revision.rev} for revision in unseen]
        return [*superseded, {"type": "prompt.applied", **self.markers[-1]}]

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
        assert self.shown is not None
        frame = EncodedFrame(
            seq=self.seq,
            chunk=self.chunks,
            revision=self.shown.rev,
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
