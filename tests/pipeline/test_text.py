import pytest
import torch
from safetensors.torch import load_file

from pipeline import text
from pipeline.transformer import Context
from weights.checkpoint import Checkpoint, load_component
from weights.text_encoder import load_text_encoder

WORDS = "A red fox runs; snow falls. \u00c9t\u00e9! \U0001f98a"
PROMPTS = {
    "short": "a cat",
    "unicode": WORDS,
    "empty": "",
    "half": "the quick brown fox" + " jumps" * 100,
    "long": "word " * 1200,
}


def loaded(tiny, dtype):
    return load_text_encoder(tiny / "gemma", dtype=dtype, device="cpu")


@pytest.fixture(scope="module")
def gemma3(tiny):
    return loaded(tiny, torch.float32)


@pytest.fixture(scope="module")
def connectors(tiny):
    checkpoint = Checkpoint.open(tiny / "ltx-2.3-tiny.safetensors")
    return load_component(checkpoint, "connectors", dtype=torch.float32, device="cpu")


def padded(gemma3, words):
    """What the reference does: left padding to 1,024, masked, positions counted over it; states of the words alone."""
    batch = gemma3.tokenizer(
        words, truncation=True, max_length=1024, padding="max_length", return_tensors="pt", padding_side="left"
    )
    states = gemma3.model.model(
        input_ids=batch.input_ids, attention_mask=batch.attention_mask, output_hidden_states=True
    ).hidden_states
    count = int(batch.attention_mask.sum())
    return batch.input_ids[:, -count:], torch.stack(states)[:, :, -count:], torch.stack(states), batch.attention_mask


def distance(expected, found):
    return ((expected.double() - found.double()).norm() / expected.double().norm()).item()


@torch.inference_mode()
@pytest.mark.parametrize("words", PROMPTS.values(), ids=PROMPTS)
def test_without_padding_gemmas_states_are_those_with_padding(gemma3, words):
    tokens, expected, _, _ = padded(gemma3, words)
    found = torch.stack(text.hidden_states(tokens, text_encoder=gemma3))
    assert found.shape == expected.shape
    assert distance(expected, found) < 1e-6


@torch.inference_mode()
def test_in_bfloat16_leaving_out_the_padding_adds_no_error_of_its_own(tiny):
    exact = padded(loaded(tiny, torch.float32), PROMPTS["half"])[1]
    half = loaded(tiny, torch.bfloat16)
    tokens, expected, _, _ = padded(half, PROMPTS["half"])
    found = torch.stack(text.hidden_states(tokens, text_encoder=half))
    assert distance(exact, found) < 1.1 * distance(exact, expected)


@torch.inference_mode()
@pytest.mark.parametrize("words", PROMPTS.values(), ids=PROMPTS)
def test_the_context_is_that_of_diffusers_own_connectors_on_padded_states(gemma3, connectors, words):
    _, _, states, mask = padded(gemma3, words)
    video, audio, _ = connectors(states.movedim(0, -1).flatten(2), mask, padding_side="left")
    found = text.encode(words, text_encoder=gemma3, connectors=connectors)
    assert distance(video, found.video) < 1e-5
    assert distance(audio, found.audio) < 1e-5


@torch.inference_mode()
@pytest.mark.parametrize("name", ["pos0", "neg0", "pos1", "empty"])
def test_gemmas_states_are_the_official_ones(gemma3, name):
    golden = load_file("tests/golden/public/text.safetensors")
    count = int(golden[f"{name}.num_valid"])
    tokens = golden[f"{name}.input_ids"][-count:][None].long()
    found = torch.cat(text.hidden_states(tokens, text_encoder=gemma3))
    assert distance(golden[f"{name}.gemma_hidden"], found) < 1e-6


def test_no_logits_are_computed(gemma3, connectors):
    calls = []
    handle = gemma3.model.lm_head.register_forward_hook(lambda *_: calls.append(1))
    text.encode("a cat", text_encoder=gemma3, connectors=connectors)
    handle.remove()
    assert calls == []


class Reader:
    """Reads a prompt as a context that holds its length, and remembers that it did."""

    def __init__(self):
        self.read = []

    def __call__(self, prompt):
        self.read.append(prompt)
        return Context(video=torch.full((1, 2, 3), float(len(prompt))), audio=torch.zeros(1, 2, 2))


def test_a_prompt_that_was_read_is_not_read_again():
    reader = Reader()
    contexts = text.Contexts(reader)
    first = contexts.of("a cat", device="cpu")
    again = contexts.of("  a cat\n", device="cpu")
    assert torch.equal(first.video, again.video)
    assert reader.read == ["a cat"]


def test_the_prompt_not_used_for_longest_is_forgotten():
    reader = Reader()
    contexts = text.Contexts(reader, at_most=2)
    for words in ("a", "b", "a", "c", "a", "b"):
        contexts.of(words, device="cpu")
    assert reader.read == ["a", "b", "c", "b"]


def test_unless_told_otherwise_sixteen_prompts_are_remembered():
    reader = Reader()
    contexts = text.Contexts(reader)
    for words in (*map(str, range(17)), "16", "1", "0"):
        contexts.of(words, device="cpu")
    assert reader.read == [*map(str, range(17)), "0"]


def test_a_kept_prompt_is_read_once_for_ever():
    reader = Reader()
    contexts = text.Contexts(reader, at_most=1)
    contexts.keep("ugly")
    for words in ("a", "b", "ugly", "c", "ugly"):
        contexts.of(words, device="cpu")
    assert reader.read == ["ugly", "a", "b", "c"]


def test_contexts_wait_in_the_hosts_memory_and_come_to_the_device():
    contexts = text.Contexts(lambda _: Context(video=torch.zeros(1, 1), audio=torch.zeros(1, 1)))
    assert contexts.of("a", device="meta").video.device.type == "meta"
    assert contexts.of("a", device="cpu").audio.device.type == "cpu"
