"""Measures what the demo weights can do, on photos they were never trained on.

python benchmarks/demo_gates.py [--models DIR] [--full] [--sheet FILE.png]

Every clip is compared with the VAE round trip of the true clip, which is the photo filmed with the motion that was
asked for; the hand-set VAE is a quarter-resolution blur, so the true clip itself is out of reach.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from pipeline import decode
from pipeline.generate import generate
from pipeline.loading import Pipeline, load
from pipeline.plan import make_plan
from pipeline.recipe import load as load_recipe
from pipeline.types import DEFAULT_NEGATIVE_PROMPT, GenerationRequest, Size
from weights.demo import latents, motion, scenes

PHOTOS = Path(__file__).parent.parent / "examples" / "photos"
FPS = 24
CAPTIONS = {
    "still": "The scene at rest. The camera does not move.",
    "pan left": "The camera slowly pans to the left.",
    "pan right": "The camera slowly pans to the right.",
    "tilt up": "The camera slowly tilts up.",
    "tilt down": "The camera slowly tilts down.",
    "zoom in": "The camera slowly dollies in toward the subject.",
    "zoom out": "The camera slowly pulls back.",
}


@dataclass(frozen=True)
class Score:
    """One generated clip.

    Units: PSNR in dB over the last third of the frames; centroid in Hz, of the first and the last fifth.
    """

    photo: str
    motion: str
    size: str
    num_frames: int
    psnr: float
    static: float
    rms: float
    centroid_start: float
    centroid_end: float


@dataclass(frozen=True)
class Clip:
    """What came out. Shapes: frames [f, H, W, 3] in 0..1, waveform [2, n]."""

    frames: torch.Tensor
    waveform: torch.Tensor


def read_photo(path: Path) -> torch.Tensor:
    """Shapes: [3, H, W] in 0..1."""
    with Image.open(path) as picture:
        return torch.from_numpy(np.asarray(picture.convert("RGB")).copy()).permute(2, 0, 1) / 255


def film(photo: torch.Tensor, name: str, *, frames: int, size: Size) -> torch.Tensor:
    """The photo's centre, filmed. Shapes: [f, H, W, 3] in 0..1."""
    right, down, magnification = motion.camera(name, torch.arange(frames) / FPS)
    height, width = photo.shape[1:]
    x = torch.arange(size.width) - (size.width - 1) / 2
    y = torch.arange(size.height) - (size.height - 1) / 2
    u = (x[None] / magnification[:, None] + right[:, None]) / (width / 2)
    v = (y[None] / magnification[:, None] + down[:, None]) / (height / 2)
    grid = torch.stack([u[:, None].expand(-1, size.height, -1), v[:, :, None].expand(-1, -1, size.width)], -1)
    shots = [
        F.grid_sample(photo[None], g[None], mode="bicubic", padding_mode="reflection", align_corners=False)
        for g in grid
    ]
    return torch.cat(shots).clamp(0, 1).permute(0, 2, 3, 1)


@torch.inference_mode()
def round_trip(pipeline: Pipeline, clip: torch.Tensor) -> torch.Tensor:
    """The clip through the VAE and back; the way in by its closed form, which is cheaper by far."""
    pixels = clip.permute(0, 3, 1, 2) * 2 - 1
    quarter = F.avg_pool2d(pixels, scenes.QUARTER).movedim(0, 1)[None]
    return torch.cat(list(decode.decode(pipeline.vae, latents.encode(quarter))))


def make(
    pipeline: Pipeline,
    first: torch.Tensor,
    caption: str,
    *,
    frames: int,
    strength: float = 1.0,
    seed: int = 1,
    steps: int = 15,
) -> Clip:
    """Generates from the picture `first` [H, W, 3] through the product's own entry point."""
    height, width, _ = first.shape
    kept: dict[str, torch.Tensor] = {}

    def keep(name: str, tensor: torch.Tensor) -> None:
        if name in ("frames", "wave"):
            kept[name] = tensor.clone()

    with tempfile.TemporaryDirectory() as folder:
        image = Path(folder) / "first.png"
        Image.fromarray((first * 255).round().byte().numpy()).save(image)
        request = GenerationRequest(
            prompt=caption,
            image=image,
            image_size=Size(width, height),
            seed=seed,
            negative_prompt=DEFAULT_NEGATIVE_PROMPT,
            size=Size(width, height),
            num_frames=frames,
            fps=FPS,
            steps=steps,
            guidance_scale=1.0,
            strength=strength,
            audio=True,
            expand_prompt=True,
            check_safety=False,
            quality="high",
            write_mode="fast",
        )
        plan = make_plan(request, pipeline.recipe)
        for _ in generate(pipeline, request, plan, output=Path(folder) / "out.mp4", record=keep):
            pass
    return Clip(kept["frames"], kept["wave"])


def psnr(a: torch.Tensor, b: torch.Tensor) -> float:
    """Peak signal to noise in dB of pictures in 0..1."""
    return float(-10 * torch.log10((a - b).pow(2).mean().clamp(min=1e-12)))


def centroids(waveform: torch.Tensor) -> tuple[float, float]:
    """Spectral centroid of the first and of the last fifth, in Hz."""
    mono = waveform.mean(0)
    part = len(mono) // 5

    def centroid(piece: torch.Tensor) -> float:
        spectrum = torch.fft.rfft(piece * torch.hann_window(len(piece))).abs().pow(2)
        hertz = torch.arange(len(spectrum)) * 48_000 / len(piece)
        return float((spectrum * hertz).sum() / spectrum.sum())

    return centroid(mono[:part]), centroid(mono[-part:])


def score(pipeline: Pipeline, photo: Path, name: str, *, frames: int, size: Size, steps: int = 15) -> Score:
    """Generates one clip at full strength and compares it with the truth."""
    truth = film(read_photo(photo), name, frames=frames, size=size)
    wanted = round_trip(pipeline, truth)
    clip = make(pipeline, truth[0], CAPTIONS[name], frames=frames, steps=steps)
    last = slice(frames - frames // 3, None)
    start, end = centroids(clip.waveform)
    return Score(
        photo=photo.stem,
        motion=name,
        size=str(size),
        num_frames=frames,
        psnr=psnr(clip.frames[last], wanted[last]),
        static=psnr(wanted[:1].expand_as(wanted[last]), wanted[last]),
        rms=float(clip.waveform.pow(2).mean().sqrt()),
        centroid_start=start,
        centroid_end=end,
    )


def table(scores: list[Score]) -> str:
    """Means over photos, per size and motion."""
    lines = ["size frames motion | psnr static gain | rms centroid start end"]
    keys = sorted({(s.size, s.num_frames, motion.MOTIONS.index(s.motion)) for s in scores})
    for size, frames, kind in keys:
        rows = [s for s in scores if (s.size, s.num_frames, s.motion) == (size, frames, motion.MOTIONS[kind])]

        def mean(name: str, rows: list[Score] = rows) -> float:
            return float(sum(getattr(s, name) for s in rows)) / len(rows)

        lines.append(
            f"{size} {frames:3d} {motion.MOTIONS[kind]:9} | {mean('psnr'):5.1f} {mean('static'):5.1f} "
            f"{mean('psnr') - mean('static'):+5.1f} | {mean('rms'):.3f} {mean('centroid_start'):5.0f} "
            f"{mean('centroid_end'):5.0f}"
        )
    return "\n".join(lines)


def ladder(pipeline: Pipeline, photo: Path, *, size: Size, frames: int = 25) -> tuple[float, dict[float, float]]:
    """PSNR to the picture of its VAE round trip, and of the first frame by strength."""
    truth = film(read_photo(photo), "still", frames=frames, size=size)
    rungs = {}
    for strength in (1.0, 0.7, 0.3, 0.0):
        clip = make(pipeline, truth[0], CAPTIONS["still"], frames=frames, strength=strength)
        rungs[strength] = psnr(clip.frames[0], truth[0])
    return psnr(round_trip(pipeline, truth)[0], truth[0]), rungs


def sheet(pipeline: Pipeline, photos: list[Path], path: Path, *, size: Size, frames: int = 25) -> None:
    """A contact sheet: a row per photo and motion, the true picture and then four frames."""
    rows = []
    for photo, name in zip(photos, motion.MOTIONS[1:] + motion.MOTIONS[:1], strict=False):
        truth = film(read_photo(photo), name, frames=frames, size=size)
        clip = make(pipeline, truth[0], CAPTIONS[name], frames=frames, strength=1.0)
        at = [0, frames // 3, 2 * frames // 3, frames - 1]
        rows.append(torch.cat([truth[0], *clip.frames[at], truth[-1]], 1))
    Image.fromarray((torch.cat(rows) * 255).round().byte().numpy()).save(path)


def cases(photos: list[Path], *, full: bool) -> Iterator[tuple[Path, str, int, Size]]:
    """Photo, motion, frames and size of each clip to score: every motion meets six photos, or all."""
    for i, photo in enumerate(photos):
        for j, name in enumerate(motion.MOTIONS):
            if full or (i + j) % len(photos) < 6:
                yield photo, name, 25, Size(256, 256)
            if full or (i + 3 * j) % len(photos) < 6:
                yield photo, name, 49, Size(384, 256)


def main() -> None:
    """Prints the table and, as JSON, every score."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--sheet", type=Path)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    pipeline = load(load_recipe("demo"), models=args.models, device="cpu")
    photos = sorted(PHOTOS.glob("*.jpg"))
    if args.sheet is not None:
        sheet(pipeline, photos, args.sheet, size=Size(256, 256))
    scores = [score(pipeline, p, n, frames=f, size=s) for p, n, f, s in cases(photos, full=args.full)]
    out: dict[str, Any] = {
        "scores": [asdict(s) for s in scores],
        "ladder": {p.stem: ladder(pipeline, p, size=Size(256, 256)) for p in photos[:3]},
    }
    sys.stdout.write(f"{table(scores)}\n{json.dumps(out['ladder'])}\n")
    if args.json is not None:
        args.json.write_text(json.dumps(out, indent=1))


if __name__ == "__main__":
    main()
