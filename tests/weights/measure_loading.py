"""Loads components and text encoders one after another, and prints what each cost.

`measure_loading.py JOBS`, where JOBS is a JSON list of [kind, path, dtype, whether to keep fp8]. A thread reads the
anonymous memory of the process every ten milliseconds.
"""

import gc
import json
import re
import sys
import threading
from pathlib import Path

import torch

from weights.checkpoint import Checkpoint, load_component
from weights.text_encoder import load_text_encoder

PERIOD = 0.01


def anonymous() -> int:
    kilobytes = re.search(r"^RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    return int(kilobytes[1]) * 1024


def measure(kind: str, path: Path, dtype: torch.dtype, *, keep_fp8: bool) -> dict[str, int]:
    gc.collect()
    idle = peak = anonymous()
    done = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(PERIOD):
            peak = max(peak, anonymous())

    watcher = threading.Thread(target=watch)
    watcher.start()
    if kind == "text_encoder":
        module = load_text_encoder(path, dtype=dtype, device="cpu").model
    else:
        module = load_component(Checkpoint.open(path), kind, dtype=dtype, device="cpu", keep_fp8=keep_fp8)
    done.set()
    watcher.join()
    sizes = [value.nbytes for value in module.parameters()]
    return {"loaded": sum(sizes), "largest": max(sizes), "peak": max(peak, anonymous()) - idle}


if __name__ == "__main__":
    jobs = json.loads(sys.argv[1])
    costs = [measure(kind, Path(path), getattr(torch, dtype), keep_fp8=fp8) for kind, path, dtype, fp8 in jobs]
    sys.stdout.write(json.dumps(costs))
