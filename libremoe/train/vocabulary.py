"""Trains a tokenizer: SentencePiece BPE with the layout of Grok-1's own (docs/grok-1.md).

Ids 0-3 [PAD] [BOS] [EOS] [UNK]; 4-13 runs of newlines; 14-23 digits; 24-31 tabs; 32-46 spaces; 47-68 <|separator|>,
<|mask|>, <|control1|> to <|control20|>; 69-324 bytes; then what BPE finds.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator

import sentencepiece

from libremoe.errors import LibremoeError

MIN_PIECES = 512
MAX_SENTENCE_BYTES = 4000  # the library skips longer ones
SPECIAL = [
    *("\n" * n for n in range(1, 11)), *"0123456789", *("\t" * n for n in range(1, 9)),
    *(" " * n for n in range(2, 17)), "<|separator|>", "<|mask|>", *(f"<|control{n}|>" for n in range(1, 21)),
]


def train_tokenizer(texts: Iterable[str], pieces: int) -> bytes:
    """A `tokenizer.model` of `pieces` pieces. The same texts give the same bytes.

    Raises LibremoeError where the texts are too few for so many pieces.
    """
    if not MIN_PIECES <= pieces <= 1 << 16:
        raise LibremoeError(f"a tokenizer has from {MIN_PIECES} to {1 << 16} pieces (shards hold 16-bit ids), "
                            f"not {pieces}")
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_sentences(texts), model_writer=model, model_type="bpe", vocab_size=pieces,
            byte_fallback=True, split_digits=True, normalization_rule_name="identity", remove_extra_whitespaces=False,
            add_dummy_prefix=True, max_sentencepiece_length=16, allow_whitespace_only_pieces=True,
            character_coverage=0.9995, user_defined_symbols=SPECIAL, pad_id=0, bos_id=1, eos_id=2, unk_id=3,
            pad_piece="[PAD]", bos_piece="[BOS]", eos_piece="[EOS]", unk_piece="[UNK]", num_threads=1, minloglevel=2,
        )
    except RuntimeError as error:  # the library's only way to say that there is too little text
        raise LibremoeError(f"no tokenizer of {pieces} pieces can be made of this text: {error}") from error
    return model.getvalue()


def _sentences(texts: Iterable[str]) -> Iterator[str]:
    """Lines: newlines are pieces of their own, so nothing is learned across them."""
    for text in texts:
        for line in text.splitlines():
            if line.strip() and len(line.encode()) <= MAX_SENTENCE_BYTES:
                yield line


def chars_per_token(tokenizer_encode, texts: Iterable[str]) -> float:  # type: ignore[no-untyped-def]
    """Characters of the texts over the tokens that encode them."""
    chars = tokens = 0
    for text in texts:
        chars += len(text)
        tokens += len(tokenizer_encode(text))
    return chars / max(tokens, 1)
