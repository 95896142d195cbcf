// Turning the eye around the mesh: by pointer, wheel, pinch and keys.

const HOME = { azimuth: 0.6, elevation: 0.35, distance: 3.2 };
const NEAREST = 1.3;
const FARTHEST = 12;
const STEEPEST = 1.55;
const KEY_STEP = 0.12;
const TURNS_PER_SECOND = 0.35;

export class Orbit {
  constructor(canvas, onChange) {
    this.onChange = onChange;
    this.turning = true;
    this.pointers = new Map();
    Object.assign(this, HOME);
    canvas.addEventListener("pointerdown", (event) => {
      canvas.setPointerCapture(event.pointerId);
      this.pointers.set(event.pointerId, [event.clientX, event.clientY]);
    });
    for (const name of ["pointerup", "pointercancel"]) {
      canvas.addEventListener(name, (event) => this.pointers.delete(event.pointerId));
    }
    canvas.addEventListener("pointermove", (event) => this.#move(event));
    canvas.addEventListener("wheel", (event) => {
      event.preventDefault();
      this.#near(Math.exp(event.deltaY * 0.001));
    }, { passive: false });
    canvas.addEventListener("keydown", (event) => this.#key(event));
  }

  home() {
    Object.assign(this, HOME);
    this.onChange();
  }

  /** Let time pass: the eye goes on by itself unless a hand holds it. */
  pass(seconds) {
    if (this.turning && this.pointers.size === 0) this.azimuth += TURNS_PER_SECOND * seconds;
  }

  #move(event) {
    const before = this.pointers.get(event.pointerId);
    if (!before) return;
    const now = [event.clientX, event.clientY];
    if (this.pointers.size === 1) {
      this.#turn((before[0] - now[0]) * 0.01, (now[1] - before[1]) * 0.01);
    } else {
      const spread = () => Math.hypot(...[0, 1].map((axis) => [...this.pointers.values()].slice(0, 2).reduce((a, p) => p[axis] - a, 0)));
      const earlier = spread();
      this.pointers.set(event.pointerId, now);
      this.#near(earlier / (spread() || 1));
    }
    this.pointers.set(event.pointerId, now);
  }

  #key(event) {
    const turns = { ArrowLeft: [-KEY_STEP, 0], ArrowRight: [KEY_STEP, 0], ArrowUp: [0, KEY_STEP], ArrowDown: [0, -KEY_STEP] };
    const zooms = { "+": 0.9, "=": 0.9, "-": 1.1 };
    if (turns[event.key]) this.#turn(...turns[event.key]);
    else if (zooms[event.key]) this.#near(zooms[event.key]);
    else return;
    event.preventDefault();
  }

  #turn(azimuth, elevation) {
    this.azimuth += azimuth;
    this.elevation = Math.max(-STEEPEST, Math.min(STEEPEST, this.elevation + elevation));
    this.onChange();
  }

  #near(factor) {
    this.distance = Math.max(NEAREST, Math.min(FARTHEST, this.distance * factor));
    this.onChange();
  }
}
