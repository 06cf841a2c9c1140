"""Latents to frames, a few latent frames at a time, equal to decoding all of them at once.

The decoder looks 13 latent frames around, so overlapping chunks cannot be exact. Instead every temporal convolution
keeps the last frames it has seen: a chunk goes in, and as many frames come out as no later chunk can change.
"""

from collections.abc import Iterator
from typing import Any, Final, Protocol

import torch
from torch import Tensor, nn

LATENT_FRAMES: Final = 4
"""Latent frames a chunk: 32 frames."""


@torch.inference_mode()
def decode(vae: Any, latents: Tensor, *, latent_frames: int = LATENT_FRAMES) -> Iterator[Tensor]:
    """Frames of normalised latents, in order.

    Shapes: [1, 128, F, H, W] -> chunks of [n, 32H, 32W, 3], 8F-7 frames in all.
    Units: 0 black to 1 white, in the VAE's dtype.
    """
    weight = vae.decoder.conv_in.conv.weight
    scaled = (latents * _channels(vae.latents_std, latents) + _channels(vae.latents_mean, latents)).to(weight)
    layers = _layers(vae.decoder)
    chunks = scaled.split(latent_frames, dim=2)
    for index, chunk in enumerate(chunks):
        out: Tensor | None = chunk
        for layer in layers:
            out = layer(out, last=index == len(chunks) - 1)
        if out is not None:
            pixels = _unpatchify(out, vae.decoder.patch_size)
            yield ((pixels[0].permute(1, 2, 3, 0) + 1) / 2).clamp(0, 1)


def encode(vae: Any, pixels: Tensor) -> Tensor:
    """Normalised latents of a clip: the mean of the posterior.

    Shapes: [1, 3, 8k+1, H, W] in [-1, 1] -> [1, 128, k+1, H/32, W/32] float32.
    """
    weight = vae.encoder.conv_in.conv.weight
    latents: Tensor = vae.encode(pixels.to(weight), return_dict=False)[0].mode().float()
    return (latents - _channels(vae.latents_mean, latents)) / _channels(vae.latents_std, latents)


def denormalized_audio(audio_vae: Any, latents: Tensor) -> Tensor:
    """Audio latents on the scale of the audio VAE; its statistics are per (channel, bin). Shapes: [1, 8, A, 16]."""
    shape = (1, latents.shape[1], 1, -1)
    mean: Tensor = audio_vae.latents_mean.to(latents).view(shape)
    std: Tensor = audio_vae.latents_std.to(latents).view(shape)
    return latents * std + mean


@torch.inference_mode()
def decode_audio(audio_vae: Any, vocoder: Any, latents: Tensor) -> Tensor:
    """The sound of normalised audio latents.

    The vocoder runs in float32: in bfloat16 its spectra are 40 to 90 % worse (LTX-2 @400fd31, vocoder.py).
    Shapes: [1, 8, A, 16] -> [2, (4A-3) * 480] at 48 kHz.
    """
    weight = next(audio_vae.decoder.parameters())
    mel = audio_vae.decode(denormalized_audio(audio_vae, latents).to(weight), return_dict=False)[0]
    waveform: Tensor = vocoder(mel.float())
    return waveform[0]


def _channels(statistics: Tensor, latents: Tensor) -> Tensor:
    return statistics.to(latents).view(1, -1, 1, 1, 1)


class _Layer(Protocol):
    """Takes the next frames, or none; gives the frames that are final, or None; `last` says no more will come."""

    def __call__(self, x: Tensor | None, *, last: bool) -> Tensor | None: ...


def _layers(decoder: Any) -> list[_Layer]:
    layers: list[_Layer] = [_Conv(decoder.conv_in), *map(_Resnet, decoder.mid_block.resnets)]
    for block in decoder.up_blocks:
        layers += [*map(_Upsample, block.upsamplers), *map(_Resnet, block.resnets)]
    return [*layers, _Conv(decoder.conv_out, before=nn.Sequential(decoder.norm_out, decoder.conv_act))]


class _Conv:
    """A convolution of three frames, the first and last frame of the clip standing in for what lies outside it."""

    def __init__(self, conv: Any, *, before: nn.Module | None = None) -> None:
        self._conv, self._before = conv.conv, before
        self._seen: Tensor | None = None

    def __call__(self, x: Tensor | None, *, last: bool) -> Tensor | None:
        parts = []
        if x is not None:
            x = x if self._before is None else self._before(x)
            parts = [x[:, :, :1] if self._seen is None else self._seen, x]
        elif self._seen is not None:
            parts = [self._seen]
        if not parts:
            return None
        if last:
            parts.append(parts[-1][:, :, -1:])
        window = torch.cat(parts, 2)
        self._seen = window[:, :, -2:]
        if window.shape[2] <= 2:
            return None
        out: Tensor = self._conv(window)
        return out


class _Resnet:
    """A residual block; its input waits for what the two convolutions hold back."""

    def __init__(self, block: Any) -> None:
        act = block.nonlinearity
        self._first = _Conv(block.conv1, before=nn.Sequential(block.norm1, act))
        self._second = _Conv(block.conv2, before=nn.Sequential(block.norm2, act))
        self._waiting: Tensor | None = None

    def __call__(self, x: Tensor | None, *, last: bool) -> Tensor | None:
        if x is not None:
            self._waiting = x if self._waiting is None else torch.cat([self._waiting, x], 2)
        out = self._second(self._first(x, last=last), last=last)
        if out is None or self._waiting is None:
            return None
        ready, self._waiting = self._waiting.tensor_split([out.shape[2]], 2)
        return out + ready


class _Upsample:
    """A convolution whose channels become frames and pixels; of the clip's first frame, one frame remains."""

    def __init__(self, upsampler: Any) -> None:
        self._conv, self._stride = _Conv(upsampler.conv), upsampler.stride
        self._started = False

    def __call__(self, x: Tensor | None, *, last: bool) -> Tensor | None:
        out = self._conv(x, last=last)
        if out is None:
            return None
        t, h, w = self._stride
        batch, _, frames, height, width = out.shape
        out = out.reshape(batch, -1, t, h, w, frames, height, width).permute(0, 1, 5, 2, 6, 3, 7, 4)
        out = out.reshape(batch, -1, frames * t, height * h, width * w)
        if not self._started:
            out, self._started = out[:, :, t - 1 :], True
        return out


def _unpatchify(x: Tensor, patch: int) -> Tensor:
    """Pixels of channels ordered (colour, across, down). Shapes: [B, 3*p*p, F, H, W] -> [B, 3, F, H*p, W*p]."""
    batch, _, frames, height, width = x.shape
    x = x.reshape(batch, -1, patch, patch, frames, height, width).permute(0, 1, 4, 5, 3, 6, 2)
    return x.reshape(batch, -1, frames, height * patch, width * patch)
