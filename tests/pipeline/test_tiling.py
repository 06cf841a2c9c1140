"""Tiles against the official code are among the golden components."""

import pytest
import torch

from pipeline.decoding import Tiles
from pipeline.tiling import decode_tiled, decode_tiles, finished


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


def averaged(latents):
    """A decoder that shows the mean of its tile, and how far each frame is into it."""
    frames = (latents.shape[2] - 1) * 8 + 1
    rising = torch.arange(float(frames)).view(1, 1, -1, 1, 1) / 100
    yield (latents.mean() + rising).expand(1, 3, -1, latents.shape[3] * 32, latents.shape[4] * 32)


def places(n, length, overlap):
    count = max(1, (n + length - 2 * overlap - 1) // (length - overlap))
    return [(i * (length - overlap), n if i == count - 1 else i * (length - overlap) + length) for i in range(count)]


def ramps(n, length, overlap, *, time):
    """Tiles along one axis: latents, pixels and weights, as the conventions' section 9 words them, one by one."""
    for index, (begin, end) in enumerate(places(n, length, overlap)):
        start = begin - 1 if time and index else begin
        pixels = range(8 * start, 8 * (end - 1) + 1) if time else range(32 * start, 32 * end)
        weights = [1.0] * len(pixels)
        left = 1 + 8 * overlap if time else 32 * overlap
        right = 8 * overlap if time else 32 * overlap
        for j in range(left if index else 0):
            weights[j] *= j / left if time else (j + 1) / (left + 1)
        for j in range(1, right + 1 if end < n else 0):
            weights[len(weights) - right + j - 1] *= 1 - j / (right + 1)
        yield slice(start, end), slice(pixels.start, pixels.stop), torch.tensor(weights)


@pytest.mark.parametrize(
    ("shape", "frames", "height", "width"),
    [((5, 4, 6), (3, 1), (3, 1), (4, 2)), ((9, 7, 8), (3, 1), (3, 1), (3, 0)), ((7, 2, 9), (4, 2), (4, 1), (5, 2))],
)
def test_tiles_lie_and_fade_as_the_conventions_word_it(shape, frames, height, width):
    """With up to four tiles along an axis; the golden components have two."""
    latents = torch.randn(1, 128, *shape, generator=torch.Generator().manual_seed(0))
    f, h, w = shape
    total = torch.zeros(1, 3, 8 * f - 7, 32 * h, 32 * w, dtype=torch.float64)
    weight = torch.zeros_like(total)
    for t, frame, wt in ramps(f, *frames, time=True):
        for y, row, wy in ramps(h, *height, time=False):
            for x, column, wx in ramps(w, *width, time=False):
                share = wt.view(-1, 1, 1) * wy.view(-1, 1) * wx
                total[:, :, frame, row, column] += next(averaged(latents[:, :, t, y, x])) * share
                weight[:, :, frame, row, column] += share
    found = decode_tiled(averaged, latents, frames=Tiles(*frames), height=Tiles(*height), width=Tiles(*width))
    torch.testing.assert_close(found.double(), total / weight, atol=1e-5, rtol=0)


def test_progress_counts_the_frames_of_every_tile(latents):
    work = decode_tiles(pointwise, latents, height=Tiles(9, 0), width=Tiles(9, 4))
    seen = list(work)
    assert [p.step for p in seen] == [16, 25, 41, 50]
    assert {p.total for p in seen} == {50}


def test_tiles_wait_on_the_host(latents):
    mosaic = finished(decode_tiles(pointwise, latents, height=Tiles(5, 1), width=Tiles(5, 1)))
    assert {pixels.device.type for _, _, pixels in mosaic.parts} == {"cpu"}
