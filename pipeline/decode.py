"""Latents to frames, a few latent frames at a time, equal to decoding all of them at once.

The decoder looks 13 latent frames around, so overlapping chunks cannot be exact. Instead every temporal convolution
keeps the last frames it has seen: a chunk goes in, and as many frames come out as no later chunk can change.
"""

import contextlib
import functools
from collections.abc import Generator, Iterator
from typing import Any, Final, Protocol

import torch
from torch import Tensor, nn

from pipeline.decoding import Tiles
from pipeline.plan import CELL_FRAMES
from pipeline.tiling import decode_tiles
from pipeline.types import Progress

LATENT_FRAMES: Final = 4
"""Latent frames a chunk: 32 frames."""


@torch.inference_mode()
def decode(vae: Any, latents: Tensor, *, latent_frames: int = LATENT_FRAMES) -> Iterator[Tensor]:
    """Frames of normalised latents, in order.

    Shapes: [1, 128, F, H, W] -> chunks of [n, 32H, 32W, 3], 8F-7 frames in all.
    Units: 0 black to 1 white, in the VAE's dtype.
    """
    for pixels in decode_pixels(vae, latents, latent_frames=latent_frames):
        yield _shown(pixels)


@torch.inference_mode()
def decode_in_tiles(vae: Any, latents: Tensor, *, tiles: Tiles) -> Generator[Progress, None, Iterator[Tensor]]:
    """As `decode`, for a device that has no room for the whole picture; gives its chunks once all tiles are decoded.

    Near the edges of tiles the frames differ from those of `decode`.
    """
    stream = functools.partial(decode_pixels, vae, latent_frames=1)
    mosaic = yield from decode_tiles(stream, latents, height=tiles, width=tiles)
    frames = (latents.shape[2] - 1) * CELL_FRAMES + 1
    starts = range(0, frames, CELL_FRAMES)
    return (_shown(mosaic.frames(n, min(n + CELL_FRAMES, frames), device=latents.device)) for n in starts)


@torch.inference_mode()
def decode_pixels(vae: Any, latents: Tensor, *, latent_frames: int = LATENT_FRAMES) -> Iterator[Tensor]:
    """Frames of normalised latents as the decoder puts them out.

    Shapes: [1, 128, F, H, W] -> chunks of [1, 3, n, 32H, 32W].
    Units: -1 black to 1 white, and beyond, in the VAE's dtype.
    """
    weight = vae.decoder.conv_in.conv.weight
    scaled = (latents * _channels(vae.latents_std, latents) + _channels(vae.latents_mean, latents)).to(weight)
    layers = _layers(vae.decoder)
    chunks = scaled.split(latent_frames, dim=2)
    for index, chunk in enumerate(chunks):
        for out in _through(layers, chunk, last=index == len(chunks) - 1, latent_frames=latent_frames):
            yield _unpatchify(out, vae.decoder.patch_size)


def to_bytes(frames: Tensor) -> Tensor:
    """Frames as a file has them, still on their device: a quarter of the bytes of float32 to bring over.

    Units: 0..1 to 0..255, uint8.
    """
    return (frames.float() * 255).round().to(torch.uint8)


@torch.inference_mode()
def encode(vae: Any, pixels: Tensor) -> Tensor:
    """Normalised latents of a clip: the mean of the posterior. Never in tiles, which would change the first frame.

    Shapes: [1, 3, 8k+1, H, W] in [-1, 1] -> [1, 128, k+1, H/32, W/32] float32.
    """
    # why: `vae.encode` would cut a large picture into tiles once tiling is switched on, and the encoder does not
    moments: Tensor = vae.encoder(pixels.to(vae.encoder.conv_in.conv.weight))
    latents = moments[:, : vae.config.latent_channels].float()
    return (latents - _channels(vae.latents_mean, latents)) / _channels(vae.latents_std, latents)


@torch.inference_mode()
def upsampled(upsampler: Any, vae: Any, latents: Tensor) -> Tensor:
    """Normalised latents of twice the size: the upsampler works on the VAE's own scale.

    Shapes: [1, 128, F, H, W] -> [1, 128, F, 2H, 2W], float32.
    Source: Lightricks/LTX-2 @400fd31, upsampler/model.py.
    """
    weight = next(upsampler.parameters())
    mean, std = _channels(vae.latents_mean, latents), _channels(vae.latents_std, latents)
    doubled: Tensor = upsampler((latents * std + mean).to(weight)).float()
    return (doubled - mean) / std


def denormalized_audio(audio_vae: Any, latents: Tensor) -> Tensor:
    """Audio latents on the scale of the audio VAE; its statistics are per (channel, bin). Shapes: [1, 8, A, 16]."""
    shape = (1, latents.shape[1], 1, -1)
    mean: Tensor = audio_vae.latents_mean.to(latents).view(shape)
    std: Tensor = audio_vae.latents_std.to(latents).view(shape)
    return latents * std + mean


@torch.inference_mode()
def decode_audio(audio_vae: Any, vocoder: Any, latents: Tensor) -> Tensor:
    """The sound of normalised audio latents.

    The vocoder runs in float32: in bfloat16 its spectra are 40 to 90 % worse (LTX-2 @400fd31, vocoder.py). By default
    cuDNN would round the inputs of float32 convolutions to 10 bits, fewer than float16 has.
    Shapes: [1, 8, A, 16] -> [2, (4A-3) * 480] at 48 kHz.
    """
    weight = next(audio_vae.decoder.parameters())
    mel = audio_vae.decode(denormalized_audio(audio_vae, latents).to(weight), return_dict=False)[0]
    kind = mel.device.type
    with (
        torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else contextlib.nullcontext(),
        torch.backends.cudnn.flags(enabled=torch.backends.cudnn.enabled, allow_tf32=False),
    ):
        waveform: Tensor = vocoder(mel.float())
    return waveform[0]


def _shown(pixels: Tensor) -> Tensor:
    """Frames, 0 black to 1 white. Shapes: [1, 3, n, H, W] -> [n, H, W, 3]."""
    return ((pixels[0].permute(1, 2, 3, 0) + 1) / 2).clamp(0, 1)


def _channels(statistics: Tensor, latents: Tensor) -> Tensor:
    return statistics.to(latents).view(1, -1, 1, 1, 1)


class _Layer(Protocol):
    """Takes the next frames, or none; gives the frames that are final, or None; `last` says no more will come.

    `rate` is how many of the frames it gives are one latent frame.
    """

    rate: int

    def __call__(self, x: Tensor | None, *, last: bool) -> Tensor | None: ...


def _through(layers: list[_Layer], chunk: Tensor, *, last: bool, latent_frames: int) -> Iterator[Tensor]:
    """What comes out behind the last layer once `chunk` has gone through all.

    The last chunk pushes out of every layer what it held back, 13 latent frames in all. So that they do not pile up
    to one large tensor, no layer is given more frames than a chunk has at its place, and what it made has gone all
    the way before it is given more.
    """
    todo: list[tuple[int, Tensor | None, bool]] = [(0, chunk, last)]
    while todo:
        at, x, last = todo.pop()
        x = layers[at](x, last=last)
        if at + 1 == len(layers):
            if x is not None:
                yield x
        elif x is not None:
            parts = x.split(layers[at].rate * latent_frames, 2)
            todo += [(at + 1, part, last and part is parts[-1]) for part in reversed(parts)]
        elif last:
            todo.append((at + 1, None, last))


def _layers(decoder: Any) -> list[_Layer]:
    layers: list[_Layer] = [_Conv(decoder.conv_in), *(_Resnet(block) for block in decoder.mid_block.resnets)]
    rate = 1
    for block in decoder.up_blocks:
        for upsampler in block.upsamplers:
            rate *= upsampler.stride[0]
            layers.append(_Upsample(upsampler, rate=rate))
        layers += [_Resnet(resnet, rate=rate) for resnet in block.resnets]
    return [*layers, _Conv(decoder.conv_out, before=nn.Sequential(decoder.norm_out, decoder.conv_act), rate=rate)]


class _Conv:
    """A convolution of three frames, the first and last frame of the clip standing in for what lies outside it."""

    def __init__(self, conv: Any, *, before: nn.Module | None = None, rate: int = 1) -> None:
        self._conv, self._before, self.rate = conv.conv, before, rate
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
        # a view would keep the whole window
        self._seen = window[:, :, -2:].clone()
        if window.shape[2] <= 2:
            return None
        out: Tensor = self._conv(window)
        return out


class _Resnet:
    """A residual block; its input waits for what the two convolutions hold back."""

    def __init__(self, block: Any, *, rate: int = 1) -> None:
        act, self.rate = block.nonlinearity, rate
        self._first = _Conv(block.conv1, before=nn.Sequential(block.norm1, act))
        self._second = _Conv(block.conv2, before=nn.Sequential(block.norm2, act))
        self._waiting: Tensor | None = None

    def __call__(self, x: Tensor | None, *, last: bool) -> Tensor | None:
        if x is not None:
            self._waiting = x if self._waiting is None else torch.cat([self._waiting, x], 2)
        out = self._second(self._first(x, last=last), last=last)
        if out is None or self._waiting is None:
            return None
        ready, rest = self._waiting.tensor_split([out.shape[2]], 2)
        self._waiting = rest.clone()
        return out + ready


class _Upsample:
    """A convolution whose channels become frames and pixels; of the clip's first frame, one frame remains."""

    def __init__(self, upsampler: Any, *, rate: int) -> None:
        self._conv, self._stride, self.rate = _Conv(upsampler.conv), upsampler.stride, rate
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
