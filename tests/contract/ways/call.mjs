// What is done with each of fal's JavaScript clients, in Node and in a browser: the same for all of them.
const ENDPOINT = "fal-ai/ltx-2.3-quality/image-to-video";

const sleep = (milliseconds) => new Promise((done) => setTimeout(done, milliseconds));

// serverless-client gives the output itself, @fal-ai/client the output and an id
const outputOf = (result) => result.data ?? result;

export const operations = {
  async run(fal, input) {
    return outputOf(await fal.run(ENDPOINT, { input }));
  },

  async subscribe(fal, input) {
    const logs = [];
    const onQueueUpdate = (update) => logs.push(...(update.logs ?? []));
    const result = await fal.subscribe(ENDPOINT, { input, logs: true, pollInterval: 50, onQueueUpdate });
    if (!logs.length) throw new Error("no logs came");
    return outputOf(result);
  },

  // submits, looks until it is done, takes the output, downloads the clip
  async queue(fal, input) {
    const { request_id: requestId } = await fal.queue.submit(ENDPOINT, { input });
    while ((await fal.queue.status(ENDPOINT, { requestId, logs: true })).status !== "COMPLETED") await sleep(50);
    const output = outputOf(await fal.queue.result(ENDPOINT, { requestId }));
    const clip = await fetch(output.video.url);
    if (!clip.ok) throw new Error(`the clip is ${clip.status}`);
    return { ...output, downloaded: (await clip.arrayBuffer()).byteLength };
  },

  // uploads the start image, then asks for a clip of it
  async upload(fal, { image, ...input }) {
    const bytes = Uint8Array.from(image.match(/../g), (pair) => parseInt(pair, 16));
    const url = await fal.storage.upload(new Blob([bytes], { type: "image/png" }));
    return this.run(fal, { ...input, image_url: url });
  },
};

// Every operation of `order`, one after another, with what came of it.
export async function follow(fal, order) {
  const told = {};
  for (const [name, input] of Object.entries(order)) {
    try {
      told[name] = { output: await operations[name](fal, input) };
    } catch (error) {
      const { name: kind, status, body } = error;
      told[name] = { error: `${kind}: ${error.message} ${error.cause ?? ""}`, kind, status, body };
    }
  }
  return told;
}

// Configures a client for one way in. `config` is what its user would pass to it.
export function configure(fal, { middleware, ...config }) {
  if (middleware) {
    config.requestMiddleware = async (request) => ({
      ...request,
      url: middleware,
      headers: { ...request.headers, "x-fal-target-url": request.url },
    });
  }
  fal.config(config);
}
