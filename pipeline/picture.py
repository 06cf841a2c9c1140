"""The start image: whatever a caller sends, as upright 8-bit sRGB, or a sentence that says why not."""

import io
import math
import re
import struct
import threading
import warnings
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image, ImageCms

from pipeline.errors import ImageFormatError, ImageLoadError, ImageTooLargeError, ImageTooSmallError

FORMATS: Final = ("PNG", "JPEG", "WEBP", "AVIF", "GIF", "BMP", "TIFF")
SUFFIXES: Final = (".png", ".jpg", ".jpeg", ".webp", ".avif", ".gif", ".bmp", ".tif", ".tiff")
MIN_SIDE: Final = 16
"""Pixels: one H.264 macroblock. Less is an icon or a tracking pixel, not a picture to start a clip from."""
MAX_SIDE: Final = 14_142
"""Pixels: what keeps a panorama of the largest area within 3:1."""
MAX_PIXELS: Final = 64_000_000
"""Area: the largest phone cameras' usual modes fit; decoding takes at most about 1.3 GB."""

FOREIGN: Final = {
    "HEIC": rb"....ftyp(heic|heix|heim|heis|hevc|hevx|mif1|msf1)",
    "JPEG XL": rb"\xff\x0a|\x00\x00\x00\x0cJXL ",
    "JPEG 2000": rb"\x00\x00\x00\x0cjP  |\xff\x4f\xff\x51",
    "SVG": rb"\s*<(svg|\?xml[^>]*>\s*(<!--.*?-->\s*)?(<!DOCTYPE svg|<svg))",
    "ICO": rb"\x00\x00[\x01\x02]\x00",
    "Photoshop": rb"8BPS",
    "PDF": rb"%PDF-",
    "OpenEXR": rb"v/1\x01",
    "Radiance HDR": rb"#\?(RADIANCE|RGBE)",
    "QOI": rb"qoif",
    "DDS": rb"DDS ",
    "Netpbm": rb"P[1-7]\s",
    "MP4 video": rb"....ftyp(?!avi[fs])",
    "WebM video": rb"\x1a\x45\xdf\xa3",
}
"""First bytes of what people send that is a picture, yet not one of ours; only looked at when nothing of ours fits."""

ORIENTATION_TAG: Final = 0x0112
UPRIGHT: Final = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What sets a picture upright, by its EXIF orientation."""

PROFILE_SPACES: Final = {"L": "GRAY", "RGB": "RGB", "CMYK": "CMYK"}
"""The colour space that an ICC profile must be of to describe a picture of that mode."""

ONE_AT_A_TIME: Final = threading.Lock()
"""Pillow's warnings, no concern of ours, can only be silenced for all threads at once. This also bounds memory."""


def open_picture(data: bytes) -> Image.Image:
    """The picture in `data`, upright, 8-bit sRGB, transparency laid on black; the first one of an animation.

    Safe to call from several threads, which then take turns.

    Raises: ImageLoadError, ImageFormatError, ImageTooSmallError, ImageTooLargeError.
    """
    with ONE_AT_A_TIME, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with _opened(data) as image:
            _check_size(*image.size)
            try:
                image.load()
                return _srgb(_upright(image))
            except Exception as error:
                # Decoders meet hostile bytes with errors of any type.
                raise ImageLoadError(f"the image is damaged or incomplete: {error}", field="image") from error


def save_picture(image: Image.Image, path: Path) -> None:
    """Writes `image` to `path` as a PNG, there whole or not at all."""
    partial = path.with_name(f"{path.name}.part")
    try:
        image.save(partial, format="PNG", compress_level=1)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _opened(data: bytes) -> Image.Image:
    """The picture in `data` with its header read and nothing decoded."""
    try:
        return Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise ImageTooLargeError(
            f"the image claims far more than the {MAX_PIXELS} pixels allowed",
            field="image",
            context={"max_width": MAX_SIDE, "max_height": MAX_SIDE},
        ) from error
    except Exception as error:
        for name, start in FOREIGN.items():
            if re.match(start, data[:1024], re.DOTALL):
                raise ImageFormatError(
                    f"the image is a file of the format {name}; allowed are {', '.join(FORMATS)}",
                    field="image",
                    context={"supported_formats": list(SUFFIXES)},
                ) from error
        raise ImageLoadError(
            f"the {len(data)} bytes are not an image, or a damaged one; allowed are {', '.join(FORMATS)}",
            field="image",
        ) from error


def _check_size(width: int, height: int) -> None:
    if min(width, height) < MIN_SIDE:
        raise ImageTooSmallError(
            f"the image is {width}x{height}; each side must be at least {MIN_SIDE} pixels",
            field="image",
            context={"min_width": MIN_SIDE, "min_height": MIN_SIDE},
        )
    if max(width, height) > MAX_SIDE:
        raise ImageTooLargeError(
            f"the image is {width}x{height}; each side must be at most {MAX_SIDE} pixels",
            field="image",
            context={"max_width": MAX_SIDE, "max_height": MAX_SIDE},
        )
    if width * height > MAX_PIXELS:
        shrink = math.sqrt(MAX_PIXELS / (width * height))
        fits = int(width * shrink), int(height * shrink)
        raise ImageTooLargeError(
            f"the image is {width}x{height}; allowed are {MAX_PIXELS} pixels, {fits[0]}x{fits[1]} of this shape",
            field="image",
            context={"max_width": fits[0], "max_height": fits[1]},
        )


def _upright(image: Image.Image) -> Image.Image:
    try:
        orientation = image.getexif().get(ORIENTATION_TAG)
    except (SyntaxError, ValueError, TypeError, LookupError, OSError, struct.error):
        orientation = None  # damaged EXIF says nothing of the pixels
    turn = UPRIGHT.get(orientation) if isinstance(orientation, int) else None
    return image if turn is None else image.transpose(turn)


def _srgb(image: Image.Image) -> Image.Image:
    """`image` in mode RGB, on black, through its ICC profile if it has a fitting one, and without metadata."""
    profile = image.info.get("icc_profile")
    alpha = None
    if image.mode.startswith(("I", "F")):
        image = _eight_bits(image)
    elif image.has_transparency_data:
        image = image.convert("LA" if image.mode in {"LA", "La"} else "RGBA")
        alpha = image.getchannel("A")
    if image.mode in {"1", "L", "LA"}:
        image = image.convert("L")
    elif image.mode not in {"CMYK", "LAB"}:
        image = image.convert("RGB")
    colour = _managed(image, profile)
    if alpha is not None:
        colour = Image.composite(colour, Image.new("RGB", colour.size), alpha)
    colour.info = {}
    return colour


def _eight_bits(image: Image.Image) -> Image.Image:
    """A grey `image` of more than 8 bits in 8.

    16 bits by their full scale; 32 bits and floats, which say nowhere what white is, by their brightest pixel.
    """
    values = np.nan_to_num(np.asarray(image, dtype=np.float32), nan=0, posinf=0, neginf=0)
    white = 65535.0 if image.mode.startswith("I;16") else float(values.max())
    scaled = values * np.float32(255 / white) if white > 0 else np.zeros_like(values)
    return Image.fromarray(np.clip(np.rint(scaled), 0, 255).astype(np.uint8))


def _managed(image: Image.Image, profile: bytes | None) -> Image.Image:
    """`image` in sRGB: through `profile` if that is sound and of the same colour space, else by Pillow's own rule."""
    target = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
    if image.mode == "LAB":
        lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB"))
        return ImageCms.ImageCmsTransform(lab, target, "LAB", "RGB").apply(image)
    if profile:
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            if source.profile.xcolor_space.strip() == PROFILE_SPACES[image.mode]:
                return ImageCms.ImageCmsTransform(source, target, image.mode, "RGB").apply(image)
        except (ImageCms.PyCMSError, OSError, ValueError):
            pass  # a damaged profile says nothing of the pixels
    return image.convert("RGB")
