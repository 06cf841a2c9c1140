"""The start image as the model was trained to see it: through H.264, and cut to the clip's size."""

import math
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from pipeline.recipe import Fit
from pipeline.types import Size

Pixels = npt.NDArray[np.uint8]


def pixels(image: Path, *, size: Size, crf: int, fit: Fit = "official", longest: int = 0) -> torch.Tensor:
    """The picture at `image`, compressed at `crf` (0: not at all), and made to fill `size`.

    `longest` is what the longer side is scaled to before anything else; 0 leaves it. `fit` says how to fill: official
    scales the picture to cover the size and cuts, comfy cuts it to the aspect and scales.
    Shapes: [1, 3, 1, height, width], float32 on the CPU.
    Units: -1 black, 1 white.
    """
    with Image.open(image) as picture:
        frame = np.asarray(scaled(picture.convert("RGB"), longest=longest))
    frame = compressed(frame, crf=crf)
    return covering(frame, size=size) if fit == "official" else cut_first(frame, size=size)


def scaled(picture: Image.Image, *, longest: int) -> Image.Image:
    """`picture` with its longer side at `longest` pixels, up or down; 0 leaves it as it is.

    Source: ComfyUI 0.30.0, ResizeImageMaskNode, "scale longer dimension" with lanczos.
    """
    width, height = picture.size
    if longest in (0, max(width, height)):
        return picture
    to = (longest, round(height / width * longest)) if width >= height else (round(width / height * longest), longest)
    return picture.resize((max(1, to[0]), max(1, to[1])), Image.Resampling.LANCZOS)


def compressed(frame: Pixels, *, crf: int) -> Pixels:
    """`frame` cut to even sides, as it comes out of an H.264 key frame of that `crf`; 0 leaves it as it is.

    Shapes: [h, w, 3] to the same, less one where a side was odd.
    Source: Lightricks/LTX-2 1.2.0, the loading of conditioning images: libx264, veryfast, yuv420p, one frame a second.
    """
    if crf == 0:
        return frame
    height, width = (side // 2 * 2 for side in frame.shape[:2])
    encoder: Any = av.CodecContext.create("libx264", "w")
    encoder.width, encoder.height, encoder.pix_fmt, encoder.framerate = width, height, "yuv420p", 1
    encoder.options = {"crf": str(crf), "preset": "veryfast"}
    # The reference leaves PyAV's defaults: one slice per core, as far as the height allows. Slices show in the
    # picture, so that their number is fixed here; two is what the golden numbers were made with.
    encoder.thread_type, encoder.thread_count = "SLICE", 2
    even = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame[:height, :width]), format="rgb24")
    decoder: Any = av.CodecContext.create("h264", "r")
    packets = [*encoder.encode(even.reformat(format="yuv420p")), *encoder.encode(None)]
    frames = [decoded for packet in [*packets, None] for decoded in decoder.decode(packet)]
    result: Pixels = frames[0].to_ndarray(format="rgb24")
    return result


def covering(frame: Pixels, *, size: Size) -> torch.Tensor:
    """`frame` scaled until it covers `size`, what hangs over cut off evenly.

    Shapes: [h, w, 3] to [1, 3, 1, height, width].
    Units: 0..255 to -1..1.
    Source: Lightricks/LTX-2 1.2.0, bilinear without antialiasing, sides rounded up, the cut's offset rounded down.
    """
    height, width = frame.shape[:2]
    scale = max(size.height / height, size.width / width)
    scaled = math.ceil(height * scale), math.ceil(width * scale)
    tall = torch.from_numpy(np.array(frame)).permute(2, 0, 1)[None].float()
    tall = torch.nn.functional.interpolate(tall, size=scaled, mode="bilinear", align_corners=False)
    top, left = (scaled[0] - size.height) // 2, (scaled[1] - size.width) // 2
    return (tall[:, :, top : top + size.height, left : left + size.width] / 127.5 - 1)[:, :, None]


def cut_first(frame: Pixels, *, size: Size) -> torch.Tensor:
    """`frame` cut evenly to the aspect of `size`, then scaled straight to it.

    Shapes: [h, w, 3] to [1, 3, 1, height, width].
    Units: 0..255 to -1..1.
    Source: ComfyUI 0.30.0, common_upscale with bilinear and center (golden conventions, section 13, item 5).
    """
    height, width = frame.shape[:2]
    aspect, wanted = width / height, size.width / size.height
    left = round((width - width * (wanted / aspect)) / 2) if aspect > wanted else 0
    top = round((height - height * (aspect / wanted)) / 2) if aspect < wanted else 0
    kept = torch.from_numpy(np.array(frame[top : height - top, left : width - left])).permute(2, 0, 1)[None].float()
    kept = torch.nn.functional.interpolate(kept, size=(size.height, size.width), mode="bilinear", align_corners=False)
    return (kept / 127.5 - 1)[:, :, None]
