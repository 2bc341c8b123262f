"""Text to token ids and back: SentencePiece `tokenizer.model` and Hugging Face `tokenizer.json`.

    tokenizer = open_tokenizer(path)
    ids = tokenizer.encode(text)              # as the releases do it: no BOS, control pieces recognised
    ids = tokenizer.encode_untrusted(text)    # text that spells a control piece stays plain text
    stream = tokenizer.stream_decoder()       # push(id) -> the text that is now certain; finish() -> the rest

A stream decoder gives, piece by piece, exactly what decode() gives for the whole list, without decoding it
anew for each token. The two kinds are tokenizer_spm.py and tokenizer_hf.py.
"""

from __future__ import annotations

import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from libremoe.errors import CheckpointError, LibremoeError

MAX_FILE_BYTES = 32 << 20  # ten times the largest tokenizer of a supported model
MAX_VOCAB = 1 << 24  # ids beyond are refused: tables with a place for each are made elsewhere
SPACE = "\u2581"  # stands for a space inside pieces
REPLACEMENT = "\ufffd"


class StreamDecoder(Protocol):
    """Decodes one text. The pushes and finish(), joined, equal decode() of the same ids."""

    def push(self, token: int) -> str:
        """The text that `token` makes certain, perhaps "". Never a part of a character."""

    def finish(self) -> str:
        """What was held back; bytes that never became a character become U+FFFD. Call it once, at the end."""


class Tokenizer(Protocol):
    """What both kinds of file offer. An id outside the vocabulary raises LibremoeError everywhere."""

    vocab_size: int  # ids are in [0, vocab_size)
    bos_id: int | None
    eos_id: int | None
    pad_id: int | None

    def encode(self, text: str) -> list[int]:
        """As the release tokenises a prompt: no BOS or EOS; text that spells a control piece becomes it."""

    def encode_untrusted(self, text: str) -> list[int]:
        """As encode(), but control pieces are spelled out in ordinary pieces; decodes to the same text."""

    def decode(self, tokens: Sequence[int]) -> str:
        """The library's decoding: BOS, EOS and the like give nothing, a space added in front is removed."""

    def stream_decoder(self) -> StreamDecoder:
        """A fresh decoder for one text."""

    def piece(self, token: int) -> str:
        """The vocabulary's own spelling of a token; "" for an id that the file leaves out."""

    def token_bytes(self, token: int) -> bytes | None:
        """The exact bytes that `token` adds in the middle of a text; None for tokens that are not text.

        A leading space is part of the bytes. At the very start of a text decode() drops it (SentencePiece and
        Metaspace; byte-level files keep it), so who joins token_bytes from the start removes it there.
        """

    def is_special(self, token: int) -> bool:
        """True for tokens that text from a user must not contain: BOS, EOS, unknown, separators, controls."""


def open_tokenizer(path: Path | str) -> Tokenizer:
    """Opens a tokenizer file, or the tokenizer.model or else tokenizer.json of a directory.

    Raises CheckpointError for a file that is missing, too large, damaged, or that decodes by unknown rules.
    """
    path = Path(path)
    if path.is_dir():
        found = [path / name for name in ("tokenizer.model", "tokenizer.json") if (path / name).exists()]
        if not found:
            raise CheckpointError(path, "holds neither tokenizer.model nor tokenizer.json")
        path = found[0]
    content = _read(path)
    if path.suffix == ".json":
        from libremoe.tokenizer_hf import HFTokenizer

        return HFTokenizer(path, content)
    from libremoe.tokenizer_spm import SentencePieceTokenizer

    return SentencePieceTokenizer(path, content)


def _read(path: Path) -> bytes:
    try:
        info = path.stat()
        if not stat.S_ISREG(info.st_mode):
            raise CheckpointError(path, "is not a regular file")
        if info.st_size > MAX_FILE_BYTES:
            raise CheckpointError(path, f"has {info.st_size} bytes, a tokenizer has at most {MAX_FILE_BYTES}")
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise CheckpointError(path, error.strerror or str(error)) from error
    if not content:
        raise CheckpointError(path, "is empty")
    if len(content) > MAX_FILE_BYTES:
        raise CheckpointError(path, f"grew beyond {MAX_FILE_BYTES} bytes while it was read")
    return content


def check_text(text: str) -> None:
    # A lone surrogate (JSON's "\ud800") is not text; the libraries fail on it in ways of their own.
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise LibremoeError(f"the text holds half of a surrogate pair at character {error.start}") from error


def check_id(token: int, vocab_size: int) -> None:
    if not 0 <= token < vocab_size:
        raise LibremoeError(f"token id {token} is outside the vocabulary of {vocab_size}")


def is_control_text(piece: str) -> bool:
    """Whether a user-defined piece is a control piece such as <|separator|>, not spaces or a character."""
    return len(piece) > 1 and not piece.replace(SPACE, " ").isspace()
