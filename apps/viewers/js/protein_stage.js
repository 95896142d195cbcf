// An element with proteins in it, drawn by 3Dmol.js.

import { createViewer } from "../vendor/3dmol.js";
import { eyeKeys } from "./page.js";

const HOME = { x: 20, y: -34 }; // degrees, about the view's x axis and then the protein's own y axis
const TURN = -20; // degrees per second
const [NEAREST, FARTHEST] = [8, 2000]; // angstrom
const GROUNDS = { dark: 0x1d2630, light: 0xf2f5f7 };
const FOLDS = { H: "h", E: "s", "-": "c" };
const COLOURS = { h: "#e8765c", s: "#58a6e0", c: "#b9c2cc" };
const COLOURINGS = {
  // 3Dmol renames the two residues of an arrow's head while it draws them
  structure: { colorscheme: { prop: "ss", map: { ...COLOURS, "arrow start": COLOURS.s, "arrow end": COLOURS.s } } },
  chain: { color: "spectrum", colorscheme: "roygb" }, // blue at the N terminus, red at the C terminus
};
const [COARSEST, FINEST] = [4, 10]; // cartoons have twice the square of it vertices per residue
const FINE_RESIDUES = 1500; // beyond, the number of vertices stays the same: a minute would not draw 6000 at the finest
const DEGREES = 180 / Math.PI;

export class ProteinStage {
  #element;
  #viewer;
  #model = null;
  #begun = false;
  #traced = new Set();
  #colouring = "structure";
  #turning = false;
  #held = false;

  constructor(element) {
    this.#element = element;
    this.#viewer = viewerOf(element);
    eyeKeys(
      element,
      (right, up) => this.#viewer.rotate(-right * DEGREES, "y").rotate(up * DEGREES, "vx"),
      (factor) => this.#viewer.zoom(1 / factor),
    );
    element.addEventListener("pointerdown", () => { this.#held = true; });
    for (const name of ["pointerup", "pointercancel"]) window.addEventListener(name, () => { this.#held = false; });
  }

  /**
   * Show the first model of a PDB file.
   * @param {string} text
   * @param {Object<string, string>} letters of secondary structure, H, E or -, one for each CA atom of a chain
   */
  show(text, letters) {
    const residues = Object.values(letters).join("").length;
    const quality = Math.floor(FINEST * Math.sqrt(FINE_RESIDUES / residues));
    this.#viewer.removeAllModels();
    this.#viewer.setDefaultCartoonQuality(Math.max(COARSEST, Math.min(FINEST, quality)));
    this.#model = this.#viewer.addModel(text, "pdb", { assignBonds: false, noComputeSecondaryStructure: true });
    const atoms = this.#model.selectedAtoms({});
    fold(atoms, letters);
    this.#traced = withoutBackbone(atoms);
    this.set({});
    if (this.#begun) this.#viewer.zoomTo(); // the eye stays where it is turned to
    else this.home();
    this.#begun = true;
  }

  /** Show nothing. */
  clear() {
    this.#model = null;
    this.#viewer.removeAllModels();
    this.#viewer.render();
  }

  /** Colouring `structure` or `chain`. */
  set({ colouring = this.#colouring }) {
    this.#colouring = colouring;
    const colours = COLOURINGS[colouring];
    const traced = (atom) => this.#traced.has(atom.chain);
    this.#model?.setStyle({}, { cartoon: { style: "oval", arrows: true, ...colours } });
    this.#model?.setStyle({ predicate: traced }, { cartoon: { style: "trace", ...colours } });
    this.#viewer.render();
  }

  /** The canvas as it is now. */
  picture() {
    return this.#viewer.getCanvas();
  }

  /**
   * Let time pass from now on; without it everything is drawn as well, but nothing turns by itself.
   * 3Dmol's own spin() draws by a timer, and where that takes longer than its period nothing else gets a turn.
   */
  run() {
    let before = performance.now();
    const frame = (now) => {
      const seconds = (now - before) / 1000;
      before = now;
      if (this.#turning && !this.#held && this.#element.clientWidth) this.#viewer.rotate(TURN * seconds, "y");
      requestAnimationFrame(frame);
    };
    requestAnimationFrame(frame);
  }

  turn(on) {
    this.#turning = on;
  }

  /** The page's own ground shows through; edges are blended with a colour like it. */
  ground(name) {
    this.#viewer.setBackgroundColor(GROUNDS[name], 0);
  }

  home() {
    this.#viewer.setView([0, 0, 0, 0, 0, 0, 0, 1]);
    for (const [axis, angle] of Object.entries(HOME)) this.#viewer.rotate(angle, axis);
    this.#viewer.zoomTo();
  }
}

function viewerOf(element) {
  try {
    return createViewer(element, {
      backgroundAlpha: 0, disableFog: true, lowerZoomLimit: NEAREST, upperZoomLimit: FARTHEST,
    });
  } catch {
    throw new Error("this browser has no WebGL; download the file and open it elsewhere");
  }
}

const isCa = (atom) => atom.atom === "CA" && !atom.hetflag;

function fold(atoms, letters) {
  for (const [chain, word] of Object.entries(letters)) {
    const own = atoms.filter((atom) => atom.chain === chain && !atom.hetflag);
    const residues = own.filter(isCa).map((atom) => atom.rescode);
    if (residues.length !== word.length) continue;
    const places = new Map(residues.map((residue, place) => [residue, place]));
    for (const atom of own) atom.ss = FOLDS[word[places.get(atom.rescode)]] ?? "c";
  }
}

/** Chains of CA atoms alone, of which a cartoon would show nothing. */
function withoutBackbone(atoms) {
  const whole = new Set(atoms.filter((atom) => atom.atom === "O" && !atom.hetflag).map((atom) => atom.chain));
  return new Set(atoms.filter((atom) => isCa(atom) && !whole.has(atom.chain)).map((atom) => atom.chain));
}
