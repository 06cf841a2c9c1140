"""Start images of every kind, whole, broken and hostile."""

import contextlib
import io
import re
import struct
import threading
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image, ImageCms

from pipeline.errors import ImageFormatError, ImageLoadError, ImageTooLargeError, ImageTooSmallError
from pipeline.picture import FORMATS, MAX_PIXELS, MAX_SIDE, MIN_SIDE, SUFFIXES, open_picture, save_picture

ORIENTATION = 0x0112


def scene(width: int = 48, height: int = 32) -> Image.Image:
    """Four quarters: red, green, blue, grey."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[: height // 2, : width // 2] = 200, 30, 30
    pixels[: height // 2, width // 2 :] = 30, 180, 30
    pixels[height // 2 :, : width // 2] = 30, 30, 220
    pixels[height // 2 :, width // 2 :] = 128, 128, 128
    return Image.fromarray(pixels)


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def difference(image: Image.Image, other: Image.Image) -> float:
    return np.abs(np.asarray(image, float) - np.asarray(other, float)).mean()


def png(width: int, height: int, *, data: bytes = b"") -> bytes:
    """A PNG that claims a size, whatever it holds."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


@pytest.mark.parametrize("kind", FORMATS)
def test_every_supported_format_opens(kind):
    found = open_picture(encoded(scene(), kind))

    assert (found.mode, found.size) == ("RGB", (48, 32))
    assert difference(found, scene()) < 12


def test_the_suffixes_name_every_supported_format():
    Image.init()

    assert {Image.EXTENSION[suffix] for suffix in SUFFIXES} == set(FORMATS)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_a_picture_is_turned_upright(kind, orientation):
    turn = [None, None, 0, 3, 1, 5, 2, 6, 4][orientation]  # the transposition that lays it down as a camera does
    lying = scene() if turn is None else scene().transpose(Image.Transpose(turn))
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    lossless = {"lossless": True} if kind == "WEBP" else {"quality": 100, "subsampling": 0} if kind == "JPEG" else {}

    found = open_picture(encoded(lying, kind, exif=exif, **lossless))

    assert found.size == (48, 32)
    assert difference(found, scene()) < 3


def test_damaged_exif_leaves_the_picture_as_it_lies():
    found = open_picture(encoded(scene(), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff" + bytes(9)))

    assert found.size == (48, 32)


def test_transparency_is_laid_on_black():
    image = scene().convert("RGBA")
    image.putalpha(Image.fromarray(np.repeat(np.uint8([[0, 128, 255]]), 16, 1).repeat(32, 0)))

    found = np.asarray(open_picture(encoded(image)), float)

    assert (found[:, :16] == 0).all()
    assert np.abs(found[:, 16:32] - np.asarray(scene(), float)[:, 16:32] * 128 / 255).max() <= 1
    assert (found[:, 32:] == np.asarray(scene())[:, 32:]).all()


@pytest.mark.parametrize("mode", ["L", "RGB", "P"])
def test_a_colour_that_stands_for_transparent_is_black(mode):
    image = Image.new("RGB", (32, 32), (255, 255, 255)).convert(mode)
    key = {"L": 255, "RGB": (255, 255, 255), "P": image.getpixel((0, 0))}[mode]

    assert open_picture(encoded(image, transparency=key)).getextrema() == ((0, 0),) * 3


MODES = {
    "PNG": ("1", "L", "LA", "P", "RGBA"),
    "TIFF": ("1", "L", "LA", "P", "PA", "RGBA", "RGBX", "CMYK", "YCbCr", "LAB"),
    "JPEG": ("L", "CMYK", "YCbCr"),
    "WEBP": ("RGBA",),
}


@pytest.mark.parametrize(("kind", "mode"), [(kind, mode) for kind, modes in MODES.items() for mode in modes])
def test_every_mode_comes_out_as_rgb(kind, mode):
    grey = scene().convert("L").convert("RGB")
    if mode == "LAB":
        profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
        image, expected = ImageCms.profileToProfile(scene(), *profiles, outputMode="LAB"), scene()
    elif mode == "PA":
        image, expected = scene().convert("LA").convert("PA"), grey
    else:
        image = scene().convert(mode, palette=Image.Palette.ADAPTIVE)
        expected = image.convert("RGB") if mode == "1" else grey if mode in {"L", "LA"} else scene()

    found = open_picture(encoded(image, kind))

    assert found.mode == "RGB"
    assert difference(found, expected) < 5


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bit_grey_keeps_its_full_scale(kind):
    ramp = np.linspace(0, 65535, 64 * 32).reshape(32, 64).astype(np.uint16)

    found = np.asarray(open_picture(encoded(Image.fromarray(ramp), kind)), float)

    assert np.abs(found - (ramp / 257)[:, :, None]).max() <= 0.51


def test_16_bit_colour_keeps_its_full_scale():
    rows = np.zeros((32, 1 + 32 * 6), np.uint8)
    rows[:, 1:] = np.frombuffer(struct.pack(">HHH", 0x8000, 0xFFFF, 0x1234) * 32, np.uint8)
    data = bytearray(png(32, 32, data=zlib.compress(rows.tobytes())))
    data[24] = 16
    data[29:33] = struct.pack(">I", zlib.crc32(bytes(data[12:29])))

    assert open_picture(bytes(data)).getpixel((5, 5)) == (0x80, 0xFF, 0x12)


@pytest.mark.parametrize("white", [1.0, 255.0, 3000.0])
def test_a_picture_in_floats_is_white_where_it_is_brightest(white):
    ramp = np.linspace(0, white, 32 * 32, dtype=np.float32).reshape(32, 32)
    ramp[3, 3] = np.nan

    found = open_picture(encoded(Image.fromarray(ramp), "TIFF"))

    assert found.getextrema() == ((0, 255),) * 3


def test_only_the_first_frame_of_an_animation_counts():
    others = [Image.new("RGB", (48, 32), colour) for colour in ("black", "white")]
    for kind, options in (("GIF", {}), ("WEBP", {"lossless": True}), ("PNG", {}), ("TIFF", {}), ("AVIF", {})):
        data = encoded(scene(), kind, save_all=True, append_images=others, **options)
        assert difference(open_picture(data), scene()) < 5


def test_a_colour_profile_is_converted_to_srgb():
    """The profile of a screen on which every colour is twice as bright as in sRGB's middle tones: a gamma of 1."""
    linear = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    at = linear.index(b"para")
    curve = struct.pack(">4sIHHi", b"para", 0, 0, 0, 1 << 16)
    linear = linear[:at] + curve + linear[at + len(curve) :]
    assert re.match(rb"....lcms", linear, re.DOTALL)

    found = open_picture(encoded(Image.new("RGB", (32, 32), (55, 55, 55)), icc_profile=linear))

    assert np.abs(np.array(found.getpixel((0, 0))) - 128).max() <= 2


@pytest.mark.parametrize("profile", [b"rubbish", ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_a_profile_that_is_broken_or_of_another_space_is_ignored(mode, profile):
    image = scene().convert(mode)

    found = open_picture(encoded(image, "TIFF", icc_profile=profile))

    assert difference(found, image.convert("RGB")) == 0


def test_nothing_but_the_pixels_is_kept():
    exif = Image.Exif()
    exif[ORIENTATION] = 6

    found = open_picture(encoded(scene(), exif=exif, dpi=(72, 72)))

    assert found.info == {}
    assert len(found.getexif()) == 0


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("share", [0.02, 0.3, 0.7])
def test_a_truncated_picture_cannot_be_loaded(kind, share):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8))
    data = encoded(noise, kind)

    with pytest.raises(ImageLoadError) as caught:
        open_picture(data[: round(len(data) * share)])
    assert caught.value.field == "image"


@pytest.mark.parametrize("data", [b"", b"\0", b"hello, world" * 99, b"<html><body>404</body></html>", bytes(9999)])
def test_what_is_no_image_cannot_be_loaded(data):
    with pytest.raises(ImageLoadError, match=f"the {len(data)} bytes are not an image"):
        open_picture(data)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("HEIC", b"\0\0\0\x18ftypheic" + bytes(99)),
        ("JPEG XL", b"\xff\x0a" + bytes(99)),
        ("SVG", b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>'),
        ("SVG", b"<svg/>"),
        ("PDF", b"%PDF-1.7\n"),
        ("MP4 video", b"\0\0\0\x18ftypisom" + bytes(99)),
        ("Netpbm", encoded(scene(), "PPM")),
        ("ICO", encoded(scene(), "ICO")),
        ("DDS", encoded(scene(), "DDS")),
        ("JPEG 2000", encoded(scene(), "JPEG2000")),
    ],
)
def test_a_picture_of_another_format_is_named(name, data):
    with pytest.raises(ImageFormatError, match=name) as caught:
        open_picture(data)
    assert caught.value.context == {"supported_formats": list(SUFFIXES)}


@pytest.mark.parametrize("size", [(MIN_SIDE - 1, 64), (64, MIN_SIDE - 1), (1, 1)])
def test_a_side_below_the_limit_is_too_small(size):
    with pytest.raises(ImageTooSmallError, match=f"{size[0]}x{size[1]}") as caught:
        open_picture(encoded(Image.new("RGB", size)))
    assert caught.value.context == {"min_width": MIN_SIDE, "min_height": MIN_SIDE}


def test_sides_at_the_lower_limit_are_enough():
    assert open_picture(encoded(Image.new("RGB", (MIN_SIDE, MIN_SIDE)))).size == (MIN_SIDE, MIN_SIDE)


@pytest.mark.parametrize("size", [(MAX_SIDE + 1, 16), (16, MAX_SIDE + 1), (40_000, 40_000), (2**31 - 1, 2**31 - 1)])
def test_a_side_above_the_limit_is_too_large_whatever_the_file_holds(size):
    with pytest.raises(ImageTooLargeError) as caught:
        open_picture(png(*size))
    assert caught.value.context == {"max_width": MAX_SIDE, "max_height": MAX_SIDE}


@pytest.mark.parametrize("size", [(8001, 8001), (9500, 9500), (14_000, 5_000)])
def test_an_area_above_the_limit_is_too_large_and_says_what_fits(size):
    with pytest.raises(ImageTooLargeError, match=f"{size[0]}x{size[1]}") as caught:
        open_picture(png(*size))
    fits = caught.value.context["max_width"], caught.value.context["max_height"]
    assert 0.999 * MAX_PIXELS < fits[0] * fits[1] <= MAX_PIXELS
    assert fits[0] / fits[1] == pytest.approx(size[0] / size[1], rel=1e-3)


@pytest.mark.parametrize(
    ("kind", "before", "size"),
    [
        ("JPEG", b"\xff\xc0\0\x11\x08", ">HH"),
        ("WEBP", b"\x9d\x01\x2a", "<HH"),
        ("GIF", b"GIF87a", "<HH"),
        ("BMP", b"\x28\0\0\0", "<ii"),
        ("TIFF", b"\0\x01\x04\0\x01\0\0\0", "<IHHII"),
    ],
)
def test_a_bomb_of_any_format_is_too_large_before_it_is_decoded(kind, before, size):
    data = bytearray(encoded(scene(), kind))
    sides = (16_000, 257, 4, 1, 16_000) if kind == "TIFF" else (16_000, 16_000)
    struct.pack_into(size, data, data.index(before) + len(before), *sides)

    with pytest.raises(ImageTooLargeError, match=r"16000x16000|far more"):
        open_picture(bytes(data))


@pytest.mark.parametrize("kind", FORMATS)
def test_hostile_bytes_end_in_a_picture_or_in_an_error_of_ours(kind):
    rng = np.random.default_rng(5)
    whole = np.frombuffer(encoded(scene(), kind), np.uint8)
    for _ in range(60):
        data = whole.copy()
        where = rng.integers(0, min(len(data), rng.choice([40, 400, 4000])), rng.integers(1, 6))
        data[where] = rng.integers(0, 256, len(where))
        with contextlib.suppress(ImageLoadError, ImageFormatError, ImageTooSmallError, ImageTooLargeError):
            assert open_picture(data.tobytes()).mode == "RGB"


def test_warnings_of_the_decoder_stay_inside():
    crowded = encoded(Image.new("P", (64, 64)), "PNG", transparency=bytes(range(256)))
    exif = encoded(scene(), "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + bytes(40))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        open_picture(crowded)
        open_picture(exif)
        with pytest.raises(ImageTooLargeError):
            open_picture(png(12_000, 9_000))
    assert caught == []


def test_threads_share_it_and_leave_the_filters_of_warnings_as_they_were():
    data, before, gate = [encoded(scene(), kind) for kind in FORMATS], list(warnings.filters), threading.Barrier(4)

    def work() -> float:
        gate.wait()
        return max(difference(open_picture(each), scene()) for each in data)

    with ThreadPoolExecutor(4) as threads:
        assert all(worst.result() < 12 for worst in [threads.submit(work) for _ in range(4)])
    assert warnings.filters == before


def test_a_saved_picture_opens_again_pixel_for_pixel(tmp_path):
    save_picture(scene(), tmp_path / "start.png")

    assert difference(Image.open(tmp_path / "start.png"), scene()) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["start.png"]


def test_a_picture_that_cannot_be_saved_leaves_nothing_behind(tmp_path):
    (tmp_path / "start.png").mkdir()
    with pytest.raises(OSError, match=r"start\.png"):
        save_picture(scene(), tmp_path / "start.png")

    assert [path.name for path in tmp_path.iterdir()] == ["start.png"]
