// Does with @fal-ai/client what the order on stdin says, and writes what it saw to stdout as JSON.
import { readFileSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";
import { fal, ApiError } from "@fal-ai/client";
import "./proxy.mjs";

const ENDPOINT = "fal-ai/ltx-2.3-quality/image-to-video";

async function errorOf(promise) {
  try {
    await promise;
  } catch (error) {
    if (error instanceof ApiError) return error;
    throw error;
  }
  throw new Error("it did not fail");
}

const operations = {
  async run(input) {
    return { output: (await fal.run(ENDPOINT, { input })).data };
  },

  async subscribe(input) {
    const states = [];
    let logs = [];
    const result = await fal.subscribe(ENDPOINT, {
      input,
      logs: true,
      pollInterval: 100,
      onQueueUpdate: (update) => {
        if (!states.includes(update.status)) states.push(update.status);
        if (update.status !== "IN_QUEUE") logs = update.logs.map((line) => line.message);
      },
    });
    return { output: result.data, states, logs };
  },

  async queue(input) {
    const { request_id: requestId } = await fal.queue.submit(ENDPOINT, { input });
    await fal.queue.subscribeToStatus(ENDPOINT, { requestId, pollInterval: 100 });
    const result = await fal.queue.result(ENDPOINT, { requestId });
    const status = await fal.queue.status(ENDPOINT, { requestId, logs: true });
    return {
      request_id: result.requestId,
      status: status.status,
      logs: status.logs.map((line) => line.message),
      metrics: status.metrics,
      output: result.data,
    };
  },

  async cancel(input) {
    const { request_id: requestId } = await fal.queue.submit(ENDPOINT, { input });
    while ((await fal.queue.status(ENDPOINT, { requestId })).status !== "IN_PROGRESS") await sleep(50);
    await fal.queue.cancel(ENDPOINT, { requestId });
    await fal.queue.subscribeToStatus(ENDPOINT, { requestId, pollInterval: 100 });
    const first = await errorOf(fal.queue.result(ENDPOINT, { requestId }));
    const again = await errorOf(fal.queue.cancel(ENDPOINT, { requestId }));
    return { status: first.status, body: first.body, again: again.status };
  },

  async fail(input) {
    const error = await errorOf(fal.run(ENDPOINT, { input }));
    return { status: error.status, body: error.body };
  },
};

const order = JSON.parse(readFileSync(0, "utf8"));
process.stdout.write(JSON.stringify(await operations[order.do](order.input)));
