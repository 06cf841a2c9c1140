"""What decoding holds at the real size, counted on the meta device: tensors have sizes there, and no memory."""

import functools
import itertools

import pytest
import torch

from benchmarks.memory import Memory
from pipeline import decode
from pipeline.decoding import Decoding, Tiles
from pipeline.types import Size
from weights import config
from weights.release import published_config


@pytest.fixture(scope="module")
def vae():
    with torch.device("meta"):
        built = config.build("vae", published_config(), {})
    for parameter in built.parameters():
        parameter.data = parameter.data.to(torch.bfloat16)
    return built


def peak(vae, *, height, width, frames, how):
    latents = torch.empty(1, 128, frames, height, width, device="meta")
    with Memory("meta") as memory:
        if how.tiles is None:
            chunks = decode.decode(vae, latents, latent_frames=how.latent_frames)
        else:
            chunks = tiled(vae, latents, how.tiles)
        for _ in chunks:
            pass
    return memory.peak


def tiled(vae, latents, tiles):
    """The chunks of a decode in tiles, whose tiles stay where they are: nothing comes from the meta device."""
    stream = functools.partial(decode.decode_pixels, vae, latent_frames=1)
    begin = 0
    for y, x in itertools.product(tiles.places(latents.shape[3]), tiles.places(latents.shape[4])):
        for _ in stream(latents[..., slice(*y), slice(*x)]):
            begin += 1
    assert begin
    yield torch.zeros(1, 3, 8, latents.shape[3] * 32, latents.shape[4] * 32, device="meta").div(2)


def test_a_long_clip_takes_no_more_than_a_short_one(vae):
    short, long = (peak(vae, height=4, width=6, frames=f, how=Decoding(2)) for f in (16, 30))
    assert long < short * 1.02


@pytest.mark.parametrize(
    ("size", "how"),
    [
        (Size(1280, 704), Decoding(4)),
        (Size(704, 1280), Decoding(2)),
        (Size(256, 192), Decoding(1)),
        (Size(768, 512), Decoding(1, Tiles(16, 4))),
        (Size(768, 512), Decoding(1, Tiles(12, 4))),
    ],
)
def test_decoding_takes_what_the_plan_reckons_with(vae, size, how):
    found = peak(vae, height=size.height // 32, width=size.width // 32, frames=16, how=how)
    assert found <= how.peak(size, value_bytes=2) * 1.01
    assert found >= how.peak(size, value_bytes=2) * 0.9


def test_720p_takes_less_than_5_gb():
    assert Decoding().peak(Size(1280, 704), value_bytes=2) < 5e9
