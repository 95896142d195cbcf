import pytest

from fewstep.streaming.lifecycle import (
    EVENTS,
    LIVE,
    STATES,
    TABLE,
    Event,
    IllegalTransition,
    Lifecycle,
    State,
)


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("event", EVENTS)
def test_every_pair_either_follows_the_table_or_is_refused(state: State, event: Event):
    seen: list[State] = []
    life = Lifecycle(state, changed=seen.append)
    after = TABLE.get((state, event))
    assert life.allows(event) == (after is not None)
    if after is None:
        with pytest.raises(IllegalTransition, match=f"no {event} in state {state}"):
            life.on(event)
        assert (life.state, seen) == (state, [])
    else:
        assert life.on(event) == life.state == after
        assert seen == ([] if after == state else [after])


def test_nothing_leaves_the_end_and_everything_can_reach_it():
    assert not any(Lifecycle("ended").allows(event) for event in EVENTS)
    for state in ("queued", *LIVE):
        life = Lifecycle(state)
        life.on("stop")
        assert life.on("finish") == "ended"
