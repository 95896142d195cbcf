"""How tests of the live runtime run in an event loop of their own and wait for what must happen."""

import asyncio
import time
from collections.abc import Awaitable, Callable

SECONDS = 60.0
"""How long a test waits for one thing; reached only by a failure."""
TEST_SECONDS = 240.0
LOOK_SECONDS = 0.005
IDLE_LOOK_SECONDS = 0.2


def run(test: Callable[[], Awaitable[None]]) -> None:
    async def limited() -> None:
        async with asyncio.timeout(TEST_SECONDS):
            await test()

    asyncio.run(limited())


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(SECONDS):
        while not condition():
            await asyncio.sleep(LOOK_SECONDS)


def idle_until(condition: Callable[[], bool], seconds: float = TEST_SECONDS) -> None:
    """`until` where no event loop runs, as a test of a server in another process."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds:.0f} s in vain"
        time.sleep(IDLE_LOOK_SECONDS)
