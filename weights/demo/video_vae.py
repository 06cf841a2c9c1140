"""Hand-set weights for the video VAE: the latent space of `latents.py`, without training.

How a network with norms and activations is made linear:
- A residual block whose second convolution is zero is the identity.
- A downsampler adds the average of its input to its convolution, each channel's under the channel's own number.
  Convolutions therefore write above those, where one tap sends every phase of a channel to a channel of its own.
- A constant CONSTANT times larger than any signal goes through the last norm. The norm then divides by a fixed number,
  and SiLU halves what is left of the signals, as they are small. The last convolution multiplies by the inverse.
"""

import json
from itertools import product
from typing import Any, Final

import torch
from diffusers import AutoencoderKLLTX2Video
from torch import nn

from weights import config
from weights.demo import latents

CONFIG: Final = json.dumps(
    {
        "_class_name": "CausalVideoAutoencoder",
        "dims": 3,
        "in_channels": 3,
        "out_channels": 3,
        "latent_channels": latents.CHANNELS,
        "patch_size": 4,
        "norm_layer": "pixel_norm",
        "latent_log_var": "uniform",
        "encoder_base_channels": 128,
        "encoder_blocks": [
            ["res_x", {"num_layers": 1}],
            ["compress_space_res", {"multiplier": 1}],
            ["res_x", {"num_layers": 1}],
            ["compress_time_res", {"multiplier": 1}],
            ["res_x", {"num_layers": 1}],
            ["compress_all_res", {"multiplier": 1}],
            ["res_x", {"num_layers": 1}],
            ["compress_all_res", {"multiplier": 4}],
            ["res_x", {"num_layers": 0}],
        ],
        "decoder_base_channels": 16,
        "decoder_blocks": [
            ["res_x", {"num_layers": 1}],
            ["compress_space", {"multiplier": 2}],
            ["res_x", {"num_layers": 1}],
            ["compress_time", {"multiplier": 2}],
            ["res_x", {"num_layers": 1}],
            ["compress_all", {"multiplier": 1}],
            ["res_x", {"num_layers": 1}],
            ["compress_all", {"multiplier": 2}],
            ["res_x", {"num_layers": 1}],
        ],
        "causal_decoder": False,
        "timestep_conditioning": False,
        "spatial_padding_mode": "replicate",
        "encoder_spatial_padding_mode": "zeros",
    }
)
"""The `vae` section of the demo checkpoint's configuration, as JSON.

The encoder needs zeros around the picture, to see its edges; the decoder would fade to grey there, so it repeats them.
"""

CONSTANT: Final = 2.0**14
NOW: Final = 2
"""Last tap in time of a causal kernel."""
MID: Final = 1
PAIR: Final = range(2)
PHASES: Final = range(4)
"""Position in a 2x2 block, row first."""
PATCH: Final = 4

LUMA_FILTER: Final = 32
"""The encoder's last downsampler averages onto channels below 8 x 32."""


def build_video_vae() -> nn.Module:
    """The VAE, in float32."""
    arguments: dict[str, Any] = config.vae_arguments(json.loads(CONFIG))
    vae: Any = AutoencoderKLLTX2Video(**arguments)
    with torch.no_grad():
        for parameter in vae.parameters():
            parameter.zero_()
        vae.latents_mean.zero_()
        vae.latents_std.copy_(latents.std())
        _set_encoder(vae.encoder)
        _set_decoder(vae.decoder)
    frozen: nn.Module = vae.eval().requires_grad_(False)
    return frozen


def _weight(layer: Any) -> torch.Tensor:
    """Shapes: [out, in, time, row, column]."""
    weight: torch.Tensor = layer.conv.weight
    return weight


def _luma(fine: int, middle: int, coarse: int) -> int:
    """Latent channel of a luma sample by its place in a 2x2 block of 8, of 16 and of 32 pixels."""
    return latents.LUMA.start + fine * 16 + middle * 4 + coarse


def _chroma(which: int, middle: int, coarse: int) -> int:
    return latents.CHROMA.start + which * 16 + middle * 4 + coarse


def _halves(middle: int, coarse: int) -> int:
    return latents.HALVES.start + middle * 4 + coarse


def _set_encoder(encoder: Any) -> None:
    mixes = _weight(encoder.conv_in)
    for out, colour in product(range(3), range(3)):
        at = slice(colour * PATCH**2, (colour + 1) * PATCH**2)
        mixes[out, at, NOW, MID, MID] = latents.RGB_TO_YCC[out, colour] / PATCH**2
    space, time, both, last = (
        _weight(block.downsamplers[0].conv)[:, :, NOW, MID, MID] for block in encoder.down_blocks
    )
    space[1, 0] = 1  # luma -> 4..7: its four phases
    for fine in PHASES:
        time[4 + fine, 4 + fine] = 1  # -> 8 + 2 fine + frame
        both[2 + fine, 8 + 2 * fine : 10 + 2 * fine] = 0.5  # the mean of two frames -> 16 + 8 fine + (frame, phase)
    for which in PAIR:
        both[6 + which, 1 + which] = 1  # Cb and Cr -> 48 + 8 which + (frame, phase)
    luma, chroma = LUMA_FILTER, LUMA_FILTER + 16
    for middle in PHASES:
        for fine in PHASES:
            for frame in PAIR:
                last[luma + fine * 4 + middle, 16 + 8 * fine + 4 * frame + middle] = 0.5
        for which, frame in product(PAIR, PAIR):
            last[chroma + which * 4 + middle, 48 + 8 * which + 4 * frame + middle] = 0.5
    constant = LUMA_FILTER + 24
    encoder.down_blocks[-1].downsamplers[0].conv.conv.bias[constant] = CONSTANT
    _set_latents(encoder, luma, chroma, constant)


def _set_latents(encoder: Any, luma: int, chroma: int, constant: int) -> None:
    out = _weight(encoder.conv_out)
    # 8 of the channels are CONSTANT: the norm divides by the root of their share, and SiLU by 2
    rms = CONSTANT * (8 / out.shape[1]) ** 0.5
    gain = 2 * rms
    now = out[:, :, NOW, MID, MID]
    for middle, coarse, half in product(PHASES, PHASES, PAIR):
        for fine in PHASES:
            source = 8 * (luma + fine * 4 + middle) + 4 * half + coarse
            now[_luma(fine, middle, coarse), source] = gain / 2
            now[_halves(middle, coarse), source] = gain / 4 * (1 if half else -1)
        for which in PAIR:
            now[_chroma(which, middle, coarse), 8 * (chroma + which * 4 + middle) + 4 * half + coarse] = gain / 2
    # a neighbour outside the picture is 0, where every cell inside it has the constant
    level = nn.functional.silu(torch.tensor(CONSTANT / rms)).item()
    left, right, top, bottom = range(latents.MARKS.start, latents.MARKS.stop)
    for mark, row, column in ((left, 1, 0), (right, 1, 2), (top, 0, 1), (bottom, 2, 1)):
        out[mark, 8 * constant, NOW, MID, MID] = 1 / level
        out[mark, 8 * constant, NOW, row, column] = -1 / level


def _set_decoder(decoder: Any) -> None:
    _weight(decoder.conv_in)[:, :, MID, MID, MID] = torch.eye(latents.CHANNELS)
    first, second, time, space = (_weight(block.upsamplers[0].conv) for block in decoder.up_blocks)
    cell = first[:, :, MID, MID, MID]
    for frame, coarse, middle in product(PAIR, PHASES, PHASES):
        for fine in PHASES:
            out = (fine * 4 + middle) * 8 + frame * 4 + coarse
            cell[out, _luma(fine, middle, coarse)] = 1
            cell[out, _halves(middle, coarse)] = frame - 0.5
        for which in PAIR:
            cell[(16 + which * 4 + middle) * 8 + frame * 4 + coarse, _chroma(which, middle, coarse)] = 1
    for frame, middle in product(PAIR, PHASES):
        for fine in PHASES:
            _between_frames(second, fine * 8 + frame * 4 + middle, fine * 4 + middle, frame)
        for which in PAIR:
            _between_frames(second, (4 + which) * 8 + frame * 4 + middle, 16 + which * 4 + middle, frame)
    for frame, channel in product(PAIR, range(6)):
        _between_frames(time, channel * 2 + frame, channel, frame)
    for fine in PHASES:
        space[fine, fine, MID, MID, MID] = 1
        for which in PAIR:
            rows, columns = _lerp((fine // 2 - 0.5) / 2), _lerp((fine % 2 - 0.5) / 2)
            space[(1 + which) * 4 + fine, 4 + which, MID] += rows[:, None] * columns[None]
    decoder.up_blocks[-1].upsamplers[0].conv.conv.bias[3 * 4 : 4 * 4] = CONSTANT
    _set_pixels(_weight(decoder.conv_out))


def _set_pixels(out: torch.Tensor) -> None:
    # one of the channels is CONSTANT; see `_set_latents`
    gain = 2 * CONSTANT / out.shape[1] ** 0.5
    rgb = torch.linalg.inv(latents.RGB_TO_YCC)
    for colour, row, column in product(range(3), range(PATCH), range(PATCH)):
        rows, columns = (_lerp((place + 0.5) / PATCH - 0.5) for place in (row, column))
        for source in range(3):
            # patches are unfolded column first
            out[colour * PATCH**2 + column * PATCH + row, source, MID] = (
                gain * rgb[colour, source] * rows[:, None] * columns[None]
            )


def _lerp(offset: float) -> torch.Tensor:
    """Three taps that interpolate linearly `offset` samples away from the middle one."""
    return torch.tensor([max(-offset, 0), 1 - abs(offset), max(offset, 0)])


def _between_frames(weight: torch.Tensor, out: int, source: int, frame: int) -> None:
    """Makes the first or second of two frames out of each by linear interpolation in time."""
    weight[out, source, :, MID, MID] = _lerp((frame - 0.5) / 2)
