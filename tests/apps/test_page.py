"""The page in a real browser: Debian's Chromium, headless, driven by Playwright."""

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import av
import httpx
import pytest

from fewstep.apps import webrtc_api

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
).split()
WAIT_MS = 60_000
MOST_TABS = 90
# The same bytes as in tests/streaming/test_protocol.py.
GOLDEN_HEX = (
    "46535631 01 05 2800 04030201 0d0c0b0a 0700 6000 4000 b004 60e3160000000000 0040624159440600 4a504547"
)

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="needs chromium: apt-get install chromium"),
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install playwright")
    with playwright.sync_playwright() as driver:
        running = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS, headless=True)
        yield running
        running.close()


class Page:
    """A tab that remembers what it asked for and complained about, and refuses to leave this machine."""

    def __init__(self, browser: Any, server: Any) -> None:
        self.context = browser.new_context(viewport={"width": 1280, "height": 900}, accept_downloads=True)
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

    def reach(self, selector: str) -> None:
        """Go to this control with the Tab key alone."""
        at = f"() => document.activeElement === document.querySelector({selector!r})"
        for _ in range(MOST_TABS):
            if self.tab.evaluate(at):
                return
            self.tab.keyboard.press("Tab")
        raise AssertionError(f"{selector} is not reached by the Tab key")

    def press(self, selector: str, key: str = "Enter") -> None:
        """Reach it and press a key on it."""
        self.reach(selector)
        self.tab.keyboard.press(key)

    def until(self, script: str) -> None:
        self.tab.wait_for_function(script)

    def pixels(self) -> list[int]:
        return self.tab.evaluate(
            """() => {
                const canvas = document.querySelector('#canvas');
                const copy = new OffscreenCanvas(canvas.width, canvas.height).getContext('2d');
                copy.drawImage(canvas, 0, 0);
                return Array.from(copy.getImageData(0, 0, canvas.width, canvas.height).data);
            }"""
        )


@pytest.fixture
def page(browser: Any, shared_server: Any) -> Iterator[Page]:
    opened = Page(browser, shared_server)
    opened.open()
    yield opened
    opened.context.close()
    assert opened.foreign == []
    assert opened.complaints == []


def test_the_first_frame_is_drawn(page: Page):
    pixels = page.pixels()
    assert len(pixels) == 4 * 96 * 96
    assert len(set(pixels)) > 20
    assert page.tab.text_content("#model-name") == "synthetic"


def test_a_prompt_gets_its_marker_when_its_first_frame_is_drawn(page: Page):
    before = page.tab.locator("#timeline-markers button").count()
    page.tab.fill("#prompt-text", "a green kite <b>over</b> the sea")
    page.tab.keyboard.press("Enter")
    page.until(f"() => document.querySelectorAll('#timeline-markers button').length > {before}")
    assert page.tab.text_content("#caption") == "a green kite <b>over</b> the sea"
    assert page.tab.locator("#chips button.recent").first.text_content() == "a green kite <b>over</b> the sea"
    page.tab.reload()
    page.until("() => document.querySelector('#veil').classList.contains('off')")
    assert page.tab.locator("#chips button.recent").first.text_content() == "a green kite <b>over</b> the sea"


def test_pause_freezes_the_picture_and_resume_moves_it(page: Page):
    page.tab.click("#pause")
    page.until("() => document.querySelector('#status').textContent === 'paused'")
    frozen = page.pixels()
    page.tab.wait_for_timeout(400)
    assert page.pixels() == frozen
    page.tab.click("#pause")
    page.until("() => document.querySelector('#status').textContent === 'live'")
    page.tab.wait_for_timeout(700)
    assert page.pixels() != frozen


def test_arrow_keys_steer_and_the_buttons_show_it(page: Page):
    pressed = "() => document.querySelector('#steering [data-value=\"{}\"]').ariaPressed === 'true'"
    page.tab.keyboard.press("ArrowRight")
    page.until(pressed.format("right"))
    page.tab.click("#steering [data-value='night']")
    page.until(pressed.format("night"))
    page.until("() => document.querySelector('#caption').textContent.endsWith('right, night')")
    page.tab.click("#prompt-text")
    page.tab.keyboard.press("ArrowLeft")
    page.tab.wait_for_timeout(200)
    assert page.tab.get_attribute("#steering [data-value='right']", "aria-pressed") == "true"


def test_a_recording_can_be_downloaded_and_decodes(page: Page, tmp_path: Path):
    page.tab.keyboard.press("r")
    page.until("() => document.querySelector('#record').ariaPressed === 'true'")
    page.tab.wait_for_timeout(1500)
    page.tab.keyboard.press("r")
    page.until("() => document.querySelectorAll('#recordings a').length === 1")
    with page.tab.expect_download() as waiting:
        page.tab.click("#recordings a")
    target = tmp_path / "download.mp4"
    waiting.value.save_as(target)
    with av.open(str(target)) as container:
        assert sum(1 for _ in container.decode(video=0)) >= 12


def test_seed_steps_and_sink_begin_a_new_take(page: Page):
    page.tab.fill("#seed", "9007199254740993")
    page.tab.keyboard.press("Enter")
    page.tab.click("#steps [data-value='4']")
    page.tab.click("#sink [data-value='none']")
    page.until("() => document.querySelector('#sink [data-value=\"none\"]').ariaPressed === 'true'")
    state = httpx.get(page.server.url + "v1/sessions/live").json()
    assert (state["seed"], state["steps"], state["sink"]) == (9007199254740993, 4, "none")
    page.tab.click("#dice")
    page.until("() => !document.querySelector('#seed').value.startsWith('900719925474099')")


def test_the_cache_is_shown_as_it_is(page: Page):
    page.until("() => document.querySelectorAll('#memory .window i').length >= 3")
    label = page.tab.text_content("#memory .window .label")
    assert label is not None
    assert re.fullmatch("window, #\\d+\N{EN DASH}\\d+", label)


def test_the_pages_parser_agrees_with_the_golden_header(page: Page):
    parsed = page.tab.evaluate(
        """async (hex) => {
            const { parseFrame } = await import('/static/js/protocol.js');
            const bytes = Uint8Array.from(hex.replaceAll(' ', '').match(/../g), (pair) => parseInt(pair, 16));
            const frame = parseFrame(bytes.buffer);
            return { ...frame, payload: String.fromCharCode(...frame.payload) };
        }""",
        GOLDEN_HEX,
    )
    assert parsed == {
        "codec": 1,
        "flags": 5,
        "seq": 0x01020304,
        "chunk": 0x0A0B0C0D,
        "revision": 7,
        "width": 96,
        "height": 64,
        "fps": 12,
        "ptsUs": 1_500_000,
        "sentUs": 1_764_000_000_000_000,
        "payload": "JPEG",
    }


def test_everything_that_can_be_used_has_a_name_and_can_be_reached_by_keyboard(page: Page):
    nameless = page.tab.evaluate(
        """() => [...document.querySelectorAll('button, input, a')].filter((element) => {
            const label = element.labels?.[0]?.textContent ?? element.ariaLabel ?? element.textContent;
            return !label.trim() || element.tabIndex < 0;
        }).map((element) => element.outerHTML)"""
    )
    assert nameless == []


def test_a_stream_of_ones_own_begins_survives_a_reload_is_watched_and_ended(page: Page, browser: Any):
    page.tab.click("#own")
    page.until("() => document.querySelector('#own')?.textContent === 'Leave'")
    page.until("() => document.querySelector('#status').textContent === 'live'")
    own = page.tab.evaluate("() => JSON.parse(sessionStorage.getItem('fewstep.own')).id")
    page.tab.reload()
    page.until("() => document.querySelector('#status').textContent === 'live'")
    assert page.tab.get_attribute("#script-link", "href") == f"/v1/sessions/{own}/script.json"
    spectator = Page(browser, page.server)
    spectator.tab.goto(page.server.url + page.tab.get_attribute("#watch-link", "href").removeprefix("/"))
    spectator.until("() => document.querySelector('#veil').classList.contains('off')")
    assert spectator.tab.is_disabled("#pause")
    assert spectator.tab.is_disabled("#prompt-text")
    spectator.context.close()
    page.tab.click("#own")
    page.until("() => document.querySelector('#own')?.textContent === 'Own stream'")
    page.until("() => document.querySelector('#veil').classList.contains('off')")
    assert httpx.get(f"{page.server.url}v1/sessions/{own}").status_code == 404


def test_h264_is_decoded_and_shown_like_jpeg(browser: Any, shared_server: Any):
    opened = Page(browser, shared_server)
    opened.tab.add_init_script(
        "const make = EncodedVideoChunk; window.decoded = 0;"
        "window.EncodedVideoChunk = function (init) { window.decoded += 1; return new make(init); };"
    )
    opened.tab.goto(shared_server.url + "#codec=h264")
    opened.until("() => window.decoded > 12")
    assert len(set(opened.pixels())) > 20
    before = opened.pixels()
    opened.tab.wait_for_timeout(1000)
    assert opened.pixels() != before
    assert opened.complaints == []
    opened.context.close()


def test_the_picture_comes_over_webrtc_where_the_server_has_it(page: Page):
    if not webrtc_api.available():
        page.tab.wait_for_load_state("networkidle")
        assert page.tab.is_hidden("#webrtc")
        pytest.skip("needs aiortc: pip install aiortc")

    def sent(codec: str) -> float:
        metrics = httpx.get(page.server.url + "metrics").text
        found = re.search(rf'fewstep_frames_sent_total{{codec="{codec}"}} (\S+)', metrics)
        return float(found.group(1)) if found else 0.0

    page.press("#webrtc")
    page.until("() => document.querySelector('#webrtc').getAttribute('aria-pressed') === 'true'")
    page.until("() => document.querySelector('#latency-now').textContent === '\u2013'")
    jpeg, h264, picture = sent("jpeg"), sent("h264"), page.pixels()
    page.tab.wait_for_timeout(2000)
    assert sent("h264") > h264
    assert sent("jpeg") - jpeg < 10, "the WebSocket brings no pictures meanwhile"
    assert page.pixels() != picture
    markers = page.tab.locator("#timeline-markers button").count()
    page.tab.fill("#prompt-text", "a kite over WebRTC")
    page.tab.keyboard.press("Enter")
    page.until(f"() => document.querySelectorAll('#timeline-markers button').length > {markers}")
    page.tab.click("#webrtc")
    page.until("() => document.querySelector('#webrtc').getAttribute('aria-pressed') === 'false'")
    page.until("() => document.querySelector('#latency-now').textContent !== '\u2013'")


def test_a_server_that_goes_away_is_said_and_the_page_comes_back_by_itself(browser: Any, server: Any):
    opened = Page(browser, server)
    opened.open()
    server.stop()
    opened.until("() => document.querySelector('#status').dataset.state === 'lost'")
    assert "Trying again" in (opened.tab.text_content("#veil-text") or "")
    opened.context.close()


@pytest.mark.slow
def test_every_control_is_used_with_the_keyboard_alone(page: Page):
    marked = "() => document.querySelector('{}').ariaPressed === 'true'"
    page.press("#pixels", "Space")
    page.until(marked.format("#pixels"))
    page.press("#prompt-text")
    page.tab.keyboard.type("a kite by keyboard alone")
    page.press("#prompt-send", "Space")
    page.until("() => document.querySelector('#caption').textContent === 'a kite by keyboard alone'")
    page.press("#chips button:not(.recent)")
    page.until("() => document.querySelector('#caption').textContent !== 'a kite by keyboard alone'")
    page.press("#timeline-markers button")
    page.press("#pause", "Space")
    page.until("() => document.querySelector('#status').textContent === 'paused'")
    page.press("#reset")  # a new take is worth seeing, so it ends the pause
    page.until("() => document.querySelector('#status').textContent === 'live'")
    page.press("#record", "Space")
    page.until(marked.format("#record"))
    page.tab.wait_for_timeout(1500)
    page.press("#record", "Space")
    page.until("() => document.querySelectorAll('#recordings a').length > 0")
    page.press("#steering [data-value='snow']", "Space")
    page.until(marked.format("#steering [data-value=snow]"))
    page.press("#seed", "Control+a")
    page.tab.keyboard.type("77")
    page.tab.keyboard.press("Enter")
    page.until("() => document.querySelector('#seed').value === '77'")
    page.press("#dice", "Space")
    page.until("() => document.querySelector('#seed').value !== '77'")
    page.press("#steps [data-value='1']", "Space")
    page.until(marked.format("#steps [data-value=\\'1\\']"))
    page.press("#sink [data-value='first']", "Space")
    page.until(marked.format("#sink [data-value=first]"))
    page.reach("#recordings a")
    page.reach("#script-link")
    page.press("#fullscreen")
    page.until("() => document.fullscreenElement !== null")
    page.tab.evaluate("() => document.exitFullscreen()")
    page.press("#own")
    page.until("() => document.querySelector('#own')?.textContent === 'Leave'")
    page.press("#own")
    page.until("() => document.querySelector('#own')?.textContent === 'Own stream'")
    page.until("() => document.querySelector('#veil').classList.contains('off')")


def test_no_serious_barrier_is_found_by_axe(browser: Any, shared_server: Any):
    folder = os.environ.get("AXE_CORE")
    if folder is None:
        pytest.skip("needs axe-core: npm install --prefix FOLDER axe-core, and AXE_CORE=FOLDER")
    opened = Page(browser, shared_server)
    opened.context.add_init_script(path=Path(folder) / "node_modules" / "axe-core" / "axe.min.js")
    opened.open()
    opened.tab.fill("#prompt-text", "a kite")
    opened.tab.keyboard.press("Enter")
    opened.until("() => document.querySelectorAll('#timeline-markers button').length > 1")
    found = opened.tab.evaluate(
        """async () => (await axe.run()).violations
            .filter(({ impact }) => ['serious', 'critical'].includes(impact))
            .map(({ id, nodes }) => [id, ...nodes.map(({ html }) => html)])"""
    )
    opened.context.close()
    assert found == []
