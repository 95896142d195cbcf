"""What a session makes: its take and prompts, the timeline of its frames, and those not yet shown."""

from collections import deque
from collections.abc import Awaitable, Callable

from fewstep.streaming.encoding import EncodedFrame
from fewstep.streaming.host import Control, RecordOrder, Step
from fewstep.streaming.metrics import StreamMetrics
from fewstep.streaming.model_info import ModelInfo
from fewstep.streaming.playout import PlayoutClock, lead_seconds
from fewstep.streaming.prompts import PromptDesk, Revision
from fewstep.streaming.protocol import clean_prompt
from fewstep.streaming.steering import Steering
from fewstep.streaming.takes import Restart, Start, checked_take, given_or_drawn
from fewstep.streaming.timeline import Added, Timeline


class Production:
    """Exists once the model is known. Raises `BadMessage` for a start that the model cannot do."""

    def __init__(self, model: ModelInfo, start: Start, encode: Callable[[str], Awaitable[None]]) -> None:
        self.model = model
        self.desk = PromptDesk(encode)
        self.timeline = Timeline(model)
        self.clock = PlayoutClock(model.fps)
        self.steering = Steering(model.steering)
        self.buffer: deque[EncodedFrame] = deque()
        steps = model.default_steps if start.steps is None else start.steps
        self.take = checked_take(model, seed=given_or_drawn(start.seed), steps=steps, sink=start.sink)
        """The take that was last asked for; it holds from its first chunk."""
        self.restart: Restart | None = self.take
        first, _ = self.desk.accept(clean_prompt(start.prompt or model.default_prompt), "start")
        self.desk.discard(first)
        self.due: Revision | None = first
        """A prompt that comes with the next chunk, whatever else is pending: the first, or one put back."""

    def begin(self, take: Restart) -> None:
        """A new take at the next chunk boundary."""
        self.restart = self.take = take

    def begin_anew(self) -> None:
        """The same take from its chunk 0 on, under the present prompt."""
        self.restart = self.take

    def next_control(self, *, h264: bool, record: RecordOrder | None) -> tuple[Control, Revision | None]:
        """What holds for the next chunk, and the prompt revision that begins with it."""
        revision = self.due or self.desk.take_ready()
        self.due = None
        restart, self.restart = self.restart, None
        prompt = None if revision is None else revision.text
        if restart is not None and prompt is None:
            assert self.timeline.prompt is not None, "the first take comes with its prompt"
            prompt = self.timeline.prompt.text
        return Control(restart=restart, prompt=prompt, h264=h264, record=record), revision

    def put_back(self, control: Control, revision: Revision | None) -> None:
        """The chunk was not made: what was to begin with it begins with the next one."""
        self.due = revision
        self.restart = self.restart or control.restart

    def take_back(self, control: Control, revision: Revision | None) -> Revision | None:
        """The chunk cannot be made: back to the last take and prompt that could. The prompt given up.

        Without this a prompt or a take that the model cannot bear would be tried for ever. There is nothing
        to go back to before the first chunk.
        """
        if self.timeline.take is None:
            self.put_back(control, revision)
            return None
        if self.take is control.restart:
            self.take = self.timeline.take
        return revision

    def add(self, step: Step, *, control: Control, revision: Revision | None) -> Added:
        """Number the frames of a finished chunk; they are shown in their time."""
        added = self.timeline.add(
            step, restart=control.restart, revision=revision, recording=control.record is not None
        )
        self.buffer.extend(added.frames)
        return added

    @property
    def eta_chunk(self) -> int:
        """The first chunk that can show a prompt accepted now."""
        return self.timeline.chunks + self.model.chunks_ahead

    @property
    def buffered_seconds(self) -> float:
        return len(self.buffer) / self.clock.rate

    def wants_chunk(self, speed: StreamMetrics, sharers: int) -> bool:
        """Whether the next chunk must be begun, so that it is there when the buffer is empty."""
        duration = self.model.chunk_frames / self.clock.rate
        p90 = speed.chunk_seconds_p90()
        return self.buffered_seconds < lead_seconds(None if p90 is None else p90 * sharers, duration)
