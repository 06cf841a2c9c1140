"""The modules of the second implementation (`reference.py`): diffusers' own forward passes, called by the conventions.

Numbers of sections are those of the golden README. Of ours it uses the loader, which the golden files hold.
"""

import io
import math
from collections.abc import Mapping, Sequence
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

Streams = tuple[Tensor, Tensor]
"""Of video, of audio."""


@dataclass(frozen=True)
class Models:
    """The modules of a checkpoint, and the contexts read with them."""

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
    pairs, weights = load_file(path) if strength else {}, transformer.state_dict()
    for key in (key for key in pairs if key.endswith(".lora_A.weight")):
        module = key.removesuffix(".lora_A.weight")
        a, b = pairs[key].bfloat16(), pairs[f"{module}.lora_B.weight"].bfloat16()
        weight = weights[names.to_diffusers(f"model.{module}.weight", "transformer")]
        weight.copy_(((b * strength) @ a + weight).bfloat16())
    return transformer


def context(made: Models, prompt: str) -> Streams:
    """Section 2, with the padding."""
    if prompt not in made.contexts:
        batch = made.text_encoder.tokenizer(
            prompt.strip(),
            truncation=True,
            max_length=1024,
            padding="max_length",
            return_tensors="pt",
            padding_side="left",
        )
        states = made.text_encoder.model.model(
            input_ids=batch.input_ids, attention_mask=batch.attention_mask, output_hidden_states=True
        ).hidden_states
        stacked = torch.stack(states, -1).flatten(2)
        video, audio, _ = made.connectors(stacked, batch.attention_mask, padding_side="left")
        made.contexts[prompt] = video, audio
    return made.contexts[prompt]


def positions(grid: tuple[int, int, int], *, fps: float, audio_tokens: int) -> Streams:
    """Section 3, in float32."""
    i, y, x = (t.flatten() for t in torch.meshgrid(*(torch.arange(float(n)) for n in grid), indexing="ij"))
    rate = torch.tensor(fps, dtype=torch.float32)
    time = torch.stack([(8 * i - 7).clamp(min=0) / rate, (8 * i + 1).clamp(min=0) / rate], -1)
    rows, columns = (torch.stack([32 * cell, 32 * (cell + 1)], -1) for cell in (y, x))
    k = torch.arange(float(audio_tokens))
    # the hop and the sample rate one after the other: times 0.01 is another float32
    sound = torch.stack([(4 * k - 3).clamp(min=0), (4 * k + 1).clamp(min=0)], -1) * 160 / 16_000
    return torch.stack([time, rows, columns])[None], sound[None, None]


def velocities(
    made: Models,
    seen: Streams,
    *,
    sigma: float,
    masks: Streams,
    placed: Streams,
    context: Streams,
    left_out: tuple[Sequence[int], Sequence[int]],
    apart: bool,
) -> Streams:
    """Section 6, for one pass, with the gates of section 12, finding A.

    `left_out`: blocks whose self-attention passes its values through, for each stream; `apart`: no exchange.
    """
    model, scalar = made.transformer, torch.tensor([sigma], dtype=torch.float64).float()
    gates = model.av_cross_attn_video_a2v_gate, model.av_cross_attn_audio_v2a_gate
    handles = [gate.register_forward_pre_hook(lambda _, args: (scalar * 1000, *args[1:])) for gate in gates]
    for blocks, name in zip(left_out, ("attn1", "audio_attn1"), strict=True):
        attentions = [getattr(model.transformer_blocks[block], name) for block in blocks]
        handles += [a.register_forward_hook(_values_alone, with_kwargs=True) for a in attentions]
    try:
        video, audio = model(
            hidden_states=seen[0].float(),
            audio_hidden_states=seen[1].float(),
            encoder_hidden_states=context[0],
            audio_encoder_hidden_states=context[1],
            timestep=(masks[0][..., 0] * scalar) * 1000,
            audio_timestep=(masks[1][..., 0] * scalar) * 1000,
            sigma=scalar * 1000,
            video_coords=placed[0],
            audio_coords=placed[1],
            isolate_modalities=apart,
            use_cross_timestep=False,
            return_dict=False,
        )
    finally:
        for handle in handles:
            handle.remove()
    return video.double(), audio.double()


def _values_alone(attention: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], _out: Any) -> Tensor:
    """What self-attention puts out if every token sees itself alone: values, gates, output projection."""
    x = args[0] if args else kwargs["hidden_states"]
    values = attention.to_v(x).unflatten(-1, (attention.heads, -1))
    gates = 2 * attention.to_gate_logits(x).sigmoid()
    out: Tensor = attention.to_out[0]((values * gates[..., None]).flatten(2))
    return out


def encoded(made: Models, pixels: Tensor) -> Tensor:
    """Section 5."""
    mean, std = _statistics(made.vae)
    latents: Tensor = (made.vae.encode(pixels).latent_dist.mode() - mean) / std
    return latents


def upsampled(made: Models, latents: Tensor) -> Tensor:
    """Section 9."""
    mean, std = _statistics(made.vae)
    doubled: Tensor = (made.upsampler(latents * std + mean) - mean) / std
    return doubled


def decoded(made: Models, video: Tensor, audio: Tensor) -> dict[str, Tensor]:
    """Section 9: frames, the same as bytes, and the waveform, of latents."""
    mean, std = _statistics(made.vae)
    pixels = made.vae.decode(video * std + mean, return_dict=False)[0]
    frames = ((pixels[0].permute(1, 2, 3, 0) + 1) / 2).clamp(0, 1)
    tokens = audio.transpose(1, 2).flatten(2) * made.audio_vae.latents_std + made.audio_vae.latents_mean
    mel = made.audio_vae.decode(tokens.unflatten(2, (8, 16)).transpose(1, 2), return_dict=False)[0]
    return {"frames": frames, "frames_u8": (frames * 255).round().byte(), "wave": made.vocoder(mel)[0]}


def _statistics(vae: Any) -> Streams:
    mean, std = (s.view(1, -1, 1, 1, 1) for s in (vae.latents_mean, vae.latents_std))
    return mean, std


def image_pixels(path: Path, *, height: int, width: int, crf: int) -> Tensor:
    """Section 5, through a file as the reference does it."""
    with Image.open(path) as picture:
        rgb = np.asarray(picture.convert("RGB"))
    if crf:
        h, w = (side // 2 * 2 for side in rgb.shape[:2])
        file = io.BytesIO()
        with av.open(file, "w", format="mp4") as mp4:
            stream: Any = mp4.add_stream("libx264", rate=1, options={"crf": str(crf), "preset": "veryfast"})
            stream.height, stream.width, stream.pix_fmt = h, w, "yuv420p"
            # the golden files were made on two cores
            stream.codec_context.thread_count = 2
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(rgb[:h, :w]), format="rgb24")
            mp4.mux(stream.encode(frame.reformat(format="yuv420p")))
            mp4.mux(stream.encode())
        with av.open(io.BytesIO(file.getvalue())) as mp4:
            rgb = next(mp4.decode(video=0)).to_ndarray(format="rgb24")
    return filled(rgb, height=height, width=width)


def filled(rgb: Any, *, height: int, width: int, fit: str = "official") -> Tensor:
    """A picture made to fill a size: as section 5 has it, or section 13, item 5, for comfy."""
    h, w, _ = rgb.shape
    if fit == "comfy":
        x = round((w - w * (width / height) / (w / h)) / 2) if w / h > width / height else 0
        y = round((h - h * (w / h) / (width / height)) / 2) if w / h < width / height else 0
        cut = _scaled(rgb[y : h - y, x : w - x], height, width)
    else:
        scale = max(height / h, width / w)
        tall, wide = math.ceil(h * scale), math.ceil(w * scale)
        top, left = (tall - height) // 2, (wide - width) // 2
        cut = _scaled(rgb, tall, wide)[top : top + height, left : left + width]
    return torch.from_numpy(cut / 127.5 - 1).float().permute(2, 0, 1)[None, :, None]


def _scaled(rgb: Any, height: int, width: int) -> Any:
    return _line(_line(rgb.astype(np.float64), height).swapaxes(0, 1), width).swapaxes(0, 1)


def _line(x: Any, n: int) -> Any:
    """`x` read linearly at `n` places along its first axis; pixels are areas, beyond the ends the ends go on."""
    at = np.clip((np.arange(n) + 0.5) * len(x) / n - 0.5, 0, len(x) - 1)
    low = np.floor(at).astype(int)
    share = (at - low)[:, None, None]
    return x[low] * (1 - share) + x[np.minimum(low + 1, len(x) - 1)] * share
