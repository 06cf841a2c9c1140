"""A generating process without a model, for tests. Words in the prompt say how it behaves.

crash-once, crash-always: dies by SIGKILL in the second step (once: unless the marker file is there already).
hang, hang-once: goes silent; stall: for 4 s. slow: 30 steps of 40 ms, brisk: 10. fail: a GenerationError; fail-late:
in the last step. nan: a NumericalError. elsewhere-once: names a file that was not asked for.
broken: any other exception. cuda: that of a CUDA error.
unsafe: a ContentError. huge: an OverBudgetError. A word log:TEXT is sent as a message of progress.
oom: no memory with the first residency; oom-always: with any. large: no room but with the last residency; too-large:
nor with that. disk-full: ENOSPC while it writes. segfault: in step 2.
Loading runs out of memory with every residency before --least in --order, which is from most to least memory.
What it makes is a copy of the file --clip.
"""

import argparse
import ctypes
import errno
import os
import re
import shutil
import signal
import socket
import sys
import time
from collections.abc import Generator
from pathlib import Path

from pipeline.errors import (
    ContentError,
    GenerationError,
    NoRoomError,
    NumericalError,
    OutOfMemoryError,
    OverBudgetError,
    OverMemoryError,
)
from pipeline.types import RESIDENCIES, Generated, LoadedModel, Progress, Size
from pipeline.wire import Generate, Ready, failed, pack
from pipeline.worker import protect, work


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--fd", type=int, required=True)
    parser.add_argument("--marker", type=Path, required=True)
    parser.add_argument("--clip", type=Path, required=True)
    parser.add_argument("--residency", default="auto")
    parser.add_argument("--load-seconds", type=float, default=0.0)
    parser.add_argument("--least", choices=RESIDENCIES, default=RESIDENCIES[0])
    parser.add_argument("--order", type=lambda names: tuple(names.split(",")), default=RESIDENCIES)
    args = parser.parse_args()
    protect()
    connection = socket.socket(fileno=args.fd)
    time.sleep(args.load_seconds)
    residency = RESIDENCIES[0] if args.residency == "auto" else args.residency
    smaller = args.order[args.order.index(residency) + 1 :]
    if args.least in smaller:
        error = OutOfMemoryError("no memory to load", context={"smaller": smaller})
        connection.sendall(pack(failed(error)))
        return 70
    model = LoadedModel("fake", "fake weights", True, "cpu", args.load_seconds, residency, smaller)
    connection.sendall(pack(Ready(model)))
    return work(connection, lambda job: make(job, args.marker, args.clip, residency=residency))


def make(job: Generate, marker: Path, clip: Path, *, residency: str) -> Generator[Progress, None, Generated]:
    request = job.request
    words = request.prompt.split()
    first_time = not marker.exists()
    if any(word.endswith("-once") for word in words):
        marker.touch()
    if "unsafe" in words:
        raise ContentError("the prompt was flagged", field="prompt")
    if "huge" in words:
        raise OverBudgetError("too many frames", field="num_frames", context={"max_num_frames": 121})
    if "large" in words and residency != RESIDENCIES[-1]:
        raise NoRoomError("no room with this residency", context={"residency": RESIDENCIES[-1]})
    if "too-large" in words:
        raise OverMemoryError("25 frames at this size would fit", field="size", context={"max_num_frames": 25})
    for said in re.findall(r"log:(\S+)", request.prompt):
        yield Progress("plan", 1, 1, message=said)
    steps = 30 if "slow" in words else 10 if "brisk" in words else request.steps
    for step in range(1, steps + 1):
        time.sleep(0.04 if {"slow", "brisk"} & set(words) else 0.001)
        if step == 2 and ("crash-always" in words or ("crash-once" in words and first_time)):
            os.kill(os.getpid(), signal.SIGKILL)
        if step == 2 and ("hang" in words or ("hang-once" in words and first_time)):
            time.sleep(600)
        if step == 2 and "stall" in words:
            time.sleep(4)
        if step == 2 and ("oom-always" in words or ("oom" in words and residency == RESIDENCIES[0])):
            raise OutOfMemoryError("no memory left", context={"offers": ["25 frames at this size"]})
        if step == 2 and "disk-full" in words:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if step == 2 and "segfault" in words:
            ctypes.string_at(0)
        if (step == 2 and "fail" in words) or (step == steps and "fail-late" in words):
            raise GenerationError("the sampler found NaN")
        if step == 2 and "nan" in words:
            raise NumericalError("stage 1 of 1, call 2 of 8: the latents hold NaN")
        if step == 2 and "cuda" in words:
            raise RuntimeError("CUDA error: an illegal memory access was encountered\n/secret/kernel.cu:1")
        if step == 2 and "broken" in words:
            raise RuntimeError("secret detail of the inside")
        yield Progress("denoise", step, steps, eta=(steps - step) * 0.04)
    shutil.copy(clip, job.output)
    size = Size(64, 64)
    output = job.output.with_name("another.mp4") if "elsewhere-once" in words and first_time else job.output
    return Generated(
        output, f"{request.prompt}, expanded", request.seed, size, 9, request.fps, False, {"denoise": 1.0}
    )


if __name__ == "__main__":
    sys.exit(main())
