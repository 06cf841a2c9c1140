import torch
import torch.nn.functional as F

from weights.demo import latents
from weights.demo.upsampler import build_upsampler


@torch.no_grad()
def test_upsampled_latents_are_those_of_the_enlarged_picture():
    y, x = torch.meshgrid(torch.arange(32) / 32, torch.arange(40) / 40, indexing="ij")
    picture = torch.stack([(3 * x + y).sin(), (2 * y).cos() * 0.8, (2 * x * y).sin()])[None]
    large = F.interpolate(picture, scale_factor=2, mode="bilinear", align_corners=False)
    std = latents.std().view(1, -1, 1, 1, 1)
    small, expected = (latents.encode(p[:, :, None].expand(-1, -1, 9, -1, -1)) for p in (picture, large))
    ours = build_upsampler()(small * std) / std
    error = (ours - expected)[..., 1:-1, 1:-1].abs()
    assert error[:, latents.LUMA].max().item() < 2e-3
    assert error[:, latents.CHROMA].max().item() < 0.1
    assert error[:, latents.HALVES].max().item() < 2e-3
    assert torch.allclose(ours[:, latents.MARKS], expected[:, latents.MARKS], atol=5e-3)
