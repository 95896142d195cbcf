import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fewstep.streaming.turns import Turns


def test_the_earliest_deadline_goes_first_and_ties_keep_their_order():
    async def test() -> list[str]:
        turns, order = Turns(), []

        async def chunk(name: str, deadline: float) -> None:
            async with turns.take(deadline):
                order.append(name)
                await asyncio.sleep(0)

        jobs = [("now", 9.0), ("late", 3.0), ("soon", 1.0), ("also soon", 1.0), ("later", 4.0)]
        await asyncio.gather(*(chunk(name, deadline) for name, deadline in jobs))
        return order

    assert asyncio.run(test()) == ["now", "soon", "also soon", "late", "later"]


def test_one_at_a_time_and_the_cancelled_and_the_failed_hold_nobody_up():
    async def test() -> int:
        turns, inside, most, done = Turns(), 0, 0, 0

        async def chunk(number: int) -> None:
            nonlocal inside, most, done
            async with turns.take(float(number)):
                inside += 1
                most = max(most, inside)
                await asyncio.sleep(0)
                inside -= 1
                if number % 3 == 0:
                    raise ValueError
            done += 1

        tasks = [asyncio.create_task(chunk(number)) for number in range(30)]
        await asyncio.sleep(0)
        for task in tasks[5::7]:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert most == 1
        async with asyncio.timeout(1), turns.take(0.0):  # it is free again
            return done

    assert asyncio.run(test()) > 10


@settings(deadline=None, max_examples=60)
@given(
    fps=st.lists(st.sampled_from([8.0, 12.0, 16.0, 24.0]), min_size=1, max_size=4),
    spare=st.floats(0.0, 0.5),
    jitter=st.lists(st.floats(-0.1, 0.1), min_size=40, max_size=40),
)
def test_nobody_runs_dry_while_nine_tenths_of_the_capacity_are_promised(
    fps: list[float], spare: float, jitter: list[float]
):
    """Earliest deadline first on a simulated clock: two chunks of buffer each, chunk times vary by 10 %."""
    frames, now = 6, 0.0
    chunk_seconds = 0.9 * frames / sum(fps) / (1 + spare)
    dry_at = [2 * frames / rate for rate in fps]
    for step in range(40 * len(fps)):
        chosen = min(range(len(fps)), key=lambda i: dry_at[i])
        # Just in time: nothing is made while everybody has two chunks.
        now = max(now, dry_at[chosen] - 2 * frames / fps[chosen])
        now += chunk_seconds * (1 + jitter[step % 40])
        assert now <= dry_at[chosen] + 1e-9
        dry_at[chosen] += frames / fps[chosen]


def test_a_waiter_that_is_cancelled_just_when_its_turn_comes_hands_it_on():
    async def test() -> None:
        turns = Turns()
        holder = turns.take(0.0)
        await holder.__aenter__()

        async def wait() -> None:
            async with turns.take(1.0):
                pytest.fail("it was cancelled")

        waiter = asyncio.create_task(wait())
        await asyncio.sleep(0)
        await holder.__aexit__(None, None, None)
        waiter.cancel()
        await asyncio.gather(waiter, return_exceptions=True)
        async with asyncio.timeout(1), turns.take(2.0):
            pass

    asyncio.run(test())
