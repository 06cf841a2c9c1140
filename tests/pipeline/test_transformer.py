import pytest
import torch

from pipeline.transformer import Context, geometry, modulation, velocity
from weights.checkpoint import Checkpoint, load_component
from weights.demo.train_transformer import Velocity

GRID = (3, 2, 3)
AUDIO_TOKENS = 18


@pytest.fixture(scope="module")
def model(tiny):
    checkpoint = Checkpoint.open(tiny / "ltx-2.3-tiny.safetensors")
    return load_component(checkpoint, "transformer", dtype=torch.float32, device="cpu")


@pytest.fixture(scope="module")
def inputs():
    rng = torch.Generator().manual_seed(0)
    tokens = GRID[0] * GRID[1] * GRID[2]
    return {
        "video": torch.randn(2, tokens, 128, generator=rng),
        "audio": torch.randn(2, AUDIO_TOKENS, 128, generator=rng),
        "context": Context(torch.randn(2, 9, 32, generator=rng), torch.randn(2, 9, 16, generator=rng)),
    }


def ours(model, inputs, *, sigma, strength):
    return velocity(
        model,
        inputs["video"],
        inputs["audio"],
        context=inputs["context"],
        geometry=geometry(model, grid=GRID, fps=24.0, audio_tokens=AUDIO_TOKENS, dtype=torch.float32),
        modulation=modulation(model, sigma, pinned_mask=1 - strength, dtype=torch.float32),
    )


@torch.inference_mode()
@pytest.mark.parametrize("strength", [1.0, 0.7, 0.0])
@pytest.mark.parametrize("sigma", [1.0, 0.4])
def test_the_forward_is_the_one_the_demo_weights_were_trained_with(model, inputs, sigma, strength):
    """The training forward goes through diffusers' own, with the official gate rule hooked in."""
    tokens = inputs["video"].shape[1]
    mask = torch.ones(2, tokens)
    mask[:, : GRID[1] * GRID[2]] = 1 - strength
    hooked = Velocity(model)
    try:
        expected = hooked(
            inputs["video"],
            inputs["audio"],
            (inputs["context"].video, inputs["context"].audio),
            sigma=torch.tensor([sigma, sigma]),
            mask=mask,
            grid=GRID,
        )
    finally:
        for gate in (model.av_cross_attn_video_a2v_gate, model.av_cross_attn_audio_v2a_gate):
            gate._forward_pre_hooks.clear()
    found = ours(model, inputs, sigma=sigma, strength=strength)
    for a, b in zip(expected, found, strict=True):
        assert ((a - b).norm() / a.norm()).item() < 1e-5


@torch.inference_mode()
def test_passes_in_one_batch_do_not_touch_each_other(model, inputs):
    both = ours(model, inputs, sigma=0.7, strength=0.7)
    alone = ours(
        model,
        {
            "video": inputs["video"][1:],
            "audio": inputs["audio"][1:],
            "context": Context(inputs["context"].video[1:], inputs["context"].audio[1:]),
        },
        sigma=0.7,
        strength=0.7,
    )
    for a, b in zip(both, alone, strict=True):
        torch.testing.assert_close(a[1:], b, atol=1e-5, rtol=1e-4)
