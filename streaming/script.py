"""The script of a stream: which prompt from which chunk on. Seed and script determine every pixel."""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import count, pairwise
from operator import index
from typing import Any

import numpy as np

from fewstep.streaming.engine import Chunk, SinkMode, VideoModel
from fewstep.streaming.protocol import MAX_SEED, clean_prompt
from fewstep.streaming.takes import checked_sink

TIMED_LINE = re.compile(r"(?:(\d+):)?(\d+(?:\.\d+)?)s?[ \t]+(\S.*)")


@dataclass(frozen=True, slots=True)
class Cue:
    """`prompt` holds from chunk `chunk` on."""

    chunk: int
    prompt: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Script:
    """Everything that decides the pixels of one take."""

    seed: int
    steps: int
    sink: SinkMode
    cues: tuple[Cue, ...]

    def __post_init__(self) -> None:
        if not 0 <= self.seed <= MAX_SEED:
            raise ValueError(f"seed must be in 0..2^63-1, got {self.seed}")
        if not self.cues or self.cues[0].chunk != 0:
            raise ValueError("the script needs a prompt at the start; give one at time 0")
        for first, second in pairwise(self.cues):
            if second.chunk <= first.chunk:
                raise ValueError(f"two cues fall on chunk {first.chunk}; keep them at least one chunk apart")

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "Script":
        """Inverse of `to_dict`; other keys are left alone, so a recording's metadata works too."""
        try:
            cues = tuple(Cue(index(cue["chunk"]), clean_prompt(cue["prompt"])) for cue in fields["cues"])
            sink = checked_sink(fields["sink"])
            return cls(seed=index(fields["seed"]), steps=index(fields["steps"]), sink=sink, cues=cues)
        except (KeyError, TypeError) as error:
            raise ValueError(f"not a script: {error}; it needs seed, steps, sink and cues") from None


def perform(
    model: VideoModel,
    script: Script,
    *,
    begin: Callable[[Any], object] | None = None,
    switch: Callable[[Any, Any], object] | None = None,
) -> Iterator[Chunk]:
    """The script's frames, chunk by chunk, without end.

    Args:
        begin: called with the stream before its first chunk.
        switch: called with the stream and the features of its next prompt, instead of `set_prompt`.
    """
    cues = {cue.chunk: cue.prompt for cue in script.cues}
    features = {prompt: model.encode_prompt(prompt) for prompt in dict.fromkeys(cues.values())}
    stream = model.stream(features[cues[0]], seed=script.seed, steps=script.steps, sink_mode=script.sink)
    if begin is not None:
        begin(stream)
    for number in count():
        if number in cues:
            if switch is None:
                stream.set_prompt(features[cues[number]])
            else:
                switch(stream, features[cues[number]])
        yield stream.step()


def segments(metadata: Mapping[str, Any]) -> list[tuple[Script, int, int]]:
    """What a recording holds: scripts, each with the chunk it begins at and its number of frames."""
    try:
        return [
            (Script.from_dict(take), index(take["first_chunk"]), index(take["frames"]))
            for take in metadata["takes"]
        ]
    except (KeyError, TypeError) as error:
        raise ValueError(f"not a recording's metadata: {error}; it needs takes") from None


def replay(model: VideoModel, metadata: Mapping[str, Any]) -> Iterator[np.ndarray]:
    """The very frames that were recorded, chunk by chunk, uint8 `[N, H, W, 3]`."""
    for script, first_chunk, frames in segments(metadata):
        left = frames
        for number, chunk in enumerate(perform(model, script)):
            if left <= 0:
                break
            if number >= first_chunk:
                yield chunk.frames[:left]
                left -= len(chunk.frames)


def parse_cues(text: str) -> list[tuple[float, str]]:
    """Lines `TIME PROMPT` (seconds, or minutes:seconds; `#` begins a comment) as (seconds, prompt)."""
    cues = []
    for number, line in enumerate(text.splitlines(), start=1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        match = TIMED_LINE.fullmatch(line)
        if match is None:
            raise ValueError(f"line {number}: expected TIME PROMPT (as '0:10 drive left'), got {line[:40]!r}")
        minutes, seconds, prompt = match.groups()
        cues.append((60.0 * int(minutes or 0) + float(seconds), clean_prompt(prompt)))
    return cues


def parse_script(text: str) -> Script:
    """A script as JSON, the form in which the live stream hands it out."""
    try:
        fields = json.loads(text)
    except ValueError as error:
        raise ValueError(f"not a JSON script: {error}") from None
    if not isinstance(fields, dict):
        raise ValueError("not a JSON script: expected an object with seed, steps, sink and cues")
    return Script.from_dict(fields)


def place_cues(timed: Sequence[tuple[float, str]], *, fps: float, chunk_frames: int) -> tuple[Cue, ...]:
    """Move each timed prompt to the nearest chunk boundary, the only place where a switch can happen."""
    ordered = sorted(timed, key=lambda cue: cue[0])
    cues = tuple(Cue(round(seconds * fps / chunk_frames), prompt) for seconds, prompt in ordered)
    for number, (first, second) in enumerate(pairwise(cues)):
        if first.chunk == second.chunk:
            times = " and ".join(f"{ordered[place][0]:g} s" for place in (number, number + 1))
            raise ValueError(
                f"prompts at {times} fall on one chunk, of {chunk_frames / fps:g} s; keep them as far apart"
            )
    return cues
