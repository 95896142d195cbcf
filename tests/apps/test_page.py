"""The page of the stream in a real browser."""

import json
import re
import resource
from pathlib import Path
from typing import Any

import av
import httpx
import pytest

from fewstep.apps import webrtc_api
from tests.apps.hands import Keyboard
from tests.apps.stream_page import RECORDED, Page
from tests.waiting import idle_until

# The same bytes as in tests/streaming/test_protocol.py.
GOLDEN_HEX = (
    "46535631 01 05 2800 04030201 0d0c0b0a 0700 6000 4000 b004 60e3160000000000 0040624159440600 4a504547"
)

pytestmark = pytest.mark.browser


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


NO_STORAGE = {
    "forbidden": """for (const name of ["localStorage", "sessionStorage"])
        Object.defineProperty(window, name, {
            get() { throw new DOMException("Access is denied for this document.", "SecurityError"); },
        });""",
    "full": """Storage.prototype.setItem = () => { throw new DOMException("", "QuotaExceededError"); };""",
}


@pytest.mark.parametrize("broken", NO_STORAGE.values(), ids=NO_STORAGE)
def test_a_prompt_is_sent_where_the_browser_keeps_nothing(broken: str, browser: Any, shared_server: Any):
    opened = Page(browser, shared_server)
    opened.tab.add_init_script(broken)
    opened.open()
    opened.tab.fill("#prompt-text", "a kite that nobody remembers")
    opened.tab.keyboard.press("Enter")
    opened.until("() => document.querySelector('#caption').textContent === 'a kite that nobody remembers'")
    recent = opened.tab.locator("#chips button.recent").first
    assert recent.text_content() == "a kite that nobody remembers"
    opened.tab.click("#own")
    opened.until("() => document.querySelector('#toasts').textContent.includes('storage')")
    sessions = httpx.get(shared_server.url + "v1/sessions").json()
    opened.context.close()
    assert [session["id"] for session in sessions] == ["live"]  # none that no tab would find again
    assert opened.complaints == []


def test_pause_freezes_the_picture_and_resume_moves_it(page: Page):
    page.tab.click("#pause")
    page.until("() => document.querySelector('#status').textContent === 'paused'")
    # What was on its way when the pause came is still drawn, on a busy machine late.
    idle_until(lambda: not page.changes(within_ms=400))
    frozen = page.pixels()
    page.tab.wait_for_timeout(400)
    assert page.pixels() == frozen
    page.tab.click("#pause")
    page.until("() => document.querySelector('#status').textContent === 'live'")
    idle_until(lambda: page.pixels() != frozen)


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
    already = page.tab.locator("#recordings a").count()
    page.tab.keyboard.press("r")
    page.until_recorded()
    page.tab.keyboard.press("r")
    page.until(f"() => document.querySelectorAll('#recordings a').length === {already + 1}")
    with page.tab.expect_download() as waiting:
        page.tab.click("#recordings a")
    target = tmp_path / "download.mp4"
    waiting.value.save_as(target)
    with av.open(str(target)) as container:
        assert sum(1 for _ in container.decode(video=0)) >= RECORDED


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
    before = opened.pixels()
    assert len(set(before)) > 20
    idle_until(lambda: opened.pixels() != before)
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

    Keyboard(page.tab).press("#webrtc")
    page.until("() => document.querySelector('#webrtc').getAttribute('aria-pressed') === 'true'")
    page.until("() => document.querySelector('#latency-now').textContent === '\u2013'")
    jpeg, h264, picture = sent("jpeg"), sent("h264"), page.pixels()
    page.tab.wait_for_timeout(2000)
    idle_until(lambda: sent("h264") > h264 and page.pixels() != picture)
    assert sent("jpeg") - jpeg < 10, "the WebSocket brings no pictures meanwhile"
    markers = page.tab.locator("#timeline-markers button").count()
    page.tab.fill("#prompt-text", "a kite over WebRTC")
    page.tab.keyboard.press("Enter")
    page.until(f"() => document.querySelectorAll('#timeline-markers button').length > {markers}")
    page.tab.click("#webrtc")
    page.until("() => document.querySelector('#webrtc').getAttribute('aria-pressed') === 'false'")
    page.until("() => document.querySelector('#latency-now').textContent !== '\u2013'")


def test_a_server_that_goes_away_is_said_and_the_page_comes_back_by_itself(
    browser: Any, server: Any, start_server: Any
):
    """To one that counts from 0 again: nothing of the old stream is left on the timeline."""
    opened = Page(browser, server)
    opened.open()
    shown = "() => document.querySelector('#caption').textContent === '{}'"
    opened.tab.fill("#prompt-text", "a kite of old")
    opened.tab.keyboard.press("Enter")
    opened.until(shown.format("a kite of old"))
    server.stop()
    opened.until("() => document.querySelector('#status').dataset.state === 'lost'")
    assert "Trying again" in (opened.tab.text_content("#veil-text") or "")
    again = start_server(server.record_dir, "--port", server.address.partition(":")[2])
    opened.until("() => document.querySelector('#veil').classList.contains('off')")
    opened.tab.fill("#prompt-text", "a kite of now")
    opened.tab.keyboard.press("Enter")
    opened.until(shown.format("a kite of now"))
    marks = "(all) => all.map((mark) => [mark.title.split('\\n')[0], parseFloat(mark.style.left)])"
    titles, places = zip(*opened.tab.eval_on_selector_all("#timeline-markers button", marks), strict=True)
    opened.context.close()
    again.stop()
    assert titles[1:] == ("a kite of now",)
    assert max(places) <= 100


def test_who_has_no_token_is_told_so_and_who_has_it_loses_it_from_the_address(
    browser: Any, start_server: Any, tmp_path: Path
):
    asking = start_server(tmp_path, "--token", "a-token-of-enough-letters")
    opened = Page(browser, asking)
    opened.tab.goto(asking.url)
    opened.until("() => document.querySelector('#veil-text').textContent.includes('asks for a token')")
    opened.tab.goto(asking.url + "#token=a-token-of-enough-letters")
    opened.tab.reload()
    opened.until("() => document.querySelector('#veil').classList.contains('off')")
    assert opened.tab.url == asking.url
    opened.context.close()
    asking.stop()


@pytest.mark.slow
def test_a_stream_that_another_tab_takes_over_is_not_taken_back_by_itself(page: Page, browser: Any):
    page.tab.click("#own")
    page.until("() => document.querySelector('#own')?.textContent === 'Leave'")
    page.until("() => document.querySelector('#status').textContent === 'live'")
    key = page.tab.evaluate("() => sessionStorage.getItem('fewstep.own')")
    double = Page(browser, page.server)  # as after "Duplicate tab", which copies the storage
    double.tab.add_init_script(f"sessionStorage.setItem('fewstep.own', {json.dumps(key)})")
    double.open()
    page.until("() => document.querySelector('#veil-text').textContent.startsWith('Another tab')")
    page.tab.wait_for_timeout(3000)  # it used to come back after a quarter of a second
    assert double.tab.text_content("#status") == "live"
    assert double.tab.is_enabled("#pause")
    assert page.tab.is_disabled("#pause")
    page.tab.reload()
    double.until("() => document.querySelector('#veil-text').textContent.startsWith('Another tab')")
    page.until("() => document.querySelector('#status').textContent === 'live'")
    double.context.close()
    page.tab.click("#own")
    page.until("() => document.querySelector('#own')?.textContent === 'Own stream'")
    page.until("() => document.querySelector('#veil').classList.contains('off')")


@pytest.mark.slow
def test_a_recording_that_the_disk_refuses_says_why(browser: Any, server: Any):
    opened = Page(browser, server)
    opened.open()
    (engine,) = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children").read_text().split()
    resource.prlimit(int(engine), resource.RLIMIT_FSIZE, (2000, resource.RLIM_INFINITY))
    opened.tab.keyboard.press("r")
    opened.until("() => document.querySelector('#toasts').textContent.startsWith('The recording ended')")
    assert "File too large" in opened.tab.text_content("#toasts")
    assert opened.tab.get_attribute("#record", "aria-pressed") == "false"
    assert opened.tab.text_content("#status") == "live"
    opened.context.close()
