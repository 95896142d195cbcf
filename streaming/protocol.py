"""The `fewstep.v1` wire protocol: the binary frame header and every message a client may send."""

import json
import struct
import unicodedata
from enum import IntFlag
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from fewstep.modalities.video.limits import PROMPT_CHARACTERS as MAX_PROMPT_CHARACTERS
from fewstep.streaming.encoding import EncodedFrame

SUBPROTOCOL = "fewstep.v1"
MAGIC = b"FSV1"
CODEC_JPEG, CODEC_H264 = 1, 2
HEADER = struct.Struct("<4sBBHIIHHHHQQ")
MAX_MESSAGE_BYTES = 32_768  # a prompt of nothing but escaped emoji has 12 for each character
MAX_NESTING = 8
MAX_SEED = 2**63 - 1
MAX_SEQ = 2**32 - 1
UNWRITABLE = ("Cc", "Cs")  # control characters and lone surrogates


class Flags(IntFlag):
    """Bits of the header's flags byte."""

    KEY = 1
    FIRST_OF_CHUNK = 2
    FIRST_OF_PROMPT = 4
    RESET = 8
    RECORDING = 16


class BadMessage(ValueError):
    """A client message that is refused; `code` is for programs, the text for people."""

    def __init__(self, code: str, text: str, *, ref: str | None = None) -> None:
        super().__init__(text)
        self.code = code
        self.ref = ref


def pack_frame(frame: EncodedFrame, *, sent_us: int, h264: bool = False) -> bytes:
    """Header (40 bytes, little-endian) and payload; `sent_us` is microseconds since the epoch.

    Every JPEG is a key picture; of H.264 the first of each chunk is.
    """
    flags = Flags(frame.flags)
    if h264 and not flags & Flags.FIRST_OF_CHUNK:
        flags &= ~Flags.KEY
    header = HEADER.pack(
        MAGIC,
        CODEC_H264 if h264 else CODEC_JPEG,
        int(flags),
        HEADER.size,
        frame.seq & MAX_SEQ,
        frame.chunk & MAX_SEQ,
        frame.revision & 0xFFFF,
        frame.width,
        frame.height,
        round(frame.fps * 100),
        frame.pts_us,
        sent_us,
    )
    payload = frame.h264 if h264 else frame.payload
    assert payload is not None, "this frame has no H.264"
    return header + payload


def unpack_frame(data: bytes) -> tuple[EncodedFrame, int]:
    """Inverse of `pack_frame`: the frame and its send time. Skips header bytes it does not know.

    An H.264 picture ends up in `h264`, and `payload` is empty.
    """
    if len(data) < HEADER.size or data[:4] != MAGIC:
        raise ValueError(f"not a {SUBPROTOCOL} frame: {len(data)} bytes beginning {data[:4]!r}")
    _, codec, flags, length, seq, chunk, revision, width, height, fps, pts_us, sent_us = HEADER.unpack_from(
        data
    )
    frame = EncodedFrame(
        seq=seq,
        chunk=chunk,
        revision=revision,
        flags=flags,
        width=width,
        height=height,
        fps=fps / 100,
        pts_us=pts_us,
        payload=b"" if codec == CODEC_H264 else data[length:],
        h264=data[length:] if codec == CODEC_H264 else None,
    )
    return frame, sent_us


class ClientMessage(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    @property
    def kind(self) -> str:
        """Its `type`; what has none, such as a part of a message, is named after its class."""
        return str(getattr(self, "type", type(self).__name__))


Name = Annotated[str, Field(min_length=1, max_length=64)]
Seed = Annotated[int, Field(ge=0, le=MAX_SEED)]


class ClientInfo(ClientMessage):
    name: Name
    version: Name


class Hello(ClientMessage):
    type: Literal["hello"]
    session: Name | None = None
    role: Literal["controller", "viewer"] = "controller"
    codecs: Annotated[list[Name], Field(min_length=1, max_length=8)] = ["jpeg"]
    last_seq: Annotated[int, Field(ge=0, le=MAX_SEQ)] | None = None
    resume: Name | None = None
    """The token that came with a session of one's own; whoever has it steers."""
    client: ClientInfo | None = None


class Prompt(ClientMessage):
    type: Literal["prompt"]
    text: str
    id: Name | None = None


class Steer(ClientMessage):
    """Either a key of the model's steering map, or an axis with one of its values."""

    type: Literal["steer"]
    key: Name | None = None
    axis: Name | None = None
    value: Name | None = None
    id: Name | None = None

    @model_validator(mode="after")
    def _one_way(self) -> "Steer":
        by_key = self.key is not None and self.axis is None and self.value is None
        by_value = self.key is None and self.axis is not None and self.value is not None
        if not by_key and not by_value:
            raise ValueError("give either key, or axis and value")
        return self


class Pause(ClientMessage):
    type: Literal["pause"]


class Resume(ClientMessage):
    type: Literal["resume"]


class Reset(ClientMessage):
    """Back to chunk 0; what is left out stays as it is. A size is accepted only if the model has it."""

    type: Literal["reset"]
    seed: Seed | None = None
    steps: Annotated[int, Field(ge=1, le=1000)] | None = None
    sink: Name | None = None
    width: Annotated[int, Field(ge=1, le=65_535)] | None = None
    height: Annotated[int, Field(ge=1, le=65_535)] | None = None


class Reseed(ClientMessage):
    """Reset under a new seed; without one the server draws it and reports it."""

    type: Literal["reseed"]
    seed: Seed | None = None


class RecordStart(ClientMessage):
    type: Literal["record.start"]
    policy: Literal["complete"] = "complete"


class RecordStop(ClientMessage):
    type: Literal["record.stop"]


class Stop(ClientMessage):
    """End a session of one's own."""

    type: Literal["stop"]


class Ack(ClientMessage):
    """The newest frame that was drawn; every older one counts as drawn too."""

    type: Literal["ack"]
    seq: Annotated[int, Field(ge=0, le=MAX_SEQ)]
    t: float | None = None


class View(ClientMessage):
    type: Literal["view"]
    visible: bool


class Ping(ClientMessage):
    type: Literal["ping"]
    t: float


MESSAGES: dict[str, type[ClientMessage]] = {
    "hello": Hello,
    "prompt": Prompt,
    "steer": Steer,
    "pause": Pause,
    "resume": Resume,
    "reset": Reset,
    "reseed": Reseed,
    "record.start": RecordStart,
    "record.stop": RecordStop,
    "stop": Stop,
    "ack": Ack,
    "view": View,
    "ping": Ping,
}
KNOWN = ", ".join(MESSAGES)
VIEWER_MESSAGES = (Ack, View, Ping)


def parse_message(text: str) -> ClientMessage:
    """One client message, or `BadMessage` saying what is wrong with it."""
    fields = _parse_object(text)
    kind = fields.get("type")
    if not isinstance(kind, str) or kind not in MESSAGES:
        raise BadMessage("invalid_message", f"unknown message type {str(kind)[:60]!r}; known: {KNOWN}")
    try:
        return MESSAGES[kind].model_validate(fields)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or kind
        code = "out_of_range" if first["type"].endswith(("_than", "_than_equal")) else "invalid_message"
        raise BadMessage(code, f"{kind}: {where}: {first['msg']}", ref=kind) from None


def _parse_object(text: str) -> dict[str, Any]:
    try:
        fields = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise BadMessage("invalid_json", f"not valid JSON: {error}"[:200]) from None
    if not isinstance(fields, dict):
        raise BadMessage("invalid_message", f"a message is a JSON object, got {type(fields).__name__}")
    if _nesting(fields) > MAX_NESTING:
        raise BadMessage("invalid_message", f"nested deeper than {MAX_NESTING} levels")
    return fields


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


def _nesting(value: object) -> int:
    depth, level = 0, [value]
    while level:
        containers = [item for item in level if isinstance(item, dict | list)]
        children = (item.values() if isinstance(item, dict) else item for item in containers)
        level = [child for group in children for child in group]
        depth += bool(containers)
    return depth


def clean_prompt(text: str) -> str:
    """NFC, control characters and outer blanks removed; refuses what is empty or too long."""
    composed = unicodedata.normalize("NFC", text)
    spaced = composed.translate({ord(blank): " " for blank in "\n\r\t"})
    cleaned = "".join(char for char in spaced if unicodedata.category(char) not in UNWRITABLE).strip()
    if not cleaned:
        raise BadMessage("prompt_empty", "the prompt is empty; write what should be seen", ref="prompt")
    if len(cleaned) > MAX_PROMPT_CHARACTERS:
        raise BadMessage(
            "prompt_too_long",
            f"the prompt has {len(cleaned)} characters; at most {MAX_PROMPT_CHARACTERS} are allowed",
            ref="prompt",
        )
    return cleaned
