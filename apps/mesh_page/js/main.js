// The page: a list of files, the mesh that is chosen, and how it is shown.

import { parseGlb } from "./glb.js";
import { orbitView, perspective } from "./matrices.js";
import { Orbit } from "./orbit.js";
import { Renderer } from "./renderer.js";

const FIELD_OF_VIEW = 0.7;
const INK = { dark: [0.05, 0.07, 0.09], light: [0.1, 0.13, 0.16] };

const find = (id) => document.getElementById(id);
const look = { shading: "colour", wireframe: false };
let stale = true;
let chosen = -1;

function say(text) {
  find("message").textContent = text;
  find("message").hidden = !text;
}

function pressed(button, value) {
  button.setAttribute("aria-pressed", String(value));
}

async function show(renderer, files, number) {
  chosen = number;
  for (const [index, item] of [...find("files").children].entries()) {
    item.firstChild.setAttribute("aria-current", String(index === number));
  }
  const { name, url } = files[number];
  Object.assign(find("download"), { href: url, download: name });
  try {
    const answer = await fetch(url);
    if (!answer.ok) throw new Error(`the server answered ${answer.status}`);
    const parts = await parseGlb(await answer.arrayBuffer());
    if (chosen !== number) return; // another file was chosen meanwhile
    const extents = renderer.load(parts);
    const count = (pick) => parts.reduce((sum, part) => sum + pick(part), 0).toLocaleString("en");
    find("vertices").textContent = count((part) => part.positions.length / 3);
    find("faces").textContent = count((part) => part.indices.length / 3);
    find("extents").textContent = extents.map((value) => value.toFixed(2)).join(" × ");
    document.body.dataset.shown = name;
    say("");
  } catch (error) {
    if (chosen === number) say(`${name}: ${error.message}`);
  }
  stale = true;
}

function connect(orbit) {
  for (const button of find("shading").querySelectorAll("button")) {
    button.addEventListener("click", () => {
      look.shading = button.dataset.shading;
      for (const other of find("shading").querySelectorAll("button")) pressed(other, other === button);
      stale = true;
    });
  }
  find("wireframe").addEventListener("click", () => {
    look.wireframe = !look.wireframe;
    pressed(find("wireframe"), look.wireframe);
    stale = true;
  });
  find("turn").addEventListener("click", () => {
    orbit.turning = !orbit.turning;
    pressed(find("turn"), orbit.turning);
  });
  find("ground").addEventListener("click", () => {
    const ground = document.body.dataset.ground === "dark" ? "light" : "dark";
    document.body.dataset.ground = ground;
    pressed(find("ground"), ground === "light");
    stale = true;
  });
  find("home").addEventListener("click", () => orbit.home());
}

async function start() {
  const canvas = find("canvas");
  const renderer = new Renderer(canvas);
  const orbit = new Orbit(canvas, () => { stale = true; });
  if (window.matchMedia("(prefers-reduced-motion: reduce)").matches) {
    orbit.turning = false;
    pressed(find("turn"), false);
  }
  connect(orbit);
  new ResizeObserver(() => { stale = true; }).observe(canvas);

  const files = await (await fetch("/v1/files")).json();
  find("files").replaceChildren(...files.map(({ name }, number) => {
    const [item, button] = [document.createElement("li"), document.createElement("button")];
    Object.assign(button, { type: "button", textContent: name });
    button.addEventListener("click", () => show(renderer, files, number));
    item.append(button);
    return item;
  }));
  await show(renderer, files, 0);

  let before = performance.now();
  const frame = (now) => {
    orbit.pass((now - before) / 1000);
    before = now;
    if (stale || orbit.turning) {
      stale = false;
      renderer.draw({
        view: orbitView(orbit.azimuth, orbit.elevation, orbit.distance),
        projection: perspective(FIELD_OF_VIEW, (canvas.clientWidth || 1) / (canvas.clientHeight || 1), 0.1, 30),
        ink: INK[document.body.dataset.ground],
        ...look,
      });
    }
    requestAnimationFrame(frame);
  };
  requestAnimationFrame(frame);
}

start().catch((error) => say(error.message));
