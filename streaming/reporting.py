"""Once a second: to each viewer its own numbers, and to all how a recording stands."""

import asyncio
from typing import Protocol

from fewstep.streaming import messages
from fewstep.streaming.archive import Archive
from fewstep.streaming.audience import Audience
from fewstep.streaming.metrics import StreamMetrics
from fewstep.streaming.production import Production

PERIOD_SECONDS = 1.0


class Reported(Protocol):
    """What of a session is reported."""

    audience: Audience
    archive: Archive
    frames_generated: int


async def report(session: Reported, production: Production, speed: StreamMetrics) -> None:
    """Until cancelled."""
    while True:
        await asyncio.sleep(PERIOD_SECONDS)
        for viewer in session.audience:
            stats = messages.stats_message(
                viewer,
                frames=session.frames_generated,
                speed=speed,
                clock=production.clock,
                viewers=len(session.audience),
            )
            viewer.post_latest(stats)
        if session.archive.active:
            session.audience.tell(session.archive.status(), latest=True)
