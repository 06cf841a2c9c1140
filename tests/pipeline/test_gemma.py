import pytest
import torch
from PIL import Image
from transformers import Gemma3Processor
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil

from pipeline import gemma
from weights.text_encoder import TextEncoder, load_text_encoder

INSTRUCTION = "Write a line.\nOnly one."


@pytest.fixture(scope="module")
def gemma3(tiny):
    """The tiny Gemma 3 with its vision tower, random in every tensor."""
    loaded = load_text_encoder(tiny / "gemma", dtype=torch.float32, device="cpu")
    rng = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in loaded.model.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=rng) * parameter.abs().mean().clamp(min=0.05)
    return loaded


@pytest.fixture
def picture(tiny):
    with Image.open(tiny / "image.png") as opened:
        return opened.convert("RGB")


@pytest.fixture(scope="module")
def processor(gemma3):
    """What transformers itself makes of a conversation with a picture."""
    config = gemma3.model.config
    side = config.vision_config.image_size
    return Gemma3Processor(
        Gemma3ImageProcessorPil(
            size={"height": side, "width": side}, image_mean=[0.5] * 3, image_std=[0.5] * 3, do_pan_and_scan=False
        ),
        gemma3.tokenizer,
        image_seq_length=config.mm_tokens_per_image,
    )


def written(gemma3, image, *, words="a cat runs", seed=1, max_tokens=12, draw=gemma.drawn):
    answers = gemma.write(
        gemma3, instruction=INSTRUCTION, words=words, image=image, seed=seed, max_tokens=max_tokens, draw=draw
    )
    return list(answers)


def test_a_conversation_with_a_picture_is_what_transformers_makes_of_it(gemma3, processor, picture):
    text = f"<start_of_turn>user\n{INSTRUCTION}\n\n<start_of_image>a cat<end_of_turn>\n<start_of_turn>model\n"
    expected = processor(images=picture, text=text, return_tensors="pt")
    tokens = gemma.prompt_tokens(gemma3, instruction=INSTRUCTION, words=" a cat ", with_image=True)
    assert torch.equal(tokens, expected["input_ids"])
    assert torch.equal((tokens == gemma3.model.config.image_token_id).long(), expected["token_type_ids"])
    torch.testing.assert_close(gemma.pixels(gemma3, picture), expected["pixel_values"], atol=1e-6, rtol=0)


@pytest.mark.parametrize("with_image", [True, False])
def test_the_likeliest_tokens_are_those_of_transformers_own_loop(gemma3, picture, with_image):
    image = picture if with_image else None
    ours = written(gemma3, image, max_tokens=24, draw=lambda logits, _: int(logits.argmax()))
    tokens = gemma.prompt_tokens(gemma3, instruction=INSTRUCTION, words="a cat runs", with_image=with_image)
    seen = {"pixel_values": gemma.pixels(gemma3, picture)} if with_image else {}
    expected = gemma3.model.generate(
        input_ids=tokens,
        attention_mask=torch.ones_like(tokens),
        token_type_ids=(tokens == gemma3.model.config.image_token_id).long(),
        do_sample=False,
        max_new_tokens=24,
        **seen,
    )[0, tokens.shape[1] :]
    assert len(expected) == 24
    assert len(ours) == 24
    assert ours[-1] == gemma3.tokenizer.decode(expected, skip_special_tokens=True)


def test_a_seed_gives_the_same_words_and_another_seed_others(gemma3, picture):
    state = torch.get_rng_state()
    first = written(gemma3, picture)
    assert first == written(gemma3, picture)
    assert first != written(gemma3, picture, seed=2)
    assert torch.equal(state, torch.get_rng_state())


def test_the_picture_matters(gemma3, picture):
    assert written(gemma3, picture) != written(gemma3, Image.new("RGB", (64, 32), "red"))


def test_no_more_tokens_are_written_than_asked_for(gemma3):
    assert len(written(gemma3, None, max_tokens=5)) <= 5


@pytest.mark.parametrize("end", ["<eos>", "<end_of_turn>"])
def test_the_models_turn_ends_the_answer(gemma3, end):
    script = [*gemma3.tokenizer("ab", add_special_tokens=False).input_ids, gemma3.tokenizer.convert_tokens_to_ids(end)]
    answers = written(gemma3, None, draw=lambda _logits, _rng: script.pop(0))
    assert answers[-1] == "ab"
    assert script == []


@pytest.mark.parametrize("mark", ["<image_soft_token>", "<end_of_image>", "<eos>"])
def test_special_tokens_in_the_users_words_are_only_words(gemma3, mark):
    plain = gemma.prompt_tokens(gemma3, instruction=INSTRUCTION, words="a  cat", with_image=True)
    forged = gemma.prompt_tokens(gemma3, instruction=INSTRUCTION, words=f"a{mark} cat", with_image=True)
    assert torch.equal(plain, forged)


def test_a_very_long_wish_is_cut(gemma3):
    tokens = gemma.prompt_tokens(gemma3, instruction=INSTRUCTION, words="a cat " * 5_000, with_image=False)
    assert tokens.shape[1] < gemma.MAX_PROMPT_TOKENS + 200


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_only_likely_tokens_are_drawn(dtype):
    logits = torch.full((1000,), -1.0, dtype=dtype)
    logits[[7, 8]] = torch.tensor([9.0, 8.5], dtype=dtype)
    rng = torch.Generator().manual_seed(0)
    assert {gemma.drawn(logits, rng) for _ in range(200)} == {7, 8}


def test_a_tokens_share_of_draws_follows_temperature():
    logits = torch.tensor([0.7, 0.0])
    rng = torch.Generator().manual_seed(0)
    first = sum(gemma.drawn(logits, rng) == 0 for _ in range(4000)) / 4000
    assert first == pytest.approx(torch.sigmoid(torch.tensor(1.0)).item(), abs=0.03)


def test_the_demo_text_encoder_can_write_too(tmp_path):
    from weights.demo.text_encoder import build_text_encoder

    build_text_encoder(tmp_path)
    demo: TextEncoder = load_text_encoder(tmp_path, dtype=torch.float32, device="cpu")
    assert len(written(demo, Image.new("RGB", (64, 32), "red"), max_tokens=3)) <= 3
