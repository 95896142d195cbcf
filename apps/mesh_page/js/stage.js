// A canvas with a mesh on it, the eye that goes around it, and the buttons that all pages of this kind have.

import { orbitView, perspective } from "./matrices.js";
import { Orbit } from "./orbit.js";
import { Renderer } from "./renderer.js";

const INK = { dark: [0.05, 0.07, 0.09], light: [0.1, 0.13, 0.16] };
const [NEAR, FAR] = [0.1, 30];

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

export class Stage {
  /** @param {number} fieldOfView in radians; the buttons turn, ground and home are the page's. */
  constructor(fieldOfView) {
    this.canvas = find("canvas");
    this.renderer = new Renderer(this.canvas);
    this.fieldOfView = fieldOfView;
    this.look = { shading: "colour", wireframe: false };
    this.stale = true;
    this.orbit = new Orbit(this.canvas, () => { this.stale = true; });
    if (window.matchMedia("(prefers-reduced-motion: reduce)").matches) {
      this.orbit.turning = false;
      pressed(find("turn"), false);
    }
    find("turn").addEventListener("click", () => {
      this.orbit.turning = !this.orbit.turning;
      pressed(find("turn"), this.orbit.turning);
    });
    find("ground").addEventListener("click", () => {
      const ground = document.body.dataset.ground === "dark" ? "light" : "dark";
      document.body.dataset.ground = ground;
      pressed(find("ground"), ground === "light");
      this.stale = true;
    });
    find("home").addEventListener("click", () => this.orbit.home());
    new ResizeObserver(() => { this.stale = true; }).observe(this.canvas);
  }

  /** Show these parts; their extents along the axes. */
  load(parts) {
    this.stale = true;
    return this.renderer.load(parts);
  }

  /** Shading `colour`, `clay` or `normals`, or a wireframe over it. */
  set(look) {
    Object.assign(this.look, look);
    this.stale = true;
  }

  /** Draw whenever something has changed, from now on. */
  run() {
    let before = performance.now();
    const frame = (now) => {
      this.orbit.pass((now - before) / 1000);
      before = now;
      if ((this.stale || this.orbit.turning) && this.canvas.clientWidth) {
        this.stale = false;
        draw(this.renderer, this.orbit, this.fieldOfView, { ...this.look, ink: INK[document.body.dataset.ground] });
      }
      requestAnimationFrame(frame);
    };
    requestAnimationFrame(frame);
  }
}

/** One picture from where the eye is. */
export function draw(renderer, { azimuth, elevation, distance }, fieldOfView, look = {}) {
  const { clientWidth, clientHeight } = renderer.canvas;
  renderer.draw({
    view: orbitView(azimuth, elevation, distance),
    projection: perspective(fieldOfView, (clientWidth || 1) / (clientHeight || 1), NEAR, FAR),
    ink: INK.dark,
    shading: "colour",
    wireframe: false,
    ...look,
  });
}
