"""Hand-set weights for the audio VAE and the vocoder: an organ with a pipe for each of 64 mel bins, left and right.

Channels 0 and 1 of a latent are the log-mel levels of 16 bands on each side. The decoder repeats and smooths them to
64 bins; the vocoder sounds a sine for each bin, and its bandwidth extension adds nothing.
The norms are made linear as in `video_vae.py`.
"""

import json
import math
from itertools import product
from typing import Any, Final

import torch
from diffusers import AutoencoderKLLTX2Audio
from diffusers.pipelines.ltx2 import LTX2VocoderWithBWE
from torch import nn

from weights import config
from weights.demo import motion, seeded

AUDIO_VAE_CONFIG: Final = json.dumps(
    {
        "model": {
            "params": {
                "sampling_rate": 16000,
                "ddconfig": {
                    "ch": 128,
                    "out_ch": 2,
                    "in_channels": 2,
                    "ch_mult": [1, 1, 1],
                    "num_res_blocks": 1,
                    "attn_resolutions": [],
                    "resolution": 256,
                    "z_channels": 8,
                    "double_z": True,
                    "norm_type": "pixel",
                    "causality_axis": "height",
                    "dropout": 0.0,
                    "mid_block_add_attention": False,
                    "mel_bins": 64,
                },
            }
        },
        "preprocessing": {
            "stft": {"filter_length": 1024, "hop_length": 160, "win_length": 1024, "causal": True},
            "mel": {"n_mel_channels": 64, "mel_fmin": 0, "mel_fmax": 8000},
            "audio": {"sampling_rate": 16000, "stereo": True},
        },
    }
)
"""The `audio_vae` section of the demo checkpoint's configuration, as JSON."""

_GENERATOR: Final = {
    "resblock": "AMP1",
    "stereo": True,
    "activation": "snakebeta",
    "use_tanh_at_final": False,
    "use_bias_at_final": False,
    "resblock_kernel_sizes": [3],
    "resblock_dilation_sizes": [[1, 3, 5]],
}
VOCODER_CONFIG: Final = json.dumps(
    {
        "vocoder": {
            **_GENERATOR,
            "upsample_initial_channel": 128,
            "upsample_rates": [5, 2, 2, 2, 2, 2],
            "upsample_kernel_sizes": [11, 4, 4, 4, 4, 4],
        },
        "bwe": {
            **_GENERATOR,
            "apply_final_activation": False,
            "upsample_initial_channel": 32,
            "upsample_rates": [6, 5, 2, 2, 2],
            "upsample_kernel_sizes": [12, 11, 4, 4, 4],
            "input_sampling_rate": 16000,
            "output_sampling_rate": 48000,
            "n_fft": 512,
            "win_size": 512,
            "hop_length": 80,
            "num_mels": 64,
        },
    }
)
"""The `vocoder` section of the demo checkpoint's configuration, as JSON."""

MEAN: Final = -7.0
STD: Final = 4.0
"""A normalised latent is (log-mel - MEAN) / STD."""
FLOOR: Final = MEAN + STD * motion.SILENCE
CONSTANT: Final = 2.0**14

BINS: Final = 64
SIDES: Final = range(2)
HOP: Final = 160
"""Samples at 16 kHz in a mel frame."""
STEP: Final = 32
"""Samples that leave the vocoder's first upsampler in one channel each, to be laid out in time by the others."""
PITCH: Final = 100
"""Hz, 16 kHz by HOP: sines of its multiples go on without a break from one frame to the next."""
LOUDNESS: Final = 0.025
"""Amplitude of a sine per unit of log-mel above silence."""


def build_audio_vae() -> nn.Module:
    """The audio VAE, in float32."""
    arguments: dict[str, Any] = config.audio_vae_arguments(json.loads(AUDIO_VAE_CONFIG))
    vae: Any = AutoencoderKLLTX2Audio(**arguments)
    with torch.no_grad():
        for parameter in vae.parameters():
            parameter.zero_()
        vae.latents_mean.fill_(MEAN)
        vae.latents_std.fill_(STD)
        _set_decoder(vae.decoder)
        _set_encoder(vae.encoder)
    frozen: nn.Module = vae.eval().requires_grad_(False)
    return frozen


def build_vocoder() -> nn.Module:
    """The vocoder with its bandwidth extension, in float32."""
    arguments: dict[str, Any] = config.vocoder_arguments(json.loads(VOCODER_CONFIG))
    vocoder: nn.Module = LTX2VocoderWithBWE(**arguments)
    with torch.no_grad():
        for name, parameter in vocoder.named_parameters():
            # snake(x) = x + sin^2(a x) / b with a and b stored as logarithms: together e^-8 make it the identity
            parameter.fill_({"alpha": -8.0, "beta": 8.0}.get(name.rpartition(".")[2], 0.0))
        _set_organ(vocoder.vocoder)
        _set_spectrum(vocoder.mel_stft)
    return vocoder.eval().requires_grad_(False)


def _set_decoder(decoder: Any) -> None:
    """Kernels are [out, in, time, band]; they are causal in time, so that the last tap is now."""
    channels = torch.arange(8)
    decoder.conv_in.conv.weight[channels, channels, 2, 1] = 1
    # levels above silence, so that the zeros around the picture are silent
    decoder.conv_in.conv.bias[channels] = -FLOOR
    for level in (2, 1):
        # bands and frames have been repeated: a triangle over bands and a mean over frames smooth the steps
        smooth = torch.tensor([0.25, 0.5, 0.25]) / 2
        weight = decoder.up[level].upsample.conv.conv.weight
        weight[channels, channels, 1] = smooth
        weight[channels, channels, 2] = smooth
    decoder.up[0].block[-1].conv2.conv.bias[-1] = CONSTANT
    _set_last(decoder.conv_out.conv.weight)
    decoder.conv_out.conv.bias.fill_(FLOOR)


def _set_encoder(encoder: Any) -> None:
    for side in SIDES:
        encoder.conv_in.conv.weight[side, side, 2, 1] = 1
        for level in range(2):
            encoder.down[level].downsample.conv.weight[side, side, 1:3, 0:2] = 0.25
    encoder.mid.block_2.conv2.conv.bias[-1] = CONSTANT
    _set_last(encoder.conv_out.conv.weight)


def _set_last(weight: torch.Tensor) -> None:
    for side in SIDES:
        weight[side, side, 2, 1] = 2 * CONSTANT / weight.shape[1] ** 0.5


def _set_organ(vocoder: Any) -> None:
    bins = 2 * BINS
    vocoder.conv_in.weight[torch.arange(bins), torch.arange(bins), 3] = 1
    vocoder.conv_in.bias[:bins] = -FLOOR
    # each frame sounds for two hops under a triangle; neighbours overlap, and their sum follows the levels linearly
    sample = torch.arange(2 * HOP)
    window = (1 - ((sample - (HOP - 0.5)) / HOP).abs()).clamp(min=0)
    phases = seeded.normal("organ", (BINS,)).float()
    for bin_, centre in enumerate(motion.mel_centres(BINS)):
        pitch = min(max(round(centre / PITCH), 1), HOP // 2 - 1)
        wave = torch.sin(2 * math.pi * pitch * sample / HOP + math.pi * phases[bin_]) * window
        wave = wave * LOUDNESS / (1 + centre / 2500)  # softer towards the treble, where ears are keen
        for side in SIDES:
            taps = wave.reshape(2 * HOP // STEP, STEP).T
            vocoder.upsamplers[0].weight[side * BINS + bin_, side * STEP : (side + 1) * STEP, : taps.shape[1]] = taps
    width = STEP
    for layer in vocoder.upsamplers[1:]:
        # the middle taps of a kernel of 4 are the two phases: the upper half of the channels follows the lower in time
        width //= 2
        for side, half, channel in product(SIDES, range(2), range(width)):
            layer.weight[side * 2 * width + half * width + channel, side * width + channel, 1 + half] = 1
    for side in SIDES:
        vocoder.conv_out.weight[side, side, 3] = 1


def _set_spectrum(mel_stft: Any) -> None:
    """Bases of a Hann-windowed Fourier transform and of mel filters, as every file carries them."""
    length = mel_stft.stft_fn.forward_basis.shape[-1]
    time, frequency = torch.arange(length), torch.arange(length // 2 + 1)
    angle = 2 * math.pi * ((frequency[:, None] * time[None]) % length) / length
    basis = torch.cat([angle.cos(), -angle.sin()]) * torch.hann_window(length)
    mel_stft.stft_fn.forward_basis.copy_(basis[:, None])
    mel_stft.stft_fn.inverse_basis.copy_(basis[:, None] * 4 / length)
    hertz = frequency * 16000 / length
    middle = motion.mel_centres(BINS)
    corners = torch.tensor([0.0, *middle, 8000.0])
    low, centre, high = (corners[i : i + BINS, None] for i in range(3))
    mel_stft.mel_basis.copy_(
        torch.minimum((hertz - low) / (centre - low), (high - hertz) / (high - centre)).clamp(min=0)
    )
