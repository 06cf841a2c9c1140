"""The start image against the reference's own numbers."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open

from pipeline.conditioning import compressed, covering, cut_first, pixels, scaled
from pipeline.types import Size

GOLDEN = Path(__file__).parents[1] / "golden" / "public"


@pytest.fixture
def photo():
    rng = np.random.default_rng(1)
    rows, columns = np.mgrid[:77, :101]
    waves = np.stack([127 + 100 * np.sin(columns / 9), 127 + 100 * np.cos(rows / 7), (rows + columns) % 256], -1)
    return np.clip(waves + rng.normal(0, 8, waves.shape), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("case", ["a_cfgpp_official", "c_euler8"])
def test_the_pixels_are_those_of_the_reference(case):
    sidecar = json.loads((GOLDEN / f"{case}.json").read_text())
    params, entry = sidecar["params"], sidecar["tensors"]["image_pixels"]
    with safe_open(GOLDEN / f"{case}.safetensors", "pt") as tensors:
        expected = tensors.get_tensor("image_pixels")

    found = pixels(GOLDEN / "image.png", size=Size(params["width"], params["height"]), crf=params["crf"])

    assert list(found.shape) == entry["full_shape"]
    assert found.dtype == torch.float32
    strides = entry.get("stride", [1, 1, 1, 1, 1])
    strided = found[tuple(slice(None, None, stride) for stride in strides)]
    torch.testing.assert_close(strided, expected, rtol=0, atol=1e-6)
    assert found.norm().item() == pytest.approx(entry["norm"], abs=1e-3)


def test_crf_0_leaves_every_pixel_as_it_was(photo, tmp_path):
    Image.fromarray(photo).save(tmp_path / "photo.png")

    found = pixels(tmp_path / "photo.png", size=Size(101, 77), crf=0)

    assert np.array_equal(np.rint((found[0, :, 0].permute(1, 2, 0).numpy() + 1) * 127.5), photo)


def test_odd_sides_lose_their_last_row_and_column(photo):
    assert compressed(photo, crf=18).shape == (76, 100, 3)


def test_a_higher_crf_costs_more_of_the_picture(photo):
    even = photo[:76, :100].astype(float)
    light, heavy = (np.abs(compressed(photo, crf=crf) - even).mean() for crf in (10, 40))

    assert 0 < light < heavy


def test_the_same_picture_is_compressed_the_same_every_time(photo):
    tall = np.tile(photo, (6, 6, 1))

    assert np.array_equal(compressed(tall, crf=18), compressed(tall, crf=18))


@pytest.mark.parametrize("size", [Size(64, 32), Size(32, 64), Size(128, 128), Size(101, 77), Size(96, 160)])
def test_the_picture_covers_any_size(photo, size):
    found = covering(photo, size=size)

    assert found.shape == (1, 3, 1, size.height, size.width)
    assert found.min() >= -1
    assert found.max() <= 1


def test_what_hangs_over_is_cut_off_evenly():
    wide = np.zeros((32, 96, 3), np.uint8)
    wide[:, 32:64] = 255

    assert covering(wide, size=Size(32, 32)).eq(1).all()


@pytest.mark.parametrize(
    ("size", "longest", "made"),
    [
        ((200, 150), 1536, (1536, 1152)),
        ((150, 200), 1536, (1152, 1536)),
        ((3000, 2000), 1536, (1536, 1024)),
        ((64, 64), 1536, (1536, 1536)),
        ((1536, 700), 1536, (1536, 700)),
        ((200, 150), 0, (200, 150)),
        ((4000, 1), 1536, (1536, 1)),
    ],
)
def test_the_longer_side_is_brought_to_its_length_up_or_down(size, longest, made):
    assert scaled(Image.new("RGB", size), longest=longest).size == made


def test_both_ways_to_fill_a_size_are_one_where_the_aspect_is_the_same(photo):
    even = photo[:76, :100]
    for size in (Size(50, 38), Size(200, 152)):
        torch.testing.assert_close(cut_first(even, size=size), covering(even, size=size), atol=1e-6, rtol=0)


@pytest.mark.parametrize("size", [Size(64, 32), Size(32, 64), Size(101, 77), Size(96, 160)])
def test_cutting_first_fills_any_size_with_the_middle(size):
    wide = np.zeros((60, 100, 3), np.uint8)
    wide[20:40, 40:60] = 255
    found = cut_first(wide, size=size)
    assert found.shape == (1, 3, 1, size.height, size.width)
    assert found[0, 0, 0, size.height // 2, size.width // 2] == 1


def test_cutting_first_keeps_whole_columns_of_the_picture_before_it_scales():
    """An aspect that leaves no whole number of columns: ComfyUI rounds them, the official way cuts after scaling."""
    columns = np.arange(100, dtype=np.uint8)[None, :, None].repeat(50, 0).repeat(3, 2)
    found = (cut_first(columns, size=Size(31, 50))[0, 0, 0, 0] + 1) * 127.5
    assert found.min() >= 34
    assert found.max() <= 65


def test_a_recipe_can_ask_for_the_whole_way_of_comfyui(photo, tmp_path):
    Image.fromarray(photo).save(tmp_path / "photo.png")
    size = Size(96, 64)
    found = pixels(tmp_path / "photo.png", size=size, crf=18, fit="comfy", longest=256)
    large = np.asarray(scaled(Image.fromarray(photo), longest=256))
    assert torch.equal(found, cut_first(compressed(large, crf=18), size=size))
