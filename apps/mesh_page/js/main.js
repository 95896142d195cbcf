// The page: a list of files, the mesh that is chosen, and how it is shown.

import { parseGlb } from "./glb.js";
import { Stage, find, oneOf, pressed, say } from "./stage.js";

const FIELD_OF_VIEW = 0.7;

let chosen = -1;

async function show(stage, files, number) {
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
    const extents = stage.load(parts);
    const count = (pick) => parts.reduce((sum, part) => sum + pick(part), 0).toLocaleString("en");
    find("vertices").textContent = count((part) => part.positions.length / 3);
    find("faces").textContent = count((part) => part.indices.length / 3);
    find("extents").textContent = extents.map((value) => value.toFixed(2)).join(" × ");
    document.body.dataset.shown = name;
    say("");
  } catch (error) {
    if (chosen === number) say(`${name}: ${error.message}`);
  }
}

async function start() {
  const stage = new Stage(FIELD_OF_VIEW);
  oneOf(find("shading"), (shading) => stage.set({ shading }));
  find("wireframe").addEventListener("click", () => {
    stage.set({ wireframe: !stage.look.wireframe });
    pressed(find("wireframe"), stage.look.wireframe);
  });

  const files = await (await fetch("/v1/files")).json();
  find("files").replaceChildren(...files.map(({ name }, number) => {
    const [item, button] = [document.createElement("li"), document.createElement("button")];
    Object.assign(button, { type: "button", textContent: name });
    button.addEventListener("click", () => show(stage, files, number));
    item.append(button);
    return item;
  }));
  await show(stage, files, 0);
  stage.run();
}

start().catch((error) => say(error.message));
