"""Prompt revisions: encoded beside the chunk loop, applied at a chunk boundary, the latest wins."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from fewstep.streaming.engine_errors import EngineLost


@dataclass(slots=True, kw_only=True)
class Revision:
    """One accepted prompt; eligible once the engine has its features."""

    rev: int
    text: str
    source: str
    ready: bool = False


class PromptDesk:
    """Numbers prompts and has them encoded one at a time; those replaced meanwhile are left out."""

    def __init__(self, encode: Callable[[str], Awaitable[None]]) -> None:
        self.pending: Revision | None = None
        self._encode = encode
        self._count = 0
        self._encoding = asyncio.Lock()

    def accept(self, text: str, source: str) -> tuple[Revision, Revision | None]:
        """A new pending revision, and the one it replaces."""
        replaced = self.pending
        self._count += 1
        self.pending = Revision(rev=self._count, text=text, source=source)
        return self.pending, replaced

    async def prepare(self, revision: Revision) -> None:
        """Have it encoded unless a newer prompt came meanwhile; the encoder's errors pass through."""
        async with self._encoding:
            if self.pending is not revision:
                return
            try:
                await self._encode(revision.text)
            except EngineLost:
                pass  # the next engine encodes it together with its first chunk
            revision.ready = True

    def take_ready(self) -> Revision | None:
        """The pending revision if it is encoded; it is pending no longer."""
        if self.pending is None or not self.pending.ready:
            return None
        ready, self.pending = self.pending, None
        return ready

    def discard(self, revision: Revision) -> None:
        """Forget a revision that could not be encoded."""
        if self.pending is revision:
            self.pending = None
