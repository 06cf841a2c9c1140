// In Node: the order on stdin names the client, its configuration and the operations.
import { readFileSync } from "node:fs";
import { configure, follow } from "./call.mjs";

const { client, config, order } = JSON.parse(readFileSync(0, "utf8"));
const module = await import(client);
const fal = module.fal ?? module.default;
configure(fal, config);
process.stdout.write(JSON.stringify(await follow(fal, order)));
