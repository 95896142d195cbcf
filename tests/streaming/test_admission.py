import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fewstep.streaming.admission import Rules, expected_wait, fits
from fewstep.streaming.tenure import Tenure, Warning

RULES = Rules(
    queue_timeout=100.0,
    queue_absence=10.0,
    absence=30.0,
    idle=300.0,
    session_max=600.0,
    session_warning=15.0,
)


@settings(deadline=None, max_examples=100)
@given(capacity=st.floats(1.0, 500.0), rates=st.lists(st.sampled_from([8.0, 12.0, 16.0]), max_size=40))
def test_never_more_is_promised_than_the_share_of_what_was_measured(capacity: float, rates: list[float]):
    promised, own = 12.0, 0
    for fps in rates:
        if fits(RULES, capacity_fps=capacity, promised_fps=promised, fps=fps, own_sessions=own):
            promised, own = promised + fps, own + 1
    assert promised <= max(12.0, 0.9 * capacity)
    assert own <= RULES.max_sessions


def test_nothing_fits_before_anything_was_measured():
    assert not fits(RULES, capacity_fps=None, promised_fps=0.0, fps=1.0, own_sessions=0)
    assert fits(RULES, capacity_fps=100.0, promised_fps=12.0, fps=12.0, own_sessions=0)


def test_the_wait_is_told_from_what_the_others_have_left():
    assert expected_wait(1, [200.0, 50.0], RULES) == 50.0
    assert expected_wait(2, [200.0, 50.0], RULES) == 200.0
    assert expected_wait(3, [200.0, 50.0], RULES) == 650.0
    assert expected_wait(1, [None], RULES) is None
    assert expected_wait(1, [], RULES) is None


def present(now: float = 0.0) -> Tenure:
    tenure = Tenure(RULES, now)
    tenure.admitted(now)
    tenure.present(True, now)
    return tenure


def test_a_place_in_the_queue_is_lost_by_absence_and_by_time():
    tenure = Tenure(RULES, 0.0)
    assert tenure.verdict(9.0, heard=0.0, contended=True) is None
    assert tenure.verdict(10.1, heard=0.0, contended=True) == "queue_timeout"
    tenure.present(True, 5.0)
    assert tenure.verdict(99.0, heard=0.0, contended=True) is None
    assert tenure.verdict(100.1, heard=0.0, contended=True) == "queue_timeout"


def test_an_absent_controller_has_half_a_minute_to_come_back():
    tenure = present()
    tenure.present(False, 50.0)
    assert tenure.verdict(79.0, heard=50.0, contended=False) is None
    assert tenure.verdict(80.1, heard=50.0, contended=False) == "idle_timeout"
    tenure.present(True, 79.0)
    tenure.present(False, 90.0)
    assert tenure.verdict(119.0, heard=90.0, contended=False) is None


def test_silence_is_warned_of_and_then_ends_the_session():
    tenure = present()
    assert tenure.verdict(239.0, heard=0.0, contended=False) is None
    warned = tenure.verdict(241.0, heard=0.0, contended=False)
    assert warned == Warning(reason="idle_timeout", seconds=59.0)
    assert tenure.verdict(301.0, heard=0.0, contended=False) == "idle_timeout"
    assert tenure.verdict(301.0, heard=290.0, contended=False) is None


def test_time_is_limited_only_while_others_wait():
    tenure = present()
    assert tenure.verdict(900.0, heard=899.0, contended=False) is None
    assert tenure.verdict(900.0, heard=899.0, contended=True) == "max_duration"
    assert tenure.verdict(590.0, heard=589.0, contended=True) == Warning(reason="max_duration", seconds=10.0)
    assert tenure.remaining(590.0) == 10.0


@pytest.mark.parametrize(
    "wrong", [{"max_sessions": -1}, {"max_queue": -1}, {"capacity_share": 0.0}, {"capacity_share": 1.5}]
)
def test_rules_that_make_no_sense_are_refused(wrong: dict[str, float]):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Rules(**wrong)  # pyright: ignore[reportArgumentType]
