"""What a module must be built with, read from the `config` that a published file carries in its metadata."""

from collections.abc import Mapping
from itertools import accumulate
from operator import mul
from types import MappingProxyType
from typing import Any, Final

from diffusers import AutoencoderKLLTX2Audio, AutoencoderKLLTX2Video, LTX2VideoTransformer3DModel
from diffusers.pipelines.ltx2 import LTX2LatentUpsamplerModel, LTX2TextConnectors, LTX2VocoderWithBWE
from torch import nn

from weights.names import Kind

Config = Mapping[str, Any]
Shapes = Mapping[str, tuple[int, ...]]
"""Shape of every tensor of a file, under its published name."""

CLASSES: Final[Mapping[Kind, type]] = MappingProxyType(
    {
        "transformer": LTX2VideoTransformer3DModel,
        "connectors": LTX2TextConnectors,
        "vae": AutoencoderKLLTX2Video,
        "audio_vae": AutoencoderKLLTX2Audio,
        "vocoder": LTX2VocoderWithBWE,
        "upsampler": LTX2LatentUpsamplerModel,
    }
)
"""The module of each component."""
_RESAMPLES: Final = {"space": "spatial", "time": "temporal", "all": "spatiotemporal"}
_GEMMA_HIDDEN: Final = 3840


def build(kind: Kind, config: Config, shapes: Shapes) -> nn.Module:
    """The module that `config` describes, on torch's current default device.

    `shapes` tells what the configuration leaves out: how many layers of the text encoder the connectors read.

    Raises: KeyError for a missing entry, ValueError for an entry with a value that no module of ours has.
    """
    return construct(kind, arguments(kind, config, shapes))


def arguments(kind: Kind, config: Config, shapes: Shapes) -> dict[str, Any]:
    """What the module that `config` describes is built with. Raises: as `build`."""
    match kind:
        case "transformer":
            return transformer_arguments(config["transformer"])
        case "connectors":
            return connectors_arguments(config["transformer"], shapes)
        case "vae":
            return vae_arguments(config["vae"])
        case "audio_vae":
            return audio_vae_arguments(config["audio_vae"])
        case "vocoder":
            return vocoder_arguments(config["vocoder"])
        case "upsampler":
            return upsampler_arguments(config)


def construct(kind: Kind, arguments: Mapping[str, Any]) -> nn.Module:
    """The module of `kind`, on torch's current default device. Raises: TypeError, ValueError."""
    module: nn.Module = CLASSES[kind](**arguments)
    return module


def transformer_arguments(config: Config) -> dict[str, Any]:
    """Arguments of LTX2VideoTransformer3DModel."""
    frames, height, width = config["positional_embedding_max_pos"]
    (audio_frames,) = config["audio_positional_embedding_max_pos"]
    gated = config["apply_gated_attention"]
    modulated = config["cross_attention_adaln"]
    if height != width:
        raise ValueError(f"positional_embedding_max_pos is {[frames, height, width]}; height and width must be equal")
    return {
        "in_channels": config["in_channels"],
        "out_channels": config["out_channels"],
        "num_attention_heads": config["num_attention_heads"],
        "attention_head_dim": config["attention_head_dim"],
        "cross_attention_dim": config["cross_attention_dim"],
        "pos_embed_max_pos": frames,
        "base_height": height,
        "base_width": width,
        "gated_attn": gated,
        "cross_attn_mod": modulated,
        "audio_in_channels": config.get("audio_in_channels", config["audio_out_channels"]),
        "audio_out_channels": config["audio_out_channels"],
        "audio_num_attention_heads": config["audio_num_attention_heads"],
        "audio_attention_head_dim": config["audio_attention_head_dim"],
        "audio_cross_attention_dim": config["audio_cross_attention_dim"],
        "audio_pos_embed_max_pos": audio_frames,
        "audio_gated_attn": gated,
        "audio_cross_attn_mod": modulated,
        "num_layers": config["num_layers"],
        "activation_fn": config["activation_fn"],
        "qk_norm": _one_of("qk_norm", config["qk_norm"], {"rms_norm": "rms_norm_across_heads"}),
        "norm_elementwise_affine": config["norm_elementwise_affine"],
        "norm_eps": config["norm_eps"],
        "caption_channels": config["caption_channels"],
        "attention_bias": config["attention_bias"],
        "attention_out_bias": config["attention_bias"],
        "rope_theta": config["positional_embedding_theta"],
        "rope_double_precision": config["frequencies_precision"] == "float64",
        "rope_type": config["rope_type"],
        "timestep_scale_multiplier": int(config["timestep_scale_multiplier"]),
        "cross_attn_timestep_scale_multiplier": int(config["av_ca_timestep_scale_multiplier"]),
        "use_prompt_embeddings": not config["caption_proj_before_connector"],
        "perturbed_attn": True,
    }


def connectors_arguments(config: Config, shapes: Shapes) -> dict[str, Any]:
    """Arguments of LTX2TextConnectors; `config` is the transformer's section, which describes them too."""
    projection = "text_embedding_projection.{}_aggregate_embed.weight"
    video, features = shapes[projection.format("video")]
    audio, _ = shapes[projection.format("audio")]
    channels = config.get("caption_channels", _GEMMA_HIDDEN)
    (positions,) = config["connector_positional_embedding_max_pos"]
    layers, registers = config["connector_num_layers"], config["connector_num_learnable_registers"]
    gated = config["connector_apply_gated_attention"]
    if features % channels:
        raise ValueError(f"caption_channels is {channels}, but the projection reads {features} features a token")
    return {
        "caption_channels": channels,
        "text_proj_in_factor": features // channels,
        "video_connector_num_attention_heads": config["connector_num_attention_heads"],
        "video_connector_attention_head_dim": config["connector_attention_head_dim"],
        "video_connector_num_layers": layers,
        "video_connector_num_learnable_registers": registers,
        "video_gated_attn": gated,
        "audio_connector_num_attention_heads": config["audio_connector_num_attention_heads"],
        "audio_connector_attention_head_dim": config["audio_connector_attention_head_dim"],
        "audio_connector_num_layers": config.get("audio_connector_num_layers", layers),
        "audio_connector_num_learnable_registers": registers,
        "audio_gated_attn": gated,
        "connector_rope_base_seq_len": positions,
        "rope_theta": config["positional_embedding_theta"],
        "rope_double_precision": config["frequencies_precision"] == "float64",
        "rope_type": config["rope_type"],
        "per_modality_projections": True,
        "video_hidden_dim": video,
        "audio_hidden_dim": audio,
        "proj_bias": projection.format("video").replace("weight", "bias") in shapes,
    }


def vae_arguments(config: Config) -> dict[str, Any]:
    """Arguments of AutoencoderKLLTX2Video. The file lists the decoder's blocks in the encoder's order."""
    encoder_layers, down, encoder_factors = _blocks(config["encoder_blocks"], suffix="_res")
    decoder_layers, up, decoder_factors = _blocks(config["decoder_blocks"], suffix="")
    stages = len(down)
    padding = config.get("spatial_padding_mode", "zeros")
    return {
        "in_channels": config["in_channels"],
        "out_channels": config["out_channels"],
        "latent_channels": config["latent_channels"],
        "patch_size": config["patch_size"],
        "block_out_channels": _widths(config.get("encoder_base_channels", 128), encoder_factors),
        "down_block_types": ("LTX2VideoDownBlock3D",) * stages,
        "layers_per_block": encoder_layers,
        "downsample_type": down,
        "spatio_temporal_scaling": (True,) * stages,
        "decoder_block_out_channels": _widths(config["decoder_base_channels"], decoder_factors),
        "decoder_layers_per_block": decoder_layers,
        "decoder_spatio_temporal_scaling": (True,) * stages,
        "decoder_inject_noise": (False,) * (stages + 1),
        "upsample_type": tuple(reversed(up)),  # the one list that diffusers keeps in the order of the decoder
        "upsample_residual": (False,) * stages,
        "upsample_factor": decoder_factors,
        "timestep_conditioning": config["timestep_conditioning"],
        "encoder_causal": True,
        "decoder_causal": config["causal_decoder"],
        "encoder_spatial_padding_mode": config.get("encoder_spatial_padding_mode", padding),
        "decoder_spatial_padding_mode": padding,
        "spatial_compression_ratio": config["patch_size"] * 2 ** sum(kind != "temporal" for kind in down),
        "temporal_compression_ratio": 2 ** sum(kind != "spatial" for kind in down),
    }


def audio_vae_arguments(config: Config) -> dict[str, Any]:
    """Arguments of AutoencoderKLLTX2Audio."""
    model, stft = config["model"]["params"], config["preprocessing"]["stft"]
    net = model["ddconfig"]
    return {
        "base_channels": net["ch"],
        "output_channels": net["out_ch"],
        "in_channels": net["in_channels"],
        "ch_mult": tuple(net["ch_mult"]),
        "num_res_blocks": net["num_res_blocks"],
        "attn_resolutions": tuple(net["attn_resolutions"]) or None,
        "resolution": net["resolution"],
        "latent_channels": net["z_channels"],
        "double_z": net["double_z"],
        "norm_type": net["norm_type"],
        "causality_axis": net["causality_axis"],
        "dropout": net["dropout"],
        "mid_block_add_attention": net["mid_block_add_attention"],
        "mel_bins": net["mel_bins"],
        "sample_rate": model["sampling_rate"],
        "mel_hop_length": stft["hop_length"],
        "is_causal": stft["causal"],
    }


def vocoder_arguments(config: Config) -> dict[str, Any]:
    """Arguments of LTX2VocoderWithBWE.

    Source: the first stage is clamped to [-1, 1] before its mel is taken, the residual that the bandwidth extension
    adds is not (LTX-2 1.2.0; diffusers 0.42 leaves out the clamp).
    """
    bwe = config["bwe"]
    channels = bwe["num_mels"] * (2 if bwe["stereo"] else 1)
    first = _generator_arguments(config["vocoder"], channels, final="clamp")
    second = _generator_arguments(bwe, channels, final=None)
    return {
        **first,
        **{f"bwe_{name}": value for name, value in second.items()},
        "filter_length": bwe["n_fft"],
        "hop_length": bwe["hop_length"],
        "window_length": bwe.get("win_size", bwe["n_fft"]),
        "num_mel_channels": bwe["num_mels"],
        "input_sampling_rate": bwe["input_sampling_rate"],
        "output_sampling_rate": bwe["output_sampling_rate"],
    }


def upsampler_arguments(config: Config) -> dict[str, Any]:
    """Arguments of LTX2LatentUpsamplerModel. The first published file leaves out the scale, which is 2."""
    return {
        "in_channels": config["in_channels"],
        "mid_channels": config["mid_channels"],
        "num_blocks_per_stage": config["num_blocks_per_stage"],
        "dims": config["dims"],
        "spatial_upsample": config["spatial_upsample"],
        "temporal_upsample": config["temporal_upsample"],
        "rational_spatial_scale": config.get("spatial_scale", 2.0),
        "use_rational_resampler": config.get("rational_resampler", False),
    }


def _generator_arguments(config: Config, channels: int, *, final: str | None) -> dict[str, Any]:
    _one_of("resblock", config["resblock"], {"AMP1": ""})
    return {
        "in_channels": channels,
        "hidden_channels": config["upsample_initial_channel"],
        "out_channels": 2 if config["stereo"] else 1,
        "upsample_kernel_sizes": config["upsample_kernel_sizes"],
        "upsample_factors": config["upsample_rates"],
        "resnet_kernel_sizes": config["resblock_kernel_sizes"],
        "resnet_dilations": config["resblock_dilation_sizes"],
        "act_fn": _one_of("activation", config["activation"], {"snakebeta": "snakebeta", "snake": "snake"}),
        "final_act_fn": "tanh" if config["use_tanh_at_final"] else final,
        "final_bias": config["use_bias_at_final"],
    }


def _blocks(
    blocks: list[tuple[str, dict[str, int]]], *, suffix: str
) -> tuple[tuple[int, ...], tuple[str, ...], tuple[int, ...]]:
    """Residual layers of each stage, kinds of the resamplers between them, and what each does to the width."""
    layers = tuple(block["num_layers"] for _, block in blocks[::2])
    allowed = {f"compress_{name}{suffix}": value for name, value in _RESAMPLES.items()}
    kinds = tuple(_one_of("block", name, allowed) for name, _ in blocks[1::2])
    for name, _ in blocks[::2]:
        _one_of("block", name, {"res_x": ""})
    return layers, kinds, tuple(block["multiplier"] for _, block in blocks[1::2])


def _widths(base: int, factors: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(accumulate(factors, mul, initial=base))[1:]


def _one_of(what: str, value: str, allowed: Mapping[str, str]) -> str:
    if value not in allowed:
        raise ValueError(f"{what} is {value!r}; it must be one of {', '.join(allowed)}")
    return allowed[value]
