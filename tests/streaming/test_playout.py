import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fewstep.streaming.playout import PlayoutClock, lead_seconds


def play(clock: PlayoutClock, arrivals: list[float]) -> list[float]:
    """Show each frame when it is there and due; the times."""
    now, shown = 0.0, []
    for arrival in arrivals:
        now = max(now, arrival)
        now += clock.delay(now)
        clock.advance(now)
        shown.append(now)
    return shown


def test_frames_that_are_there_early_are_shown_at_the_rate():
    clock = PlayoutClock(10.0)
    assert play(clock, [0.0] * 5) == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4])
    assert clock.underruns == 0


def test_small_lateness_is_made_up_so_that_the_rate_holds():
    clock = PlayoutClock(10.0)
    assert play(clock, [0.0, 0.13, 0.2, 0.3]) == pytest.approx([0.0, 0.13, 0.2, 0.3])


def test_a_stall_moves_the_deadlines_instead_of_causing_a_burst():
    clock = PlayoutClock(10.0)
    shown = play(clock, [0.0, 0.0, 2.0, 2.0, 2.0])
    assert shown == pytest.approx([0.0, 0.1, 2.0, 2.1, 2.2])
    assert clock.underruns == 1
    assert clock.stall_seconds == pytest.approx(1.8)


def test_a_pause_is_no_stall():
    clock = PlayoutClock(10.0)
    play(clock, [0.0, 0.0])
    clock.halt()
    assert clock.delay(9.0) == 0.0
    clock.advance(9.0)
    assert clock.underruns == 0


def test_a_slow_machine_plays_slowly_and_evenly():
    clock = PlayoutClock(10.0)
    clock.limit(5.0)
    assert clock.rate == pytest.approx(4.75)
    assert play(clock, [0.0, 0.0, 0.0]) == pytest.approx([0.0, 1 / 4.75, 2 / 4.75])
    clock.limit(100.0)
    assert clock.rate == 10.0


@settings(deadline=None, max_examples=100)
@given(gaps=st.lists(st.floats(0.0, 3.0), min_size=2, max_size=30))
def test_frames_never_come_in_bursts(gaps: list[float]):
    clock = PlayoutClock(10.0)
    arrivals = [sum(gaps[: i + 1]) for i in range(len(gaps))]
    shown = play(clock, arrivals)
    # At most one frame period of lateness is made up, so any two neighbouring gaps span a full period.
    for first, third in zip(shown, shown[2:], strict=False):
        assert third - first > 0.1 - 1e-9


def test_the_next_chunk_is_begun_in_time_but_never_more_than_one_ahead():
    assert lead_seconds(None, 0.5) == 0.5
    assert lead_seconds(0.2, 0.5) == pytest.approx(0.28)
    assert lead_seconds(0.9, 0.5) == 0.5


def test_fps_must_be_positive():
    with pytest.raises(ValueError, match="fps must be positive"):
        PlayoutClock(0.0)
