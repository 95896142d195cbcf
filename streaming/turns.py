"""Whose chunk is made next: the session whose picture would stop first (earliest deadline first)."""

import asyncio
import heapq
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import count


class Turns:
    """A lock whose next holder is the waiter with the earliest deadline; ties go to who came first.

    A chunk is never interrupted, so with chunk times that vary little nobody's buffer runs dry as long as
    the sessions together ask for less than the engine can do; and nobody starves, as deadlines only come
    nearer.
    """

    def __init__(self) -> None:
        self._busy = False
        self._waiting: list[tuple[float, int, asyncio.Future[None]]] = []
        self._order = count()

    @asynccontextmanager
    async def take(self, deadline: float) -> AsyncIterator[None]:
        """Hold the engine for one chunk that is needed at `deadline`."""
        if self._busy:
            turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            heapq.heappush(self._waiting, (deadline, next(self._order), turn))
            try:
                await turn
            except asyncio.CancelledError:
                if turn.done() and not turn.cancelled():  # it became ours just now: hand it on
                    self._pass_on()
                raise
        self._busy = True
        try:
            yield
        finally:
            self._pass_on()

    def _pass_on(self) -> None:
        while self._waiting:
            _, _, turn = heapq.heappop(self._waiting)
            if not turn.done():
                turn.set_result(None)
                return
        self._busy = False
