import json
import random

import pytest
import torch
from transformers import AutoTokenizer, Gemma3ForConditionalGeneration

from weights.demo import latents, motion, scenes, train_connectors, train_transformer
from weights.demo.captions import DROPPED, caption
from weights.demo.text_encoder import build_text_encoder


def losses(log):
    return [json.loads(line)["loss"] for line in log.read_text().splitlines()]


def test_a_short_training_of_the_transformer_lowers_the_loss(tmp_path):
    small = (train_transformer.Shape(9, 3, 3, 4, 1),)
    log = tmp_path / "log"
    state = train_transformer.train(100, log, canvases=4, shapes=small)
    first, second = losses(log)
    assert second < 0.8 * first
    assert all(torch.isfinite(value).all() for value in state.values())


def test_a_short_training_of_the_connectors_lowers_the_loss(tmp_path):
    build_text_encoder(tmp_path / "gemma")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "gemma")
    gemma = Gemma3ForConditionalGeneration.from_pretrained(tmp_path / "gemma", dtype=torch.float32).eval()
    log = tmp_path / "log"
    train_connectors.train(100, log, tokenizer, gemma.model, lengths=((64, 6),))
    first, second = losses(log)
    assert second < first


def test_captions_name_every_motion_and_the_dropped_prompt():
    rng = random.Random(0)
    seen = {kind for _, kind in (caption(rng) for _ in range(500))}
    assert seen == {*range(len(motion.MOTIONS)), DROPPED}


@pytest.mark.parametrize("seconds", [0.0, 1.0, 5.0, 20.0])
@pytest.mark.parametrize("name", motion.MOTIONS)
def test_no_camera_travels_more_than_a_quarter_of_a_side_of_256_pixels(name, seconds):
    right, down, magnification = motion.camera(name, torch.tensor([seconds]))
    edge = 128 * (1 - torch.minimum(magnification, 1 / magnification))
    assert max(right.abs().item(), down.abs().item(), edge.item()) <= 64


@pytest.mark.parametrize("name", motion.MOTIONS)
def test_every_motion_starts_where_the_picture_is(name):
    assert [float(v) for v in motion.camera(name, torch.zeros(1))] == [0, 0, 1]


def test_sounds_differ_by_motion():
    sounds = [motion.audio_latents(name, 60) for name in motion.MOTIONS]
    for i, one in enumerate(sounds):
        for other in sounds[:i]:
            assert (one - other).abs().max() > 0.5


def test_the_luma_picture_is_the_picture_that_was_encoded():
    picture = scenes.bank(1, seed=3)[0]
    clip = scenes.film(picture, "pan left", 9, (192, 256), centre=(0, 0), scale=0.8)[None]
    luma = torch.einsum("oc,bchw->bohw", latents.RGB_TO_YCC, clip[:, :, 0])[:, 0]
    torch.testing.assert_close(latents.luma_picture(latents.encode(clip))[:, 0], luma, atol=1e-6, rtol=0)
