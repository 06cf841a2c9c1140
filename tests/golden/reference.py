"""A second implementation of the golden conventions, for parameters that no golden file has.

Written from the conventions alone (golden README, sections 2 to 9; the section stands beside each part), on diffusers'
own forward passes and in double precision between them. It takes a sidecar's params and gives the tensors of the case
under their golden names, one pass of the transformer at a time. Of ours it uses the loader, which the golden files hold.
"""

import io
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from tests.golden.cases import CHECKPOINT, LORA, UPSAMPLER
from weights import names
from weights.checkpoint import Checkpoint, load_component
from weights.text_encoder import TextEncoder, load_text_encoder

DISTILLED = [1, 0.99375, 0.9875, 0.98125, 0.975, 0.909375, 0.725, 0.421875, 0]
REFINEMENT = [0.909375, 0.725, 0.421875, 0]
Streams = tuple[Tensor, Tensor]


@dataclass
class Models:
    """The modules of a checkpoint, and the contexts read with them."""

    folder: Path
    transformer: Any
    vae: Any
    audio_vae: Any
    vocoder: Any
    connectors: Any
    text_encoder: TextEncoder
    upsampler: Any
    contexts: dict[str, Streams] = field(default_factory=dict)


def models(folder: Path, *, lora: float) -> Models:
    """Everything in `folder`, the LoRA fused at strength `lora`."""
    checkpoint, upsampler = Checkpoint.open(folder / CHECKPOINT), Checkpoint.open(folder / UPSAMPLER)

    def load(kind: Any) -> Any:
        source = upsampler if kind == "upsampler" else checkpoint
        return load_component(source, kind, dtype=torch.float32, device="cpu")

    return Models(
        folder=folder,
        transformer=_fused(load("transformer"), folder / LORA, strength=lora),
        vae=load("vae"),
        audio_vae=load("audio_vae"),
        vocoder=load("vocoder"),
        connectors=load("connectors"),
        text_encoder=load_text_encoder(folder / "gemma", dtype=torch.float32, device="cpu"),
        upsampler=load("upsampler"),
    )


def _fused(transformer: Any, path: Path, *, strength: float) -> Any:
    """Section 8."""
    if not strength:
        return transformer
    pairs, weights = load_file(path), transformer.state_dict()
    for key in (key for key in pairs if key.endswith(".lora_A.weight")):
        module = key.removesuffix(".lora_A.weight")
        a, b = pairs[key].bfloat16(), pairs[f"{module}.lora_B.weight"].bfloat16()
        weight = weights[names.to_diffusers(f"model.{module}.weight", "transformer")]
        weight.copy_(((b * strength) @ a + weight).bfloat16())
    return transformer


@torch.inference_mode()
def tensors(params: Mapping[str, Any], made: Models, *, image: Path | None) -> dict[str, Tensor]:
    """The tensors of the case that `params` describes."""
    out: dict[str, Tensor] = {}
    grid = ((params["frames"] - 1) // 8 + 1, params["height"] // 32, params["width"] // 32)
    audio_tokens = round(params["frames"] / params["fps"] * 25)
    rng = torch.Generator().manual_seed(params["seed"])
    names_of_stages = tuple(params["num_model_calls"])
    steps = params.get("steps")
    sigmas = schedule(steps, params.get("schedule_tokens") or math.prod(grid)) if steps else DISTILLED
    if names_of_stages == ("stage",):
        stage = _Stage(params, made, out, "", grid, audio_tokens, image)
        video, audio = stage.run(sigmas, rng)
    else:
        half = (grid[0], grid[1] // 2, grid[2] // 2)
        if steps:
            sigmas = schedule(steps, params.get("schedule_tokens") or math.prod(half))
        video, audio = _Stage(params, made, out, "stage1.", half, audio_tokens, image).run(sigmas, rng)
        mean, std = (s.view(1, -1, 1, 1, 1) for s in (made.vae.latents_mean, made.vae.latents_std))
        out["upsampled"] = (made.upsampler(_latents(video, half).float() * std + mean) - mean) / std
        unguided = {k: v for k, v in params.items() if k not in ("cfg", "video_guider", "audio_guider")}
        second = _Stage(unguided, made, out, "stage2.", grid, audio_tokens, image)
        video, audio = second.run(REFINEMENT, rng, before=(_tokens(out["upsampled"]), audio))
    out["video_latent"], out["audio_latent"] = _latents(video, grid).float(), _sound(audio).float()
    return out | _decoded(made, out["video_latent"], out["audio_latent"])


def schedule(steps: int, tokens: int) -> list[float]:
    """Section 7."""
    e = math.exp(tokens * 1.1 / 3072 + 0.95 - 1.1 / 3)
    t = [1 - i / steps for i in range(steps)]
    o = [(1 / x - 1) / (e + 1 / x - 1) for x in t]
    return [1 - 0.9 * x / o[-1] for x in o] + [0.0]


@dataclass
class _Stage:
    params: Mapping[str, Any]
    made: Models
    out: dict[str, Tensor]
    prefix: str
    grid: tuple[int, int, int]
    audio_tokens: int
    image: Path | None
    calls: int = 0
    drawn: int = 0

    def run(self, sigmas: list[float], rng: torch.Generator, before: Streams | None = None) -> Streams:
        """Sections 4 and 5, then a sampler of section 7."""
        tokens = math.prod(self.grid)
        noise = torch.randn(1, tokens, 128, generator=rng), torch.randn(1, self.audio_tokens, 128, generator=rng)
        initial = (torch.zeros_like(noise[0]), torch.zeros_like(noise[1])) if before is None else before
        clean, mask = initial[0].clone() if before else torch.zeros_like(noise[0]), torch.ones(1, tokens, 1)
        if self.image is not None:
            pixels = image_pixels(
                self.image, height=self.grid[1] * 32, width=self.grid[2] * 32, crf=self.params["crf"]
            )
            z = self.made.vae.encode(pixels).latent_dist.mode()
            mean, std = (s.view(1, -1, 1, 1, 1) for s in (self.made.vae.latents_mean, self.made.vae.latents_std))
            latent = (z - mean) / std
            self._put("image_pixels", pixels)
            self._put("image_latent", latent)
            first = self.grid[1] * self.grid[2]
            clean[:, :first], mask[:, :first] = _tokens(latent), 1 - self.params["strength"]
        self.clean = clean.double(), torch.zeros_like(noise[1]).double()
        self.masks = mask, torch.ones(1, self.audio_tokens, 1)
        self.positions = self._positions()
        self._put("noise_video", noise[0])
        self._put("noise_audio", noise[1])
        self._put("video_positions", self.positions[0])
        self._put("audio_positions", self.positions[1])
        self._put("video_denoise_mask", mask)
        self._put("sigmas", torch.tensor(sigmas, dtype=torch.float64).float())
        sigma = sigmas[0]
        if self.comfy:
            # section 7: the state starts as noise on every token; of what lies below it, ComfyUI's latents hold clean
            initial = (clean, initial[1])
        x = [
            i.double() + (n.double() - i.double()) * sigma for i, n in zip(initial, noise, strict=True)
        ]
        state = (x[0], x[1]) if self.comfy else self._blend((x[0], x[1]))
        sampler = {"euler": self._euler, "cfg_pp": self._cfg_pp, "res_2s": self._res_2s}[self.params["sampler"]]
        video, audio = sampler(state, sigmas)
        self._put("video_latent", _latents(video, self.grid).float())
        self._put("audio_latent", _sound(audio).float())
        return video, audio

    @property
    def comfy(self) -> bool:
        return bool(self.params.get("semantics") == "comfy")

    def _put(self, name: str, value: Tensor) -> None:
        self.out[self.prefix + name] = value

    def _positions(self) -> Streams:
        """Section 3."""
        f, h, w = self.grid
        i, y, x = (t.flatten() for t in torch.meshgrid(*(torch.arange(float(n)) for n in (f, h, w)), indexing="ij"))
        fps = torch.tensor(self.params["fps"], dtype=torch.float32)
        time = torch.stack([(8 * i - 7).clamp(min=0) / fps, (8 * i + 1).clamp(min=0) / fps], -1)
        rows, columns = (torch.stack([32 * c, 32 * (c + 1)], -1) for c in (y, x))
        k = torch.arange(float(self.audio_tokens))
        sound = torch.stack([(4 * k - 3).clamp(min=0), (4 * k + 1).clamp(min=0)], -1) * 160 / 16_000
        return torch.stack([time, rows, columns])[None], sound[None, None]

    def _blend(self, x: Streams) -> Streams:
        video, audio = (a * m + c * (1 - m) for a, c, m in zip(x, self.clean, self.masks, strict=True))
        return video, audio

    def _predict(self, state: Streams, sigma: float, *, uncond: bool = False) -> tuple[Streams, Streams]:
        """Section 6: the guided predictions, blended, and those of the negative prompt."""
        name = f"call{self.calls:02d}."
        self.calls += 1
        seen = self._blend(state) if self.comfy else state
        guiders = [self._guider(stream) for stream in ("video", "audio")]
        wanted = {
            "uncond": uncond or any(g["cfg_scale"] != 1 for g in guiders),
            "ptb": any(g["stg_scale"] != 0 for g in guiders),
            "mod": any(g["modality_scale"] != 1 for g in guiders),
        }
        passes = {key: self._pass(seen, sigma, key, guiders) for key in ("cond", *(k for k in wanted if wanted[k]))}
        self._put(f"{name}sigma", torch.tensor([sigma], dtype=torch.float64).float())
        guided = []
        for at, stream in enumerate(("video", "audio")):
            of = {key: x0[at] for key, x0 in passes.items()}
            g, c = guiders[at], of["cond"]
            x0 = c + (g["cfg_scale"] - 1) * (c - of.get("uncond", c)) + g["stg_scale"] * (c - of.get("ptb", c))
            x0 = x0 + (g["modality_scale"] - 1) * (c - of.get("mod", c))
            if r := g["rescale_scale"]:
                x0 = x0 * (r * c.std() / x0.std() + (1 - r))
            guided.append(x0)
            self._put(f"{name}{stream}_in", seen[at].float())
            self._put(f"{name}{stream}_x0", x0.float())
            for key, value in of.items():
                self._put(f"{name}{stream}_{key}", value.float())
        return self._blend((guided[0], guided[1])), passes.get("uncond", (guided[0], guided[1]))

    def _guider(self, stream: str) -> dict[str, Any]:
        none = {"cfg_scale": self.params.get("cfg", 1.0), "stg_scale": 0.0, "stg_blocks": [], "modality_scale": 1.0}
        return {**none, "rescale_scale": 0.0, **self.params.get(f"{stream}_guider", {})}

    def _pass(self, seen: Streams, sigma: float, key: str, guiders: list[dict[str, Any]]) -> Streams:
        """Predictions of one pass, by diffusers' own forward with the gates of finding A."""
        model = self.made.transformer
        scalar = torch.tensor([sigma], dtype=torch.float64).float()
        context = self._context(self.params["negative_prompt" if key == "uncond" else "prompt"])
        blocks = [g["stg_blocks"] if key == "ptb" and g["stg_scale"] else [] for g in guiders]
        gates = model.av_cross_attn_video_a2v_gate, model.av_cross_attn_audio_v2a_gate
        handles = [g.register_forward_pre_hook(lambda _, args: (scalar * 1000, *args[1:])) for g in gates]
        skip: Callable[[Any, Any, Any], Any]
        for block in model.transformer_blocks:
            for attention, of in ((block.attn1, blocks[0]), (block.audio_attn1, blocks[1])):
                if list(model.transformer_blocks).index(block) in of:
                    skip = _values_alone
                    handles.append(attention.register_forward_hook(skip, with_kwargs=True))
        try:
            v = model(
                hidden_states=seen[0].float(),
                audio_hidden_states=seen[1].float(),
                encoder_hidden_states=context[0],
                audio_encoder_hidden_states=context[1],
                timestep=(self.masks[0][..., 0] * scalar) * 1000,
                audio_timestep=(self.masks[1][..., 0] * scalar) * 1000,
                sigma=scalar * 1000,
                video_coords=self.positions[0],
                audio_coords=self.positions[1],
                isolate_modalities=key == "mod",
                use_cross_timestep=False,
                return_dict=False,
            )
        finally:
            for handle in handles:
                handle.remove()
        video, audio = (
            x - velocity.double() * (1.0 if self.comfy else m.double()) * scalar.double()
            for x, velocity, m in zip(seen, v, self.masks, strict=True)
        )
        return video, audio

    def _context(self, prompt: str) -> Streams:
        """Section 2, with the padding."""
        if prompt not in self.made.contexts:
            encoder = self.made.text_encoder
            batch = encoder.tokenizer(
                prompt.strip(),
                truncation=True,
                max_length=1024,
                padding="max_length",
                return_tensors="pt",
                padding_side="left",
            )
            states = encoder.model.model(
                input_ids=batch.input_ids, attention_mask=batch.attention_mask, output_hidden_states=True
            ).hidden_states
            stacked = torch.stack(states, -1).flatten(2)
            video, audio, _ = self.made.connectors(stacked, batch.attention_mask, padding_side="left")
            self.made.contexts[prompt] = video, audio
        return self.made.contexts[prompt]

    def _euler(self, x: Streams, sigmas: list[float]) -> Streams:
        for s, t in zip(sigmas, sigmas[1:], strict=False):
            x0, _ = self._predict(x, s)
            x = x[0] + (t - s) * (x[0] - x0[0]) / s, x[1] + (t - s) * (x[1] - x0[1]) / s
        return x

    def _cfg_pp(self, x: Streams, sigmas: list[float]) -> Streams:
        rng = torch.Generator().manual_seed(self.params["seed"] + 10_000)
        one, eps = torch.tensor(1.0), torch.finfo(torch.float32).eps
        for s, t in zip(torch.tensor(sigmas).unbind(), torch.tensor(sigmas)[1:].unbind(), strict=False):
            x0, uncond = self._predict(x, s.item(), uncond=True)
            if t == 0:
                return x0
            a_s, a_t = (one - s).clamp(min=eps), one - t
            up = torch.minimum(t / a_t, self.params["eta"] * ((t / a_t) ** 2 * ((s / a_s) ** 2 - (t / a_t) ** 2) / (s / a_s) ** 2) ** 0.5)
            down = ((t / a_t) ** 2 - up**2) ** 0.5
            noise = self._draw(rng)
            x = tuple(
                a_t.double() * d + (a_t * down).double() * (y - a_s.double() * u) / s.double() + (a_t * up).double() * n
                for d, y, u, n in zip(x0, x, uncond, noise, strict=True)
            )
            if not self.comfy:
                x = self._blend(x)
        return x

    def _draw(self, rng: torch.Generator, *, normal: bool = False) -> Streams:
        drawn = []
        for tokens in (math.prod(self.grid), self.audio_tokens):
            n = torch.randn(1, tokens, 128, generator=rng, dtype=torch.float64 if normal else torch.float32)
            if normal:
                n = (n - n.mean()) / n.std()
                n = (n - n.mean((-2, -1), keepdim=True)) / n.std((-2, -1), keepdim=True)
            self._put(f"step_noise.{self.drawn:02d}", n)
            self.drawn += 1
            drawn.append(n.double())
        return drawn[0], drawn[1]

    def _res_2s(self, x: Streams, sigmas: list[float]) -> Streams:
        step, substep = torch.Generator().manual_seed(-1), torch.Generator().manual_seed(9999)
        sigmas = [*sigmas[:-1], 0.0011]

        def phi1(z: float) -> float:
            return math.expm1(z) / z

        def phi2(z: float) -> float:
            return (math.expm1(z) - z) / z**2

        def sde(a: Tensor, x: Tensor, s: float, t: float, z: Tensor) -> Tensor:
            up = t / 2
            r = math.sqrt(t * t - up * up)
            q, k = 1 - t + r, (a - x) / (s - t)
            return q * (a - s * k + (r / q) * k) + up * z

        for s, t in zip(sigmas, sigmas[1:], strict=False):
            h, mid_sigma = math.log(s / t), math.sqrt(s * t)
            a21, b2 = phi1(-h / 2) / 2, 2 * phi2(-h)
            b1 = phi1(-h) - b2
            first, _ = self._predict(x, s)
            noise = self._draw(substep, normal=True)
            anchors, e1s, mids = list(x), [], []
            for at in range(2):
                e1 = first[at] - anchors[at]
                mids.append(sde(anchors[at], anchors[at] + h * a21 * e1, s, mid_sigma, noise[at]))
                e1s.append(e1)
            mids = list(self._blend((mids[0], mids[1]))) if not self.comfy else mids
            if h < 0.5 and s > 0.03:
                for at in range(2):
                    for _ in range(100):
                        anchors[at] = mids[at] - h * a21 * e1s[at]
                        e1s[at] = first[at] - anchors[at]
            second, _ = self._predict((mids[0].float().double(), mids[1].float().double()), mid_sigma)
            noise = self._draw(step, normal=True)
            ends = [
                sde(a, a + h * (b1 * e1 + b2 * (d - a)), s, t, n)
                for a, e1, d, n in zip(anchors, e1s, second, noise, strict=True)
            ]
            x = (ends[0], ends[1]) if self.comfy else self._blend((ends[0], ends[1]))
            x = x[0].float().double(), x[1].float().double()
        x0, _ = self._predict(x, 0.0011)
        return x0


def _values_alone(attention: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], _out: Any) -> Tensor:
    """What self-attention puts out if each token attends to itself: values, gate and output projection (section 6)."""
    x = args[0] if args else kwargs["hidden_states"]
    values = attention.to_v(x).unflatten(-1, (attention.heads, -1))
    gates = 2 * attention.to_gate_logits(x).sigmoid()
    out: Tensor = attention.to_out[0]((values * gates[..., None]).flatten(2))
    return out


def image_pixels(path: Path, *, height: int, width: int, crf: int) -> Tensor:
    """Section 5, resized by hand."""
    with Image.open(path) as picture:
        rgb = np.asarray(picture.convert("RGB"))
    if crf:
        h, w = (side // 2 * 2 for side in rgb.shape[:2])
        file = io.BytesIO()
        with av.open(file, "w", format="mp4") as mp4:
            stream = mp4.add_stream("libx264", rate=1, options={"crf": str(crf), "preset": "veryfast"})
            stream.height, stream.width, stream.pix_fmt = h, w, "yuv420p"
            # as the golden files were made, on two cores
            stream.codec_context.thread_count = 2
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(rgb[:h, :w]), format="rgb24")
            mp4.mux(stream.encode(frame.reformat(format="yuv420p")))
            mp4.mux(stream.encode())
        with av.open(io.BytesIO(file.getvalue())) as mp4:
            rgb = next(mp4.decode(video=0)).to_ndarray(format="rgb24")
    scale = max(height / rgb.shape[0], width / rgb.shape[1])
    sides = math.ceil(rgb.shape[0] * scale), math.ceil(rgb.shape[1] * scale)
    tall = _line(_line(rgb.astype(np.float64), sides[0]).swapaxes(0, 1), sides[1]).swapaxes(0, 1)
    top, left = (sides[0] - height) // 2, (sides[1] - width) // 2
    cut = tall[top : top + height, left : left + width]
    return torch.from_numpy(cut / 127.5 - 1).float().permute(2, 0, 1)[None, :, None]


def _line(x: Any, n: int) -> Any:
    """`x` resampled linearly to `n` along its first axis, pixels being areas, the ends repeated."""
    at = np.clip((np.arange(n) + 0.5) * len(x) / n - 0.5, 0, len(x) - 1)
    low = np.floor(at).astype(int)
    high = np.minimum(low + 1, len(x) - 1)
    share = (at - low)[:, None, None]
    return x[low] * (1 - share) + x[high] * share


def _decoded(made: Models, video: Tensor, audio: Tensor) -> dict[str, Tensor]:
    """Section 9."""
    mean, std = (s.view(1, -1, 1, 1, 1) for s in (made.vae.latents_mean, made.vae.latents_std))
    pixels = made.vae.decode(video * std + mean, return_dict=False)[0]
    frames = ((pixels[0].permute(1, 2, 3, 0) + 1) / 2).clamp(0, 1)
    tokens = audio.transpose(1, 2).flatten(2) * made.audio_vae.latents_std + made.audio_vae.latents_mean
    mel = made.audio_vae.decode(_sound(tokens), return_dict=False)[0]
    return {
        "frames": frames,
        "frames_u8": (frames * 255).round().byte(),
        "wave": made.vocoder(mel)[0],
    }


def _tokens(latents: Tensor) -> Tensor:
    return latents.flatten(2).transpose(1, 2)


def _latents(tokens: Tensor, grid: tuple[int, int, int]) -> Tensor:
    return tokens.transpose(1, 2).unflatten(2, grid)


def _sound(tokens: Tensor) -> Tensor:
    return tokens.unflatten(2, (8, 16)).transpose(1, 2)
