"""What the server tells its pages, message by message. Clients ignore types and fields they do not know."""

from collections.abc import Mapping
from typing import Any

from fewstep.streaming.engine import SINK_MODES, VideoModel
from fewstep.streaming.fanout import Viewer
from fewstep.streaming.host import Step
from fewstep.streaming.metrics import StreamMetrics
from fewstep.streaming.playout import PlayoutClock
from fewstep.streaming.prompts import Revision
from fewstep.streaming.protocol import MAX_PROMPT_CHARACTERS, MAX_SEED, SUBPROTOCOL, BadMessage
from fewstep.streaming.takes import Restart

Message = dict[str, Any]


def model_message(model: VideoModel) -> Message:
    """What can be asked of the model; sent when it is loaded, and inside `welcome`."""
    return {
        "type": "model",
        "name": str(model.card.get("name", "model")),
        "fps": model.fps,
        "width": model.width,
        "height": model.height,
        "chunk_frames": model.chunk_frames,
        "steps_available": list(model.steps_available),
        "sinks": list(SINK_MODES),
        "examples": [str(text) for text in model.card.get("example_prompts", [])],
        "steering": [dict(axis) for axis in model.steering.get("axes", [])],
    }


def welcome_message(
    *,
    session: str,
    role: str,
    seq: int,
    state: Message,
    model: Message | None,
    prompts: list[Message],
    record: Message,
) -> Message:
    return {
        "type": "welcome",
        "protocol": SUBPROTOCOL,
        "session": session,
        "role": role,
        "seq": seq,
        "state": state,
        "model": model,
        "prompts": prompts,
        "record": record,
        "limits": {"prompt_characters": MAX_PROMPT_CHARACTERS, "max_seed": str(MAX_SEED)},
    }


def state_message(
    *,
    state: str,
    pause: list[str],
    reason: str | None,
    take: Restart | None,
    prompt: Revision | None,
    steering: Mapping[str, str],
) -> Message:
    """Seeds go as text as well: beyond 2^53 a browser's numbers are not exact."""
    return {
        "type": "state",
        "state": "paused" if state == "running" and pause else state,
        "pause": pause,
        "reason": reason,
        "seed": None if take is None else take.seed,
        "seed_text": None if take is None else str(take.seed),
        "steps": None if take is None else take.steps,
        "sink": None if take is None else take.sink,
        "prompt": None if prompt is None else {"rev": prompt.rev, "text": prompt.text},
        "steering": dict(steering),
    }


def chunk_message(step: Step, *, index: int, buffered_seconds: float) -> Message:
    return {
        "type": "chunk",
        "index": index,
        "frames": len(step.payloads),
        "seconds": {name: round(value, 5) for name, value in step.seconds.items()},
        "buffer_s": round(buffered_seconds, 3),
    }


def stats_message(viewer: Viewer, *, metrics: StreamMetrics, clock: PlayoutClock, viewers: int) -> Message:
    """Once a second, to each viewer its own."""
    capacity = metrics.capacity_fps
    return {
        "type": "stats",
        "fps_gen": None if capacity is None else round(capacity, 2),
        "fps_play": round(clock.rate, 2),
        "frames": metrics.frames_generated,
        "sent": viewer.sent,
        "dropped": viewer.dropped,
        "rtt_ms": None if viewer.rtt_seconds is None else round(1000 * viewer.rtt_seconds, 1),
        "underruns": clock.underruns,
        "stall_s": round(clock.stall_seconds, 3),
        "viewers": viewers,
    }


def error_message(error: BadMessage) -> Message:
    return {
        "type": "error",
        "code": error.code,
        "message": str(error),
        "retryable": error.code in ("engine_not_ready", "rate_limited"),
        "ref": error.ref,
    }
