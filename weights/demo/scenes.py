"""Procedural clips to train on: coloured shapes and 1/f textures under a moving camera. Nothing photographic."""

from typing import Final

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw

from weights.demo import motion

Pixels = npt.NDArray[np.uint8]
Grey = npt.NDArray[np.float64]

CANVAS: Final = 256
"""Side of a canvas, in quarter-size pixels: 1,024 pixels of a clip."""
QUARTER: Final = 4
FPS: Final = 24


def canvas(rng: np.random.Generator) -> Pixels:
    """One picture: gradient, dead leaves of power-law size, texture. Shapes: [CANVAS, CANVAS, 3] uint8."""
    side = 2 * CANVAS
    y, x = np.mgrid[0:side, 0:side] / side
    angle = rng.uniform(0, 2 * np.pi)
    ramp = np.clip((x - 0.5) * np.cos(angle) + (y - 0.5) * np.sin(angle) + 0.5, 0, 1)[..., None]
    picture = Image.fromarray((_colour(rng) * (1 - ramp) + _colour(rng) * ramp).astype(np.uint8))
    draw = ImageDraw.Draw(picture)
    smallest, largest = 8, side * 0.4
    for _ in range(int(rng.choice([40, 120, 300, 700]))):
        # radius with density r^-2.5: the sizes of occluding objects in natural scenes
        radius = (smallest**-1.5 + rng.uniform() * (largest**-1.5 - smallest**-1.5)) ** (-1 / 1.5)
        cx, cy = rng.uniform(-0.1 * side, 1.1 * side, 2)
        fill = _colour(rng)
        if rng.uniform() < 0.6:
            fill = fill.mean() + 0.4 * (fill - fill.mean())
        _leaf(draw, rng, float(cx), float(cy), float(radius), tuple(int(v) for v in fill))
    out = np.asarray(picture.resize((CANVAS, CANVAS), Image.Resampling.LANCZOS), float)
    if rng.uniform() < 0.7:
        out = out + _texture(rng, rng.uniform(0.2, 1.6))[..., None] * rng.uniform(0, 70)
    out = out + _texture(rng, 1.3)[..., None] * rng.standard_normal(3) * rng.uniform(0, 15)
    out = 128 + (out - out.mean()) * rng.uniform(0.8, 1.8) + rng.uniform(-30, 30)
    picked: Pixels = np.clip(out, 0, 255).astype(np.uint8)
    return picked


def _colour(rng: np.random.Generator) -> npt.NDArray[np.float64]:
    return rng.integers(0, 256, 3).astype(np.float64)


def _leaf(
    draw: ImageDraw.ImageDraw, rng: np.random.Generator, x: float, y: float, r: float, fill: tuple[int, ...]
) -> None:
    match int(rng.integers(0, 4)):
        case 0:
            flat = float(rng.uniform(0.4, 1))
            draw.ellipse([x - r, y - r * flat, x + r, y + r * flat], fill=fill)
        case 1:
            draw.rectangle([x - r, y - r * 0.6, x + r, y + r * 0.7], fill=fill)
        case 2:
            corners = sorted(rng.uniform(0, 2 * np.pi, int(rng.integers(3, 7))))
            draw.polygon([(x + r * np.cos(t), y + r * np.sin(t)) for t in corners], fill=fill)
        case _:
            end = (x + float(rng.uniform(-2, 2)) * r, y + float(rng.uniform(-2, 2)) * r)
            draw.line([(x, y), end], fill=fill, width=int(rng.integers(2, 12)))


def _texture(rng: np.random.Generator, power: float) -> Grey:
    f = np.fft.fftfreq(CANVAS)
    radius = np.hypot(f[:, None], f[None])
    radius[0, 0] = 1
    noise = np.fft.ifft2(np.fft.fft2(rng.standard_normal((CANVAS, CANVAS))) / radius**power).real
    unit: Grey = (noise - noise.mean()) / noise.std()
    return unit


def bank(count: int, seed: int) -> torch.Tensor:
    """`count` canvases. Shapes: [count, 3, CANVAS, CANVAS] uint8."""
    rng = np.random.default_rng(seed)
    return torch.from_numpy(np.stack([canvas(rng) for _ in range(count)])).permute(0, 3, 1, 2).contiguous()


def film(
    picture: torch.Tensor, name: str, frames: int, size: tuple[int, int], *, centre: tuple[float, float], scale: float
) -> torch.Tensor:
    """Films one canvas with one camera motion, at a quarter of the clip's size.

    Shapes: `picture` [3, S, S] uint8; `size` (height, width) of the clip in pixels -> [3, frames, height/4, width/4]
    in [-1, 1].
    Units: `centre` in canvas pixels from the middle, `scale` canvas pixels per quarter-size pixel.
    """
    height, width = size[0] // QUARTER, size[1] // QUARTER
    right, down, magnification = motion.camera(name, torch.arange(frames) / FPS)
    y = torch.arange(height) - (height - 1) / 2
    x = torch.arange(width) - (width - 1) / 2
    half = picture.shape[-1] / 2
    u = (x[None] / magnification[:, None] + right[:, None] / QUARTER) * scale + centre[0]
    v = (y[None] / magnification[:, None] + down[:, None] / QUARTER) * scale + centre[1]
    grid = torch.stack(
        [(u / half)[:, None, :].expand(-1, height, -1), (v / half)[:, :, None].expand(-1, -1, width)], -1
    )
    source = (picture.float() / 127.5 - 1)[None]
    shot = F.grid_sample(
        source.expand(frames, -1, -1, -1), grid, mode="bicubic", padding_mode="reflection", align_corners=False
    )
    return shot.clamp(-1, 1).movedim(0, 1)
