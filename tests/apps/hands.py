"""Whoever uses a page: with the keyboard alone, or with the mouse. What they have not used stands out."""

from typing import Any

MOST_TABS = 120
VISIBLE = """() => {
    const all = document.querySelectorAll("a[href], button, input, select, video[controls], [tabindex]");
    return [...all].filter((one) => one.checkVisibility() && !one.disabled && one.tabIndex >= 0).map(NAME);
}"""
NAME = """(control) => {
    const { value, shading, colouring, kinds } = control.dataset;
    if (control.id) return `#${control.id}`;
    const group = control.closest("[id]")?.id;
    return [group ? `#${group}` : control.localName, value ?? shading ?? colouring ?? kinds].join(" ").trim();
}"""
"""Of several that do the same, as the files of a list, one stands for all."""


class Hand:
    """`press` a control; `unused` are those that were never pressed."""

    def __init__(self, tab: Any) -> None:
        self.tab = tab
        self.used: set[str] = set()

    def press(self, selector: str, key: str = "Enter") -> None:
        """Go to this control and press a key on it, or click it."""
        self._reach(selector)
        self.used.add(
            self.tab.evaluate(f"(selector) => ({NAME})(document.querySelector(selector))", selector)
        )
        self._act(selector, key)

    def press_all(self, group: str, key: str = "Space") -> None:
        """Each button of a group of which one is chosen, and wait until it is the chosen one."""
        for number in range(1, self.tab.locator(f"{group} button").count() + 1):
            button = f"{group} button:nth-of-type({number})"
            self.press(button, key)
            self.tab.wait_for_selector(f"{button}[aria-pressed=true]")

    def press_on_and_off(self, button: str, key: str = "Space") -> None:
        """Twice, and wait each time until it says so."""
        for _ in range(2):
            on = self.tab.get_attribute(button, "aria-pressed") == "true"
            self.press(button, key)
            self.tab.wait_for_selector(f"{button}[aria-pressed={str(not on).lower()}]")

    def unused(self) -> set[str]:
        """Controls that are on the page at present and were never used."""
        return set(self.tab.evaluate(VISIBLE.replace("NAME", NAME))) - self.used

    def _reach(self, selector: str) -> None:
        raise NotImplementedError

    def _act(self, selector: str, key: str) -> None:
        raise NotImplementedError


class Keyboard(Hand):
    def _reach(self, selector: str) -> None:
        """With the Tab key alone."""
        at = "(selector) => document.activeElement === document.querySelector(selector)"
        for _ in range(MOST_TABS):
            if self.tab.evaluate(at, selector):
                return
            self.tab.keyboard.press("Tab")
        raise AssertionError(f"{selector} is not reached by the Tab key")

    def _act(self, selector: str, key: str) -> None:
        self.tab.keyboard.press(key)


class Mouse(Hand):
    def _reach(self, selector: str) -> None:
        self.tab.locator(selector).first.scroll_into_view_if_needed()

    def _act(self, selector: str, key: str) -> None:
        self.tab.locator(selector).first.click()
