// Builds every agent, or with --check compares what would be built with what is committed.

import { readFileSync, writeFileSync } from "node:fs";
import asc from "assemblyscript/asc";

const check = process.argv.includes("--check");
let different = 0;
for (const name of ["hello", "reader", "jury"]) {
  const built = `${name}/${name}.wasm`;
  const { error, stdout, stderr, binary } = await compile(name);
  if (error) {
    process.stderr.write(stdout + stderr);
    console.error(`${name}: ${error.message}`);
    process.exit(1);
  }
  if (check) {
    const same = Buffer.compare(Buffer.from(binary), readFileSync(built)) === 0;
    console.log(`${built}: ${same ? "as committed" : "differs from what is committed; run 'npm run build'"}`);
    different += same ? 0 : 1;
  } else {
    writeFileSync(built, binary);
    console.log(`${built}: ${binary.length} bytes`);
  }
}
process.exit(different);

async function compile(name) {
  let binary = new Uint8Array();
  const out = [], err = [];
  const text = (lines) => ({ write: (line) => { lines.push(line); return true; } });
  const { error } = await asc.main(
    // A module is thrown away after one run: it needs no collector, only memory.
    [`${name}/index.ts`, "--outFile", "built.wasm", "-O3", "--noAssert", "--runtime", "stub",
      "--use", "abort=quelea/abort", "--exportStart", "_initialize"],
    { stdout: text(out), stderr: text(err), writeFile: (file, content) => { if (file === "built.wasm") binary = content; } },
  );
  return { error, binary, stdout: out.join(""), stderr: err.join("") };
}
