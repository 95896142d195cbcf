import json
import re
from importlib.resources import files

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fewstep.streaming import protocol
from fewstep.streaming.encoding import EncodedFrame
from fewstep.streaming.protocol import BadMessage, clean_prompt, pack_frame, parse_message, unpack_frame

FRAME = EncodedFrame(
    seq=0x01020304,
    chunk=0x0A0B0C0D,
    revision=7,
    flags=protocol.Flags.KEY | protocol.Flags.FIRST_OF_PROMPT,
    width=96,
    height=64,
    fps=12.0,
    pts_us=1_500_000,
    payload=b"JPEG",
)
SENT_US = 1_764_000_000_000_000
# Also read by the page's parser in test_page.py: the two must agree on every byte.
GOLDEN_HEX = (
    "46535631 01 05 2800 04030201 0d0c0b0a 0700 6000 4000 b00460e3160000000000 00406241 59440600 4a504547"
)


def test_header_is_forty_bytes_and_matches_the_golden_vector():
    packed = pack_frame(FRAME, sent_us=SENT_US)
    assert protocol.HEADER.size == 40
    assert packed == bytes.fromhex(GOLDEN_HEX)


def test_a_longer_header_from_a_newer_server_is_skipped():
    packed = bytearray(pack_frame(FRAME, sent_us=SENT_US))
    packed[6] = 44
    packed[40:40] = b"new!"
    assert unpack_frame(bytes(packed))[0].payload == b"JPEG"


@settings(deadline=None, max_examples=50)
@given(
    seq=st.integers(0, protocol.MAX_SEQ),
    chunk=st.integers(0, protocol.MAX_SEQ),
    revision=st.integers(0, 65535),
    pts_us=st.integers(0, 2**64 - 1),
    sent_us=st.integers(0, 2**64 - 1),
    payload=st.binary(max_size=20),
)
def test_header_round_trips(seq: int, chunk: int, revision: int, pts_us: int, sent_us: int, payload: bytes):
    frame = EncodedFrame(
        seq=seq,
        chunk=chunk,
        revision=revision,
        flags=1,
        width=96,
        height=96,
        fps=29.97,
        pts_us=pts_us,
        payload=payload,
    )
    assert unpack_frame(pack_frame(frame, sent_us=sent_us)) == (frame, sent_us)


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("", "invalid_json"),
        ("{", "invalid_json"),
        ('{"type": "ping", "t": NaN}', "invalid_json"),
        ('{"type": "ping", "t": 1e999}', "invalid_message"),
        ("[" * 5000, "invalid_json"),
        ("9" * 5000, "invalid_json"),
        ("[]", "invalid_message"),
        ('"hello"', "invalid_message"),
        ("{}", "invalid_message"),
        ('{"type": null}', "invalid_message"),
        ('{"type": ["ping"]}', "invalid_message"),
        ('{"type": "launch"}', "invalid_message"),
        ('{"type": "pause", "hard": true}', "invalid_message"),
        ('{"type": "prompt"}', "invalid_message"),
        ('{"type": "prompt", "text": 3}', "invalid_message"),
        ('{"type": "reseed", "seed": true}', "invalid_message"),
        ('{"type": "reseed", "seed": 1.0}', "invalid_message"),
        ('{"type": "reseed", "seed": "1"}', "invalid_message"),
        ('{"type": "reseed", "seed": -1}', "out_of_range"),
        ('{"type": "reseed", "seed": 9223372036854775808}', "out_of_range"),
        ('{"type": "reset", "steps": 0}', "out_of_range"),
        ('{"type": "reset", "width": 0}', "out_of_range"),
        ('{"type": "ack", "seq": -1}', "out_of_range"),
        ('{"type": "view", "visible": 1}', "invalid_message"),
        ('{"type": "steer"}', "invalid_message"),
        ('{"type": "steer", "key": "ArrowLeft", "axis": "speed", "value": "fast"}', "invalid_message"),
        ('{"type": "steer", "axis": "speed"}', "invalid_message"),
        ('{"type": "hello", "role": "admin"}', "invalid_message"),
    ],
)
def test_bad_messages_are_refused_with_a_reason(text: str, code: str):
    with pytest.raises(BadMessage) as caught:
        parse_message(text)
    assert caught.value.code == code
    assert 5 < len(str(caught.value)) < 300


def test_nesting_is_limited_before_any_field_is_looked_at():
    deep = {"type": "prompt", "text": json.loads("[" * 12 + "]" * 12)}
    with pytest.raises(BadMessage, match="nested deeper"):
        parse_message(json.dumps(deep))


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)


@settings(deadline=None, max_examples=200)
@given(
    kind=st.sampled_from(sorted(protocol.MESSAGES)) | st.text(max_size=6),
    fields=st.dictionaries(
        st.sampled_from(
            ["text", "id", "seed", "seq", "t", "key", "axis", "value", "visible", "role", "codecs"]
        ),
        JSON_VALUES,
        max_size=4,
    ),
    cut=st.integers(0, 400),
)
def test_any_message_either_parses_or_is_refused(kind: str, fields: dict[str, object], cut: int):
    text = json.dumps({"type": kind, **fields})[: cut or None]
    try:
        message = parse_message(text)
    except BadMessage:
        return
    assert isinstance(message, protocol.MESSAGES[kind])


@pytest.mark.parametrize("text", ["", "   ", "\n\t ", "\x00\x01", "\u00a0", "\ud800"])
def test_a_prompt_without_content_is_empty(text: str):
    with pytest.raises(BadMessage) as caught:
        clean_prompt(text)
    assert caught.value.code == "prompt_empty"


def test_a_prompt_is_limited_after_cleaning():
    longest = "x" * protocol.MAX_PROMPT_CHARACTERS
    assert clean_prompt(f"  {longest}\x00\n") == longest
    with pytest.raises(BadMessage) as caught:
        clean_prompt(longest + "x")
    assert caught.value.code == "prompt_too_long"


def test_the_longest_prompt_fits_a_message_however_it_is_escaped_and_the_pages_box():
    longest = "\U0001f698" * protocol.MAX_PROMPT_CHARACTERS
    assert len(json.dumps({"type": "prompt", "text": longest, "id": "x" * 64})) <= protocol.MAX_MESSAGE_BYTES
    assert clean_prompt(longest) == longest
    page = files("fewstep.apps").joinpath("web/index.html").read_text("utf-8")
    box = re.search(r'<input id="prompt-text"[^>]*maxlength="(\d+)"', page)
    assert box is not None
    assert int(box[1]) == protocol.MAX_PROMPT_CHARACTERS


def test_a_prompt_is_composed_and_freed_of_control_characters():
    assert clean_prompt("  cafe\u0301\x07 at\nnight ") == "café at night"
