"""Does with fal_client what the order on stdin says; writes what came of each operation to stdout."""

import asyncio
import json
import sys

import fal_client
import httpx

ENDPOINT = "fal-ai/ltx-2.3-quality/image-to-video"


def in_loop(work):
    """What `work` gives; always in one loop, as the client keeps its connections."""
    return LOOP.run_until_complete(work)


def run(given):
    return fal_client.run(ENDPOINT, arguments=given)


def subscribe(given):
    logs = []
    output = fal_client.subscribe(
        ENDPOINT,
        arguments=given,
        with_logs=True,
        on_queue_update=lambda update: logs.extend(getattr(update, "logs", None) or []),
    )
    assert logs
    return output


def subscribe_async(given):
    return in_loop(fal_client.subscribe_async(ENDPOINT, arguments=given))


def upload(given):
    """Uploads the start image, then asks for a clip of it."""
    data = bytes.fromhex(given.pop("image"))
    return run(given | {"image_url": fal_client.upload(data, "image/png")})


def upload_async(given):
    async def upload_and_run():
        url = await fal_client.upload_async(bytes.fromhex(given.pop("image")), "image/png")
        return await fal_client.run_async(ENDPOINT, arguments=given | {"image_url": url})

    return in_loop(upload_and_run())


def queue(given):
    """Submits, looks, takes the output, downloads the clip."""
    handle = fal_client.submit(ENDPOINT, arguments=given)
    handle.status(with_logs=True)
    output = handle.get()
    clip = httpx.get(output["video"]["url"]).raise_for_status()
    return output | {"downloaded": len(clip.content)}


def queue_async(given):
    async def follow():
        handle = await fal_client.submit_async(ENDPOINT, arguments=given)
        await handle.status(with_logs=True)
        output = await handle.get()
        async with httpx.AsyncClient() as http:
            clip = (await http.get(output["video"]["url"])).raise_for_status()
        return output | {"downloaded": len(clip.content)}

    return in_loop(follow())


def attempt(operation, given):
    try:
        return {"output": operation(given)}
    except Exception as error:  # noqa: BLE001 -- whatever it was, the test is told
        answer = getattr(error, "response", None)
        status = None if answer is None else answer.status_code
        return {"error": f"{type(error).__name__}: {error}", "kind": type(error).__name__, "status": status}


LOOP = asyncio.new_event_loop()
OPERATIONS = {f.__name__: f for f in (run, subscribe, subscribe_async, upload, upload_async, queue, queue_async)}

order = json.load(sys.stdin)
json.dump({name: attempt(OPERATIONS[name], given) for name, given in order.items()}, sys.stdout)
