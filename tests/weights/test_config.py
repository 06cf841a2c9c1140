"""Modules built from the published configuration have the published names and shapes, all of them."""

import gzip
import json
from pathlib import Path

import pytest
import torch

from weights import config, names
from weights.release import published_config

LAYOUT = Path(__file__).parent / "layout"
UPSAMPLER = {
    "in_channels": 128,
    "mid_channels": 1024,
    "num_blocks_per_stage": 4,
    "dims": 3,
    "spatial_upsample": True,
    "temporal_upsample": False,
}


@pytest.fixture(scope="module")
def tensors():
    return json.loads(gzip.decompress((LAYOUT / "ltx-2.3.json.gz").read_bytes()))["tensors"]


@pytest.fixture(scope="module")
def published():
    return published_config()


@pytest.fixture(scope="module")
def build(tensors, published):
    shapes = {name: tuple(shape) for rows in tensors.values() for name, _, shape in rows}

    def build(kind):
        with torch.device("meta"):
            return config.build(kind, UPSAMPLER if kind == "upsampler" else published, shapes)

    return build


@pytest.mark.parametrize("kind", names.KINDS)
def test_the_real_configuration_gives_the_real_tensors(kind, build, tensors):
    ours = {name: list(value.shape) for name, value in build(kind).state_dict().items()}
    assert ours == {name: shape for _, name, shape in tensors[kind]}


def test_the_real_video_vae_resamples_in_the_published_order(build):
    vae = build("vae").config
    assert vae.downsample_type == ("spatial", "temporal", "spatiotemporal", "spatiotemporal")
    assert vae.upsample_type == ("spatiotemporal", "spatiotemporal", "temporal", "spatial")
    assert (vae.spatial_compression_ratio, vae.temporal_compression_ratio) == (32, 8)
    assert (vae.encoder_causal, vae.decoder_causal) == (True, False)
    assert vae.decoder_spatial_padding_mode == "zeros"


def test_the_first_stage_of_the_vocoder_is_clamped_and_the_second_is_not(build):
    vocoder = build("vocoder")
    assert vocoder.vocoder.final_act_fn == "clamp"
    assert vocoder.bwe_generator.final_act_fn is None


def test_the_real_transformer_is_the_2_3_variant(build):
    transformer = build("transformer").config
    assert transformer.rope_type == "split"
    assert transformer.rope_double_precision
    assert transformer.perturbed_attn
    assert (transformer.pos_embed_max_pos, transformer.base_height) == (20, 2048)


def test_a_block_that_no_module_has_is_named(published):
    vae = published["vae"] | {"encoder_blocks": [["res_x", {"num_layers": 1}], ["compress_odd", {"multiplier": 1}]]}
    with pytest.raises(ValueError, match=r"'compress_odd'; it must be one of compress_space_res"):
        config.vae_arguments(vae)
