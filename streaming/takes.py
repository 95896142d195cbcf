"""A take: one run from chunk 0 on, with its seed, steps and sink; checked before anything changes."""

import secrets
from dataclasses import dataclass

from fewstep.streaming.engine import SINK_MODES, SinkMode, VideoModel
from fewstep.streaming.model_info import ModelInfo
from fewstep.streaming.protocol import BadMessage

DRAWN_SEED_BELOW = 2**31


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """How a session begins; None leaves the choice to the model (or, for the seed, to chance)."""

    prompt: str | None = None
    seed: int | None = None
    steps: int | None = None
    sink: str = "ema"


@dataclass(frozen=True, slots=True, kw_only=True)
class Restart:
    """Begin a new take at chunk 0."""

    seed: int
    steps: int
    sink: SinkMode


def given_or_drawn(seed: int | None) -> int:
    """The seed, or one short enough to be read out."""
    return secrets.randbelow(DRAWN_SEED_BELOW) if seed is None else seed


def checked_take(model: VideoModel | ModelInfo, *, seed: int, steps: int, sink: str) -> Restart:
    """A take the model can do."""
    if steps not in model.steps_available:
        known = ", ".join(str(count) for count in model.steps_available)
        raise BadMessage("out_of_range", f"steps must be one of {known}, got {steps}", ref="reset")
    return Restart(seed=seed, steps=steps, sink=checked_sink(sink))


def checked_sink(sink: str) -> SinkMode:
    """The sink mode of this name."""
    for mode in SINK_MODES:
        if mode == sink:
            return mode
    known = ", ".join(SINK_MODES)
    raise BadMessage("out_of_range", f"sink must be one of {known}, got {sink!r}", ref="reset")


def check_size(model: ModelInfo, width: int | None, height: int | None) -> None:
    """The model has one size; None asks for nothing."""
    if width not in (None, model.width) or height not in (None, model.height):
        wanted = f"{width or model.width}x{height or model.height}"
        text = f"reset: size {wanted} is impossible; this model makes {model.width}x{model.height}"
        raise BadMessage("unsupported_size", text, ref="reset")
