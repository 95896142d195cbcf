// The page: tiles of what is in the folder, the file that is chosen, and what is known of it.

import { parseGlb } from "/static/mesh/js/glb.js";
import { Stage, draw, find, oneOf, pressed, say } from "/static/mesh/js/stage.js";
import { Renderer } from "/static/mesh/js/renderer.js";
import { fillTable } from "/static/protein/js/panel.js";
import { tube } from "/static/protein/js/tube.js";

const FIELD_OF_VIEW = 0.6;
const EYE = { azimuth: 0.6, elevation: 0.3, distance: 3.3 };
const LONG = 28; // characters; what is longer gets a line of its own
const LABELS = { video: "Videos", picture: "Pictures", mesh: "Meshes", protein: "Proteins" };

let assets = [];
let chosen = null;
let loaded = null;
let colouring = "structure";
let stage = null;
let workshop = null;

async function fetched(url) {
  const answer = await fetch(url);
  if (!answer.ok) throw new Error((await answer.json()).detail);
  return answer;
}

/** What the renderer draws of a mesh or a protein. */
async function shape(asset) {
  if (asset.kind === "mesh") return { mesh: await parseGlb(await (await fetched(asset.url)).arrayBuffer()) };
  return { chains: await (await fetched(`${asset.url}/chains`)).json() };
}

function parts({ mesh, chains }) {
  return mesh ?? chains.map(({ ca, structure }) => tube(ca, structure, colouring));
}

function element(tag, fields = {}, ...children) {
  const made = Object.assign(document.createElement(tag), fields);
  made.append(...children);
  return made;
}

function thumb(asset) {
  if (asset.kind === "picture") return element("img", { className: "thumb", loading: "lazy", src: asset.url, alt: "" });
  if (asset.kind === "video") {
    return element("video", { className: "thumb", src: `${asset.url}#t=0.1`, preload: "metadata", muted: true, tabIndex: -1 });
  }
  const canvas = element("canvas", { className: "thumb", width: 320, height: 240 });
  canvas.setAttribute("aria-hidden", "true");
  const seen = new IntersectionObserver(([entry]) => {
    if (!entry.isIntersecting) return;
    seen.disconnect();
    shape(asset).then((made) => sketch(canvas, parts(made))).catch(() => {});
  });
  seen.observe(canvas);
  return canvas;
}

/** One renderer draws all the small pictures, as a browser gives only a few contexts. */
function sketch(canvas, made) {
  workshop ??= new Renderer(find("workshop"));
  workshop.load(made);
  draw(workshop, EYE, FIELD_OF_VIEW);
  canvas.getContext("2d").drawImage(workshop.canvas, 0, 0, canvas.width, canvas.height);
}

async function show(asset) {
  chosen = asset;
  loaded = null;
  for (const item of find("files").children) {
    item.firstChild.setAttribute("aria-current", String(item.firstChild.dataset.name === asset.name));
  }
  const solid = asset.kind === "mesh" || asset.kind === "protein";
  find("canvas").hidden = !solid;
  find("video").hidden = asset.kind !== "video";
  find("picture").hidden = asset.kind !== "picture";
  for (const tool of find("tools").querySelectorAll("[data-for]")) tool.hidden = !tool.dataset.for.split(" ").includes(asset.kind);
  find("video").pause();
  if (asset.kind === "video") Object.assign(find("video"), { src: asset.url, ariaLabel: asset.name });
  if (asset.kind === "picture") Object.assign(find("picture"), { src: asset.url, alt: asset.name });
  Object.assign(find("download"), { href: asset.url, download: asset.name.split("/").pop() });
  find("title").textContent = asset.name;
  tell(find("metrics"), asset.metrics);
  find("nothing").hidden = Object.keys(asset.metrics).length > 0;
  say("");
  try {
    if (solid) {
      stage ??= begin();
      const made = await shape(asset);
      if (chosen !== asset) return; // another file was chosen meanwhile
      loaded = made;
      stage.load(parts(made));
    }
    document.body.dataset.shown = asset.name;
  } catch (error) {
    if (chosen === asset) say(`${asset.name}: ${error.message}`);
  }
}

/** The stage begins with the first shape: where there is no WebGL, videos and pictures still show. */
function begin() {
  const made = new Stage(FIELD_OF_VIEW);
  oneOf(find("shading"), (shading) => made.set({ shading }));
  oneOf(find("colouring"), (value) => {
    colouring = value;
    if (loaded) made.load(parts(loaded));
  });
  find("wireframe").addEventListener("click", () => {
    made.set({ wireframe: !made.look.wireframe });
    pressed(find("wireframe"), made.look.wireframe);
  });
  made.run();
  return made;
}

function tell(body, row) {
  fillTable(body, row);
  for (const line of body.children) line.classList.toggle("long", line.lastChild.textContent.length > LONG);
}

function list(kind) {
  const rows = assets.filter((asset) => kind === "all" || asset.kind === kind);
  find("count").textContent = rows.length === assets.length ? String(rows.length) : `${rows.length} of ${assets.length}`;
  find("files").replaceChildren(...rows.map((asset) => {
    const button = element("button", { type: "button" }, thumb(asset), element("span", { className: "name", textContent: asset.name }));
    button.dataset.name = asset.name;
    button.setAttribute("aria-current", String(asset === chosen));
    button.addEventListener("click", () => show(asset));
    return element("li", {}, button);
  }));
}

async function start() {
  const content = await (await fetched("/v1/assets")).json();
  assets = content.assets;
  find("folder").textContent = content.folder;
  const kinds = Object.keys(LABELS).filter((kind) => assets.some((asset) => asset.kind === kind));
  if (kinds.length > 1) {
    find("kinds").append(...["all", ...kinds].map((kind) => {
      const button = element("button", { type: "button", textContent: LABELS[kind] ?? "All" });
      button.dataset.kinds = kind;
      pressed(button, kind === "all");
      return button;
    }));
    oneOf(find("kinds"), list);
  }
  find("records").hidden = !content.records.length;
  tell(find("record-rows"), Object.fromEntries(content.records.map(({ report, name, value, unit }) => [`${report}: ${name}${unit ? `, ${unit}` : ""}`, value])));
  list("all");
  await show(assets[0]);
}

start().catch((error) => say(error.message));
