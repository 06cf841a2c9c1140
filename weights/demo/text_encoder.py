"""The demo text encoder: a tokenizer of our own and a tiny random Gemma 3, in the folder layout of the real one.

The encoder is frozen and means nothing by itself; the trained connectors read it. Every listed word is one token, and
its embedding depends on nothing but its letters: not on case, on the space before it, or on its id.
"""

import json
import math
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from weights.demo import seeded

SPACE: Final = "\u2581"
SPECIAL: Final = (
    "<pad>",
    "<eos>",
    "<bos>",
    "<unk>",
    "<mask>",
    "<start_of_turn>",
    "<end_of_turn>",
    "<start_of_image>",
    "<end_of_image>",
    "<image_soft_token>",
)
"""Their ids are their places here."""
MAX_TOKENS: Final = 1024

HIDDEN: Final = 256
"""Wide, so that the random embeddings of 2,600 words stay nearly orthogonal and a few survive in a sum of many."""
LAYERS: Final = 4
HEADS: Final = 4
KEY_HEADS: Final = 2
HEAD_DIM: Final = 16
INNER: Final = 128
VISION: Final = 32
VISION_INNER: Final = 64
IMAGE_SIDE: Final = 56
PATCH: Final = 14
IMAGE_TOKENS: Final = 4

CHAT_TEMPLATE: Final = (
    "{{ bos_token }}"
    "{%- set first = namespace(text='') -%}"
    "{%- for message in messages -%}"
    "{%- set turn = namespace(text='') -%}"
    "{%- if message.content is string -%}{%- set turn.text = message.content -%}"
    "{%- else -%}{%- for part in message.content -%}"
    "{%- set turn.text = turn.text + (boi_token if part.type == 'image' else part.text) -%}"
    "{%- endfor -%}{%- endif -%}"
    "{%- if message.role == 'system' -%}{%- set first.text = turn.text + '\\n' -%}"
    "{%- else -%}"
    "{{ '<start_of_turn>' + ('model' if message.role == 'assistant' else 'user') + '\\n' }}"
    "{{ first.text + turn.text + '<end_of_turn>\\n' }}"
    "{%- set first.text = '' -%}"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<start_of_turn>model\\n' }}{%- endif -%}"
)
"""Turns as Gemma marks them; what the system says opens the first turn of the user."""


def build_text_encoder(folder: Path) -> None:
    """Writes tokenizer, processor, configuration and weights into `folder`, which is made if need be."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = train_tokenizer()
    tokenizer.save(str(folder / "tokenizer.json"))
    vocabulary = tokenizer.get_vocab()
    for name, content in configs(len(vocabulary)).items():
        (folder / name).write_text(json.dumps(content, indent=1, ensure_ascii=True) + "\n")
    tensors = {name: value.to(torch.bfloat16).contiguous() for name, value in _tensors(vocabulary).items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def words() -> list[str]:
    """The words that are one token each, in alphabetical order."""
    lines = Path(__file__).with_name("words.txt").read_text().splitlines()
    return sorted({word for line in lines if not line.startswith("#") for word in line.split()})


def train_tokenizer() -> Tokenizer:
    """A BPE tokenizer whose merges join every listed word, with a byte for whatever it does not know."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))  # noqa: S106 not a secret
    tokenizer.normalizer = normalizers.Replace(" ", SPACE)
    tokenizer.pre_tokenizer = pre_tokenizers.Split(SPACE, "merged_with_next")
    forms = [
        space + form for word in words() for form in (word, word.capitalize(), word.upper()) for space in ("", SPACE)
    ]
    printable = [SPACE, "\n", *map(chr, range(ord("!"), ord("~") + 1))]
    trainer = trainers.BpeTrainer(
        vocab_size=2**16,  # never reached: merging ends when every word is one token
        min_frequency=1,
        special_tokens=[*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256))],
        initial_alphabet=printable,
        show_progress=False,
    )
    tokenizer.train_from_iterator(forms, trainer)
    trained = json.loads(tokenizer.to_str())
    # a byte is no special token: decoding would leave it out
    trained["added_tokens"] = [token for token in trained["added_tokens"] if token["content"] in SPECIAL]
    tokenizer = Tokenizer.from_str(json.dumps(trained))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A $B:1", special_tokens=[("<bos>", SPECIAL.index("<bos>"))]
    )
    tokenizer.decoder = decoders.Sequence([decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()])
    return tokenizer


def _tensors(vocabulary: dict[str, int]) -> dict[str, torch.Tensor]:
    out = {"language_model.model.embed_tokens.weight": _embedding(vocabulary)}
    for name, shape in _shapes().items():
        if "norm" in name:
            # Gemma multiplies by 1 + weight, SigLIP by weight
            one = name.startswith("vision_tower") and name.endswith("weight")
            out[name] = torch.full(shape, float(one))
        elif name.endswith("bias"):
            out[name] = torch.zeros(shape)
        else:
            fan_in = shape[0] if name.endswith("projection_weight") else math.prod(shape[1:])
            out[name] = seeded.normal(name, shape) / math.sqrt(fan_in)
    return out


def _embedding(vocabulary: dict[str, int]) -> torch.Tensor:
    table = torch.empty(len(vocabulary), HIDDEN)
    rows: dict[str, torch.Tensor] = {}
    for token, index in vocabulary.items():
        letters = token if index < len(SPECIAL) else (token.removeprefix(SPACE).lower() or token)
        if letters not in rows:
            rows[letters] = seeded.normal(f"token/{letters}", (HIDDEN,)) / math.sqrt(HIDDEN)
        table[index] = rows[letters]
    table[SPECIAL.index("<pad>")] = 0
    return table


def _shapes() -> dict[str, tuple[int, ...]]:
    """Shape of every tensor but the embedding, under the names of the published Gemma 3 files."""
    out: dict[str, tuple[int, ...]] = {}
    for layer in range(LAYERS):
        at = f"language_model.model.layers.{layer}."
        out |= {
            at + "self_attn.q_proj.weight": (HEADS * HEAD_DIM, HIDDEN),
            at + "self_attn.k_proj.weight": (KEY_HEADS * HEAD_DIM, HIDDEN),
            at + "self_attn.v_proj.weight": (KEY_HEADS * HEAD_DIM, HIDDEN),
            at + "self_attn.o_proj.weight": (HIDDEN, HEADS * HEAD_DIM),
            at + "self_attn.q_norm.weight": (HEAD_DIM,),
            at + "self_attn.k_norm.weight": (HEAD_DIM,),
            at + "mlp.gate_proj.weight": (INNER, HIDDEN),
            at + "mlp.up_proj.weight": (INNER, HIDDEN),
            at + "mlp.down_proj.weight": (HIDDEN, INNER),
            at + "input_layernorm.weight": (HIDDEN,),
            at + "post_attention_layernorm.weight": (HIDDEN,),
            at + "pre_feedforward_layernorm.weight": (HIDDEN,),
            at + "post_feedforward_layernorm.weight": (HIDDEN,),
        }
    out["language_model.model.norm.weight"] = (HIDDEN,)
    at = "vision_tower.vision_model."
    out |= {
        at + "embeddings.patch_embedding.weight": (VISION, 3, PATCH, PATCH),
        at + "embeddings.patch_embedding.bias": (VISION,),
        at + "embeddings.position_embedding.weight": ((IMAGE_SIDE // PATCH) ** 2, VISION),
        at + "post_layernorm.weight": (VISION,),
        at + "post_layernorm.bias": (VISION,),
    }
    at += "encoder.layers.0."
    linears = {f"self_attn.{name}_proj": (VISION, VISION) for name in ("q", "k", "v", "out")}
    linears |= {"mlp.fc1": (VISION_INNER, VISION), "mlp.fc2": (VISION, VISION_INNER)}
    for name, shape in linears.items():
        out |= {f"{at}{name}.weight": shape, f"{at}{name}.bias": shape[:1]}
    for name in ("layer_norm1", "layer_norm2"):
        out |= {f"{at}{name}.weight": (VISION,), f"{at}{name}.bias": (VISION,)}
    out["multi_modal_projector.mm_input_projection_weight"] = (VISION, HIDDEN)
    out["multi_modal_projector.mm_soft_emb_norm.weight"] = (VISION,)
    return out


def configs(vocabulary_size: int) -> dict[str, dict[str, Any]]:
    """The JSON files beside the weights, by name, for so many tokens."""
    pad, eos, bos = (SPECIAL.index(token) for token in ("<pad>", "<eos>", "<bos>"))
    end_of_turn = SPECIAL.index("<end_of_turn>")
    image_tokens = {
        "boi_token": "<start_of_image>",
        "eoi_token": "<end_of_image>",
        "image_token": "<image_soft_token>",
    }
    model = {
        "architectures": ["Gemma3ForConditionalGeneration"],
        "model_type": "gemma3",
        "torch_dtype": "bfloat16",
        "boi_token_index": SPECIAL.index("<start_of_image>"),
        "eoi_token_index": SPECIAL.index("<end_of_image>"),
        "image_token_index": SPECIAL.index("<image_soft_token>"),
        "bos_token_id": bos,
        "eos_token_id": [eos, end_of_turn],
        "pad_token_id": pad,
        "mm_tokens_per_image": IMAGE_TOKENS,
        "initializer_range": 0.02,
        "tie_word_embeddings": True,
        "text_config": {
            "model_type": "gemma3_text",
            "vocab_size": vocabulary_size,
            "hidden_size": HIDDEN,
            "intermediate_size": INNER,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": HEADS,
            "num_key_value_heads": KEY_HEADS,
            "head_dim": HEAD_DIM,
            "query_pre_attn_scalar": HEAD_DIM,
            "sliding_window": 512,
            "layer_types": ["sliding_attention"] * (LAYERS - 1) + ["full_attention"],
            "max_position_embeddings": 131072,
            "rope_theta": 1000000.0,
            "rope_local_base_freq": 10000.0,
            "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
            "rms_norm_eps": 1e-6,
            "hidden_activation": "gelu_pytorch_tanh",
            "attention_bias": False,
            "attn_logit_softcapping": None,
            "final_logit_softcapping": None,
            "pad_token_id": pad,
            "bos_token_id": bos,
            "eos_token_id": eos,
        },
        "vision_config": {
            "model_type": "siglip_vision_model",
            "hidden_size": VISION,
            "intermediate_size": VISION_INNER,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": IMAGE_SIDE,
            "patch_size": PATCH,
            "num_channels": 3,
            "vision_use_head": False,
        },
    }
    tokenizer = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "processor_class": "Gemma3Processor",
        "bos_token": "<bos>",
        "eos_token": "<eos>",
        "pad_token": "<pad>",
        "unk_token": "<unk>",
        "mask_token": "<mask>",
        **image_tokens,
        "extra_special_tokens": image_tokens,
        "padding_side": "left",
        "model_max_length": MAX_TOKENS,
        "chat_template": CHAT_TEMPLATE,
    }
    pictures = {
        "image_processor_type": "Gemma3ImageProcessor",
        "processor_class": "Gemma3Processor",
        "image_seq_length": IMAGE_TOKENS,
        "do_resize": True,
        "size": {"height": IMAGE_SIDE, "width": IMAGE_SIDE},
        "resample": 2,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    }
    return {
        "config.json": model,
        "generation_config.json": {
            "bos_token_id": bos,
            "eos_token_id": [eos, end_of_turn],
            "pad_token_id": pad,
            "do_sample": True,
        },
        "tokenizer_config.json": tokenizer,
        "preprocessor_config.json": pictures,
        "processor_config.json": {"processor_class": "Gemma3Processor", "image_seq_length": IMAGE_TOKENS},
    }
