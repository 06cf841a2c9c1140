"""Does with fal_client what the order on stdin says, and writes what it saw to stdout as JSON."""

import asyncio
import json
import sys
import time

import fal_client

ENDPOINT = "fal-ai/ltx-2.3-quality/image-to-video"
STATUS = {fal_client.Queued: "IN_QUEUE", fal_client.InProgress: "IN_PROGRESS", fal_client.Completed: "COMPLETED"}


def main() -> None:
    order = json.load(sys.stdin)
    json.dump(OPERATIONS[order["do"]](order["input"]), sys.stdout)


def run(given):
    return {"output": fal_client.run(ENDPOINT, arguments=given)}


def subscribe(given):
    seen = Seen()
    output = fal_client.subscribe(ENDPOINT, arguments=given, with_logs=True, on_queue_update=seen.update)
    return {"output": output, "states": seen.states, "logs": seen.logs}


def subscribe_async(given):
    seen = Seen()
    asking = fal_client.subscribe_async(ENDPOINT, arguments=given, with_logs=True, on_queue_update=seen.update)
    return {"output": asyncio.run(asking), "states": seen.states, "logs": seen.logs}


def queue(given):
    handle = fal_client.submit(ENDPOINT, arguments=given)
    again = fal_client.SyncClient().get_handle(ENDPOINT, handle.request_id)
    output = again.get()
    status = fal_client.status(ENDPOINT, handle.request_id, with_logs=True)
    return {
        "request_id": handle.request_id,
        "status": STATUS[type(status)],
        "logs": [line["message"] for line in status.logs],
        "metrics": status.metrics,
        "output": output,
    }


def cancel(given):
    handle = fal_client.submit(ENDPOINT, arguments=given)
    while not isinstance(handle.status(), fal_client.InProgress):
        time.sleep(0.05)
    handle.cancel()
    try:
        handle.get()
    except fal_client.FalClientHTTPError as error:
        first = error
    try:
        handle.cancel()
    except fal_client.FalClientHTTPError as error:
        return {"status": first.status_code, "body": first.response.json(), "again": error.status_code}


def fail(given):
    try:
        fal_client.run(ENDPOINT, arguments=given)
    except fal_client.FalClientHTTPError as error:
        return {"status": error.status_code, "body": error.response.json()}


class Seen:
    def __init__(self):
        self.states = []
        self.logs = []

    def update(self, update):
        name = STATUS[type(update)]
        if name not in self.states:
            self.states.append(name)
        if not isinstance(update, fal_client.Queued):
            self.logs = [line["message"] for line in update.logs]


OPERATIONS = {f.__name__: f for f in (run, subscribe, subscribe_async, queue, cancel, fail)}

main()
