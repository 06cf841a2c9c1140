import hashlib
import json

import pytest
import torch
from transformers import AutoProcessor

from weights.demo.text_encoder import MAX_TOKENS, build_text_encoder, words
from weights.text_encoder import load_text_encoder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo") / "gemma"
    build_text_encoder(folder)
    return folder


@pytest.fixture(scope="module")
def encoder(folder):
    return load_text_encoder(folder, dtype=torch.float32, device="cpu")


def test_building_twice_gives_the_same_bytes(folder, tmp_path):
    build_text_encoder(tmp_path)
    for path in folder.iterdir():
        assert (
            hashlib.sha256(path.read_bytes()).digest() == hashlib.sha256((tmp_path / path.name).read_bytes()).digest()
        )


def test_every_listed_word_is_one_token_wherever_it_stands(encoder):
    for word in words():
        assert len(encoder.tokenizer(word).input_ids) == 2
        assert len(encoder.tokenizer(f"a {word}").input_ids) == 3
        assert len(encoder.tokenizer(word.capitalize()).input_ids) == 2


@pytest.mark.parametrize(
    "text", ["the camera pans left", "Zoom OUT \u2014 \u00fcn\u00ef\u65e5\u672c \U0001f98a\nxqz 12", " a  b"]
)
def test_any_text_comes_back_from_its_tokens(encoder, text):
    ids = encoder.tokenizer(text).input_ids
    assert encoder.tokenizer.decode(ids, skip_special_tokens=True) == text


def test_prompts_are_padded_on_the_left_and_begin_with_bos(encoder):
    ids = encoder.tokenizer("pan", padding="max_length", max_length=MAX_TOKENS, return_tensors="pt").input_ids[0]
    assert ids.tolist()[:-2] == [0] * (MAX_TOKENS - 2)
    assert ids[-2] == 2
    assert encoder.tokenizer.model_max_length == MAX_TOKENS


def test_case_does_not_change_an_embedding(encoder):
    table = encoder.model.get_input_embeddings().weight
    lower, upper = (encoder.tokenizer(text).input_ids[-1] for text in ("pan", "a Pan"))
    assert lower != upper
    assert torch.equal(table[lower], table[upper])


@torch.no_grad()
def test_hidden_states_are_finite_and_tell_prompts_apart(encoder):
    states = []
    for prompt in ("the camera pans left", "the camera pans right"):
        batch = encoder.tokenizer(prompt, padding="max_length", max_length=128, return_tensors="pt")
        states.append(
            torch.stack(
                encoder.language_model(
                    input_ids=batch.input_ids, attention_mask=batch.attention_mask, output_hidden_states=True
                ).hidden_states
            )
        )
    assert states[0].shape == (5, 1, 128, 256)
    assert torch.isfinite(states[0]).all()
    assert (states[0][:, :, -1] - states[1][:, :, -1]).abs().amax(-1).min().item() > 0.1


def test_the_chat_template_marks_turns_and_images(encoder):
    text = encoder.tokenizer.apply_chat_template(
        [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Describe."}]},
            {"role": "assistant", "content": "A cat."},
            {"role": "user", "content": "More."},
        ],
        tokenize=False,
        add_generation_prompt=True,
    )
    assert text == (
        "<bos><start_of_turn>user\nBe brief.\n<start_of_image>Describe.<end_of_turn>\n"
        "<start_of_turn>model\nA cat.<end_of_turn>\n"
        "<start_of_turn>user\nMore.<end_of_turn>\n<start_of_turn>model\n"
    )


def test_the_folder_has_what_a_published_one_has(folder):
    assert {path.name for path in folder.iterdir()} == {
        "config.json", "generation_config.json", "model.safetensors", "preprocessor_config.json",
        "processor_config.json", "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip
    assert json.loads((folder / "config.json").read_text())["architectures"] == ["Gemma3ForConditionalGeneration"]
    assert type(AutoProcessor.from_pretrained(folder, local_files_only=True)).__name__ == "Gemma3Processor"


def test_it_writes_text_when_asked(encoder):
    batch = encoder.tokenizer("the camera", return_tensors="pt")
    out = encoder.model.generate(**batch, max_new_tokens=3, do_sample=False)
    assert batch.input_ids.shape[1] < out.shape[1] <= batch.input_ids.shape[1] + 3
