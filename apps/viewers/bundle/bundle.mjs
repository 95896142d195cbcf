// `make viewers`: writes ../vendor anew from the packages that package-lock.json names, byte for byte the same
// each time. What it writes is committed, so that installing needs no Node.

import { createHash } from "node:crypto";
import { mkdir, readFile, readdir, rm, writeFile } from "node:fs/promises";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

import { build } from "esbuild";

const HERE = dirname(fileURLToPath(import.meta.url));
const VENDOR = process.argv[2];
if (!VENDOR) throw new Error("give the folder to write: node bundle.mjs FOLDER");

// Each bundle with the packages that are in it: 3dmol's own bundle holds those that it depends on.
const BUNDLES = {
  "three.js": { packages: ["three"], make: bundledThree },
  "3dmol.js": {
    packages: ["3dmol", "iobuffer", "netcdfjs", "pako", "upng-js"],
    make: () => installed("3dmol", "build/3Dmol.es6-min.js"),
  },
};
const LICENCES = { pako: ["LICENSE", "lib/zlib/README"] };

const installed = (name, file) => readFile(join(HERE, "node_modules", name, file), "utf8");

async function bundledThree() {
  const made = await build({
    entryPoints: [join(HERE, "three.mjs")],
    bundle: true,
    minify: true,
    format: "esm",
    target: "es2022",
    charset: "utf8",
    legalComments: "inline",
    write: false,
  });
  return made.outputFiles[0].text;
}

async function licences(packages) {
  const texts = [];
  for (const name of packages) {
    const { version, license } = JSON.parse(await installed(name, "package.json"));
    texts.push(`${"=".repeat(80)}\n${name} ${version} (${license})\n${"=".repeat(80)}\n`);
    for (const file of LICENCES[name] ?? ["LICENSE"]) texts.push((await installed(name, file)).trim().replaceAll("\r", ""));
  }
  return `${texts.join("\n")}\n`;
}

const lock = JSON.parse(await readFile(join(HERE, "package-lock.json"), "utf8"));
const manifest = {};

async function write(name, packages, text) {
  await writeFile(join(VENDOR, name), text);
  const versions = packages.map((one) => [one, lock.packages[`node_modules/${one}`].version]);
  manifest[name] = { packages: Object.fromEntries(versions), sha256: createHash("sha256").update(text).digest("hex") };
}

await mkdir(VENDOR, { recursive: true });
for (const old of await readdir(VENDOR)) await rm(join(VENDOR, old));
for (const [name, { packages, make }] of Object.entries(BUNDLES)) {
  await write(name, packages, await make());
  await write(name.replace(/js$/, "LICENSE.txt"), packages, await licences(packages));
}
await writeFile(join(VENDOR, "manifest.json"), `${JSON.stringify(manifest, null, 2)}\n`);
