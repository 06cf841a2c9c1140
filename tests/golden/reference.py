"""A second implementation of the golden conventions, for parameters that no golden file has.

Written from the conventions alone, in double precision but for the modules; sections are those of the golden
README. It takes a sidecar's params and gives the tensors of the case under their golden names, one pass of the
transformer at a time.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.golden.reference_models import (
    Models,
    Streams,
    context,
    decoded,
    encoded,
    image_pixels,
    positions,
    upsampled,
    velocities,
)

DISTILLED = [1, 0.99375, 0.9875, 0.98125, 0.975, 0.909375, 0.725, 0.421875, 0]
REFINEMENT = [0.909375, 0.725, 0.421875, 0]
NO_GUIDANCE = {"cfg_scale": 1.0, "stg_scale": 0.0, "stg_blocks": (), "modality_scale": 1.0, "rescale_scale": 0.0}
EPS_32 = torch.finfo(torch.float32).eps


@torch.inference_mode()
def tensors(params: Mapping[str, Any], made: Models, *, image: Path | None) -> dict[str, Tensor]:
    """The tensors of the case that `params` describes."""
    grid = (params["frames"] - 1) // 8 + 1, params["height"] // 32, params["width"] // 32
    rng = torch.Generator().manual_seed(params["seed"])
    out: dict[str, Tensor] = {}
    stage = Stage(params, made, grid, round(params["frames"] / params["fps"] * 25), image=image, out=out)
    if len(params["num_model_calls"]) == 1:
        video, audio = stage.run(stage.sigmas(), rng)
    else:
        first = replace(stage, prefix="stage1.", grid=(grid[0], grid[1] // 2, grid[2] // 2))
        video, audio = first.run(first.sigmas(), rng)
        out["upsampled"] = upsampled(made, video)
        plain = {key: value for key, value in params.items() if key not in ("cfg", "video_guider", "audio_guider")}
        second = replace(stage, prefix="stage2.", params=plain)
        video, audio = second.run(REFINEMENT, rng, before=(tokens(out["upsampled"]), audio_tokens(audio)))
    out["video_latent"], out["audio_latent"] = video, audio
    return out | decoded(made, video, audio)


def tokens(latents: Tensor) -> Tensor:
    """Section 3."""
    return latents.flatten(2).transpose(1, 2)


def audio_tokens(latents: Tensor) -> Tensor:
    """Section 3."""
    return latents.transpose(1, 2).flatten(2)


@dataclass
class Stage:
    """One stage of a case."""

    params: Mapping[str, Any]
    made: Models
    grid: tuple[int, int, int]
    sounds: int
    image: Path | None
    out: dict[str, Tensor]
    prefix: str = ""
    calls: int = 0
    drawn: int = 0
    clean: Streams = field(init=False)
    masks: Streams = field(init=False)
    placed: Streams = field(init=False)

    @property
    def comfy(self) -> bool:
        """Whether the semantics are ComfyUI's."""
        return bool(self.params.get("semantics") == "comfy")

    def sigmas(self) -> list[float]:
        """Section 7."""
        if not (steps := self.params.get("steps")):
            return DISTILLED
        e = math.exp(self.params.get("schedule_tokens", math.prod(self.grid)) * 1.1 / 3072 + 0.95 - 1.1 / 3)
        t = [1 - i / steps for i in range(steps)]
        o = [(1 / x - 1) / (e + 1 / x - 1) for x in t]
        return [*(1 - 0.9 * x / o[-1] for x in o), 0.0]

    def run(self, sigmas: list[float], rng: torch.Generator, before: Streams | None = None) -> Streams:
        """Sections 4 and 5, then a sampler of section 7; gives latents."""
        noise = [torch.randn(1, n, 128, generator=rng) for n in (math.prod(self.grid), self.sounds)]
        initial = [torch.zeros_like(n) for n in noise] if before is None else list(before)
        clean, mask = initial[0].clone(), torch.ones(1, math.prod(self.grid), 1)
        if self.image is not None:
            height, width = self.grid[1] * 32, self.grid[2] * 32
            pixels = image_pixels(self.image, height=height, width=width, crf=self.params["crf"])
            latents = encoded(self.made, pixels)
            first = self.grid[1] * self.grid[2]
            clean[:, :first], mask[:, :first] = tokens(latents), 1 - self.params["strength"]
            self._put({"image_pixels": pixels, "image_latent": latents})
        self.clean = clean.double(), torch.zeros_like(noise[1]).double()
        self.masks = mask, torch.ones(1, self.sounds, 1)
        self.placed = positions(self.grid, fps=self.params["fps"], audio_tokens=self.sounds)
        self._put({"noise_video": noise[0], "noise_audio": noise[1], "video_denoise_mask": mask})
        self._put({"video_positions": self.placed[0], "audio_positions": self.placed[1]})
        self._put({"sigmas": torch.tensor(sigmas, dtype=torch.float64).float()})
        if self.comfy:
            # section 7: noise on every token; below it lie ComfyUI's latents, which have the image in frame 0
            initial[0] = clean
        x, y = (i.double() + (n.double() - i.double()) * sigmas[0] for i, n in zip(initial, noise, strict=True))
        sampler = {"euler": self._euler, "cfg_pp": self._cfg_pp, "res_2s": self._res_2s}[self.params["sampler"]]
        video, audio = sampler(self._kept((x, y)), sigmas)
        latents = video.float().transpose(1, 2).unflatten(2, self.grid)
        audio_latents = audio.float().unflatten(2, (8, 16)).transpose(1, 2)
        self._put({"video_latent": latents, "audio_latent": audio_latents})
        return latents, audio_latents

    def _put(self, made: Mapping[str, Tensor]) -> None:
        self.out |= {self.prefix + name: value for name, value in made.items()}

    def _blend(self, x: Streams) -> Streams:
        video, audio = (a * m + c * (1 - m) for a, c, m in zip(x, self.clean, self.masks, strict=True))
        return video, audio

    def _kept(self, x: Streams) -> Streams:
        return x if self.comfy else self._blend(x)

    def _predict(self, state: Streams, sigma: float, *, negative: bool = False) -> tuple[Streams, Streams]:
        """Section 6: the guided predictions, blended, and those of the negative prompt."""
        name = f"call{self.calls:02d}."
        self.calls += 1
        seen = self._blend(state) if self.comfy else state
        plain = {**NO_GUIDANCE, "cfg_scale": self.params.get("cfg", 1.0)}
        guiders = [{**plain, **self.params.get(f"{stream}_guider", {})} for stream in ("video", "audio")]
        wanted = {
            "cond": True,
            "uncond": negative or any(g["cfg_scale"] != 1 for g in guiders),
            "ptb": any(g["stg_scale"] != 0 for g in guiders),
            "mod": any(g["modality_scale"] != 1 for g in guiders),
        }
        passes = {key: self._pass(key, seen, sigma, guiders) for key in wanted if wanted[key]}
        self._put({f"{name}sigma": torch.tensor([sigma], dtype=torch.float64).float()})
        pushed = []
        for at, (stream, guider) in enumerate(zip(("video", "audio"), guiders, strict=True)):
            of = {key: x0[at] for key, x0 in passes.items()}
            pushed.append(_guided(of, guider))
            told = {"in": seen[at], "x0": pushed[at], **of}
            self._put({f"{name}{stream}_{key}": value.float() for key, value in told.items()})
        guided = pushed[0], pushed[1]
        return self._blend(guided), passes.get("uncond", guided)

    def _pass(self, key: str, seen: Streams, sigma: float, guiders: list[dict[str, Any]]) -> Streams:
        """Predictions of one pass."""
        blocks = [g["stg_blocks"] if key == "ptb" and g["stg_scale"] else () for g in guiders]
        moved = velocities(
            self.made,
            seen,
            sigma=sigma,
            masks=self.masks,
            placed=self.placed,
            context=context(self.made, self.params["negative_prompt" if key == "uncond" else "prompt"]),
            left_out=(blocks[0], blocks[1]),
            apart=key == "mod",
        )
        sigmas = [sigma if self.comfy else mask.double() * sigma for mask in self.masks]
        video, audio = (x - v * s for x, v, s in zip(seen, moved, sigmas, strict=True))
        return video, audio

    def _draw(self, rng: torch.Generator, *, normal: bool = False) -> Streams:
        """Section 4."""
        drawn = []
        for count in (math.prod(self.grid), self.sounds):
            n = torch.randn(1, count, 128, generator=rng, dtype=torch.float64 if normal else torch.float32)
            if normal:
                n = (n - n.mean()) / n.std()
                n = (n - n.mean((-2, -1), keepdim=True)) / n.std((-2, -1), keepdim=True)
            self._put({f"step_noise.{self.drawn:02d}": n})
            self.drawn += 1
            drawn.append(n.double())
        return drawn[0], drawn[1]

    def _euler(self, x: Streams, sigmas: list[float]) -> Streams:
        for s, t in pairwise(sigmas):
            x0, _ = self._predict(x, s)
            x = x[0] + (t - s) * (x[0] - x0[0]) / s, x[1] + (t - s) * (x[1] - x0[1]) / s
        return x

    def _cfg_pp(self, x: Streams, sigmas: list[float]) -> Streams:
        rng = torch.Generator().manual_seed(self.params["seed"] + 10_000)
        for s, t in pairwise(torch.tensor(sigmas)):
            x0, negative = self._predict(x, s.item(), negative=True)
            if t == 0:
                return x0
            a_s, a_t = (1 - s).clamp(min=EPS_32), 1 - t
            of_s, of_t = s / a_s, t / a_t
            up = torch.minimum(of_t, self.params["eta"] * (of_t**2 * (of_s**2 - of_t**2) / of_s**2).sqrt())
            down = (of_t**2 - up**2).sqrt()
            shares = [share.item() for share in (a_t, a_t * down, a_t * up)]
            video, audio = (
                shares[0] * d + shares[1] * (y - a_s.item() * u) / s.item() + shares[2] * n
                for d, y, u, n in zip(x0, x, negative, self._draw(rng), strict=True)
            )
            x = self._kept((video, audio))
        return x

    def _res_2s(self, x: Streams, sigmas: list[float]) -> Streams:
        step, substep = torch.Generator().manual_seed(-1), torch.Generator().manual_seed(9999)
        for s, t in pairwise([*sigmas[:-1], 0.0011]):
            h, middle = math.log(s / t), math.sqrt(s * t)
            a21, b2 = _phi1(-h / 2) / 2, 2 * _phi2(-h)
            b1 = _phi1(-h) - b2
            anchors = list(x)
            first, _ = self._predict(x, s)
            e1 = [d - a for d, a in zip(first, anchors, strict=True)]
            noise = self._draw(substep, normal=True)
            ways = [a + h * a21 * e for a, e in zip(anchors, e1, strict=True)]
            video, audio = (_sde(a, w, s, middle, n) for a, w, n in zip(anchors, ways, noise, strict=True))
            mid = self._kept((video, audio))
            for _ in range(100 if h < 0.5 and s > 0.03 else 0):
                anchors = [m - h * a21 * e for m, e in zip(mid, e1, strict=True)]
                e1 = [d - a for d, a in zip(first, anchors, strict=True)]
            second, _ = self._predict((mid[0].float().double(), mid[1].float().double()), middle)
            e2 = [d - a for d, a in zip(second, anchors, strict=True)]
            noise = self._draw(step, normal=True)
            ways = [a + h * (b1 * e + b2 * f) for a, e, f in zip(anchors, e1, e2, strict=True)]
            video, audio = (_sde(a, w, s, t, n) for a, w, n in zip(anchors, ways, noise, strict=True))
            video, audio = self._kept((video, audio))
            x = video.float().double(), audio.float().double()
        x0, _ = self._predict(x, 0.0011)
        return x0


def _guided(of: Mapping[str, Tensor], guider: Mapping[str, Any]) -> Tensor:
    """Section 6."""
    c = of["cond"]
    pushed = c + (guider["cfg_scale"] - 1) * (c - of.get("uncond", c)) + guider["stg_scale"] * (c - of.get("ptb", c))
    pushed = pushed + (guider["modality_scale"] - 1) * (c - of.get("mod", c))
    r = guider["rescale_scale"]
    return pushed * (r * c.std() / pushed.std() + (1 - r)) if r else pushed


def _sde(anchor: Tensor, way: Tensor, s: float, t: float, noise: Tensor) -> Tensor:
    """Section 7."""
    up = t / 2
    r = math.sqrt(t * t - up * up)
    q, k = 1 - t + r, (anchor - way) / (s - t)
    return q * (anchor - s * k + (r / q) * k) + up * noise


def _phi1(z: float) -> float:
    return math.expm1(z) / z


def _phi2(z: float) -> float:
    return (math.expm1(z) - z) / z**2
