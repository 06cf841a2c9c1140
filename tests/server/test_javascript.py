"""The real JavaScript client, in Node, through proxyUrl: uploads, the stream of status, and the errors of a field."""

import shutil
import subprocess
from pathlib import Path

import pytest

CONTRACT = Path(__file__).parents[1] / "contract"

pytestmark = pytest.mark.full

PRELUDE = """
import assert from "node:assert/strict";
import { fal, ApiError, ValidationError } from "@fal-ai/client";
fal.config({ proxyUrl: { url: process.env.PROXY, when: "always" }, credentials: "any" });
const E = "fal-ai/ltx-2.3-quality/image-to-video";
const uri = process.env.TEST_IMAGE;
const png = Buffer.from(uri.split(",")[1], "base64");
const read = async (url) => {
  const answer = await fetch(url);
  assert.equal(answer.status, 200);
  return [Buffer.from(await answer.arrayBuffer()), answer.headers.get("content-type")];
};
const failed = async (promise) => promise.then(() => assert.fail("it did not fail"), (error) => error);
"""

SMALL = """
const url = await fal.storage.upload(new File([png], "a b.png", { type: "image/png" }));
assert.ok(url.endsWith("/a_b.png"), url);
const [bytes, type] = await read(url);
assert.ok(bytes.equals(png));
assert.equal(type, "image/png");
// a Blob among the input is uploaded without being asked for
const input = { prompt: "a", image_url: new Blob([png], { type: "image/png" }) };
const { data } = await fal.run(E, { input });
assert.ok(data.video.file_size > 0);
const short = await fal.storage.upload(new Blob([png]), { lifecycle: { expiresIn: 2 } });
await read(short);
while ((await fetch(short)).status !== 404) await new Promise((done) => setTimeout(done, 100));
"""

LARGE = """
const piece = Buffer.alloc(1 << 20);
for (let i = 0; i < piece.length; i++) piece[i] = (i * 7) & 255;
const blob = new Blob(Array(91).fill(piece), { type: "video/mp4" });
const [bytes, type] = await read(await fal.storage.upload(blob));
assert.equal(type, "video/mp4");
assert.equal(bytes.length, 91 << 20);
for (let n = 0; n < 91; n++) assert.ok(bytes.subarray(n << 20, (n + 1) << 20).equals(piece), `piece ${n}`);
"""

STREAM = """
const { request_id: requestId } = await fal.queue.submit(E, { input: { prompt: "slow log:日本語", image_url: uri } });
const stream = await fal.queue.streamStatus(E, { requestId, logs: true });
const told = [];
stream.on("data", (update) => told.push(...update.logs.map((line) => line.message)));
const last = await stream.done();
assert.equal(last.status, "COMPLETED");
const { logs } = await fal.queue.status(E, { requestId, logs: true });
assert.deepEqual(told, logs.map((line) => line.message));
assert.ok(told.includes("日本語"));
// the same by subscribe, whose last state carries all the lines
let seen = [];
const input = { prompt: "brisk log:one", image_url: uri };
const done = await fal.subscribe(E, {
  input, mode: "streaming", logs: true, onQueueUpdate: (update) => (seen = update.logs ?? seen),
});
assert.equal(done.data.prompt, "brisk log:one, expanded");
assert.equal(done.requestId.length, 36);
assert.ok(seen.some((line) => line.message === "one"));
"""

ERRORS = """
const wrong = async (more) => {
  for (const call of [(o) => fal.run(E, o), (o) => fal.subscribe(E, o)]) {
    const error = await failed(call({ input: { prompt: "a", image_url: uri, ...more } }));
    assert.ok(error instanceof ValidationError, String(error));
    assert.equal(error.status, 422);
    var found = error;
  }
  return found;
};
for (const resolution of ["1080p", 720, { width: 0 }, { width: 64, height: 99999 }, { width: "x" }]) {
  const error = await wrong({ resolution });
  const [item] = error.getFieldErrors("resolution");
  assert.equal(item.type, "one_of");
  assert.ok(item.ctx.expected.includes("square_hd"));
  assert.deepEqual(item.input, resolution);
}
assert.equal((await wrong({ resolution: { width: 0 } })).getFieldErrors("width")[0].type, "greater_than");
assert.equal((await wrong({ num_frames: 8 })).getFieldErrors("num_frames")[0].ctx.ge, 9);
assert.equal((await wrong({ image_url: "x" })).getFieldErrors("image_url")[0].type, "file_download_error");

// a time to start that is over is not asked for again
const before = [];
for (let n = 0; n < 2; n++) before.push(await fal.queue.submit(E, { input: { prompt: "slow", image_url: uri } }));
const begun = Date.now();
const late = await failed(fal.run(E, { input: { prompt: "a", image_url: uri }, startTimeout: 1.01 }));
assert.ok(late instanceof ApiError, String(late));
assert.equal(late.status, 504);
assert.ok(Date.now() - begun < 5000);
assert.equal(late.timeoutType, "user");
for (const job of before) await fal.queue.cancel(E, { requestId: job.request_id }).catch(() => {});
"""


@pytest.mark.parametrize(
    "script",
    [
        pytest.param(SMALL, id="small"),
        pytest.param(LARGE, id="large"),
        pytest.param(STREAM, id="stream"),
        pytest.param(ERRORS, id="errors"),
    ],
)
def test_the_javascript_client_works_through_proxy_url(server, image, script):
    node = shutil.which("node")
    if node is None:
        pytest.fail("node is missing: install the package nodejs")
    done = subprocess.run(
        [node, "--input-type=module", "-"],
        input=PRELUDE + script,
        env={"PATH": str(Path(node).parent), "PROXY": f"{server.url}/api/fal/proxy", "TEST_IMAGE": image},
        cwd=CONTRACT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
