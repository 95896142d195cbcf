// Keyboard: everything a button does, unless something is being typed.

/** @param {{actions: Record<string, () => void>, steering: {press: (key: string) => boolean}, focusPrompt: () => void}} wiring */
export function installKeys({ actions, steering, focusPrompt }) {
  const keys = { " ": actions.pause, r: actions.record, p: actions.pixels, f: actions.fullscreen, "/": focusPrompt };
  document.addEventListener("keydown", (event) => {
    const target = /** @type {HTMLElement} */ (event.target);
    const typing = target instanceof HTMLInputElement;
    if (typing || event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
    if (event.key === " " && target instanceof HTMLButtonElement) return;
    if (steering.press(event.key)) {
      event.preventDefault();
      return;
    }
    const action = keys[event.key.toLowerCase()];
    if (!action) return;
    event.preventDefault();
    action();
  });
}
