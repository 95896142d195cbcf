// Binary glTF 2.0: the triangles of its scene, with normals, vertex colours and a base colour texture.

import { composed, identity, product, transformed } from "./matrices.js";

const MAGIC = 0x46546c67;
const JSON_CHUNK = 0x4e4f534a;
const BINARY_CHUNK = 0x004e4942;
const TRIANGLES = 4;
const COMPONENTS = { SCALAR: 1, VEC2: 2, VEC3: 3, VEC4: 4 };
const ARRAYS = { 5120: Int8Array, 5121: Uint8Array, 5122: Int16Array, 5123: Uint16Array, 5125: Uint32Array, 5126: Float32Array };
const LARGEST = { 5120: 127, 5121: 255, 5122: 32767, 5123: 65535, 5125: 4294967295 };

/** Parts of one mesh, ready to be drawn: `{positions, normals, colours, uvs, indices, texture, factor}`. */
export async function parseGlb(buffer) {
  const { gltf, binary } = chunks(buffer);
  const parts = [];
  const scene = (gltf.scenes ?? [])[gltf.scene ?? 0] ?? { nodes: (gltf.nodes ?? []).map((_, index) => index) };
  for (const node of scene.nodes ?? []) await visit(gltf, binary, node, identity(), parts);
  if (!parts.length) throw new Error("the file holds no triangles");
  return parts;
}

function chunks(buffer) {
  const view = new DataView(buffer);
  if (buffer.byteLength < 20 || view.getUint32(0, true) !== MAGIC) throw new Error("this is not a GLB file");
  if (view.getUint32(4, true) !== 2) throw new Error(`glTF version ${view.getUint32(4, true)} is not 2`);
  let gltf = null;
  let binary = new ArrayBuffer(0);
  for (let offset = 12; offset + 8 <= buffer.byteLength; ) {
    const [length, type] = [view.getUint32(offset, true), view.getUint32(offset + 4, true)];
    const body = buffer.slice(offset + 8, offset + 8 + length);
    if (type === JSON_CHUNK) gltf = JSON.parse(new TextDecoder().decode(body));
    if (type === BINARY_CHUNK) binary = body;
    offset += 8 + length;
  }
  if (!gltf) throw new Error("the file has no JSON chunk");
  return { gltf, binary };
}

async function visit(gltf, binary, index, parent, parts) {
  const node = gltf.nodes[index];
  const own = node.matrix ?? composed(node.translation ?? [0, 0, 0], node.rotation ?? [0, 0, 0, 1], node.scale ?? [1, 1, 1]);
  const matrix = product(parent, own);
  if (node.mesh !== undefined) {
    for (const primitive of gltf.meshes[node.mesh].primitives) {
      if ((primitive.mode ?? TRIANGLES) === TRIANGLES) parts.push(await part(gltf, binary, primitive, matrix));
    }
  }
  for (const child of node.children ?? []) await visit(gltf, binary, child, matrix, parts);
}

async function part(gltf, binary, primitive, matrix) {
  const read = (name) => {
    const accessor = primitive.attributes[name];
    return accessor === undefined ? null : values(gltf, binary, accessor);
  };
  const positions = read("POSITION");
  const count = positions.data.length / 3;
  const indices = primitive.indices === undefined
    ? Uint32Array.from({ length: count }, (_, index) => index)
    : Uint32Array.from(values(gltf, binary, primitive.indices).data);
  const placed = new Float32Array(positions.data.length);
  for (let i = 0; i < placed.length; i += 3) placed.set(transformed(matrix, positions.data.subarray(i, i + 3), 1), i);
  const normals = read("NORMAL");
  const turned = normals ? new Float32Array(normals.data.length) : smoothNormals(placed, indices);
  if (normals) {
    // for rotations and uniform scales, which are all that we meet, the matrix itself turns normals
    for (let i = 0; i < turned.length; i += 3) turned.set(transformed(matrix, normals.data.subarray(i, i + 3), 0), i);
  }
  const material = primitive.material === undefined ? {} : gltf.materials[primitive.material];
  const surface = material.pbrMetallicRoughness ?? {};
  return {
    positions: placed,
    normals: turned,
    colours: rgb(read("COLOR_0"), count),
    uvs: read("TEXCOORD_0")?.data ?? null,
    indices,
    texture: surface.baseColorTexture ? await image(gltf, binary, surface.baseColorTexture.index) : null,
    factor: (surface.baseColorFactor ?? [1, 1, 1, 1]).slice(0, 3),
  };
}

/** An accessor's numbers as floats, normalised integers between 0 and 1. */
function values(gltf, binary, index) {
  const accessor = gltf.accessors[index];
  const width = COMPONENTS[accessor.type];
  const kind = ARRAYS[accessor.componentType];
  if (!width || !kind || accessor.bufferView === undefined) throw new Error(`accessor ${index} is of a kind that is not read here`);
  const view = gltf.bufferViews[accessor.bufferView];
  const start = (view.byteOffset ?? 0) + (accessor.byteOffset ?? 0);
  const stride = view.byteStride ?? width * kind.BYTES_PER_ELEMENT;
  const scale = accessor.normalized ? 1 / LARGEST[accessor.componentType] : 1;
  const isIndex = accessor.type === "SCALAR" && accessor.componentType !== 5126;
  const data = isIndex ? new Uint32Array(accessor.count) : new Float32Array(accessor.count * width);
  for (let item = 0; item < accessor.count; item += 1) {
    const row = new kind(binary.slice(start + item * stride, start + item * stride + width * kind.BYTES_PER_ELEMENT));
    for (let column = 0; column < width; column += 1) data[item * width + column] = row[column] * scale;
  }
  return { data, width };
}

function rgb(colours, count) {
  if (!colours) return null;
  const out = new Float32Array(3 * count);
  for (let item = 0; item < count; item += 1) {
    for (let column = 0; column < 3; column += 1) out[3 * item + column] = colours.data[item * colours.width + column];
  }
  return out;
}

async function image(gltf, binary, index) {
  const source = gltf.images[gltf.textures[index].source];
  if (source.bufferView === undefined) throw new Error("a texture lies outside the file");
  const view = gltf.bufferViews[source.bufferView];
  const bytes = new Uint8Array(binary, view.byteOffset ?? 0, view.byteLength);
  return createImageBitmap(new Blob([bytes], { type: source.mimeType }), { colorSpaceConversion: "none" });
}

function smoothNormals(positions, indices) {
  const normals = new Float32Array(positions.length);
  for (let i = 0; i < indices.length; i += 3) {
    const [a, b, c] = [0, 1, 2].map((corner) => 3 * indices[i + corner]);
    const u = [0, 1, 2].map((k) => positions[b + k] - positions[a + k]);
    const v = [0, 1, 2].map((k) => positions[c + k] - positions[a + k]);
    const n = [u[1] * v[2] - u[2] * v[1], u[2] * v[0] - u[0] * v[2], u[0] * v[1] - u[1] * v[0]];
    for (const corner of [a, b, c]) for (let k = 0; k < 3; k += 1) normals[corner + k] += n[k];
  }
  return normals;
}
