"""Text written by Gemma, token by token: the model that reads the prompts, asked to write one."""

from collections.abc import Callable, Iterator
from typing import Final

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import StaticCache

from weights.text_encoder import TextEncoder

TEMPERATURE: Final = 0.7
"""Source: Lightricks/LTX-2 1.2.0, prompt enhancement."""
TOP_K: Final = 64
TOP_P: Final = 0.95
"""Source, of both: google/gemma-3-12b-it, generation_config.json."""
MAX_PROMPT_TOKENS: Final = 1024


Draw = Callable[[Tensor, torch.Generator], int]
"""Chooses the next token by its logits."""


def drawn(logits: Tensor, rng: torch.Generator) -> int:
    """One token, drawn from the likeliest. Only those leave the device. Shapes: [V]."""
    values, tokens = logits.float().topk(min(TOP_K, len(logits)))
    share = torch.softmax(values.cpu() / TEMPERATURE, 0)
    share[share.cumsum(0) - share >= TOP_P] = 0
    return int(tokens[torch.multinomial(share, 1, generator=rng).to(tokens.device)])


@torch.inference_mode()
def write(
    text_encoder: TextEncoder,
    *,
    instruction: str,
    words: str,
    image: Image.Image | None,
    seed: int,
    max_tokens: int,
    draw: Draw = drawn,
) -> Iterator[str]:
    """The answer to `instruction` and `words`, as far as it has come after each token.

    Ends with the model's turn or after `max_tokens`. Noise is drawn on the CPU from `seed` alone.
    """
    model, tokenizer = text_encoder.model, text_encoder.tokenizer
    tokens = prompt_tokens(text_encoder, instruction=instruction, words=words, with_image=image is not None)
    rng = torch.Generator("cpu").manual_seed(seed)
    ends = {tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<end_of_turn>")}
    cache = StaticCache(config=model.config, max_cache_len=tokens.shape[1] + max_tokens)
    of_image = tokens == model.config.image_token_id
    logits = model(
        input_ids=tokens,
        pixel_values=None if image is None else pixels(text_encoder, image),
        token_type_ids=of_image.long(),
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    ).logits
    written: list[int] = []
    while len(written) < max_tokens:
        token = draw(logits[0, -1], rng)
        if token in ends:
            return
        written.append(token)
        yield tokenizer.decode(written, skip_special_tokens=True)
        if len(written) < max_tokens:
            latest = torch.tensor([[token]], device=tokens.device)
            logits = model(input_ids=latest, past_key_values=cache, use_cache=True, logits_to_keep=1).logits


def prompt_tokens(text_encoder: TextEncoder, *, instruction: str, words: str, with_image: bool) -> Tensor:
    """The conversation that ends where the model's turn begins. Shapes: [1, N].

    Put together here, since a single-file text encoder has no template, and a template is code from a stranger.
    Special tokens in the user's words are only words.
    Source: the chat template of google/gemma-3-12b-it; Gemma3Processor of transformers 5.23 for the image.
    """
    tokenizer, model = text_encoder.tokenizer, text_encoder.model
    config = model.config
    for token in tokenizer.added_tokens_decoder.values():
        if token.special:
            words = words.replace(token.content, " ")
    read = tokenizer(words, add_special_tokens=False).input_ids
    if len(read) > MAX_PROMPT_TOKENS:
        words = tokenizer.decode(read[:MAX_PROMPT_TOKENS])
    picture = ""
    if with_image:
        start, soft, end = tokenizer.convert_ids_to_tokens(
            [config.boi_token_index, config.image_token_id, config.eoi_token_index]
        )
        picture = f"\n\n{start}{soft * config.mm_tokens_per_image}{end}\n\n"
    turns = (
        f"<start_of_turn>user\n{instruction.strip()}\n\n{picture}{words.strip()}<end_of_turn>\n<start_of_turn>model\n"
    )
    tokens: Tensor = tokenizer(turns, return_tensors="pt").input_ids
    return tokens.to(model.device)


def pixels(text_encoder: TextEncoder, image: Image.Image) -> Tensor:
    """The picture as the vision tower takes it: squeezed into its square, -1 to 1. Shapes: [1, 3, S, S].

    Source: google/gemma-3-12b-it, preprocessor_config.json.
    """
    model = text_encoder.model
    side = model.config.vision_config.image_size
    squeezed = np.asarray(image.convert("RGB").resize((side, side), Image.Resampling.BILINEAR), dtype=np.float32)
    return torch.from_numpy(squeezed / 127.5 - 1).permute(2, 0, 1)[None].to(model.device, model.dtype)
