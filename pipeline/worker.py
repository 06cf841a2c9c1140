"""The generating process: loads one recipe's model, then makes clips one after another as its parent asks.

`python -m pipeline.worker --fd N --recipe NAME --models DIR --safety-threshold X ...`, where N is a connected socket.
It dies with its parent. A caller's error leaves it running, as does a clip it has no room for and a full disk; any
other failure may have poisoned the device, so it says so and leaves with status 70, and the parent starts a fresh one.
"""

import argparse
import contextlib
import ctypes
import errno
import faulthandler
import functools
import logging
import os
import queue
import signal
import socket
import sys
import threading
from collections.abc import Callable, Generator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import get_args

from pipeline.errors import CallerError, NoRoomError, OutOfMemoryError, StorageError
from pipeline.recipe import Semantics
from pipeline.types import RESIDENCIES, Generated, Progress
from pipeline.wire import Cancel, Cancelled, Done, Failed, Generate, Message, Ready, failed, pack, receive

EXIT_FAILED = 70
HARMLESS = (NoRoomError.__name__, StorageError.__name__)
"""Failures of ours that leave the device as it was."""
PR_SET_PDEATHSIG = 1
NICENESS = 5
AUTOGROUP = Path("/proc/self/autogroup")

Start = Callable[[Generate], Generator[Progress, None, Generated]]

log = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the process; gives its exit status."""
    parser = argparse.ArgumentParser(prog="pipeline.worker")
    parser.add_argument("--fd", type=int, required=True)
    parser.add_argument("--recipe", required=True)
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--passes-per-call", type=int, default=0)
    parser.add_argument("--residency", default="auto", choices=["auto", *RESIDENCIES])
    parser.add_argument("--dequantise", action="store_true")
    parser.add_argument("--semantics", default="recipe", choices=["recipe", *get_args(Semantics)])
    parser.add_argument("--safety-classifier", type=Path)
    parser.add_argument("--safety-threshold", type=float, required=True)
    parser.add_argument("--force-safety-checker", action="store_true")
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    protect()
    connection = socket.socket(fileno=args.fd)
    try:
        # why: torch takes seconds to import, and the signals and the parent's death must be handled before that
        from pipeline import generate, loading, recipe
        from pipeline.plan import make_plan

        chosen = recipe.load(args.recipe, semantics=args.semantics)
        pipeline = loading.start(
            chosen,
            models=args.models,
            device=args.device,
            residency=args.residency,
            passes_per_call=args.passes_per_call,
            keep_fp8=not args.dequantise,
            classifier=args.safety_classifier,
            threshold=args.safety_threshold,
            forced=args.force_safety_checker,
        )
    except Exception as error:
        log.exception("the model did not load")
        connection.sendall(pack(failed(error)))
        return EXIT_FAILED

    def start(job: Generate) -> Generator[Progress, None, Generated]:
        return generate.generate(
            pipeline,
            job.request,
            make_plan(job.request, chosen, decode_memory=generate.decode_memory(pipeline.model.device)),
            output=job.output,
        )

    held = functools.partial(generate.held, pipeline.model.device)
    connection.sendall(pack(Ready(replace(pipeline.model, device_bytes=held()))))
    return work(connection, start, held=held)


def protect() -> None:
    """Lets a crash leave its stack on stderr, the parent's death end this process, and its signals pass by.

    Where processors are few, the server comes first: it answers within milliseconds, a clip takes minutes.
    """
    os.nice(NICENESS)
    if os.getsid(0) == os.getpid():
        # why: Linux may weigh sessions against each other, and niceness then counts only within one; this one is ours
        with contextlib.suppress(OSError):
            AUTOGROUP.write_text(str(NICENESS))
    faulthandler.enable()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def work(connection: socket.socket, start: Start, *, held: Callable[[], int] = lambda: 0) -> int:
    """Answers every Generate on `connection` until Stop; gives the exit status.

    Units: `held` bytes of the device, which go along with every progress.
    """
    jobs: queue.SimpleQueue[Generate | None] = queue.SimpleQueue()
    cancel = threading.Event()
    listener = threading.Thread(target=_listen, args=(connection, jobs, cancel), daemon=True)
    listener.start()
    try:
        while (job := jobs.get()) is not None:
            answer = _answer(connection, start, job, cancel, held=held)
            connection.sendall(pack(answer))
            if isinstance(answer, Failed) and answer.field is None and answer.kind not in HARMLESS:
                return EXIT_FAILED
    except ConnectionError:
        log.info("the server is gone")
    finally:
        with contextlib.suppress(OSError):
            connection.shutdown(socket.SHUT_RD)
        listener.join()
    return 0


def _listen(connection: socket.socket, jobs: queue.SimpleQueue[Generate | None], cancel: threading.Event) -> None:
    while True:
        match receive(connection):
            case Generate() as job:
                # why: a Cancel that crossed the end of the clip before must not stop this one
                cancel.clear()
                jobs.put(job)
            case Cancel():
                cancel.set()
            case _:
                # why: Stop, or the parent is gone and nobody is left to make the clip for
                cancel.set()
                jobs.put(None)
                return


def _answer(
    connection: socket.socket, start: Start, job: Generate, cancel: threading.Event, *, held: Callable[[], int]
) -> Message:
    try:
        clip = start(job)
        while True:
            progress = next(clip)
            connection.sendall(pack(replace(progress, device_bytes=held())))
            if cancel.is_set():
                clip.close()
                return Cancelled()
    except StopIteration as end:
        return Done(end.value)
    except ConnectionError:
        raise
    except CallerError as error:
        return failed(error)
    except Exception as error:
        log.exception("the clip failed")
        return failed(_named(error))


def _named(error: Exception) -> Exception:
    """The error, under the name by which the parent knows it."""
    if isinstance(error, MemoryError):
        return OutOfMemoryError(f"the machine has no memory left: {error}")
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
        return StorageError(str(error))
    return error


if __name__ == "__main__":
    sys.exit(main())
