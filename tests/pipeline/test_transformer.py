import pytest
import torch

from pipeline.transformer import Context, Omission, Runs, geometry, modulation, velocity
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


def ours(model, inputs, *, sigma, strength, omissions=()):
    first = GRID[1] * GRID[2]
    rest = inputs["video"].shape[1] - first
    video, audio = Runs((first, rest), (1 - strength, 1.0)), Runs((AUDIO_TOKENS,), (1.0,))
    return velocity(
        model,
        inputs["video"],
        inputs["audio"],
        context=inputs["context"],
        geometry=geometry(model, grid=GRID, fps=24.0, audio_tokens=AUDIO_TOKENS, dtype=torch.float32),
        modulation=modulation(model, sigma, video=video, audio=audio, dtype=torch.float32),
        omissions=omissions,
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


def rows(inputs, *indices):
    """The inputs of these rows."""
    picked = list(indices)
    context = Context(inputs["context"].video[picked], inputs["context"].audio[picked])
    return {"video": inputs["video"][picked], "audio": inputs["audio"][picked], "context": context}


OMISSIONS = [
    Omission(video_blocks=(1,), audio_blocks=(1,)),
    Omission(video_blocks=None),
    Omission(audio_blocks=(0,)),
    Omission(exchange=True),
]


@torch.inference_mode()
@pytest.mark.parametrize("omission", OMISSIONS)
def test_what_one_row_leaves_out_the_others_keep(model, inputs, omission):
    batch = rows(inputs, 0, 0, 1)
    found = ours(model, batch, sigma=0.7, strength=0.7, omissions=(Omission(), omission, Omission()))
    whole = ours(model, inputs, sigma=0.7, strength=0.7)
    alone = ours(model, rows(inputs, 0), sigma=0.7, strength=0.7, omissions=(omission,))
    for stream in range(2):
        torch.testing.assert_close(found[stream][[0, 2]], whole[stream], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(found[stream][1:2], alone[stream], atol=1e-5, rtol=1e-4)
        assert not torch.allclose(alone[stream], whole[stream][:1], atol=1e-3)


@torch.inference_mode()
def test_streams_that_do_not_see_each_other_ignore_each_other(model, inputs):
    other = {**inputs, "audio": inputs["audio"] * 2 + 1}
    omissions = (Omission(exchange=True),) * 2
    before, after = (ours(model, i, sigma=0.7, strength=0.7, omissions=omissions)[0] for i in (inputs, other))
    assert torch.equal(before, after)


def test_a_mask_has_the_values_of_its_runs():
    mask = Runs((2, 1, 1), (0.5, 1.0, 0.5)).mask(torch.device("cpu"))
    assert torch.equal(mask, torch.tensor([0.5, 0.5, 1.0, 0.5]).view(1, 4, 1))
