// A row of buttons of which one is chosen.

/**
 * @param {HTMLElement} root
 * @param {{value: string, label: string, key?: string}[]} options
 * @param {(value: string) => void} onChoose
 */
export function fillChoice(root, options, onChoose) {
  root.replaceChildren(
    ...options.map(({ value, label, key }) => {
      const button = document.createElement("button");
      button.type = "button";
      button.dataset.value = value;
      button.append(label);
      if (key) {
        const hint = Object.assign(document.createElement("span"), { className: "key", textContent: ` ${key}` });
        button.append(hint);
      }
      button.addEventListener("click", () => onChoose(value));
      return button;
    }),
  );
}

/** @param {HTMLElement} root @param {string} value */
export function markChoice(root, value) {
  for (const button of root.querySelectorAll("button")) {
    button.setAttribute("aria-pressed", String(button.dataset.value === value));
  }
}
