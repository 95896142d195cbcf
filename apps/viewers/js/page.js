// What all pages with shapes have in common: their message, their buttons, their keys.

const KEY_STEP = 0.12; // radians
const NEARER = 0.9;

export const find = (id) => document.getElementById(id);

export function say(text) {
  find("message").textContent = text;
  find("message").hidden = !text;
}

export function pressed(button, value) {
  button.setAttribute("aria-pressed", String(value));
}

/** Buttons of which one is pressed; the value is that of `data-NAME`, where NAME is the group's id. */
export function oneOf(group, onChoice) {
  const buttons = [...group.querySelectorAll("button")];
  for (const button of buttons) {
    button.addEventListener("click", () => {
      for (const other of buttons) pressed(other, other === button);
      onChoice(button.dataset[group.id]);
    });
  }
}

/** A button that is pressed or not. */
export function onOff(button, value, onChange) {
  pressed(button, value);
  button.addEventListener("click", () => {
    value = !value;
    pressed(button, value);
    onChange(value);
  });
}

/**
 * The buttons turn, ground and home, for stages that are there from the start or come later.
 * @returns {(stage: {turn: Function, ground: Function, home: Function}) => void} to call with each stage
 */
export function commonTools() {
  const stages = [];
  let turning = !window.matchMedia("(prefers-reduced-motion: reduce)").matches;
  const wish = window.matchMedia("(prefers-color-scheme: light)");
  const ground = () => document.body.dataset.ground;
  const lay = (light) => {
    document.body.dataset.ground = light ? "light" : "dark";
    pressed(find("ground"), light);
    for (const stage of stages) stage.ground(ground());
  };
  onOff(find("turn"), turning, (value) => {
    turning = value;
    for (const stage of stages) stage.turn(value);
  });
  lay(wish.matches);
  wish.addEventListener("change", () => lay(wish.matches));
  find("ground").addEventListener("click", () => lay(ground() !== "light"));
  find("home").addEventListener("click", () => {
    for (const stage of stages) stage.home();
  });
  return (stage) => {
    stages.push(stage);
    stage.ground(ground());
    stage.turn(turning);
  };
}

/** Arrow keys turn the eye, `+` and `-` bring it nearer or farther; `turn` gets radians, `near` a factor of distance. */
export function eyeKeys(element, turn, near) {
  element.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const turns = { ArrowLeft: [-KEY_STEP, 0], ArrowRight: [KEY_STEP, 0], ArrowUp: [0, KEY_STEP], ArrowDown: [0, -KEY_STEP] };
    const nears = { "+": NEARER, "=": NEARER, "-": 1 / NEARER };
    if (turns[event.key]) turn(...turns[event.key]);
    else if (nears[event.key]) near(nears[event.key]);
    else return;
    event.preventDefault();
  });
}
