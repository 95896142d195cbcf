import dataclasses
import json

import pytest

from fewstep.streaming.encoding import EncodedFrame
from fewstep.streaming.fanout import CREDITS, QUEUE_LIMIT, Viewer
from fewstep.streaming.protocol import BadMessage, unpack_frame

FRAME = EncodedFrame(
    seq=0, chunk=0, revision=1, flags=1, width=8, height=8, fps=12.0, pts_us=0, payload=b"x" * 1000
)


def frame(seq: int) -> EncodedFrame:
    return dataclasses.replace(FRAME, seq=seq)


def drain(viewer: Viewer, now: float = 0.0) -> list[int]:
    """Take all there is; the numbers of the frames among it."""
    sent = []
    while (item := viewer.take(now)) is not None:
        if isinstance(item, bytes):
            sent.append(unpack_frame(item)[0].seq)
    return sent


def test_a_viewer_that_never_acknowledges_gets_three_frames_and_holds_one():
    viewer = Viewer("viewer")
    sent = []
    for seq in range(10_000):
        viewer.offer(frame(seq))
        sent += drain(viewer)
    assert sent == list(range(CREDITS))
    assert viewer.dropped == 10_000 - CREDITS - 1


def test_after_a_stall_the_next_frame_is_the_newest_one():
    viewer = Viewer("viewer")
    for seq in range(500):
        viewer.offer(frame(seq))
        drain(viewer)
    viewer.ack(CREDITS - 1, 5.0)
    assert drain(viewer) == [499]


def test_a_prompt_viewer_loses_nothing():
    viewer = Viewer("viewer")
    sent = []
    for seq in range(100):
        viewer.offer(frame(seq))
        sent += drain(viewer)
        viewer.ack(seq, 0.0)
    assert sent == list(range(100))
    assert viewer.dropped == 0


def test_telemetry_waits_for_a_credit_and_keeps_only_its_latest():
    viewer = Viewer("viewer")
    for seq in range(CREDITS):
        viewer.offer(frame(seq))
        drain(viewer)
    for number in range(1000):
        viewer.post_latest({"type": "stats", "number": number})
    assert viewer.take(0.0) is None
    viewer.ack(0, 0.0)
    item = viewer.take(0.0)
    assert isinstance(item, str)
    assert json.loads(item)["number"] == 999
    assert viewer.take(0.0) is None


def test_a_full_message_queue_closes_the_viewer():
    viewer = Viewer("viewer")
    for number in range(QUEUE_LIMIT + 5):
        viewer.post({"type": "state", "number": number})
    assert viewer.closing == (4008, "too slow: its message queue is full")


def test_an_acknowledgement_of_a_frame_never_sent_is_refused():
    viewer = Viewer("viewer")
    with pytest.raises(BadMessage, match="never sent"):
        viewer.ack(0, 0.0)


def test_only_a_visible_viewer_can_stall():
    viewer = Viewer("viewer")
    viewer.offer(frame(0))
    drain(viewer, now=1.0)
    assert not viewer.stalled(11.0)
    assert viewer.stalled(11.1)
    viewer.set_visible(False)
    assert not viewer.stalled(100.0)
    viewer.offer(frame(1))
    assert viewer.take(100.0) is None
    viewer.set_visible(True)
    viewer.offer(frame(2))
    assert drain(viewer) == [2]
