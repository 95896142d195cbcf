// Binary glTF 2.0, read by three.js from the file alone.

import { GLTFLoader, LoadingManager, TextureLoader } from "../vendor/three.js";

const MAGIC = 0x46546c67;

/** The scene of a GLB file, with at least one triangle in it. */
export async function parseGlb(buffer) {
  if (buffer.byteLength < 20 || new DataView(buffer).getUint32(0, true) !== MAGIC) throw new Error("this is not a GLB file");
  const wrong = [];
  const manager = new LoadingManager();
  manager.setURLModifier((url) => {
    if (/^(blob|data):/.test(url)) return url;
    wrong.push(`${url} lies outside the file`);
    throw new Error(wrong[0]);
  });
  manager.onError = () => wrong.push("a picture in it cannot be read");
  const loader = new GLTFLoader(manager);
  // by way of <img>: by default pictures are fetched as blobs, which the pages' policy does not allow
  loader.register((parser) => {
    parser.textureLoader = new TextureLoader(manager);
    return { name: "fewstep_pictures" };
  });
  const { scene } = await loader.parseAsync(buffer, "");
  if (wrong.length) throw new Error(wrong[0]); // a missing picture alone would leave its surface white
  if (!meshesOf(scene).length) throw new Error("the file holds no triangles");
  return scene;
}

/** Everything below that has triangles. */
export function meshesOf(scene) {
  const meshes = [];
  scene?.traverse((node) => node.isMesh && meshes.push(node));
  return meshes;
}
