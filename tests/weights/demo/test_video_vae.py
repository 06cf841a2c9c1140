import pytest
import torch
import torch.nn.functional as F

from weights.demo import latents
from weights.demo.video_vae import build_video_vae


@pytest.fixture(scope="module")
def vae():
    return build_video_vae()


@pytest.fixture(scope="module")
def clip():
    return torch.rand(1, 3, 17, 96, 160, generator=torch.Generator().manual_seed(0)) * 2 - 1


def encode(vae, clip):
    raw = vae.encode(clip).latent_dist.mode()
    return (raw - vae.latents_mean.view(1, -1, 1, 1, 1)) / vae.latents_std.view(1, -1, 1, 1, 1)


@torch.no_grad()
def test_the_encoder_equals_the_closed_form(vae, clip):
    expected = latents.encode(F.avg_pool3d(clip, (1, 4, 4)))
    assert (encode(vae, clip) - expected).abs().max().item() < 2e-3


@torch.no_grad()
def test_a_single_frame_is_encoded_too(vae, clip):
    expected = latents.encode(F.avg_pool3d(clip[:, :, :1], (1, 4, 4)))
    assert (encode(vae, clip[:, :, :1]) - expected).abs().max().item() < 2e-3


@torch.no_grad()
def test_the_edge_marks_survive_bfloat16_exactly(clip):
    marks = build_video_vae().to(torch.bfloat16).encode(clip.to(torch.bfloat16)).latent_dist.mode()[0, latents.MARKS]
    expected = latents.edge_marks(3, 5).movedim(-1, 0)[:, None].expand(-1, 3, -1, -1)
    assert torch.equal(marks.float(), expected)


@torch.no_grad()
def test_a_still_comes_back_as_sharp_as_its_latents_allow(vae):
    y, x = torch.meshgrid(torch.arange(64) / 64, torch.arange(96) / 96, indexing="ij")
    picture = torch.stack([(3 * x + y).sin(), (2 * y).cos() * 0.8, (2 * x * y).sin()])
    still = picture[None, :, None].expand(-1, -1, 9, -1, -1)
    error = vae.decode(vae.encode(still).latent_dist.mode()).sample - still
    assert error.pow(2).mean().sqrt().item() < 0.02


@torch.no_grad()
def test_the_decoder_ignores_marks_and_unused_channels(vae, clip):
    raw = vae.encode(clip[:, :, :9]).latent_dist.mode()
    changed = raw.clone()
    changed[:, latents.MARKS.start :] = 5
    assert torch.equal(vae.decode(raw).sample, vae.decode(changed).sample)
