// What is known of one design, beside its picture.

const FARTHEST = 24; // angstrom, white in the map
const STRIP = { H: "#e8765c", E: "#58a6e0", "-": "#b9c2cc" };
const NAMES = {
  bond_mean: "CA–CA mean (Å)", bond_std: "CA–CA deviation (Å)", bond_share: "bonds at 3.8 ± 0.1 Å",
  clashes: "clashes", radius_of_gyration: "radius of gyration (Å)", radius_ratio: "radius over compact",
  right_handed: "right-handed turns", valid: "valid", helix: "helix (P-SEA)", strand: "strand (P-SEA)",
  dssp_helix: "helix (DSSP)", dssp_strand: "strand (DSSP)", nearest_tm: "TM to nearest known",
  nearest: "nearest known chain", mpnn_nll: "ProteinMPNN doubt, nats (proxy)", mpnn_information: "ProteinMPNN information (proxy)", mpnn_agreement: "ProteinMPNN agreement (proxy)",
  sc_rmsd: "scRMSD (Å)", sc_tm: "scTM", designable: "designable",
};
const SHARES = new Set(["bond_share", "right_handed", "helix", "strand", "dssp_helix", "dssp_strand", "mpnn_agreement"]);
const HIDDEN = new Set(["design", "file", "structure"]);

export const nameOf = (key) => NAMES[key] ?? key.replaceAll("_", " ");

export function shown(key, value) {
  if (value === null || value === undefined) return "–";
  if (typeof value === "boolean") return value ? "yes" : "no";
  if (typeof value !== "number") return String(value);
  if (SHARES.has(key)) return `${(100 * value).toFixed(0)} %`;
  return Number.isInteger(value) ? String(value) : value.toFixed(2);
}

export function fillTable(body, row) {
  const lines = Object.entries(row).filter(([key, value]) => !HIDDEN.has(key) && value !== null);
  body.replaceChildren(...lines.map(([key, value]) => {
    const [line, name, cell] = ["tr", "th", "td"].map((tag) => document.createElement(tag));
    name.scope = "row";
    [name.textContent, cell.textContent] = [nameOf(key), shown(key, value)];
    line.append(name, cell);
    return line;
  }));
}

export function drawStrip(canvas, letters) {
  const context = canvas.getContext("2d");
  context.clearRect(0, 0, canvas.width, canvas.height);
  [...letters].forEach((letter, i) => {
    const thin = letter === "-";
    context.fillStyle = STRIP[letter];
    const [left, right] = [i, i + 1].map((place) => Math.round((place * canvas.width) / letters.length));
    context.fillRect(left, thin ? 5 : 0, right - left, thin ? 4 : 14);
  });
}

export function drawMap(canvas, ca) {
  const size = ca.length;
  const pixels = new ImageData(size, size);
  for (let i = 0; i < size; i += 1) {
    for (let j = 0; j < size; j += 1) {
      const distance = Math.hypot(ca[i][0] - ca[j][0], ca[i][1] - ca[j][1], ca[i][2] - ca[j][2]);
      const u = Math.min(distance / FARTHEST, 1);
      pixels.data.set([24 + 214 * u, 74 + 168 * u, 84 + 162 * u, 255], 4 * (i * size + j));
    }
  }
  const small = new OffscreenCanvas(size, size);
  small.getContext("2d").putImageData(pixels, 0, 0);
  const context = canvas.getContext("2d");
  context.imageSmoothingEnabled = false;
  context.drawImage(small, 0, 0, canvas.width, canvas.height);
}
