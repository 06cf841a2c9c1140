"""Puts the demo weights together, in the files and under the names that LTX-2.3 is published in."""

import hashlib
import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import load_file, save_file

from weights import names
from weights.checkpoint import Checkpoint, layout
from weights.demo import audio, seeded, upsampler, video_vae
from weights.demo.text_encoder import build_text_encoder
from weights.errors import WeightsFileError
from weights.header import Header

CHECKPOINT: Final = "ltx-2.3-demo.safetensors"
UPSAMPLER: Final = "ltx-2.3-demo-spatial-upscaler-x2.safetensors"
LORA: Final = "ltx-2.3-demo-distilled-lora.safetensors"
TEXT_ENCODER: Final = "gemma"
MODEL_VERSION: Final = "2.3.0-demo"

TRANSFORMER_CONFIG: Final = json.dumps(
    {
        "_class_name": "AVTransformer3DModel",
        "activation_fn": "gelu-approximate",
        "apply_gated_attention": True,
        "attention_bias": True,
        "attention_head_dim": 64,
        "audio_attention_head_dim": 40,
        "audio_connector_attention_head_dim": 40,
        "audio_connector_num_attention_heads": 4,
        "audio_cross_attention_dim": 160,
        "audio_in_channels": 128,
        "audio_num_attention_heads": 4,
        "audio_out_channels": 128,
        "audio_positional_embedding_max_pos": [20],
        "av_ca_timestep_scale_multiplier": 1000.0,
        "av_cross_ada_norm": True,
        "caption_channels": 256,
        "caption_proj_before_connector": True,
        "caption_proj_input_norm": False,
        "caption_projection_first_linear": False,
        "caption_projection_second_linear": False,
        "causal_temporal_positioning": True,
        "connector_apply_gated_attention": True,
        "connector_attention_head_dim": 64,
        "connector_norm_output": True,
        "connector_num_attention_heads": 4,
        "connector_num_layers": 2,
        "connector_num_learnable_registers": 128,
        "connector_positional_embedding_max_pos": [4096],
        "cross_attention_adaln": True,
        "cross_attention_dim": 256,
        "cross_attention_norm": True,
        "double_self_attention": False,
        "dropout": 0.0,
        "frequencies_precision": "float64",
        "in_channels": 128,
        "norm_elementwise_affine": False,
        "norm_eps": 1e-06,
        "num_attention_heads": 4,
        "num_embeds_ada_norm": 1000,
        "num_layers": 4,
        "num_vector_embeds": None,
        "only_cross_attention": False,
        "out_channels": 128,
        "positional_embedding_max_pos": [20, 2048, 2048],
        "positional_embedding_theta": 10000.0,
        "positional_embedding_type": "rope",
        "qk_norm": "rms_norm",
        "rope_type": "split",
        "share_ff": False,
        "standardization_norm": "rms_norm",
        "text_encoder_norm_type": "per_token_rms",
        "timestep_scale_multiplier": 1000,
        "upcast_attention": False,
        "use_audio_video_cross_attention": True,
        "use_embeddings_connector": True,
        "use_linear_projection": False,
        "use_middle_indices_grid": True,
        "use_prompt_adaln_single": True,
    }
)
"""The `transformer` section of the configuration, as JSON: what train_transformer and train_connectors build."""

LORA_RANK: Final = 4
LORA_SIZE: Final = 0.004
"""Deviation of the second matrix: fused, it moves weights by about as much as rounding to bfloat16 does."""

_DIT: Final = "model.diffusion_model."


def build(folder: Path, *, trained: Path) -> None:
    """Writes checkpoint, upsampler, distilled LoRA and text encoder into `folder`, all or nothing.

    `trained` holds transformer and connectors, as `write_trained` writes them. An earlier demo in `folder` is
    replaced.

    Raises: WeightsFileError if `trained` does not fit, or if `folder` holds something else.
    """
    if folder.exists() and any(folder.iterdir()) and not (folder / CHECKPOINT).is_file():
        raise WeightsFileError(
            folder, found="something else than demo weights", expected="demo weights, an empty or a new folder"
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as name:
        new, old = Path(name) / "new", Path(name) / "old"
        new.mkdir()
        tensors = _read_trained(trained)
        _write_checkpoint(new / CHECKPOINT, tensors, trained)
        _write_upsampler(new / UPSAMPLER)
        save_file(_lora(tensors), new / LORA, metadata={"format": "pt", "ltx_demo": "1"})
        build_text_encoder(new / TEXT_ENCODER)
        if folder.exists():
            folder.rename(old)
        new.rename(folder)


def write_trained(
    transformer_state: Mapping[str, torch.Tensor], connectors_state: Mapping[str, torch.Tensor], path: Path
) -> None:
    """Writes what training gives, under published names and in bfloat16, to `path`, and its sha256 beside it."""
    tensors = {
        **_publish(transformer_state, "transformer"),
        **_publish(connectors_state, "connectors"),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        unfinished = Path(folder) / path.name
        save_file(tensors, unfinished, metadata={"format": "pt", "ltx_demo": "1"})
        digest = hashlib.sha256(unfinished.read_bytes()).hexdigest()
        shutil.move(unfinished, path)
    path.with_name(f"{path.name}.sha256").write_text(f"{digest}  {path.name}\n")


def demo_config() -> dict[str, Any]:
    """The configuration in the checkpoint's metadata."""
    return {
        "transformer": json.loads(TRANSFORMER_CONFIG),
        "vae": json.loads(video_vae.CONFIG),
        "audio_vae": json.loads(audio.AUDIO_VAE_CONFIG),
        "vocoder": json.loads(audio.VOCODER_CONFIG),
        "scheduler": {"_class_name": "RectifiedFlowScheduler"},
    }


def _publish(state: Mapping[str, torch.Tensor], kind: names.Kind) -> dict[str, torch.Tensor]:
    return {names.to_published(name, kind): value.to(torch.bfloat16).contiguous() for name, value in state.items()}


def _read_trained(path: Path) -> dict[str, torch.Tensor]:
    header = Header.read(path)
    strange = [name for name in header.tensors if names.kind_of(name) not in {"transformer", "connectors"}]
    if strange:
        raise WeightsFileError(path, found=repr(strange[0]), expected="transformer and connectors only")
    tensors = load_file(path)
    return {name: value.to(torch.bfloat16) for name, value in tensors.items()}


def _write_checkpoint(path: Path, trained: dict[str, torch.Tensor], source: Path) -> None:
    tensors = {
        **trained,
        **_publish(video_vae.build_video_vae().state_dict(), "vae"),
        **_publish(audio.build_audio_vae().state_dict(), "audio_vae"),
        **_publish(audio.build_vocoder().state_dict(), "vocoder"),
    }
    metadata = {"config": json.dumps(demo_config()), "model_version": MODEL_VERSION, "ltx_demo": "1"}
    save_file(tensors, path, metadata=metadata)
    checkpoint = Checkpoint.open(path)
    try:
        for kind in ("transformer", "connectors"):
            layout(checkpoint, kind)
    except WeightsFileError as error:
        raise WeightsFileError(
            source, found=f"what does not fit the demo's configuration ({error})", expected="what fits"
        ) from error


def _write_upsampler(path: Path) -> None:
    tensors = _publish(upsampler.build_upsampler().state_dict(), "upsampler")
    metadata = {"config": json.dumps(dict(upsampler.CONFIG)), "model_version": MODEL_VERSION, "ltx_demo": "1"}
    save_file(tensors, path, metadata=metadata)


def _lora(trained: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A LoRA of every matrix of the transformer, with random values."""
    out: dict[str, torch.Tensor] = {}
    for name, value in trained.items():
        if names.kind_of(name) != "transformer" or value.dim() != 2 or not name.endswith(".weight"):
            continue
        module = f"diffusion_model.{name.removeprefix(_DIT).removesuffix('.weight')}"
        rows, columns = value.shape
        down = seeded.normal(f"lora/{module}/A", (LORA_RANK, columns)) / columns**0.5
        up = seeded.normal(f"lora/{module}/B", (rows, LORA_RANK)) * LORA_SIZE
        out[f"{module}.lora_A.weight"] = down.to(torch.bfloat16)
        out[f"{module}.lora_B.weight"] = up.to(torch.bfloat16)
    return out
