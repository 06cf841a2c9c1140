from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.decoding import CHOICES, OVERLAP, Decoding, Tiles, fitting
from pipeline.types import Size

HD = Size(1280, 704)
sizes = st.builds(Size, *[st.integers(1, 60).map(lambda cells: cells * 32)] * 2)


@given(st.integers(1, 200), st.integers(2, 40), st.integers(0, 8))
def test_tiles_cover_every_cell_and_share_what_they_should(n, length, overlap):
    overlap = min(overlap, length // 2)
    places = Tiles(length, overlap).places(n)
    assert places[0][0] == 0
    assert places[-1][1] == n
    assert all(end - begin <= length for begin, end in places)
    assert all(later[0] == before[1] - overlap for before, later in pairwise(places))


def test_without_a_limit_the_fastest_is_taken():
    assert fitting(HD, memory=None, value_bytes=2) == Decoding(4, None)


@pytest.mark.parametrize(
    ("gb", "choice"),
    [
        (24, Decoding(4)),
        (4.8, Decoding(4)),
        (4, Decoding(2)),
        (2.2, Decoding(1)),
        (2, Decoding(1, Tiles(32, OVERLAP))),
        (1.3, Decoding(1, Tiles(24, OVERLAP))),
        (0.5, Decoding(1, Tiles(12, OVERLAP))),
        (0.01, Decoding(1, Tiles(12, OVERLAP))),
    ],
)
def test_tiles_are_taken_only_when_a_smaller_chunk_does_not_fit_either(gb, choice):
    assert fitting(HD, memory=int(gb * 1e9), value_bytes=2) == choice


@given(sizes, st.integers(10**6, 10**11))
def test_what_is_taken_fits_or_takes_least(size, memory):
    chosen = fitting(size, memory=memory, value_bytes=2)
    peaks = [choice.peak(size, value_bytes=2) for choice in CHOICES]
    assert chosen.peak(size, value_bytes=2) <= max(memory, min(peaks))


@given(sizes)
def test_a_picture_that_is_one_tile_is_decoded_whole(size):
    chosen = fitting(size, memory=1, value_bytes=2)
    if max(size.width, size.height) <= 12 * 32:
        assert chosen.tiles is None
