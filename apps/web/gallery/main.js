// The page: tiles of what is in the folder, the file that is chosen, and what is known of it.

import { commonTools, find, oneOf, onOff, pressed, say } from "/static/viewers/js/page.js";
import { fillTable } from "/static/viewers/js/panel.js";

const LONG = 28; // characters; what is longer gets a line of its own
const FLAT = { video: "loadeddata", picture: "load" }; // kinds that the browser draws, and what it says when it has
const LABELS = { video: "Videos", picture: "Pictures", mesh: "Meshes", protein: "Proteins" };

/** Kinds that are drawn here: where, by what, and how it is read. Loaded when the first file of theirs is seen. */
const SOLIDS = {
  mesh: {
    place: "canvas",
    stage: async (place) => new (await import("/static/viewers/js/mesh_stage.js")).MeshStage(place),
    read: async ({ url }) => {
      const { parseGlb } = await import("/static/viewers/js/glb.js");
      return [await parseGlb(await (await fetched(url)).arrayBuffer())];
    },
  },
  protein: {
    place: "molecule",
    stage: async (place) => new (await import("/static/viewers/js/protein_stage.js")).ProteinStage(place),
    read: async ({ url }) => [await (await fetched(`${url}/pdb`)).text(), await (await fetched(`${url}/structure`)).json()],
  },
};

const stages = {}; // by kind, promises
const workshops = {};
const look = { shading: "colour", wireframe: false, colouring: "structure" };
const connect = commonTools();

let assets = [];
let chosen = null;

async function fetched(url) {
  const answer = await fetch(url);
  if (!answer.ok) throw new Error((await answer.json()).detail);
  return answer;
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
    sketch(canvas, asset).catch(() => {}); // what is wrong with it is told when it is chosen
  });
  seen.observe(canvas);
  return canvas;
}

/** One stage draws all the small pictures of a kind, as a browser gives only a few contexts. */
async function sketch(canvas, asset) {
  const { stage, read } = SOLIDS[asset.kind];
  const made = await read(asset);
  const workshop = await (workshops[asset.kind] ??= stage(find(`${asset.kind}-workshop`)));
  workshop.show(...made);
  canvas.getContext("2d").drawImage(workshop.picture(), 0, 0, canvas.width, canvas.height);
}

/** When an element has its picture. A video's buttons do nothing before that, though its `readyState` may say so. */
function coming(place, ready) {
  return new Promise((resolve, reject) => {
    place[`on${ready}`] = resolve;
    place.onerror = () => reject(new Error("this browser cannot show it"));
  });
}

async function show(asset) {
  chosen = asset;
  for (const item of find("files").children) {
    item.firstChild.setAttribute("aria-current", String(item.firstChild.dataset.name === asset.name));
  }
  const solid = SOLIDS[asset.kind];
  for (const [kind, { place }] of Object.entries(SOLIDS)) find(place).hidden = asset.kind !== kind;
  find("video").hidden = asset.kind !== "video";
  find("picture").hidden = asset.kind !== "picture";
  for (const tool of find("tools").querySelectorAll("[data-for]")) tool.hidden = !tool.dataset.for.split(" ").includes(asset.kind);
  find("video").pause();
  const there = asset.kind in FLAT ? coming(find(asset.kind), FLAT[asset.kind]) : null;
  if (asset.kind === "video") Object.assign(find("video"), { src: asset.url, ariaLabel: asset.name });
  if (asset.kind === "picture") Object.assign(find("picture"), { src: asset.url, alt: asset.name });
  Object.assign(find("download"), { href: asset.url, download: asset.name.split("/").pop() });
  find("title").textContent = asset.name;
  tell(find("metrics"), asset.metrics);
  find("nothing").hidden = Object.keys(asset.metrics).length > 0;
  say("");
  try {
    if (solid) {
      const stage = await (stages[asset.kind] ??= begin(solid));
      const made = await solid.read(asset);
      if (chosen !== asset) return; // another file was chosen meanwhile
      stage.show(...made);
    }
    await there;
    if (chosen !== asset) return;
    document.body.dataset.shown = asset.name;
  } catch (error) {
    if (chosen !== asset) return;
    if (solid) stages[asset.kind].then((stage) => stage.clear(), () => {}); // without WebGL there is none
    delete document.body.dataset.shown;
    say(`${asset.name}: ${error.message}`);
  }
}

/** A stage begins with the first file of its kind: where there is no WebGL, videos and pictures still show. */
async function begin({ stage, place }) {
  const made = await stage(find(place));
  made.set(look);
  connect(made);
  made.run();
  return made;
}

/** The look is one for all stages; each takes from it what it knows. */
function change(part) {
  Object.assign(look, part);
  for (const stage of Object.values(stages)) stage.then((made) => made.set(part), () => {}); // without WebGL there is none
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
  oneOf(find("shading"), (shading) => change({ shading }));
  oneOf(find("colouring"), (colouring) => change({ colouring }));
  onOff(find("wireframe"), look.wireframe, (wireframe) => change({ wireframe }));
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
