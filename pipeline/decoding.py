"""How a clip is decoded: whole where its device has the memory, else fewer frames at a time, else in tiles."""

from dataclasses import dataclass
from typing import Final

from pipeline.types import Size

CELL: Final = 32
"""Pixels a latent cell covers across and down."""
OVERLAP: Final = 4
"""Cells that neighbouring tiles share: 128 pixels, twice what the model's authors take."""

# Units: bytes a pixel, for values of one byte. Fitted to live bytes counted on the meta device with the real
# configuration; tests/pipeline/test_decode_memory.py holds them against the count.
_HELD: Final = 650
"""By the layers between chunks, whatever a chunk has."""
_WORKED_ON: Final = 490
"""For every latent frame of a chunk."""
_PUT_TOGETHER: Final = 200
"""For a chunk of the whole picture that is put together of tiles."""


@dataclass(frozen=True, slots=True)
class Tiles:
    """Length of a tile along one axis, and of what it shares with the next. Units: latent frames or cells."""

    length: int
    overlap: int

    def places(self, n: int) -> list[tuple[int, int]]:
        """Where tiles begin and end: as many as cover `n`.

        Source: Lightricks/LTX-2 1.2.0, tiled decoding (golden conventions, section 9).
        """
        stride = self.length - self.overlap
        count = max(1, (n + self.length - 2 * self.overlap - 1) // stride)
        return [(i * stride, n if i == count - 1 else i * stride + self.length) for i in range(count)]


@dataclass(frozen=True, slots=True)
class Decoding:
    """Latent frames that are decoded at a time, and the tiles, across and down alike; None: the whole picture."""

    latent_frames: int = 4
    tiles: Tiles | None = None

    def peak(self, size: Size, *, value_bytes: int) -> int:
        """Bytes that are live at most while a clip of `size` is decoded, weights and latents aside."""
        cells = size.height // CELL, size.width // CELL
        chunk = _HELD + _WORKED_ON * self.latent_frames
        if self.tiles is None:
            return cells[0] * cells[1] * CELL**2 * value_bytes * chunk
        down, across = (max(end - begin for begin, end in self.tiles.places(n)) for n in cells)
        return CELL**2 * value_bytes * max(down * across * chunk, cells[0] * cells[1] * _PUT_TOGETHER)


CHOICES: Final = (
    Decoding(4),
    Decoding(2),
    Decoding(1),
    *(Decoding(1, Tiles(length, OVERLAP)) for length in (32, 24, 16, 12)),
)
"""From the fastest to the one that takes least memory. Without tiles, all give the same frames."""


def fitting(size: Size, *, memory: int | None, value_bytes: int) -> Decoding:
    """The first of the choices that takes no more than `memory`, or else the one that takes least; None: no limit."""
    if memory is None:
        return CHOICES[0]
    fits = (choice for choice in CHOICES if choice.peak(size, value_bytes=value_bytes) <= memory)
    return next(fits, min(CHOICES, key=lambda choice: choice.peak(size, value_bytes=value_bytes)))
