import pytest
import torch

from pipeline import decode
from weights.checkpoint import Checkpoint, load_component


@pytest.fixture(scope="module")
def vae(tiny):
    checkpoint = Checkpoint.open(tiny / "ltx-2.3-tiny.safetensors")
    return load_component(checkpoint, "vae", dtype=torch.float32, device="cpu")


def whole(vae, latents):
    """All frames at once, by diffusers' own decoder."""
    mean, std = (s.view(1, -1, 1, 1, 1) for s in (vae.latents_mean, vae.latents_std))
    pixels = vae.decoder(latents * std + mean, None)
    return ((pixels[0].permute(1, 2, 3, 0) + 1) / 2).clamp(0, 1)


@torch.inference_mode()
@pytest.mark.parametrize("latent_frames", [1, 2, 3, 5, 9])
@pytest.mark.parametrize("frames", [1, 2, 5, 9])
def test_decoding_in_chunks_equals_decoding_at_once(vae, frames, latent_frames):
    latents = torch.randn(1, 128, frames, 2, 3, generator=torch.Generator().manual_seed(frames))
    chunks = list(decode.decode(vae, latents, latent_frames=latent_frames))
    found = torch.cat(chunks)
    assert found.shape == (8 * frames - 7, 64, 96, 3)
    torch.testing.assert_close(found, whole(vae, latents), atol=1e-5, rtol=0)


@torch.inference_mode()
def test_frames_come_before_the_last_latents_are_needed(vae):
    latents = torch.randn(1, 128, 12, 1, 1, generator=torch.Generator().manual_seed(0))
    sizes = [len(chunk) for chunk in decode.decode(vae, latents, latent_frames=3)]
    assert len(sizes) > 1
    assert sizes[0] > 0


@torch.inference_mode()
@pytest.mark.parametrize("latent_frames", [1, 2, 4])
def test_no_chunk_has_more_frames_than_its_latent_frames_give(vae, latent_frames):
    latents = torch.randn(1, 128, 12, 1, 1, generator=torch.Generator().manual_seed(0))
    sizes = [len(chunk) for chunk in decode.decode(vae, latents, latent_frames=latent_frames)]
    assert sum(sizes) == 89
    assert max(sizes) <= 8 * latent_frames


@torch.inference_mode()
def test_the_start_image_is_never_encoded_in_tiles(tiny):
    checkpoint = Checkpoint.open(tiny / "ltx-2.3-tiny.safetensors")
    tiled = load_component(checkpoint, "vae", dtype=torch.float32, device="cpu")
    pixels = torch.rand(1, 3, 1, 96, 160, generator=torch.Generator().manual_seed(0)) * 2 - 1
    whole = decode.encode(tiled, pixels)
    tiled.enable_tiling(
        tile_sample_min_height=64, tile_sample_min_width=64, tile_sample_stride_height=32, tile_sample_stride_width=32
    )
    assert not torch.allclose(tiled.encode(pixels).latent_dist.mode(), tiled.encoder(pixels)[:, :128], atol=1e-3)
    assert torch.equal(decode.encode(tiled, pixels), whole)


def test_frames_become_bytes_on_their_own_device():
    found = decode.to_bytes(torch.empty(2, 4, 4, 3, dtype=torch.bfloat16, device="meta"))
    assert (found.device.type, found.dtype) == ("meta", torch.uint8)


def test_bytes_are_the_nearest_ones():
    assert decode.to_bytes(torch.tensor([0.0, 0.4 / 255, 0.6 / 255, 1.0])).tolist() == [0, 0, 1, 255]


class Ear:
    """A vocoder that notes how it was called."""

    def __init__(self):
        self.heard = []

    def __call__(self, mel):
        self.heard.append((mel.dtype, torch.backends.cudnn.allow_tf32, torch.is_autocast_enabled("cpu")))
        return mel.new_zeros(1, 2, 480)


def test_the_vocoder_runs_in_float32_whatever_the_rest_runs_in(tiny):
    checkpoint = Checkpoint.open(tiny / "ltx-2.3-tiny.safetensors")
    audio_vae = load_component(checkpoint, "audio_vae", dtype=torch.bfloat16, device="cpu")
    ear, before = Ear(), torch.backends.cudnn.allow_tf32
    latents = torch.randn(1, 8, 4, 16, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        decode.decode_audio(audio_vae, ear, latents)
    assert ear.heard == [(torch.float32, False, False)]
    assert torch.backends.cudnn.allow_tf32 == before


@torch.inference_mode()
def test_encoding_then_decoding_is_on_the_same_scale(vae):
    pixels = torch.rand(1, 3, 1, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    latents = decode.encode(vae, pixels)
    assert latents.shape == (1, 128, 1, 2, 2)
    assert latents.dtype == torch.float32
