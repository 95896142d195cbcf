"""Everybody attached to a session: who looks, who steers, and what they are all shown and told."""

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from fewstep.streaming.encoding import EncodedFrame
from fewstep.streaming.fanout import Viewer

TAKEN_OVER = 4409
MOST_VIEWERS, VIEWERS_PER_CLIENT = 128, 96


class Audience:
    """The viewers of one session."""

    def __init__(self) -> None:
        self.viewers: set[Viewer] = set()
        self.last_frame: EncodedFrame | None = None
        self._gone: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self.viewers)

    def __iter__(self) -> Iterator[Viewer]:
        return iter(tuple(self.viewers))

    @property
    def looking(self) -> bool:
        """Whether anybody has the picture in sight."""
        return any(viewer.visible for viewer in self.viewers)

    @property
    def controlled(self) -> bool:
        """Whether anybody who may steer is attached."""
        return any(viewer.role == "controller" for viewer in self.viewers)

    @property
    def wants_h264(self) -> bool:
        return any(viewer.h264 and viewer.visible for viewer in self.viewers)

    def has_room(self, client: str) -> bool:
        """Whether one more may watch from this address; a single one never takes all the places."""
        own = sum(viewer.client == client for viewer in self.viewers)
        return len(self.viewers) < MOST_VIEWERS and own < VIEWERS_PER_CLIENT

    def add(self, viewer: Viewer, welcome: Mapping[str, Any]) -> None:
        """Greet a viewer and show it the picture of the moment."""
        self.viewers.add(viewer)
        viewer.post(welcome)
        self.show_last(viewer)

    def show_last(self, viewer: Viewer) -> None:
        """The picture of the moment, as JPEG: no key picture has to be waited for."""
        if self.last_frame is not None:
            viewer.offer(self.last_frame.alone())

    def remove(self, viewer: Viewer) -> None:
        if viewer in self.viewers:
            self.viewers.remove(viewer)
            self._gone += Counter(sent=viewer.sent, sent_h264=viewer.sent_h264, dropped=viewer.dropped)

    def total(self, name: str) -> int:
        """Frames `sent`, `sent_h264` or `dropped` for all viewers there ever were."""
        return self._gone[name] + sum(getattr(viewer, name) for viewer in self.viewers)

    def replace_controllers(self) -> None:
        """Somebody came back with the session's resume token: whoever steered before is let go."""
        for viewer in self:
            if viewer.role == "controller":
                viewer.close(TAKEN_OVER, "taken over by another connection")
                self.remove(viewer)

    def show(self, frame: EncodedFrame) -> None:
        self.last_frame = frame
        for viewer in self.viewers:
            viewer.offer(frame)

    def tell(self, message: Mapping[str, Any], *, latest: bool = False) -> None:
        """Tell everybody; `latest` messages may be replaced by newer ones of their type."""
        for viewer in self.viewers:
            (viewer.post_latest if latest else viewer.post)(message)

    def dismiss(self, reason: str, code: int) -> None:
        """Say goodbye to everybody."""
        self.tell({"type": "bye", "reason": reason})
        for viewer in self.viewers:
            viewer.close(code, reason)
