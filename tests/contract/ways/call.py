"""Runs, subscribes and uploads with fal_client, as the order on stdin says; writes what came of each to stdout."""

import asyncio
import json
import sys

import fal_client

ENDPOINT = "fal-ai/ltx-2.3-quality/image-to-video"


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
    return asyncio.run(fal_client.subscribe_async(ENDPOINT, arguments=given))


def upload(given):
    """Uploads the start image, then asks for a clip of it."""
    data = bytes.fromhex(given.pop("image"))
    return run(given | {"image_url": fal_client.upload(data, "image/png")})


def attempt(operation, given):
    try:
        return {"output": operation(given)}
    except Exception as error:  # noqa: BLE001 -- whatever it was, the test is told
        return {"error": f"{type(error).__name__}: {error}"}


OPERATIONS = {f.__name__: f for f in (run, subscribe, subscribe_async, upload)}

order = json.load(sys.stdin)
json.dump({name: attempt(OPERATIONS[name], given) for name, given in order.items()}, sys.stdout)
