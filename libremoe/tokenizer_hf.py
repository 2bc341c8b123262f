"""A Hugging Face `tokenizer.json`, by the tokenizers library: byte-level BPE, or BPE with spaces as U+2581.

Decoding follows the file's `decoder`, of which three kinds are known here: ByteLevel, Metaspace, and Llama's
Replace + ByteFallback + Fuse + Strip. A file with another one is refused: its stream could not be decoded.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tokenizers

from libremoe.errors import CheckpointError
from libremoe.tokenizer import (
    MAX_VOCAB,
    REPLACEMENT,
    SPACE,
    StreamDecoder,
    check_id,
    check_text,
    is_control_text,
)

BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
BOS_NAMES = ("<s>", "[BOS]", "<bos>", "<|begin_of_text|>", "<|startoftext|>")
EOS_NAMES = ("</s>", "[EOS]", "<eos>", "<|end_of_text|>", "<|endoftext|>")
PAD_NAMES = ("[PAD]", "<pad>", "<|finetune_right_pad_id|>")


def _printable_bytes() -> dict[str, int]:
    """Character -> byte in GPT-2's byte-level BPE: printable Latin-1 as it is, the others from U+0100 on."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(0x100 + n): byte for n, byte in enumerate(others)}


BYTE_OF_CHARACTER = _printable_bytes()


def _decoding_rule(decoder: Any) -> tuple[str, int]:
    """The `decoder` of a tokenizer.json -> ("byte-level" | "metaspace" | "fallback", spaces to strip).

    Raises ValueError for a decoder that the stream decoders below do not follow.
    """
    is_sequence = isinstance(decoder, dict) and decoder.get("type") == "Sequence"
    steps = decoder.get("decoders") if is_sequence else [decoder]
    if not isinstance(steps, list) or not all(isinstance(step, dict) for step in steps):
        raise ValueError("has no decoder")
    kinds = [step.get("type") for step in steps]
    if kinds == ["ByteLevel"]:
        return "byte-level", 0
    if kinds == ["Metaspace"] and steps[0].get("replacement") == SPACE:
        return "metaspace", 0 if steps[0].get("prepend_scheme") == "never" else 1
    if kinds[:3] == ["Replace", "ByteFallback", "Fuse"] and kinds[3:] in ([], ["Strip"]):
        strip = steps[3] if kinds[3:] else {"content": " ", "start": 0, "stop": 0}
        replaces = steps[0].get("pattern") == {"String": SPACE} and steps[0].get("content") == " "
        start = strip.get("start")
        if replaces and strip.get("content") == " " and strip.get("stop") == 0 and isinstance(start, int):
            return "fallback", start
    raise ValueError(f"decodes by {kinds}, not ByteLevel, Metaspace, Replace + ByteFallback + Fuse + Strip")


class HFTokenizer:
    """A `tokenizer.json`, by the tokenizers library: byte-level BPE, or BPE with spaces as U+2581."""

    def __init__(self, path: Path, content: bytes):
        try:
            parsed = json.loads(content)
            added = parsed.get("added_tokens") or []
            self.rule, self.strip = _decoding_rule(parsed.get("decoder"))
            text = json.dumps(parsed)
            self.library = self._open(text)
            plain = [token for token in added if not token["special"] and is_control_text(token["content"])]
            for token in plain:  # a second copy takes every control piece as text
                token["special"] = True
            self.untrusted = self._open(json.dumps(parsed) if plain else text)
            self.vocab_size = self._largest_id(parsed) + 1
        except RecursionError as error:
            raise CheckpointError(path, "is nested too deeply for a tokenizer") from error
        except (ValueError, AttributeError, TypeError, KeyError) as error:
            raise CheckpointError(path, f"is not a tokenizer.json that can be used: {error}") from error
        self.untrusted.encode_special_tokens = True
        if not 0 < self.vocab_size <= MAX_VOCAB:
            raise CheckpointError(path, f"has {self.vocab_size} ids; 1 to {MAX_VOCAB} are usable")
        entries = self.library.get_added_tokens_decoder()
        self.silent = {token for token, entry in entries.items() if entry.special}  # decode to nothing
        self.special = self.silent | {token for token, e in entries.items() if is_control_text(e.content)}
        self.bos_id, self.eos_id, self.pad_id = (
            next((token for name in names if (token := self.library.token_to_id(name)) is not None), None)
            for names in (BOS_NAMES, EOS_NAMES, PAD_NAMES)
        )
        unknown = parsed["model"].get("unk_token")  # text may well come to this one
        unknown = None if unknown is None else self.library.token_to_id(unknown)
        for token in self.special - {unknown}:
            text = entries[token].content
            if token in self.untrusted.encode(f"{text} x{text}", add_special_tokens=False).ids:
                raise CheckpointError(path, f"cannot tell control piece {text!r} from text that spells it")

    def _largest_id(self, parsed: dict[str, Any]) -> int:
        """The library's own dictionary takes 0.2 s to make for Grok-1's vocabulary; the file's is at hand."""
        vocab = parsed["model"].get("vocab")
        if not isinstance(vocab, dict):
            vocab = self.library.get_vocab(with_added_tokens=True)
        return max([*vocab.values(), *self.library.get_added_tokens_decoder()], default=-1)

    @staticmethod
    def _open(text: str) -> tokenizers.Tokenizer:
        try:
            library = tokenizers.Tokenizer.from_str(text)
        except Exception as error:  # the library raises Exception itself, nothing narrower
            raise ValueError(str(error).splitlines()[0]) from error
        library.no_truncation()
        library.no_padding()
        return library

    def encode(self, text: str) -> list[int]:
        check_text(text)
        return self.library.encode(text, add_special_tokens=False).ids

    def encode_untrusted(self, text: str) -> list[int]:
        check_text(text)
        return self.untrusted.encode(text, add_special_tokens=False).ids

    def decode(self, tokens: Sequence[int]) -> str:
        for token in tokens:
            check_id(token, self.vocab_size)
        return self.library.decode(list(tokens), skip_special_tokens=True)

    def stream_decoder(self) -> StreamDecoder:
        return ByteLevelStream(self) if self.rule == "byte-level" else SpacedStream(self)

    def piece(self, token: int) -> str:
        check_id(token, self.vocab_size)
        return self.library.id_to_token(token) or ""

    def token_bytes(self, token: int) -> bytes | None:
        piece = self.piece(token)
        if token in self.silent:
            return None
        if self.rule == "byte-level":
            known = all(character in BYTE_OF_CHARACTER for character in piece)
            return bytes(BYTE_OF_CHARACTER[character] for character in piece) if known else piece.encode()
        if self.rule == "fallback" and (match := BYTE_PIECE.fullmatch(piece)):
            return bytes([int(match[1], 16)])
        return piece.replace(SPACE, " ").encode()

    def is_special(self, token: int) -> bool:
        check_id(token, self.vocab_size)
        return token in self.special


class ByteLevelStream:
    """decoders::ByteLevel: all bytes joined, then UTF-8 with U+FFFD as Unicode advises."""

    def __init__(self, tokenizer: HFTokenizer):
        self.tokenizer = tokenizer
        self.utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        return self.utf8.decode(self.tokenizer.token_bytes(token) or b"")

    def finish(self) -> str:
        return self.utf8.decode(b"", final=True)


class SpacedStream:
    """decoders::Metaspace, and Replace + ByteFallback + Fuse + Strip.

    ByteFallback turns a whole run of byte tokens into U+FFFD, one each, when the run as a whole is not UTF-8;
    so a run is held until it ends.
    """

    def __init__(self, tokenizer: HFTokenizer):
        self.tokenizer = tokenizer
        self.run = bytearray()
        self.at_start = True
        self.spaces_to_strip = tokenizer.strip

    def push(self, token: int) -> str:
        tokenizer = self.tokenizer
        piece = tokenizer.piece(token)
        if token in tokenizer.silent or not piece:
            return ""
        if tokenizer.rule == "metaspace":
            drop, self.at_start = self.at_start and self.spaces_to_strip > 0, False
            return piece.replace(SPACE, "" if drop else " ")
        if BYTE_PIECE.fullmatch(piece):
            self.run += tokenizer.token_bytes(token) or b""
            return ""
        return self.finish() + self._strip(piece.replace(SPACE, " "))

    def finish(self) -> str:
        run, self.run = self.run, bytearray()
        try:
            return self._strip(run.decode())
        except UnicodeDecodeError:
            return self._strip(REPLACEMENT * len(run))

    def _strip(self, text: str) -> str:
        while text and self.spaces_to_strip > 0:
            if text[0] != " ":
                self.spaces_to_strip = 0
                break
            text, self.spaces_to_strip = text[1:], self.spaces_to_strip - 1
        return text
