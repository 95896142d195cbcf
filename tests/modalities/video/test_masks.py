"""Masks against their definitions, frame by frame."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fewstep.modalities.video.masks import chunk_causal, teacher_forcing

examples = settings(deadline=None, derandomize=True, max_examples=50)


@examples
@given(frames=st.integers(1, 12), chunk=st.integers(1, 5), extra=st.none() | st.integers(0, 8))
def test_a_frame_sees_its_chunk_and_the_frames_of_its_window(
    frames: int, chunk: int, extra: int | None
) -> None:
    window = None if extra is None else chunk + extra
    mask = chunk_causal(frames, chunk=chunk, window=window)
    for query in range(frames):
        first_of_chunk = query - query % chunk
        oldest = 0 if extra is None else first_of_chunk - extra
        visible = [oldest <= key < first_of_chunk + chunk for key in range(frames)]
        assert mask[query].tolist() == visible


@examples
@given(chunks=st.integers(1, 4), chunk=st.integers(1, 3))
def test_a_noised_chunk_sees_itself_and_the_clean_chunks_before_it(chunks: int, chunk: int) -> None:
    frames = chunks * chunk
    mask = teacher_forcing(frames, chunk=chunk)
    for query in range(2 * frames):
        for key in range(2 * frames):
            query_chunk, key_chunk = query % frames // chunk, key % frames // chunk
            if query < frames:
                visible = key < frames and key_chunk <= query_chunk
            elif key < frames:
                visible = key_chunk < query_chunk
            else:
                visible = key_chunk == query_chunk
            assert bool(mask[query, key]) == visible


def test_frames_of_one_chunk_see_each_other_both_ways() -> None:
    assert chunk_causal(2, chunk=2).all()
    assert torch.equal(chunk_causal(2, chunk=1), torch.tensor([[True, False], [True, True]]))
