"""`ltxd compare`: the same request to fal and to a server of our own, and both clips side by side."""

import argparse
import base64
import json
import mimetypes
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httpx2
from pydantic import ValidationError

from server import oneshot
from server.schema import ENDPOINT

FAL: Final = "https://queue.fal.run"
OURS: Final = "http://127.0.0.1:8000/queue"
POLL_SECONDS: Final = 1.0
CALL_SECONDS: Final = 60.0
SHOWN_CHARACTERS: Final = 300


class CompareError(Exception):
    """One side gave no clip. `str(error)` says why."""


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two servers."""

    name: str
    queue: str
    """Where requests are submitted, without the endpoint."""
    key: str


@dataclass(frozen=True, slots=True)
class Answer:
    """What one side gave. Units: seconds from submitting to the answer."""

    clip: Path
    body: dict[str, Any]
    seconds: float


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds a flag per field of the endpoint's input, then those that say where to send it."""
    parser.add_argument("--fal", action="store_true", help="Yes, send it to fal, who will bill FAL_KEY for it.")
    oneshot.add_fields(parser)
    parser.add_argument("--out", type=Path, default=Path("compare"), help="Folder to write. Default: compare.")
    parser.add_argument("--server", default=OURS, help=f"Queue of your own server. Default: {OURS}.")
    parser.add_argument("--server-key", default="", help="Key of your own server, if it asks for one.")
    parser.add_argument("--fal-server", default=FAL, help=f"Queue of fal. Default: {FAL}.")
    parser.add_argument("--timeout", type=float, default=3600.0, help="Seconds to wait for a clip. Default: 3600.")


def run(args: argparse.Namespace) -> int:
    """Compares as the flags say; gives the exit status."""
    key = os.environ.get("FAL_KEY", "")
    if not args.fal or not key:
        wanted = "a key in FAL_KEY" if args.fal else "--fal, since fal bills for it"
        return _fail(f"nothing was sent: comparing with fal takes {wanted}", status=2)
    try:
        request = body(args)
    except ValidationError as error:
        return _fail(oneshot.told(error), status=2)
    except OSError as error:
        return _fail(f"the image cannot be read: {error}", status=2)
    args.out.mkdir(parents=True, exist_ok=True)
    sides = (Side("fal", args.fal_server, key), Side("ltxd", args.server, args.server_key))
    with ThreadPoolExecutor(len(sides)) as pool:
        running = [pool.submit(ask, side, request, folder=args.out, timeout=args.timeout) for side in sides]
    answers: dict[str, Answer] = {}
    told: dict[str, Any] = {"request": {**request, "image_url": args.image_url}}
    for side, future in zip(sides, running, strict=True):
        try:
            answers[side.name] = future.result()
            told[side.name] = {"seconds": answers[side.name].seconds, "answer": answers[side.name].body}
        except CompareError as error:
            told[side.name] = {"error": str(error)}
            _fail(f"{side.name}: {error}", status=1)
    (args.out / "answers.json").write_text(json.dumps(told, indent=2, ensure_ascii=False) + "\n", "utf-8")
    if len(answers) < len(sides):
        return 1
    # why: PyAV and NumPy are needed by no other command that begins here
    from server.side_by_side import side_by_side

    both = args.out / "side-by-side.mp4"
    side_by_side(answers["fal"].clip, answers["ltxd"].clip, both)
    sys.stdout.write(f"{both}: fal on the left ({answers['fal'].seconds:.0f} s), ")
    sys.stdout.write(f"ltxd on the right ({answers['ltxd'].seconds:.0f} s)\n")
    return 0


def body(args: argparse.Namespace) -> dict[str, Any]:
    """The request for both: the fields that were given, a seed, and the image in it if it is a file.

    Raises: ValidationError, OSError.
    """
    given = oneshot.parse(args)
    request = given.model_dump(mode="json", include=given.model_fields_set)
    if not given.image_url.startswith(("http:", "https:", "data:")):
        kind = mimetypes.guess_type(given.image_url)[0] or "application/octet-stream"
        data = base64.b64encode(Path(given.image_url).read_bytes()).decode()
        request["image_url"] = f"data:{kind};base64,{data}"
    return request


def ask(side: Side, request: dict[str, Any], *, folder: Path, timeout: float) -> Answer:
    """Submits `request`, waits for it, and saves the clip as `<name>.mp4` in `folder`.

    Raises: CompareError.
    """
    began = time.monotonic()
    headers = {"Authorization": f"Key {side.key}"} if side.key else {}
    try:
        with httpx2.Client(headers=headers, timeout=CALL_SECONDS, trust_env=False) as client:
            job = _json(client.post(f"{side.queue.rstrip('/')}/{ENDPOINT}", json=request))
            while _json(client.get(job["status_url"])).get("status") != "COMPLETED":
                if time.monotonic() - began > timeout:
                    raise CompareError(f"no clip after {timeout:g} s; its request_id is {job.get('request_id')}")
                time.sleep(POLL_SECONDS)
            answer = _json(client.get(job["response_url"]))
            seconds = time.monotonic() - began
            url = answer["video"]["url"]
        # the file may lie with a third party, who needs no key
        video = httpx2.get(url, timeout=CALL_SECONDS, trust_env=False, follow_redirects=True)
        if video.status_code != httpx2.codes.OK:
            raise CompareError(f"its clip answers {video.status_code}: {url}")
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        raise CompareError(f"{side.queue} does not answer: {error}") from error
    except (KeyError, TypeError) as error:
        raise CompareError(f"its answer lacks {error}") from error
    clip = folder / f"{side.name}.mp4"
    clip.write_bytes(video.content)
    return Answer(clip, answer, seconds)


def _json(response: httpx2.Response) -> dict[str, Any]:
    """The object in an answer.

    Raises: CompareError unless the answer is a success and an object.
    """
    if not response.is_success:
        raise CompareError(f"it answered {response.status_code}: {response.text[:SHOWN_CHARACTERS]}")
    try:
        value = response.json()
    except ValueError as error:
        raise CompareError(f"it answered no JSON: {response.text[:SHOWN_CHARACTERS]}") from error
    if not isinstance(value, dict):
        raise CompareError(f"it answered no object: {response.text[:SHOWN_CHARACTERS]}")
    return value


def _fail(message: str, *, status: int) -> int:
    sys.stderr.write(f"ltxd compare: {message}\n")
    return status
