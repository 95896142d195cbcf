"""A viewer of a session, and what it should have seen."""

import json
from typing import Any

from fewstep.streaming.encoding import EncodedFrame, encode_jpeg
from fewstep.streaming.fanout import Viewer
from fewstep.streaming.protocol import unpack_frame
from fewstep.streaming.script import Script, perform
from fewstep.streaming.session import LiveSession


class Watcher:
    """A viewer that draws everything at once, unless told to stall."""

    def __init__(self, session: LiveSession, role: str = "controller") -> None:
        self.frames: list[EncodedFrame] = []
        self.messages: list[dict[str, Any]] = []
        self.stalled = False
        self.viewer = Viewer(role, wake=self.drain)
        session.attach(self.viewer)

    def drain(self) -> None:
        while not self.stalled and (item := self.viewer.take(0.0)) is not None:
            if isinstance(item, str):
                self.messages.append(json.loads(item))
            else:
                self.frames.append(unpack_frame(item)[0])
                self.viewer.ack(self.frames[-1].seq, 0.0)

    def saw_applied(self, text: str) -> bool:
        return any(message["text"] == text for message in self.of_type("prompt.applied"))

    def of_type(self, kind: str) -> list[dict[str, Any]]:
        return [message for message in self.messages if message["type"] == kind]


def direct(model: Any, script: dict[str, Any]) -> list[bytes]:
    """The script's frames without any session, encoded."""
    chunks = perform(model, Script.from_dict(script))
    return [encode_jpeg(frame) for _ in range(script["chunks"]) for frame in next(chunks).frames]
