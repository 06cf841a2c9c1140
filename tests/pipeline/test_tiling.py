"""Tiles against the official code are among the golden components."""

import pytest
import torch

from pipeline.decoding import Tiles
from pipeline.tiling import decode_tiles, finished


def pointwise(latents):
    """A decoder that looks at nothing but a cell itself, in chunks of two latent frames."""
    frames = latents[:, :3].repeat_interleave(8, 2)[:, :, 7:]
    pixels = frames.repeat_interleave(32, 3).repeat_interleave(32, 4)
    yield from pixels.split(16, 2)


@pytest.fixture
def latents():
    return torch.randn(1, 128, 4, 9, 14, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("tiles", [Tiles(4, 1), Tiles(6, 3), Tiles(14, 4), Tiles(40, 4)])
def test_where_no_cell_sees_another_tiles_leave_no_trace(latents, tiles):
    mosaic = finished(decode_tiles(pointwise, latents, height=tiles, width=tiles))
    whole = torch.cat(list(pointwise(latents)), 2)
    torch.testing.assert_close(mosaic.frames(0, 25, device="cpu"), whole, atol=1e-6, rtol=0)
    torch.testing.assert_close(mosaic.frames(7, 9, device="cpu"), whole[:, :, 7:9], atol=1e-6, rtol=0)


def test_across_a_seam_one_tile_fades_into_the_next():
    def flat(latents):
        """Each tile of another grey."""
        shades.append(len(shades))
        yield torch.full((1, 3, 1, 32, latents.shape[4] * 32), float(shades[-1]))

    shades = []
    mosaic = finished(decode_tiles(flat, torch.zeros(1, 128, 1, 1, 10), height=Tiles(1, 0), width=Tiles(6, 2)))
    row = mosaic.frames(0, 1, device="cpu")[0, 0, 0, 0]
    assert (row[: 4 * 32] == 0).all()
    assert (row[6 * 32 :] == 1).all()
    seam = row[4 * 32 : 6 * 32]
    assert (seam.diff() > 0).all()
    assert 0 < seam[0] < 0.05
    assert 0.95 < seam[-1] < 1


def test_progress_counts_the_frames_of_every_tile(latents):
    work = decode_tiles(pointwise, latents, height=Tiles(9, 0), width=Tiles(9, 4))
    seen = list(work)
    assert [p.step for p in seen] == [16, 25, 41, 50]
    assert {p.total for p in seen} == {50}


def test_tiles_wait_on_the_host(latents):
    mosaic = finished(decode_tiles(pointwise, latents, height=Tiles(5, 1), width=Tiles(5, 1)))
    assert {pixels.device.type for _, _, pixels in mosaic.parts} == {"cpu"}
