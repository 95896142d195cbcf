// The page: a list of designs in a chosen order, the one that is chosen, and its metrics.

import { orbitView, perspective } from "/static/mesh/js/matrices.js";
import { Orbit } from "/static/mesh/js/orbit.js";
import { Renderer } from "/static/mesh/js/renderer.js";
import { drawMap, drawStrip, fillTable, nameOf, shown } from "./panel.js";
import { tube } from "./tube.js";

const FIELD_OF_VIEW = 0.55;
const UNORDERED = new Set(["seed", "network", "steps", "fold", "nearest", "file"]);

const find = (id) => document.getElementById(id);
let [stale, chosen, current, colouring] = [true, -1, null, "structure"];

function say(text) {
  find("message").textContent = text;
  find("message").hidden = !text;
}

function pressed(button, value) {
  button.setAttribute("aria-pressed", String(value));
}

function draw(renderer) {
  if (!current) return;
  renderer.load([tube(current.ca, current.row.structure, colouring)]);
  stale = true;
}

async function show(renderer, number) {
  chosen = number;
  for (const item of find("files").children) {
    item.firstChild.setAttribute("aria-current", String(Number(item.dataset.design) === number));
  }
  try {
    const answer = await fetch(`/v1/designs/${number}`);
    if (!answer.ok) throw new Error(`the server answered ${answer.status}`);
    const design = await answer.json();
    if (chosen !== number) return; // another one was chosen meanwhile
    current = design;
    find("title").textContent = `Design ${number}`;
    Object.assign(find("download"), { href: `/v1/designs/${number}.pdb`, download: `design-${String(number).padStart(6, "0")}.pdb` });
    fillTable(find("metrics"), design.row);
    drawStrip(find("strip"), design.row.structure);
    drawMap(find("map"), design.ca);
    draw(renderer);
    document.body.dataset.shown = String(number);
    say("");
  } catch (error) {
    if (chosen === number) say(`design ${number}: ${error.message}`);
  }
}

function list(renderer, designs) {
  const key = find("order").value;
  const value = (row) => (typeof row[key] === "number" ? row[key] : row[key] === true ? 1 : row[key] === false ? 0 : -Infinity);
  const rows = designs.filter((row) => row.valid || !find("only-valid").checked);
  rows.sort((a, b) => (key === "design" ? a.design - b.design : value(b) - value(a) || a.design - b.design));
  find("files").replaceChildren(...rows.map((row) => {
    const [item, button, name, told] = ["li", "button", "b", "span"].map((tag) => document.createElement(tag));
    item.dataset.design = row.design;
    Object.assign(button, { type: "button", className: row.valid ? "" : "broken", title: row.valid ? "" : "broken bonds or clashes" });
    button.setAttribute("aria-current", String(row.design === chosen));
    name.textContent = row.design;
    told.textContent = key === "design" ? `${row.length} residues` : shown(key, row[key]);
    button.append(name, told);
    button.addEventListener("click", () => show(renderer, row.design));
    item.append(button);
    return item;
  }));
  return rows;
}

function connect(orbit, renderer, designs) {
  const keys = Object.keys(designs[0]).filter((key) => !UNORDERED.has(key));
  find("order").replaceChildren(...keys.map((key) => new Option(nameOf(key), key)));
  for (const id of ["order", "only-valid"]) find(id).addEventListener("change", () => list(renderer, designs));
  for (const button of find("colouring").querySelectorAll("button")) {
    button.addEventListener("click", () => {
      colouring = button.dataset.colouring;
      for (const other of find("colouring").querySelectorAll("button")) pressed(other, other === button);
      draw(renderer);
    });
  }
  find("turn").addEventListener("click", () => {
    orbit.turning = !orbit.turning;
    pressed(find("turn"), orbit.turning);
  });
  find("ground").addEventListener("click", () => {
    const ground = document.body.dataset.ground === "dark" ? "light" : "dark";
    document.body.dataset.ground = ground;
    pressed(find("ground"), ground === "light");
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
  new ResizeObserver(() => { stale = true; }).observe(canvas);

  const { name, total, designs } = await (await fetch("/v1/designs")).json();
  find("run").textContent = name;
  find("count").textContent = designs.length === total ? total : `${designs.length} of ${total}`;
  find("valid").textContent = `${Math.round((100 * designs.filter((row) => row.valid).length) / designs.length)} %`;
  connect(orbit, renderer, designs);
  await show(renderer, list(renderer, designs)[0].design);

  let before = performance.now();
  const frame = (now) => {
    orbit.pass((now - before) / 1000);
    before = now;
    if (stale || orbit.turning) {
      stale = false;
      renderer.draw({
        view: orbitView(orbit.azimuth, orbit.elevation, orbit.distance),
        projection: perspective(FIELD_OF_VIEW, (canvas.clientWidth || 1) / (canvas.clientHeight || 1), 0.1, 30),
        ink: [0, 0, 0],
        shading: "colour",
        wireframe: false,
      });
    }
    requestAnimationFrame(frame);
  };
  requestAnimationFrame(frame);
}

start().catch((error) => say(error.message));
