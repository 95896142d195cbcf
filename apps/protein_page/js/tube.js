// A chain of CA atoms as a surface: helices and strands are ribbons, strands end in an arrow, the rest is a tube.

const STEPS = 8; // along the way from one atom to the next
const SIDES = 12;
const LOOP = [0.32, 0.32]; // half width and half thickness in angstrom
const HELIX = [1.35, 0.26];
const STRAND = [1.25, 0.24];
const ARROW = 2.1; // half width where an arrow begins
const COLOURS = { H: [0.78, 0.18, 0.1], E: [0.09, 0.37, 0.74], "-": [0.47, 0.53, 0.59] }; // linear light

const add = (a, b, s = 1) => a.map((value, k) => value + s * b[k]);
const dot = (a, b) => a[0] * b[0] + a[1] * b[1] + a[2] * b[2];
const cross = (a, b) => [a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]];
const unit = (a) => { const n = Math.hypot(...a) || 1; return a.map((value) => value / n); };
const mixed = (a, b, u) => a.map((value, k) => value + u * (b[k] - value));

/** One part for the renderer: `{positions, normals, colours, indices}`. `letters` are H, E or - per atom. */
export function tube(ca, letters, colouring) {
  const atoms = ca.map((atom, i) => smoothed(ca, letters, i));
  const widths = sideways(atoms);
  const rings = [];
  for (let i = 0; i < atoms.length - 1; i += 1) {
    const last = i === atoms.length - 2 ? STEPS : STEPS - 1;
    for (let step = 0; step <= last; step += 1) {
      const u = step / STEPS;
      rings.push({
        centre: spline(atoms, i, u),
        width: unit(mixed(widths[i], widths[i + 1], u)),
        size: profile(letters, i, u),
        colour: colouring === "chain" ? rainbow((i + u) / (atoms.length - 1)) : COLOURS[letters[u < 0.5 ? i : i + 1]],
      });
    }
  }
  return surface(rings);
}

export function rainbow(u) {
  const hue = 4 * (1 - u); // blue at the N terminus, red at the C terminus
  const channel = (shift) => Math.max(0, Math.min(1, 2 - Math.abs(hue - shift)));
  return [Math.max(channel(0), 0), channel(2), channel(4)].map((value) => 0.04 + 0.7 * value * value);
}

/** Strands zigzag from atom to atom; their ribbon does not. */
function smoothed(ca, letters, i) {
  if (letters[i] !== "E" || i === 0 || i === ca.length - 1) return ca[i];
  return ca[i].map((value, k) => (ca[i - 1][k] + 2 * value + ca[i + 1][k]) / 4);
}

/** Where a ribbon's edge points at each atom: at right angles to the bend, and never turning over. */
function sideways(atoms) {
  const last = atoms.length - 1;
  const found = [];
  for (let i = 0; i <= last; i += 1) {
    const j = Math.max(1, Math.min(last - 1, i));
    let side = cross(add(atoms[j], atoms[j - 1], -1), add(atoms[j + 1], atoms[j], -1));
    if (Math.hypot(...side) < 1e-3) side = found[i - 1] ?? cross(add(atoms[j + 1], atoms[j], -1), [0.3, 0.5, 0.8]);
    side = unit(side);
    if (i > 0 && dot(side, found[i - 1]) < 0) side = side.map((value) => -value);
    found.push(side);
  }
  return found.map((side, i) => unit(add(add(side, found[Math.max(0, i - 1)]), found[Math.min(last, i + 1)])));
}

/** Half width and half thickness at `u` between atoms i and i + 1. */
function profile(letters, i, u) {
  const shape = (letter) => (letter === "H" ? HELIX : letter === "E" ? STRAND : LOOP);
  const [here, next] = [letters[i], letters[i + 1]];
  const after = letters[i + 2];
  if (here === "E" && next === "E" && after !== "E") return [ARROW + u * (LOOP[0] - ARROW), STRAND[1]];
  if (here === "E" && next !== "E") return LOOP;
  const ease = u * u * (3 - 2 * u);
  return mixed(shape(here), shape(next), here === next ? 0 : ease);
}

function spline(atoms, i, u) {
  const at = (k) => atoms[Math.max(0, Math.min(atoms.length - 1, k))];
  const [a, b, c, d] = [at(i - 1), at(i), at(i + 1), at(i + 2)];
  return b.map((_, k) => b[k] + 0.5 * u * (c[k] - a[k] + u * (2 * a[k] - 5 * b[k] + 4 * c[k] - d[k] + u * (3 * (b[k] - c[k]) + d[k] - a[k]))));
}

function surface(rings) {
  const count = rings.length * SIDES + 2;
  const [positions, normals, colours] = [0, 1, 2].map(() => new Float32Array(3 * count));
  const indices = [];
  rings.forEach((ring, row) => {
    const ahead = unit(add(rings[Math.min(rings.length - 1, row + 1)].centre, rings[Math.max(0, row - 1)].centre, -1));
    const flat = unit(add(ring.width, ahead, -dot(ring.width, ahead)));
    const up = cross(ahead, flat);
    const [a, b] = ring.size;
    for (let side = 0; side < SIDES; side += 1) {
      const [c, s] = [Math.cos((2 * Math.PI * side) / SIDES), Math.sin((2 * Math.PI * side) / SIDES)];
      const place = 3 * (row * SIDES + side);
      positions.set(add(add(ring.centre, flat, a * c), up, b * s), place);
      normals.set(unit(add(flat.map((value) => (value * c) / a), up, s / b)), place);
      colours.set(ring.colour, place);
      if (row + 1 < rings.length) {
        const [p, q] = [row * SIDES + side, row * SIDES + ((side + 1) % SIDES)];
        indices.push(p, q, p + SIDES, q, q + SIDES, p + SIDES);
      }
    }
  });
  [0, rings.length - 1].forEach((row, end) => {
    const centre = rings.length * SIDES + end;
    positions.set(rings[row].centre, 3 * centre);
    normals.set(unit(add(rings[row].centre, rings[end ? row - 1 : 1].centre, -1)), 3 * centre);
    colours.set(rings[row].colour, 3 * centre);
    for (let side = 0; side < SIDES; side += 1) indices.push(centre, row * SIDES + side, row * SIDES + ((side + 1) % SIDES));
  });
  return { positions, normals, colours, uvs: null, indices: Uint32Array.from(indices), texture: null, factor: [1, 1, 1] };
}
