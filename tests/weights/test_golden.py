"""Every component, loaded by our loader, against the numbers of the model authors' own code.

Source: tests/golden/public/components.*, made with LTX-2 1.2.0 on the tiny checkpoint that canonical.py writes.
"""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from weights.checkpoint import Checkpoint, load_component
from weights.lora import fuse_lora
from weights.names import to_diffusers
from weights.text_encoder import load_text_encoder

PUBLIC = Path(__file__).parent.parent / "golden" / "public"
CHECKPOINT = "ltx-2.3-tiny.safetensors"
UPSCALER = "ltx-2.3-tiny-spatial-upscaler-x2.safetensors"
LORA = "ltx-2.3-tiny-distilled-lora.safetensors"
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def golden():
    return load_file(PUBLIC / "components.safetensors")


@pytest.fixture(scope="module")
def facts():
    return json.loads((PUBLIC / "components.json").read_text())


@pytest.fixture(scope="module")
def load(tiny):
    def load(kind):
        checkpoint = Checkpoint.open(tiny / (UPSCALER if kind == "upsampler" else CHECKPOINT))
        return load_component(checkpoint, kind, dtype=torch.float32, device="cpu")

    return load


@pytest.fixture(scope="module")
def check(golden, facts):
    def check(name, value):
        about = facts["tensors"][name]
        assert list(value.shape) == about["full_shape"]
        strided = value[tuple(slice(None, None, step) for step in about.get("stride", ()))].double()
        expected = golden[name].double()
        assert ((strided - expected).norm() / expected.norm()).item() < TOLERANCE

    return check


def column(values):
    return values.view(1, -1, 1, 1, 1)


@torch.no_grad()
def test_the_video_vae_encodes_and_decodes_as_its_authors_do(load, golden, check):
    vae = load("vae")
    frame, y, x = torch.meshgrid(torch.arange(17.0), torch.arange(96.0), torch.arange(128.0), indexing="ij")
    clip = torch.stack([(x / 9 + frame / 3).sin(), (y / 7 - frame / 5).cos(), ((x + y) / 13 + frame / 2).sin()])[None]
    mean, std = column(vae.latents_mean), column(vae.latents_std)
    check("vae.encode", (vae.encode(clip).latent_dist.mode() - mean) / std)
    decoded = vae.decode(golden["vae.latent"] * std + mean).sample
    check("vae.decode", decoded)
    assert torch.allclose(decoded[:, :, -1:, -16:, -16:], golden["vae.decode_tail"], atol=1e-5)


@torch.no_grad()
def test_audio_is_decoded_to_the_authors_waveform_even_where_it_clips(load, golden, facts, check):
    vae, vocoder = load("audio_vae"), load("vocoder")
    latent = golden["audio.latent"]
    tokens = latent.permute(0, 2, 1, 3).flatten(2) * vae.latents_std + vae.latents_mean
    mel = vae.decode(tokens.unflatten(2, (8, 16)).permute(0, 2, 1, 3)).sample
    check("audio.mel", mel)
    check("audio.wave_16k", vocoder.vocoder(mel))
    check("audio.wave", vocoder(mel))
    check("audio.wave_loud", vocoder(facts["params"]["loud_gain"] * mel))


@torch.no_grad()
def test_the_upsampler_doubles_latents_as_its_authors_do(load, golden, check):
    upsampler, vae = load("upsampler"), load("vae")
    latents = golden["upsampler.in"]
    mean, std = column(vae.latents_mean), column(vae.latents_std)
    check("upsampler.out", (upsampler(latents * std + mean) - mean) / std)


@torch.no_grad()
def test_the_connectors_make_the_authors_contexts(load, golden, facts, check):
    valid = facts["params"]["connector_valid"]
    rng = torch.Generator().manual_seed(facts["params"]["seed"] + 3)
    hidden = torch.randn((3, 1, 1024, 32), generator=rng)
    hidden[:, :, :-valid] *= 3
    assert torch.equal(hidden[:, 0, -valid:], golden["connector.hidden_valid"])
    mask = torch.zeros(1, 1024, dtype=torch.int64)
    mask[:, -valid:] = 1
    video, audio, _ = load("connectors")(hidden.permute(1, 2, 3, 0), mask)
    check("connector.video", video)
    check("connector.audio", audio)


def test_the_transformer_loads_whole(load):
    transformer = load("transformer")
    assert all(value.device.type == "cpu" for value in transformer.state_dict().values())
    assert not any(value.requires_grad for value in transformer.parameters())
    assert not transformer.training


def test_a_lora_is_fused_by_the_authors_rounding(load, tiny):
    cases = [path for path in sorted(PUBLIC.glob("*.safetensors")) if _fused(path)]
    assert cases
    for path in cases:
        strength = json.loads(path.with_suffix(".json").read_text())["params"]["lora"]
        transformer = load("transformer")
        changed = fuse_lora(transformer, tiny / LORA, strength=strength)
        assert changed == 74
        weights = transformer.state_dict()
        for name, expected in _fused(path).items():
            ours = weights[to_diffusers(f"model.diffusion_model.{name}", "transformer")]
            assert torch.equal(ours, expected), name


def _fused(path):
    return {name.removeprefix("fused."): value for name, value in load_file(path).items() if name.startswith("fused.")}


@torch.no_grad()
def test_the_text_encoder_gives_the_authors_hidden_states(tiny):
    encoder = load_text_encoder(tiny / "gemma", dtype=torch.float32, device="cpu")
    golden = load_file(PUBLIC / "text.safetensors")
    facts = json.loads((PUBLIC / "text.json").read_text())
    for name, prompt in facts["params"]["prompts"].items():
        batch = encoder.tokenizer(
            prompt.strip(), padding="max_length", max_length=1024, truncation=True, return_tensors="pt"
        )
        assert torch.equal(batch.input_ids[0], golden[f"{name}.input_ids"])
        states = encoder.language_model(
            input_ids=batch.input_ids, attention_mask=batch.attention_mask, output_hidden_states=True
        ).hidden_states
        valid = int(golden[f"{name}.num_valid"])
        about = facts["tensors"][f"{name}.gemma_hidden"]
        ours = torch.cat(states)[:, -valid:]
        assert list(ours.shape) == about["full_shape"]
        ours = ours[tuple(slice(None, None, step) for step in about.get("stride", ()))]
        assert ((ours - golden[f"{name}.gemma_hidden"]).norm() / ours.norm()).item() < TOLERANCE
