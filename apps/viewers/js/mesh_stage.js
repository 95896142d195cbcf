// A canvas with a mesh on it, drawn by three.js, and the eye that goes around it.

import {
  Box3, DirectionalLight, DoubleSide, Group, HemisphereLight, Mesh, MeshBasicMaterial, MeshStandardMaterial,
  OrbitControls, PerspectiveCamera, Scene, ShaderMaterial, Vector3, WebGLRenderer,
} from "../vendor/three.js";
import { meshesOf } from "./glb.js";
import { eyeKeys } from "./page.js";

const FIELD_OF_VIEW = 40; // degrees
const HOME = new Vector3().setFromSphericalCoords(3.2, 1.22, 0.6); // around a mesh of radius 1; y is up
const [NEAREST, FARTHEST] = [1.3, 12];
const TURN = -3.3; // in OrbitControls' unit, a third of a radian per second
const KEY_LIGHT = [0.45, 0.75, 0.6]; // as the eye sees it: x to the right, y up, z behind it
const [KEY_INTENSITY, SKY_INTENSITY] = [1.7, 1.8]; // about pi together: what faces the key is as bright as its colour
const GROUND = 0x999999;
const INK = { dark: 0x0d1217, light: 0x1a2129 };
const BEHIND = { side: DoubleSide, polygonOffset: true, polygonOffsetFactor: 1, polygonOffsetUnits: 1 }; // the wireframe

const CLAY = new MeshStandardMaterial({ color: 0xacacac, roughness: 1, metalness: 0, ...BEHIND });
/** The normals of the object and not of the eye: their colours stay where they are as it turns. */
const NORMALS = new ShaderMaterial({
  vertexShader: `varying vec3 turned;
    void main() {
      turned = mat3(modelMatrix) * normal;
      gl_Position = projectionMatrix * modelViewMatrix * vec4(position, 1.0);
    }`,
  fragmentShader: `varying vec3 turned;
    void main() { gl_FragColor = vec4(0.5 + 0.5 * normalize(turned), 1.0); }`,
  ...BEHIND,
});

export class MeshStage {
  #canvas;
  #renderer;
  #controls;
  #scene = new Scene();
  #camera = new PerspectiveCamera(FIELD_OF_VIEW, 1, 0.05, 40);
  #lines = new MeshBasicMaterial({ wireframe: true });
  #holder = new Group();
  #meshes = [];
  #look = { shading: "colour", wireframe: false };
  #stale = true;

  constructor(canvas) {
    this.#canvas = canvas;
    this.#renderer = rendererOf(canvas);
    this.#scene.add(this.#camera, this.#holder);
    light(this.#scene, this.#camera);
    this.#controls = new OrbitControls(this.#camera, canvas);
    Object.assign(this.#controls, { minDistance: NEAREST, maxDistance: FARTHEST, autoRotateSpeed: TURN });
    this.#camera.position.copy(HOME);
    this.#controls.update();
    this.#controls.saveState();
    this.#controls.addEventListener("change", () => { this.#stale = true; });
    eyeKeys(canvas, (right, up) => this.#eye(right, up), (factor) => this.#controls.dollyIn(factor));
    new ResizeObserver(() => { this.#stale = true; }).observe(canvas);
  }

  /** Show this scene, scaled to a sphere of radius 1, and let go of the one before. */
  show(scene) {
    this.clear();
    this.#meshes = meshesOf(scene);
    const told = { vertices: 0, faces: 0 };
    for (const { geometry } of this.#meshes) {
      told.vertices += geometry.attributes.position.count;
      told.faces += (geometry.index ?? geometry.attributes.position).count / 3;
    }
    const box = new Box3().setFromObject(scene);
    const [centre, size] = [box.getCenter(new Vector3()), box.getSize(new Vector3())];
    const scale = 2 / (size.length() || 1);
    this.#holder.add(scene);
    this.#holder.scale.setScalar(scale);
    this.#holder.position.copy(centre).multiplyScalar(-scale);
    for (const mesh of this.#meshes) prepare(mesh, this.#lines);
    this.set({});
    return { ...told, extents: size.toArray() };
  }

  /** Show nothing. */
  clear() {
    for (const mesh of this.#meshes) release(mesh);
    this.#meshes = [];
    this.#holder.clear();
    this.#stale = true;
  }

  /** Shading `colour`, `clay` or `normals`, or a wireframe over it. */
  set(look) {
    Object.assign(this.#look, look);
    const { shading, wireframe } = this.#look;
    for (const mesh of this.#meshes) {
      mesh.material = { colour: mesh.userData.own, clay: CLAY, normals: NORMALS }[shading];
      mesh.userData.edges.visible = wireframe;
    }
    this.#stale = true;
  }

  turn(on) {
    this.#controls.autoRotate = on;
  }

  ground(name) {
    this.#lines.color.set(INK[name]);
    this.#stale = true;
  }

  home() {
    this.#controls.reset();
  }

  /** The canvas, drawn now. */
  picture() {
    this.#draw();
    return this.#canvas;
  }

  #draw() {
    this.#stale = false;
    const { clientWidth, clientHeight, width, height } = this.#canvas;
    const wanted = [clientWidth, clientHeight].map((size) => Math.round(size * (window.devicePixelRatio || 1)));
    if (width !== wanted[0] || height !== wanted[1]) {
      this.#renderer.setSize(...wanted, false);
      this.#camera.aspect = wanted[0] / wanted[1];
      this.#camera.updateProjectionMatrix();
    }
    this.#renderer.render(this.#scene, this.#camera);
  }

  /** Draw whenever something has changed, from now on. */
  run() {
    let before = performance.now();
    this.#renderer.setAnimationLoop((now) => {
      const seconds = (now - before) / 1000;
      before = now;
      if (!this.#canvas.clientWidth) return;
      this.#controls.update(seconds);
      if (this.#stale) this.#draw();
    });
  }

  #eye(right, up) {
    this.#controls.rotateLeft(-right);
    this.#controls.rotateUp(up);
  }
}

function rendererOf(canvas) {
  try {
    return new WebGLRenderer({ canvas, antialias: true, alpha: true });
  } catch {
    throw new Error("this browser has no WebGL 2; download the file and open it elsewhere");
  }
}

/** A sky that is brighter above than below, and a light that goes with the eye. */
function light(scene, camera) {
  scene.add(new HemisphereLight(0xffffff, GROUND, SKY_INTENSITY));
  const key = new DirectionalLight(0xffffff, KEY_INTENSITY);
  key.position.set(...KEY_LIGHT);
  camera.add(key, key.target);
}

function prepare(mesh, lines) {
  if (!mesh.geometry.attributes.normal) {
    // flat, as glTF has it; three.js would leave clay and normals without any
    mesh.geometry = mesh.geometry.toNonIndexed();
    mesh.geometry.computeVertexNormals();
  }
  Object.assign(mesh.material, BEHIND);
  // A metal would mirror a room that is not there, and be black; preparing one takes many seconds without a graphics card.
  if (mesh.material.isMeshStandardMaterial) Object.assign(mesh.material, { metalness: 0, metalnessMap: null });
  mesh.userData = { own: mesh.material, edges: new Mesh(mesh.geometry, lines) };
  mesh.add(mesh.userData.edges);
}

function release({ geometry, userData: { own } }) {
  geometry.dispose();
  for (const value of Object.values(own)) if (value?.isTexture) value.dispose();
  own.dispose();
}
