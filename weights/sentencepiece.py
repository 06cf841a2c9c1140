"""Gemma's tokenizer out of a SentencePiece model, which is all that a single-file text encoder carries."""

from typing import Final

from google.protobuf.message import DecodeError
from sentencepiece.sentencepiece_model_pb2 import ModelProto
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors
from transformers import PreTrainedTokenizerFast

_SPACE: Final = "▁"
_PAD, _EOS, _BOS, _UNK = "<pad>", "<eos>", "<bos>", "<unk>"
_SOFT_IMAGE: Final = "<image_soft_token>"
"""The one token of Gemma 3 that its SentencePiece model lacks; it comes after the last.

Source: google/gemma-3-12b-it, added_tokens.json.
"""
_OF_TEMPLATES: Final = frozenset({"<start_of_turn>", "<end_of_turn>", "<start_of_image>", "<end_of_image>"})
"""Pieces that SentencePiece lets users write, and that only a template may.

Source: google/gemma-3-12b-it, tokenizer_config.json.
"""
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED = 1, 2, 3, 4
"""Source: google/sentencepiece, src/sentencepiece_model.proto."""


def tokenizer_of(model: bytes) -> PreTrainedTokenizerFast:
    """The tokenizer whose SentencePiece model is `model`: puts <bos> first, pads on the left.

    Raises: ValueError if `model` is none of Gemma's kind.
    """
    proto = ModelProto()
    try:
        proto.ParseFromString(model)
    except DecodeError as error:
        raise ValueError(f"no SentencePiece model: {error}") from error
    vocab = {piece.piece: i for i, piece in enumerate(proto.pieces)}
    if missing := {_PAD, _EOS, _BOS, _UNK} - vocab.keys():
        raise ValueError(f"a SentencePiece model without {', '.join(sorted(missing))}")
    scores = {piece.piece: piece.score for piece in proto.pieces if piece.type == _NORMAL}
    tokenizer = Tokenizer(
        models.BPE(vocab=vocab, merges=_merges(scores), unk_token=_UNK, fuse_unk=True, byte_fallback=True)
    )
    tokenizer.normalizer = normalizers.Replace(" ", _SPACE)
    tokenizer.decoder = decoders.Sequence([decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()])
    for piece in proto.pieces:
        if piece.type in {_UNKNOWN, _CONTROL, _USER_DEFINED}:
            special = piece.type != _USER_DEFINED or piece.piece in _OF_TEMPLATES
            token = AddedToken(piece.piece, normalized=False, special=special)
            (tokenizer.add_special_tokens if special else tokenizer.add_tokens)([token])
    tokenizer.add_special_tokens([AddedToken(_SOFT_IMAGE, normalized=False, special=True)])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{_BOS} $A", pair=f"{_BOS} $A {_BOS} $B", special_tokens=[(_BOS, vocab[_BOS])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=_BOS,
        eos_token=_EOS,
        pad_token=_PAD,
        unk_token=_UNK,
        padding_side="left",
    )


def _merges(scores: dict[str, float]) -> list[tuple[str, str]]:
    """Every way to put a piece together from two others, best pieces first."""
    found = [
        (-score, order, piece[:cut], piece[cut:])
        for order, (piece, score) in enumerate(scores.items())
        for cut in range(1, len(piece))
        if piece[:cut] in scores and piece[cut:] in scores
    ]
    return [(left, right) for _, _, left, right in sorted(found)]
