// In a browser: a page that does what its address says with every client, and posts what came of it to its own host.
import * as current from "@fal-ai/client";
import * as middle from "client-1.6.2";
import * as first from "client-1.0.2";
import * as serverless from "@fal-ai/serverless-client";
import { configure, follow } from "./call.mjs";

const clients = {
  "@fal-ai/client": current.fal,
  "client-1.6.2": middle.fal,
  "client-1.0.2": first.fal,
  "@fal-ai/serverless-client": serverless,
};
const { config, order } = await (await fetch("/order")).json();
const told = {};
for (const [name, fal] of Object.entries(clients)) {
  configure(fal, config);
  told[name] = await follow(fal, order);
}
await fetch("/told", { method: "POST", body: JSON.stringify(told) });
