"""Prompt revisions: encoded beside the chunk loop, applied at a chunk boundary, the latest wins."""

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

CACHE_SIZE = 64


@dataclass(slots=True, kw_only=True)
class Revision:
    """One accepted prompt; eligible once `features` are there."""

    rev: int
    text: str
    source: str
    features: Any = None


class PromptDesk:
    """Numbers prompts, encodes them on a thread of its own and keeps the last embeddings."""

    def __init__(self, encode: Callable[[str], Any], warm: Callable[[], None]) -> None:
        self.pending: Revision | None = None
        self._encode = encode
        self._warm = warm
        self._count = 0
        self._cache: OrderedDict[str, Any] = OrderedDict()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="fewstep-text")

    def accept(self, text: str, source: str) -> tuple[Revision, Revision | None]:
        """A new pending revision, and the one it replaces."""
        replaced = self.pending
        self._count += 1
        self.pending = Revision(rev=self._count, text=text, source=source)
        return self.pending, replaced

    async def prepare(self, revision: Revision) -> None:
        """Fill in the features unless a newer prompt came meanwhile; the encoder's errors pass through."""
        features = self._cache.get(revision.text)
        if features is None:
            loop = asyncio.get_running_loop()
            features = await loop.run_in_executor(self._thread, self._encode_if_wanted, revision)
            if features is None:
                return
            self._cache[revision.text] = features
            if len(self._cache) > CACHE_SIZE:
                self._cache.popitem(last=False)
        self._cache.move_to_end(revision.text)
        revision.features = features

    def warm(self) -> None:
        """Load the encoder now, on its thread; what fails here will fail again at the first prompt."""
        self._thread.submit(self._warm)

    def take_ready(self) -> Revision | None:
        """The pending revision if it is encoded; it is pending no longer."""
        if self.pending is None or self.pending.features is None:
            return None
        ready, self.pending = self.pending, None
        return ready

    def discard(self, revision: Revision) -> None:
        """Forget a revision that could not be encoded."""
        if self.pending is revision:
            self.pending = None

    def close(self) -> None:
        self._thread.shutdown(wait=True, cancel_futures=True)

    def _encode_if_wanted(self, revision: Revision) -> Any:
        return self._encode(revision.text) if self.pending is revision else None
