"""The vocabulary inside a GGUF file as a SentencePiece model.

Only tokenizer.ggml.model "llama" is one (pieces, scores and types as SentencePiece stores them). The model is
written as protobuf by hand: field numbers are those of sentencepiece_model.proto (ModelProto, TrainerSpec,
NormalizerSpec).
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

from libremoe.errors import CheckpointError

BPE = 2  # TrainerSpec.ModelType
BYTE = 6  # ModelProto.SentencePiece.Type


def sentencepiece_model(path: Path, metadata: dict[str, Any]) -> bytes | None:
    """ModelProto bytes, or None where the file has no vocabulary of this kind. Raises CheckpointError."""
    if metadata.get("tokenizer.ggml.model") != b"llama":
        return None
    pieces = metadata.get("tokenizer.ggml.tokens")
    scores = metadata.get("tokenizer.ggml.scores")
    types = metadata.get("tokenizer.ggml.token_type")
    if not (isinstance(pieces, list) and isinstance(scores, list) and isinstance(types, list)):
        raise CheckpointError(path, "tokenizer.ggml.tokens, scores and token_type are not three lists")
    if not len(pieces) == len(scores) == len(types):
        raise CheckpointError(path, f"{len(pieces)} pieces, {len(scores)} scores and {len(types)} types")
    out = bytearray()
    for piece, score, kind in zip(pieces, scores, types, strict=True):
        if type(piece) is not bytes or type(score) is not float or type(kind) is not int or not 1 <= kind <= BYTE:
            raise CheckpointError(path, f"piece {str(piece)[:40]} has no proper score or type")
        out += _field(1, _field(1, piece) + _float(2, score) + _number(3, kind))
    trainer = _number(3, BPE) + _number(35, int(BYTE in types)) + _number(4, len(pieces))
    for field, which, usual in ((40, "unknown", 0), (41, "bos", 1), (42, "eos", 2), (43, "padding", -1)):
        value = metadata.get(f"tokenizer.ggml.{which}_token_id", usual)
        if type(value) is not int or not -1 <= value < len(pieces):
            raise CheckpointError(path, f"tokenizer.ggml.{which}_token_id {str(value)[:40]} is no piece")
        trainer += _number(field, value)
    prefix = bool(metadata.get("tokenizer.ggml.add_space_prefix", True))
    normalizer = _field(1, b"identity") + _number(3, int(prefix)) + _number(4, 0) + _number(5, 1)
    return bytes(out + _field(2, trainer) + _field(3, normalizer))


def _varint(value: int) -> bytes:
    value &= (1 << 64) - 1  # a negative number is its two's complement in ten bytes
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _float(field: int, value: float) -> bytes:
    return _varint(field << 3 | 5) + struct.pack("<f", value)


def _field(field: int, content: bytes | bytearray) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(content)) + bytes(content)
