// Draws one mesh with WebGL 2: two lights from the eye's side, colours in sRGB as glTF's textures are.

const VERTEX = `#version 300 es
uniform mat4 view, projection;
uniform vec3 centre;
uniform float scale, nearer;
in vec3 position, normal, colour;
in vec2 uv;
out vec3 seenNormal, ownNormal, tint;
out vec2 place;
void main() {
  seenNormal = mat3(view) * normal;
  ownNormal = normal;
  tint = colour;
  place = uv;
  gl_Position = projection * view * vec4((position - centre) * scale, 1.0);
  gl_Position.z -= nearer * gl_Position.w;
}`;

const FRAGMENT = `#version 300 es
precision highp float;
uniform sampler2D image;
uniform vec3 factor;
uniform int shading;  // 0 colour, 1 clay, 2 normals, 3 lines
uniform bool textured;
uniform vec3 ink;
in vec3 seenNormal, ownNormal, tint;
in vec2 place;
out vec4 result;
vec3 encoded(vec3 x) {
  return mix(12.92 * x, 1.055 * pow(x, vec3(1.0 / 2.4)) - 0.055, greaterThan(x, vec3(0.0031308)));
}
vec3 decoded(vec3 x) {
  return mix(x / 12.92, pow((x + 0.055) / 1.055, vec3(2.4)), greaterThan(x, vec3(0.04045)));
}
void main() {
  if (shading == 3) { result = vec4(ink, 1.0); return; }
  vec3 n = normalize(seenNormal) * (gl_FrontFacing ? 1.0 : -1.0);
  if (shading == 2) { result = vec4(0.5 + 0.5 * normalize(ownNormal), 1.0); return; }
  vec3 base = shading == 1 ? vec3(0.42) : factor * tint * (textured ? decoded(texture(image, place).rgb) : vec3(1.0));
  float key = max(dot(n, normalize(vec3(0.45, 0.75, 0.6))), 0.0);
  float fill = max(dot(n, normalize(vec3(-0.7, 0.1, 0.5))), 0.0);
  float sky = 0.5 + 0.5 * n.y;
  result = vec4(encoded(clamp(base * (0.6 * key + 0.18 * fill + 0.16 * sky + 0.08), 0.0, 1.0)), 1.0);
}`;

const SHADINGS = { colour: 0, clay: 1, normals: 2 };
const LINES = 3;
const LINES_NEARER = 0.0008; // or the faces they lie on would hide parts of them

export class Renderer {
  constructor(canvas) {
    const gl = canvas.getContext("webgl2", { antialias: true, alpha: true, premultipliedAlpha: true });
    if (!gl) throw new Error("this browser has no WebGL 2; download the file and open it elsewhere");
    this.canvas = canvas;
    this.gl = gl;
    this.program = link(gl);
    this.parts = [];
    this.centre = [0, 0, 0];
    this.scale = 1;
    gl.enable(gl.DEPTH_TEST);
  }

  /** Show these parts of a mesh, scaled to a sphere of radius 1. */
  load(parts) {
    const gl = this.gl;
    for (const part of this.parts) part.release();
    this.parts = parts.map((part) => upload(gl, this.program, part));
    const low = [Infinity, Infinity, Infinity];
    const high = [-Infinity, -Infinity, -Infinity];
    for (const { positions } of parts) {
      for (let i = 0; i < positions.length; i += 1) {
        low[i % 3] = Math.min(low[i % 3], positions[i]);
        high[i % 3] = Math.max(high[i % 3], positions[i]);
      }
    }
    this.centre = low.map((value, axis) => (value + high[axis]) / 2);
    const radius = Math.hypot(...low.map((value, axis) => high[axis] - value)) / 2;
    this.scale = 1 / (radius || 1);
    return low.map((value, axis) => high[axis] - value);
  }

  draw({ view, projection, shading, wireframe, ink }) {
    const { gl, canvas, program } = this;
    const ratio = window.devicePixelRatio || 1;
    const [width, height] = [Math.round(canvas.clientWidth * ratio), Math.round(canvas.clientHeight * ratio)];
    if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
    gl.viewport(0, 0, width, height);
    gl.clearColor(0, 0, 0, 0);
    gl.clear(gl.COLOR_BUFFER_BIT | gl.DEPTH_BUFFER_BIT);
    gl.useProgram(program);
    const at = (name) => gl.getUniformLocation(program, name);
    gl.uniformMatrix4fv(at("view"), false, view);
    gl.uniformMatrix4fv(at("projection"), false, projection);
    gl.uniform3fv(at("centre"), this.centre);
    gl.uniform1f(at("scale"), this.scale);
    gl.uniform3fv(at("ink"), ink);
    for (const part of this.parts) {
      gl.uniform1i(at("shading"), SHADINGS[shading]);
      gl.uniform1f(at("nearer"), 0);
      gl.uniform1i(at("textured"), part.texture ? 1 : 0);
      gl.uniform3fv(at("factor"), part.factor);
      gl.bindTexture(gl.TEXTURE_2D, part.texture);
      gl.bindVertexArray(part.array);
      gl.bindBuffer(gl.ELEMENT_ARRAY_BUFFER, part.triangles);
      gl.drawElements(gl.TRIANGLES, part.count, gl.UNSIGNED_INT, 0);
      if (wireframe) {
        gl.uniform1i(at("shading"), LINES);
        gl.uniform1f(at("nearer"), LINES_NEARER);
        gl.bindBuffer(gl.ELEMENT_ARRAY_BUFFER, part.edges);
        gl.drawElements(gl.LINES, 2 * part.count, gl.UNSIGNED_INT, 0);
      }
    }
  }
}

function link(gl) {
  const program = gl.createProgram();
  for (const [kind, source] of [[gl.VERTEX_SHADER, VERTEX], [gl.FRAGMENT_SHADER, FRAGMENT]]) {
    const shader = gl.createShader(kind);
    gl.shaderSource(shader, source);
    gl.compileShader(shader);
    if (!gl.getShaderParameter(shader, gl.COMPILE_STATUS)) throw new Error(gl.getShaderInfoLog(shader));
    gl.attachShader(program, shader);
  }
  gl.linkProgram(program);
  if (!gl.getProgramParameter(program, gl.LINK_STATUS)) throw new Error(gl.getProgramInfoLog(program));
  return program;
}

function upload(gl, program, part) {
  const array = gl.createVertexArray();
  const made = [];
  gl.bindVertexArray(array);
  const attribute = (name, data, size) => {
    const location = gl.getAttribLocation(program, name);
    const buffer = gl.createBuffer();
    made.push(buffer);
    gl.bindBuffer(gl.ARRAY_BUFFER, buffer);
    gl.bufferData(gl.ARRAY_BUFFER, data, gl.STATIC_DRAW);
    gl.enableVertexAttribArray(location);
    gl.vertexAttribPointer(location, size, gl.FLOAT, false, 0, 0);
  };
  const count = part.positions.length / 3;
  attribute("position", part.positions, 3);
  attribute("normal", part.normals, 3);
  attribute("colour", part.colours ?? new Float32Array(3 * count).fill(1), 3);
  attribute("uv", part.uvs ?? new Float32Array(2 * count), 2);
  const elements = (data) => {
    const buffer = gl.createBuffer();
    made.push(buffer);
    gl.bindBuffer(gl.ELEMENT_ARRAY_BUFFER, buffer);
    gl.bufferData(gl.ELEMENT_ARRAY_BUFFER, data, gl.STATIC_DRAW);
    return buffer;
  };
  const triangles = elements(part.indices);
  const edges = elements(edgesOf(part.indices));
  gl.bindVertexArray(null);
  const texture = part.texture ? textureOf(gl, part.texture) : null;
  const release = () => {
    for (const buffer of made) gl.deleteBuffer(buffer);
    gl.deleteVertexArray(array);
    gl.deleteTexture(texture);
  };
  return { array, triangles, edges, texture, factor: part.factor, count: part.indices.length, release };
}

function edgesOf(indices) {
  const edges = new Uint32Array(2 * indices.length);
  for (let i = 0; i < indices.length; i += 3) {
    const [a, b, c] = indices.subarray(i, i + 3);
    edges.set([a, b, b, c, c, a], 2 * i);
  }
  return edges;
}

function textureOf(gl, image) {
  const texture = gl.createTexture();
  gl.bindTexture(gl.TEXTURE_2D, texture);
  gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGBA, gl.RGBA, gl.UNSIGNED_BYTE, image);
  gl.generateMipmap(gl.TEXTURE_2D);
  gl.texParameteri(gl.TEXTURE_2D, gl.TEXTURE_MIN_FILTER, gl.LINEAR_MIPMAP_LINEAR);
  return texture;
}
