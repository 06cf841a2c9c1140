"""A text encoder loads alike from a folder, in shards, from a folder of diffusers and from a single file."""

import io
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from sentencepiece import SentencePieceProcessor, SentencePieceTrainer

from weights import gemma
from weights.errors import WeightsFileError
from weights.sentencepiece import tokenizer_of
from weights.text_encoder import TextEncoderFiles, load_text_encoder

WORDS = (
    "The camera pans left over a quiet harbour at dusk.",
    "Slow dolly in:  two   spaces, a tab\tand\na new line.",
    "Größe 1234567, “quotes”, 日本 and an emoji \N{GRINNING FACE}",
    "<start_of_turn>user\nhello<end_of_turn>\n",
    "",
)


@pytest.fixture(scope="module")
def pieces():
    """A SentencePiece model of Gemma's kind: bytes to fall back on, no prefix, digits apart."""
    model = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter([word for word in WORDS for _ in range(20)] + ["camera pan tilt zoom"] * 20),
        model_writer=model,
        model_type="bpe",
        vocab_size=361,
        hard_vocab_limit=True,
        byte_fallback=True,
        character_coverage=0.98,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        split_digits=True,
        pad_id=0,
        eos_id=1,
        bos_id=2,
        unk_id=3,
        pad_piece="<pad>",
        eos_piece="<eos>",
        bos_piece="<bos>",
        user_defined_symbols=["<start_of_turn>", "<end_of_turn>", "\n"],
        minloglevel=3,
    )
    return model.getvalue()


@pytest.fixture(scope="module")
def tensors(tiny):
    return load_file(tiny / "gemma" / "model.safetensors")


@pytest.fixture(scope="module")
def single(tensors, pieces, tmp_path_factory):
    """The single file for ComfyUI: other beginnings of names, the tokenizer among the tensors, no metadata."""
    path = tmp_path_factory.mktemp("single") / "gemma_3_tiny.safetensors"
    repacked = {
        name.replace("language_model.model.", "model.").replace("vision_tower.", ""): value
        for name, value in tensors.items()
    }
    repacked[gemma.SENTENCEPIECE] = torch.frombuffer(bytearray(pieces), dtype=torch.uint8)
    save_file(repacked, path)
    return path


def folder_of(tiny, tmp_path, *files):
    for path in (tiny / "gemma").iterdir():
        if not path.name.endswith(".safetensors"):
            shutil.copy(path, tmp_path)
    for name, part in files:
        save_file(part, tmp_path / name, metadata={"format": "pt"})
    return tmp_path


@torch.no_grad()
def states(encoder, ids):
    return torch.stack(encoder.language_model(input_ids=ids, output_hidden_states=True).hidden_states)


@pytest.fixture(scope="module")
def encoder(tiny):
    return load_text_encoder(tiny / "gemma", dtype=torch.float32, device="cpu")


def test_every_tensor_takes_the_dtype_asked_for_and_rotary_tables_stay_exact(tiny, encoder):
    half = load_text_encoder(tiny / "gemma", dtype=torch.bfloat16, device="cpu").model
    assert {value.dtype for value in half.parameters()} == {torch.bfloat16}
    assert half.lm_head.weight is half.model.language_model.embed_tokens.weight
    ours, exact = (dict(model.named_buffers()) for model in (half, encoder.model))
    assert ours.keys() == exact.keys()
    assert all(torch.equal(value, exact[name]) for name, value in ours.items())


def test_what_the_folder_says_of_generation_is_kept(encoder):
    assert encoder.model.generation_config.eos_token_id == [1, 5]


def test_shards_hold_what_one_file_holds(tiny, tensors, encoder, tmp_path):
    names = sorted(tensors)
    parts = [{name: tensors[name] for name in names[i::3]} for i in range(3)]
    files = [(f"model-{i + 1:05}-of-00003.safetensors", part) for i, part in enumerate(parts)]
    folder = folder_of(tiny, tmp_path, *files)
    index = {"weight_map": {name: file for file, part in files for name in part}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    sharded = load_text_encoder(folder, dtype=torch.float32, device="cpu").model.state_dict()
    assert all(torch.equal(value, sharded[name]) for name, value in encoder.model.state_dict().items())
    (folder / files[1][0]).unlink()
    with pytest.raises(WeightsFileError, match=r"model-00002-of-00003\.safetensors: found no such file"):
        TextEncoderFiles.open(folder)


def test_names_as_transformers_5_saves_them_are_read(encoder, tmp_path):
    encoder.model.save_pretrained(tmp_path)
    encoder.tokenizer.save_pretrained(tmp_path)
    again = load_text_encoder(tmp_path, dtype=torch.float32, device="cpu").model.state_dict()
    assert all(torch.equal(value, again[name]) for name, value in encoder.model.state_dict().items())


def test_a_folder_of_diffusers_keeps_the_tokenizer_beside_it(diffusers_folder, encoder):
    other = load_text_encoder(diffusers_folder, dtype=torch.float32, device="cpu")
    ids = other.tokenizer(WORDS[0], return_tensors="pt").input_ids
    assert torch.equal(ids, encoder.tokenizer(WORDS[0], return_tensors="pt").input_ids)
    assert torch.equal(states(other, ids), states(encoder, ids))


def test_a_single_file_gives_the_hidden_states_of_the_folder(tiny, tensors, single, tmp_path):
    folder = folder_of(tiny, tmp_path, ("model.safetensors", tensors))
    settings = json.loads((folder / "config.json").read_text())
    # the constants of the real one: every sixth layer sees everything, the others 1,024 tokens
    settings["text_config"] |= {"layer_types": ["sliding_attention"] * 2, "sliding_window": 1024}
    (folder / "config.json").write_text(json.dumps(settings))
    ours, theirs = (load_text_encoder(path, dtype=torch.float32, device="cpu") for path in (single, folder))
    ids = torch.randint(9, 361, (1, 100), generator=torch.Generator().manual_seed(3))
    assert torch.equal(states(ours, ids), states(theirs, ids))


def test_a_single_file_of_the_real_size_has_the_configuration_of_gemma_3_12b():
    config = gemma.guess_config(gemma_12b())
    text = config["text_config"]
    assert {
        name: text[name] for name in ("hidden_size", "num_hidden_layers", "head_dim", "query_pre_attn_scalar")
    } == {
        "hidden_size": 3840,
        "num_hidden_layers": 48,
        "head_dim": 256,
        "query_pre_attn_scalar": 256,
    }
    assert (text["num_attention_heads"], text["num_key_value_heads"], text["intermediate_size"]) == (16, 8, 15360)
    assert (text["vocab_size"], config["vision_config"]["image_size"]) == (262_208, 896)
    assert text["layer_types"].count("full_attention") == 8


def gemma_12b():
    """The tensors of the real one that its configuration is read from. Source: google/gemma-3-12b-it, config.json."""
    text, vision = "model.language_model.", "model.vision_tower."
    shapes = {
        f"{text}embed_tokens.weight": (262_208, 3840),
        f"{text}layers.0.self_attn.q_norm.weight": (256,),
        f"{text}layers.0.self_attn.q_proj.weight": (4096, 3840),
        f"{text}layers.0.self_attn.k_proj.weight": (2048, 3840),
        f"{text}layers.0.mlp.gate_proj.weight": (15_360, 3840),
        **{f"{text}layers.{i}.input_layernorm.weight": (3840,) for i in range(48)},
        f"{vision}embeddings.patch_embedding.weight": (1152, 3, 14, 14),
        f"{vision}embeddings.position_embedding.weight": (4096, 1152),
        **{f"{vision}encoder.layers.{i}.mlp.fc1.weight": (4304, 1152) for i in range(27)},
    }
    return {name: gemma.Stored(None, name, "BF16", shape, 0) for name, shape in shapes.items()}


@pytest.mark.parametrize("words", WORDS)
def test_the_tokenizer_of_a_single_file_reads_as_sentencepiece_does(pieces, words):
    ours = tokenizer_of(pieces)
    theirs = SentencePieceProcessor(model_proto=pieces)
    assert ours(words).input_ids == [2, *theirs.encode(words)]
    assert ours.decode(ours(words, add_special_tokens=False).input_ids) == words


def test_the_tokenizer_of_a_single_file_pads_on_the_left_and_knows_the_tokens_of_templates(pieces):
    ours = tokenizer_of(pieces)
    assert ours(["camera", ""], padding=True).input_ids[1][0] == ours.pad_token_id == 0
    special = {token.content: i for i, token in ours.added_tokens_decoder.items() if token.special}
    assert special == {
        "<pad>": 0,
        "<eos>": 1,
        "<bos>": 2,
        "<unk>": 3,
        "<start_of_turn>": 4,
        "<end_of_turn>": 5,
        "<image_soft_token>": 361,
    }


def test_a_tokenizer_that_is_none_is_refused(tensors, tmp_path):
    path = tmp_path / "bad.safetensors"
    repacked = {
        name.replace("language_model.model.", "model.").replace("vision_tower.", ""): value
        for name, value in tensors.items()
    }
    save_file(repacked | {gemma.SENTENCEPIECE: torch.full((9,), 255, dtype=torch.uint8)}, path)
    with pytest.raises(WeightsFileError, match="a tokenizer that does not load: no SentencePiece model"):
        load_text_encoder(path, dtype=torch.float32, device="cpu")
    save_file(repacked, path)
    with pytest.raises(WeightsFileError, match="found no spiece_model"):
        TextEncoderFiles.open(path)


def test_a_folder_without_a_text_encoder_is_refused(tmp_path):
    with pytest.raises(WeightsFileError, match=r"config.json, tokenizer.json, tokenizer_config.json missing"):
        TextEncoderFiles.open(tmp_path)


def test_another_model_is_refused(tiny, tmp_path):
    folder = folder_of(tiny, tmp_path)
    (folder / "config.json").write_text('{"model_type": "gemma3_text"}')
    with pytest.raises(WeightsFileError, match=r"config\.json: found model_type 'gemma3_text'"):
        TextEncoderFiles.open(folder)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda t: t.pop("language_model.model.norm.weight"), r"1 missing: model\.language_model\.norm\.weight"),
        (lambda t: t.update(odd=torch.zeros(1)), r"1 unexpected: odd"),
        (
            lambda t: t.update({"language_model.model.norm.weight": torch.zeros(3)}),
            r"norm\.weight \(found \[3\], expected \[32\]\)",
        ),
        (
            lambda t: t.update({"language_model.model.norm.weight": torch.zeros(32, dtype=torch.int64)}),
            r"norm\.weight in I64; expected a Gemma 3 in bf16",
        ),
    ],
)
def test_a_text_encoder_whose_tensors_do_not_fit_is_refused(tiny, tensors, tmp_path, change, says):
    changed = dict(tensors)
    change(changed)
    with pytest.raises(WeightsFileError, match=says):
        TextEncoderFiles.open(folder_of(tiny, tmp_path, ("model.safetensors", changed)))
