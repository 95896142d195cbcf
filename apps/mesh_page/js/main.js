// The page: a list of files, the mesh that is chosen, and how it is shown.

import { parseGlb } from "/static/viewers/js/glb.js";
import { MeshStage } from "/static/viewers/js/mesh_stage.js";
import { commonTools, find, oneOf, onOff, say } from "/static/viewers/js/page.js";

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
    const scene = await parseGlb(await answer.arrayBuffer());
    if (chosen !== number) return; // another file was chosen meanwhile
    const { vertices, faces, extents } = stage.show(scene);
    find("vertices").textContent = vertices.toLocaleString("en");
    find("faces").textContent = faces.toLocaleString("en");
    find("extents").textContent = extents.map((value) => value.toFixed(2)).join(" × ");
    document.body.dataset.shown = name;
    say("");
  } catch (error) {
    if (chosen !== number) return;
    stage.clear();
    delete document.body.dataset.shown;
    for (const id of ["vertices", "faces", "extents"]) find(id).textContent = "–";
    say(`${name}: ${error.message}`);
  }
}

async function start() {
  const stage = new MeshStage(find("canvas"));
  commonTools()(stage);
  oneOf(find("shading"), (shading) => stage.set({ shading }));
  onOff(find("wireframe"), false, (wireframe) => stage.set({ wireframe }));

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
