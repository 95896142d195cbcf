"""What the server tells its pages, message by message. Clients ignore types and fields they do not know."""

from datetime import UTC, datetime
from typing import Any

from fewstep import __version__
from fewstep.streaming.engine import SINK_MODES
from fewstep.streaming.fanout import Viewer
from fewstep.streaming.host import Step
from fewstep.streaming.metrics import StreamMetrics
from fewstep.streaming.model_info import ModelInfo
from fewstep.streaming.playout import PlayoutClock
from fewstep.streaming.production import Production
from fewstep.streaming.protocol import MAX_PROMPT_CHARACTERS, MAX_SEED, SUBPROTOCOL, BadMessage

Message = dict[str, Any]


def model_message(model: ModelInfo) -> Message:
    """What can be asked of the model; sent when it is loaded, and inside `welcome`."""
    return {
        "type": "model",
        "name": model.name,
        "fps": model.fps,
        "width": model.width,
        "height": model.height,
        "chunk_frames": model.chunk_frames,
        "steps_available": list(model.steps_available),
        "sinks": list(SINK_MODES),
        "examples": list(model.examples),
        "steering": [dict(axis) for axis in model.steering.get("axes", [])],
        "weights_sha256": model.weights_sha256,
    }


def welcome_message(
    *, session: str, role: str, production: Production | None, state: Message, record: Message
) -> Message:
    return {
        "type": "welcome",
        "protocol": SUBPROTOCOL,
        "session": session,
        "role": role,
        "seq": 0 if production is None else production.timeline.seq,
        "state": state,
        "model": None if production is None else model_message(production.model),
        "prompts": [] if production is None else list(production.timeline.markers),
        "record": record,
        "limits": {"prompt_characters": MAX_PROMPT_CHARACTERS, "max_seed": str(MAX_SEED)},
    }


def state_message(
    *, state: str, pause: list[str], reason: str | None, production: Production | None
) -> Message:
    """Seeds go as text as well: beyond 2^53 a browser's numbers are not exact."""
    take = None if production is None else production.take
    prompt = None if production is None else production.timeline.shown
    return {
        "type": "state",
        "state": state,
        "pause": pause,
        "reason": reason,
        "seed": None if take is None else take.seed,
        "seed_text": None if take is None else str(take.seed),
        "steps": None if take is None else take.steps,
        "sink": None if take is None else take.sink,
        "prompt": None if prompt is None else {"rev": prompt.rev, "text": prompt.text},
        "steering": {} if production is None else dict(production.steering.state),
    }


def chunk_message(step: Step, *, index: int, buffered_seconds: float) -> Message:
    return {
        "type": "chunk",
        "index": index,
        "frames": len(step.jpeg),
        "seconds": {name: round(value, 5) for name, value in step.seconds.items()},
        "buffer_s": round(buffered_seconds, 3),
    }


def stats_message(
    viewer: Viewer, *, frames: int, speed: StreamMetrics, clock: PlayoutClock, viewers: int
) -> Message:
    """Once a second, to each viewer its own."""
    capacity = speed.capacity_fps
    return {
        "type": "stats",
        "fps_gen": None if capacity is None else round(capacity, 2),
        "fps_play": round(clock.rate, 2),
        "frames": frames,
        "sent": viewer.sent,
        "dropped": viewer.dropped,
        "rtt_ms": None if viewer.rtt_seconds is None else round(1000 * viewer.rtt_seconds, 1),
        "underruns": clock.underruns,
        "stall_s": round(clock.stall_seconds, 3),
        "viewers": viewers,
    }


def recording_metadata(model: ModelInfo) -> Message:
    """What a recording says about where it came from; seed, steps and prompts come from its journal."""
    return {
        "title": "fewstep live stream",
        "version": __version__,
        "model": model.name,
        "weights_sha256": model.weights_sha256,
        "fps": model.fps,
        "width": model.width,
        "height": model.height,
        "chunk_frames": model.chunk_frames,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def rejected_message(rev: int, code: str, error: Exception) -> Message:
    """A prompt that was accepted and then could not be used."""
    return {"type": "prompt.rejected", "rev": rev, "code": code, "message": str(error)}


def error_message(error: BadMessage) -> Message:
    return {
        "type": "error",
        "code": error.code,
        "message": str(error),
        "retryable": error.code in ("engine_not_ready", "rate_limited"),
        "ref": error.ref,
    }
