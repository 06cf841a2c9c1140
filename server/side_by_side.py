"""Two clips beside each other in one."""

from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt


def side_by_side(left: Path, right: Path, out: Path) -> None:
    """Writes both pictures frame by frame beside each other, scaled to the lower one's height, without sound.

    It runs at the rate of `left`. The one that ends first stands still.
    """
    with av.open(left) as one, av.open(right) as other, av.open(out, "w") as made:
        streams = one.streams.video[0], other.streams.video[0]
        height = min(stream.height for stream in streams) // 2 * 2
        widths = [round(stream.width * height / stream.height / 2) * 2 for stream in streams]
        video: Any = made.add_stream("libx264", rate=streams[0].average_rate, options={"crf": "16"})
        video.width, video.height, video.pix_fmt = sum(widths), height, "yuv420p"
        shown: list[npt.NDArray[np.uint8]] = [np.zeros((height, width, 3), np.uint8) for width in widths]
        pairs = zip_longest(*(_frames(c, w, height) for c, w in zip((one, other), widths, strict=True)))
        for pair in pairs:
            shown = [old if new is None else new for old, new in zip(shown, pair, strict=True)]
            made.mux(video.encode(av.VideoFrame.from_ndarray(np.hstack(shown), format="rgb24")))
        made.mux(video.encode(None))


def _frames(container: Any, width: int, height: int) -> Iterator[npt.NDArray[np.uint8]]:
    for frame in container.decode(video=0):
        yield frame.reformat(width=width, height=height, format="rgb24").to_ndarray()
