// The page: a list of designs in a chosen order, the one that is chosen, and its metrics.

import { commonTools, find, oneOf, say } from "/static/viewers/js/page.js";
import { drawMap, drawStrip, fillTable, nameOf, shown } from "/static/viewers/js/panel.js";
import { ProteinStage } from "/static/viewers/js/protein_stage.js";

const CHAIN = "A"; // the only one in our files
const UNORDERED = new Set(["seed", "network", "steps", "fold", "nearest", "file"]);

let chosen = -1;

async function fetched(url) {
  const answer = await fetch(url);
  if (!answer.ok) throw new Error(`the server answered ${answer.status}`);
  return answer;
}

async function show(stage, number) {
  chosen = number;
  for (const item of find("files").children) {
    item.firstChild.setAttribute("aria-current", String(Number(item.dataset.design) === number));
  }
  try {
    const file = `/v1/designs/${number}.pdb`;
    const design = await (await fetched(`/v1/designs/${number}`)).json();
    const text = await (await fetched(file)).text();
    if (chosen !== number) return; // another one was chosen meanwhile
    find("title").textContent = `Design ${number}`;
    Object.assign(find("download"), { href: file, download: `design-${String(number).padStart(6, "0")}.pdb` });
    fillTable(find("metrics"), design.row);
    drawStrip(find("strip"), design.row.structure);
    drawMap(find("map"), design.ca);
    stage.show(text, { [CHAIN]: design.row.structure });
    document.body.dataset.shown = String(number);
    say("");
  } catch (error) {
    if (chosen !== number) return;
    stage.clear();
    delete document.body.dataset.shown;
    say(`design ${number}: ${error.message}`);
  }
}

function list(stage, designs) {
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
    button.addEventListener("click", () => show(stage, row.design));
    item.append(button);
    return item;
  }));
  return rows;
}

function connect(stage, designs) {
  const keys = Object.keys(designs[0]).filter((key) => !UNORDERED.has(key));
  find("order").replaceChildren(...keys.map((key) => new Option(nameOf(key), key)));
  for (const id of ["order", "only-valid"]) find(id).addEventListener("change", () => list(stage, designs));
  oneOf(find("colouring"), (colouring) => stage.set({ colouring }));
}

async function start() {
  const stage = new ProteinStage(find("molecule"));
  commonTools()(stage);
  const { name, total, designs } = await (await fetch("/v1/designs")).json();
  find("run").textContent = name;
  find("count").textContent = designs.length === total ? total : `${designs.length} of ${total}`;
  find("valid").textContent = `${Math.round((100 * designs.filter((row) => row.valid).length) / designs.length)} %`;
  connect(stage, designs);
  await show(stage, list(stage, designs)[0].design);
  stage.run();
}

start().catch((error) => say(error.message));
