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
def test_encoding_then_decoding_is_on_the_same_scale(vae):
    pixels = torch.rand(1, 3, 1, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    latents = decode.encode(vae, pixels)
    assert latents.shape == (1, 128, 1, 2, 2)
    assert latents.dtype == torch.float32
