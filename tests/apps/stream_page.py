"""A tab on the page of the stream, in Debian's Chromium, headless, driven by Playwright."""

import shutil
from typing import Any
from urllib.parse import urlsplit

from fewstep.streaming.recording import count_frames
from tests.waiting import idle_until

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
WAIT_MS = 60_000
RECORDED = 12
"""Pictures in a recording, a second of the synthetic model."""


class Page:
    """A tab that remembers what it asked for and complained about, and refuses to leave this machine."""

    def __init__(self, browser: Any, server: Any, *, scheme: str = "dark") -> None:
        self.context = browser.new_context(
            viewport={"width": 1280, "height": 900}, accept_downloads=True, color_scheme=scheme
        )
        self.tab = self.context.new_page()
        self.foreign: list[str] = []
        self.complaints: list[str] = []
        self.server = server
        self.tab.set_default_timeout(WAIT_MS)
        self.context.route("**/*", self._route)
        self.tab.on("console", lambda entry: self._complain(entry.type, entry.text))
        self.tab.on("pageerror", lambda error: self.complaints.append(str(error)))

    def _route(self, route: Any) -> None:
        host = urlsplit(route.request.url).netloc
        if host == self.server.address:
            route.continue_()
        else:
            self.foreign.append(route.request.url)
            route.abort()

    def _complain(self, kind: str, text: str) -> None:
        if kind in ("error", "warning"):
            self.complaints.append(text)

    def open(self) -> None:
        self.tab.goto(self.server.url)
        self.until("() => document.querySelector('#veil').classList.contains('off')")

    def until(self, script: str) -> None:
        self.tab.wait_for_function(script)

    def until_recorded(self) -> None:
        """Until the running recording has a second; how long that takes hangs on how busy the machine is."""
        self.until("() => document.querySelector('#record').getAttribute('aria-pressed') === 'true'")
        parts = self.server.record_dir
        idle_until(lambda: any(count_frames(part) >= RECORDED for part in parts.glob("*.part.mp4")))

    def pixels(self) -> list[int]:
        return self.tab.evaluate(
            """() => {
                const canvas = document.querySelector('#canvas');
                const copy = new OffscreenCanvas(canvas.width, canvas.height).getContext('2d');
                copy.drawImage(canvas, 0, 0);
                return Array.from(copy.getImageData(0, 0, canvas.width, canvas.height).data);
            }"""
        )

    def changes(self, within_ms: int) -> bool:
        """Whether the picture is another one after this time."""
        before = self.pixels()
        self.tab.wait_for_timeout(within_ms)
        return self.pixels() != before
