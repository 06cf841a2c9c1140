"""The promises of video_quality and video_write_mode, kept on three kinds of clip through the product's writer."""

import itertools
import time
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import get_args

import av
import numpy as np
import numpy.typing as npt
import pytest

from pipeline.encoding import encoding, frame_rate
from pipeline.mux import Mp4Writer
from pipeline.types import Size, VideoQuality, WriteMode

Clip = npt.NDArray[np.uint8]

HEIGHT, WIDTH, FRAMES = 192, 320, 24
QUALITIES: tuple[VideoQuality, ...] = get_args(VideoQuality)
MODES: tuple[WriteMode, ...] = get_args(WriteMode)


@dataclass(frozen=True)
class Result:
    bytes: int
    psnr: float
    seconds: float


def texture(height: int, width: int, *, seed: int) -> npt.NDArray[np.float64]:
    rng = np.random.default_rng(seed)
    picture = np.zeros((height, width, 3))
    for cell in (4, 8, 16, 32, 64):
        coarse = rng.normal(0, 1, (height // cell + 1, width // cell + 1, 3))
        picture += np.kron(coarse, np.ones((cell, cell, 1)))[:height, :width] * cell**0.5
    for axis in (0, 1, 0, 1):
        picture = (np.roll(picture, 1, axis) + 2 * picture + np.roll(picture, -1, axis)) / 4
    return (picture - picture.min()) / (picture.max() - picture.min()) * 255


def moving() -> npt.NDArray[np.float64]:
    scene = texture(HEIGHT + FRAMES, WIDTH + 2 * FRAMES, seed=1)
    clip = np.stack([scene[t : t + HEIGHT, 2 * t : 2 * t + WIDTH] for t in range(FRAMES)])
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    for t, frame in enumerate(clip):
        ball = (columns - WIDTH / 2 - WIDTH / 4 * np.sin(t / 8)) ** 2 + (rows - HEIGHT / 2) ** 2 < (HEIGHT / 5) ** 2
        frame[ball] = 255 - frame[ball]
    return clip


def near_still() -> npt.NDArray[np.float64]:
    scene, rng = texture(HEIGHT, WIDTH, seed=2), np.random.default_rng(3)
    return np.stack([scene * (1 + 0.02 * np.sin(t / 6)) + rng.normal(0, 0.7, scene.shape) for t in range(FRAMES)])


def noisy() -> npt.NDArray[np.float64]:
    return moving() + np.random.default_rng(4).normal(0, 9, (FRAMES, HEIGHT, WIDTH, 1))


def written(clip: Clip, path: Path, *, quality: VideoQuality, write_mode: WriteMode) -> Result:
    start = time.process_time()
    size, how = Size(WIDTH, HEIGHT), encoding(quality, write_mode)
    with Mp4Writer(path, size=size, fps=Fraction(24), encoding=how, comment="a test") as writer:
        writer.frames(clip)
    seconds = time.process_time() - start
    with av.open(path) as container:
        decoded = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    error = np.mean((decoded.astype(np.float32) - clip) ** 2)
    return Result(bytes=path.stat().st_size, psnr=10 * np.log10(255**2 / error), seconds=seconds)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, VideoQuality, WriteMode], Result]:
    folder = tmp_path_factory.mktemp("encoding")
    return {
        (make.__name__, quality, mode): written(clip, folder / "clip.mp4", quality=quality, write_mode=mode)
        for make in (moving, near_still, noisy)
        for clip in [np.clip(np.rint(make()), 0, 255).astype(np.uint8)]
        for quality, mode in itertools.product(QUALITIES, MODES)
    }


@pytest.mark.parametrize("clip", ["moving", "near_still", "noisy"])
@pytest.mark.parametrize("quality", QUALITIES)
def test_fast_makes_the_largest_file_and_small_the_smallest(results, clip, quality):
    fast, balanced, small = (results[clip, quality, mode].bytes for mode in MODES)

    assert fast > balanced > small


@pytest.mark.parametrize("clip", ["moving", "near_still", "noisy"])
@pytest.mark.parametrize("mode", MODES)
def test_a_higher_quality_is_truer_and_larger(results, clip, mode):
    for worse, better in itertools.pairwise(results[clip, quality, mode] for quality in QUALITIES):
        assert better.psnr > worse.psnr
        assert better.bytes > worse.bytes


def test_fast_takes_the_least_processor_time_and_small_the_most(results):
    fast, balanced, small = (sum(r.seconds for (_, _, m), r in results.items() if m == mode) for mode in MODES)

    assert fast < balanced < small


@pytest.mark.parametrize(
    ("fps", "exact"),
    [
        (24, Fraction(24)),
        (30000 / 1001, Fraction(30000, 1001)),
        (23.976, Fraction(2997, 125)),
        (24000 / 1001, Fraction(24000, 1001)),
        (12.5, Fraction(25, 2)),
        (1, Fraction(1)),
        (60, Fraction(60)),
    ],
)
def test_a_frame_rate_is_the_fraction_it_stands_for(fps, exact):
    assert frame_rate(fps) == exact
