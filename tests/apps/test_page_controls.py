"""Every control of the stream's page, with the keyboard alone and with the mouse; barriers to using it."""

import os
from pathlib import Path
from typing import Any

import pytest

from fewstep.apps import webrtc_api
from tests.apps.hands import Hand, Keyboard, Mouse
from tests.apps.stream_page import Page

pytestmark = pytest.mark.browser


@pytest.mark.slow
@pytest.mark.parametrize("hand_of", [Keyboard, Mouse])
def test_every_control_is_used(page: Page, hand_of: type[Hand]):
    """With the keyboard alone, and with the mouse."""
    hand, type_text = hand_of(page.tab), page.tab.keyboard.type
    pressed = "() => document.querySelector('{}').getAttribute('aria-pressed') === 'true'"
    status = "() => document.querySelector('#status').textContent === '{}'"
    hand.press("#pixels", "Space")
    page.until(pressed.format("#pixels"))
    hand.press("#prompt-text")
    type_text("a kite for every hand")
    hand.press("#prompt-send", "Space")
    page.until("() => document.querySelector('#caption').textContent === 'a kite for every hand'")
    hand.press("#chips button:not(.recent)")
    page.until("() => document.querySelector('#caption').textContent !== 'a kite for every hand'")
    hand.press("#pause", "Space")
    page.until(status.format("paused"))
    hand.press("#timeline-markers button")
    page.until("() => document.querySelector('#timeline-markers .pending').textContent.startsWith('next: ')")
    hand.press("#reset")  # a new take is worth seeing, so it ends the pause
    page.until(status.format("live"))
    already = page.tab.locator("#recordings a").count()
    hand.press("#record", "Space")
    page.until_recorded()
    hand.press("#record", "Space")
    page.until(f"() => document.querySelectorAll('#recordings a').length > {already}")
    for row in range(1, page.tab.locator("#steering .axis").count() + 1):
        hand.press_all(f"#steering .axis:nth-child({row}) .choice")
    hand.press("#seed")
    page.tab.keyboard.press("Control+a")
    type_text("77")
    page.tab.keyboard.press("Enter")
    page.until("() => document.querySelector('#seed').value === '77'")
    hand.press("#dice", "Space")
    page.until("() => document.querySelector('#seed').value !== '77'")
    hand.press_all("#steps")
    hand.press_all("#sink")
    for link in ("#recordings a", "#script-link"):
        with page.tab.expect_download() as waiting:
            hand.press(link)
        assert Path(waiting.value.path()).stat().st_size > 0
    hand.press("#fullscreen")
    page.until("() => document.fullscreenElement !== null")
    page.tab.evaluate("() => document.exitFullscreen()")
    if webrtc_api.available():
        hand.press("#webrtc")
        # On a machine that is too busy to connect in time the page says so, and goes on as before.
        failed = "document.querySelector('#toasts').textContent.includes('WebRTC')"
        page.until(f"() => {failed} || ({pressed.format('#webrtc')})()")
        if page.tab.get_attribute("#webrtc", "aria-pressed") == "true":
            hand.press("#webrtc")
    hand.press("#own")
    page.until("() => document.querySelector('#own')?.textContent === 'Leave'")
    page.until(status.format("live"))
    with page.context.expect_page() as spectating:
        hand.press("#watch-link")
    spectating.value.wait_for_function("() => document.querySelector('#veil').classList.contains('off')")
    assert spectating.value.is_disabled("#pause")
    spectating.value.close()
    assert hand.unused() == set()
    hand.press("#own")
    page.until("() => document.querySelector('#own')?.textContent === 'Own stream'")
    page.until("() => document.querySelector('#veil').classList.contains('off')")
    assert hand.unused() == set()


def test_shortcuts_do_what_their_buttons_do(page: Page):
    keys, status = page.tab.keyboard, "() => document.querySelector('#status').textContent === '{}'"
    for state in ("paused", "live"):
        keys.press("Space")
        page.until(status.format(state))
    keys.press("p")
    assert page.tab.get_attribute("#pixels", "aria-pressed") == "true"
    for text in ("one", "two"):
        keys.press("/")
        keys.type(f"a kite, {text} rp f")  # letters that are shortcuts elsewhere
        keys.press("Enter")
        page.until(f"() => document.querySelector('#caption').textContent === 'a kite, {text} rp f'")
    keys.press("/")
    for key, text in (("ArrowUp", "two"), ("ArrowUp", "one"), ("ArrowDown", "two")):
        keys.press(key)
        assert page.tab.input_value("#prompt-text") == f"a kite, {text} rp f"
    keys.press("Escape")
    assert page.tab.get_attribute("#pixels", "aria-pressed") == "true"
    assert page.tab.get_attribute("#record", "aria-pressed") == "false"
    keys.press("f")
    page.until("() => document.fullscreenElement !== null")
    page.tab.evaluate("() => document.exitFullscreen()")


def test_nothing_sticks_out_on_a_phone(page: Page):
    page.tab.set_viewport_size({"width": 390, "height": 844})
    page.until("() => document.documentElement.scrollWidth === 390")


@pytest.mark.parametrize("height", [844, 1200])
def test_every_example_can_be_reached(page: Page, height: int):
    """They may be in one row that is scrolled, but none is cut off."""
    page.tab.set_viewport_size({"width": 390, "height": height})
    row, chip = page.tab.evaluate(  # at once: the page may draw its row anew meanwhile
        """() => {
            const row = document.querySelector("#chips");
            const chip = [...row.querySelectorAll("button")].at(-1);
            chip.scrollIntoView({block: "nearest", inline: "nearest", behavior: "instant"});
            return [row, chip].map((element) => element.getBoundingClientRect().toJSON());
        }"""
    )
    assert row["top"] <= chip["top"] < chip["bottom"] <= row["bottom"]
    assert row["left"] <= chip["left"] < chip["right"] <= row["right"]
    page.tab.locator("#chips button").last.click()


@pytest.mark.parametrize(("scheme", "light"), [("dark", False), ("light", True)])
def test_the_page_and_what_it_draws_are_as_light_as_the_browser_wishes(
    browser: Any, shared_server: Any, scheme: str, light: bool
):
    opened = Page(browser, shared_server, scheme=scheme)
    opened.open()
    ground, drawn, veil = opened.tab.evaluate(
        """() => {
            const bytes = (color) => color.match(/\\d+/g).slice(0, 3).map(Number);
            const canvas = document.querySelector("#timeline-canvas");
            const strip = canvas.getContext("2d").getImageData(2, 8, 1, 1).data;
            const style = (selector) => getComputedStyle(document.querySelector(selector));
            const ground = bytes(style(":root").backgroundColor);
            return [ground, [...strip].slice(0, 3), bytes(style("#veil").color)];
        }"""
    )
    opened.context.close()
    for colour in (ground, drawn):
        assert (min(colour) > 200) is light
        assert (max(colour) < 60) is not light
    assert min(veil) > 120  # it lies on the picture, which is dark in both


@pytest.mark.parametrize("scheme", ["dark", "light"])
def test_no_serious_barrier_is_found_by_axe(browser: Any, shared_server: Any, scheme: str):
    folder = os.environ.get("AXE_CORE")
    if folder is None:
        pytest.skip("needs axe-core: npm install --prefix FOLDER axe-core, and AXE_CORE=FOLDER")
    opened = Page(browser, shared_server, scheme=scheme)
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


def test_a_long_prompt_leaves_the_picture_to_be_seen(page: Page):
    page.tab.fill("#prompt-text", "a kite over the sea, " * 40)
    page.tab.keyboard.press("Enter")
    page.until("() => document.querySelector('#caption').textContent.length > 500")
    caption, screen = (page.tab.locator(name).bounding_box() for name in ("#caption", "#screen"))
    assert caption["height"] < screen["height"] / 3
