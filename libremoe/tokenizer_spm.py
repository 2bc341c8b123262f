"""A SentencePiece `tokenizer.model` (Grok-1, Llama 2, Mistral, Mixtral), by the sentencepiece library.

Beside the library: a walk over the file that finds damage and the user-defined pieces, control pieces kept
out of untrusted text, and decoding as a stream. Field numbers are those of sentencepiece_model.proto.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import sentencepiece

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


def _varint(data: bytes, at: int, end: int) -> tuple[int, int]:
    """A protobuf varint at data[at:end] -> (value, where the next thing begins)."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= end:
            raise ValueError("ends inside a number; is it truncated?")
        value |= (data[at] & 0x7F) << shift
        at += 1
        if data[at - 1] < 0x80:
            return value, at
    raise ValueError("holds a number of more than ten bytes")


def _fields(data: bytes, at: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Protobuf fields of data[at:end] as (number, begin, end), or (number, value, -1) for a varint."""
    while at < end:
        tag, at = _varint(data, at, end)
        number, wire = tag >> 3, tag & 7
        if wire == 0:
            value, at = _varint(data, at, end)
            yield number, value, -1
            continue
        size = {1: 8, 5: 4}.get(wire)
        if wire == 2:
            size, at = _varint(data, at, end)
        if size is None or number == 0:
            raise ValueError("is not a SentencePiece model (unknown kind of field)")
        if size > end - at:
            raise ValueError(f"promises {size} bytes where {end - at} are left; is it truncated?")
        yield number, at, at + size
        at += size



def _user_defined(data: bytes, begin: int, end: int) -> str | None:
    """The text of a SentencePiece message (piece = 1, type = 3) if its type is USER_DEFINED (4)."""
    text, kind = "", 1
    for number, start, stop in _fields(data, begin, end):
        if number == 1 and stop >= 0:
            text = data[start:stop].decode()
        elif number == 3 and stop < 0:
            kind = start
    return text if kind == 4 else None


def _read_model_proto(data: bytes) -> tuple[int, list[str], bool, bool]:
    """ModelProto -> (pieces, user-defined pieces, add_dummy_prefix, remove_extra_whitespaces), or ValueError.

    The library tells all else, but not these; and this walk finds damage before the library reads the file.
    """
    count, user_defined = 0, []
    add_dummy_prefix = remove_extra_whitespaces = True  # the defaults of the format
    for number, begin, end in _fields(data, 0, len(data)):
        if end < 0:  # a number; none of those here matters
            continue
        if number == 1:
            count += 1
            # Only a message with these two bytes can be of type 4: saves parsing the other 131,000.
            if data.find(b"\x18\x04", begin, end) >= 0:
                text = _user_defined(data, begin, end)
                user_defined += [text] if text is not None else []
        elif number == 3:  # normalizer_spec
            for field, value, stop in _fields(data, begin, end):
                if field == 3 and stop < 0:
                    add_dummy_prefix = bool(value)
                elif field == 4 and stop < 0:
                    remove_extra_whitespaces = bool(value)
        elif number == 5 and any(f == 2 and e > b for f, b, e in _fields(data, begin, end)):
            raise ValueError("rewrites its output (denormalizer_spec), which cannot be streamed")
    if not 0 < count <= MAX_VOCAB:
        raise ValueError(f"has {count} pieces, so it is not a SentencePiece model")
    return count, user_defined, add_dummy_prefix, remove_extra_whitespaces


class SentencePieceTokenizer:
    """A `tokenizer.model`, by the sentencepiece library. Grok-1, Llama 2, Mistral, Mixtral."""

    def __init__(self, path: Path, content: bytes):
        try:
            count, user_defined, dummy_prefix, self.strips_all = _read_model_proto(content)
            self.processor = sentencepiece.SentencePieceProcessor(model_proto=content)
            self.spelled = self._spell([piece for piece in user_defined if is_control_text(piece)])
        except (ValueError, RuntimeError) as error:
            raise CheckpointError(path, str(error).splitlines()[0]) from error
        self.strips = dummy_prefix or self.strips_all  # decoding removes one leading space, or all
        self.vocab_size = self.processor.vocab_size()
        if self.vocab_size != count:
            raise CheckpointError(path, f"has {count} pieces of which the library reads {self.vocab_size}")
        found = (self.processor.bos_id(), self.processor.eos_id(), self.processor.pad_id())
        self.bos_id, self.eos_id, self.pad_id = (number if number >= 0 else None for number in found)

    def _spell(self, controls: list[str]) -> dict[int, list[int]]:
        """Id of each control piece -> ids of ordinary pieces that spell it.

        The library cuts text at user-defined pieces before it merges anything, so what follows one is encoded
        as in the middle of a text. Cut after its first character, a control piece is not found; where
        a part holds another one (an odd vocabulary), it is cut into single characters.
        """
        ids = {self.processor.piece_to_id(text): text for text in controls}
        spelled = {}
        for token, text in ids.items():
            for parts in ((text[0], text[1:]), tuple(text)):
                spelled[token] = [i for part in parts for i in self._encode_after(token, text, part)]
                if not ids.keys() & spelled[token]:
                    break
            same_text = self.processor.decode(spelled[token]) == self.processor.decode([token])
            if ids.keys() & spelled[token] or not same_text:
                raise ValueError(f"has a control piece {text!r} that ordinary pieces cannot spell")
        return spelled

    def _encode_after(self, token: int, text: str, part: str) -> list[int]:
        tokens = self.processor.encode(text + part)
        return tokens[tokens.index(token) + 1 :] if token in tokens else []

    def encode(self, text: str) -> list[int]:
        check_text(text)
        return self.processor.encode(text)

    def encode_untrusted(self, text: str) -> list[int]:
        return [i for token in self.encode(text) for i in self.spelled.get(token, (token,))]

    def decode(self, tokens: Sequence[int]) -> str:
        for token in tokens:
            check_id(token, self.vocab_size)
        return self.processor.decode(list(tokens))

    def stream_decoder(self) -> StreamDecoder:
        return SentencePieceStream(self)

    def piece(self, token: int) -> str:
        check_id(token, self.vocab_size)
        return self.processor.id_to_piece(token)

    def token_bytes(self, token: int) -> bytes | None:
        piece = self.piece(token)
        if self.processor.is_control(token) or self.processor.is_unknown(token):
            return None
        if self.processor.is_byte(token):
            return bytes([int(piece[3:5], 16)])
        return piece.replace(SPACE, " ").encode()

    def is_special(self, token: int) -> bool:
        check_id(token, self.vocab_size)
        return token in self.spelled or self.processor.is_control(token) or self.processor.is_unknown(token)


class SentencePieceStream:
    """SentencePieceProcessor::Decode (sentencepiece_processor.cc), one token at a time.

    Bytes are joined over neighbouring byte pieces only; each byte that is part of no character is one U+FFFD.
    The first text loses the space that encoding put in front.
    """

    def __init__(self, tokenizer: SentencePieceTokenizer):
        self.tokenizer = tokenizer
        self.bytes = b""  # at most three: the beginning of a character
        self.at_start = True
        self.started = False  # some text or a removed space was seen

    def push(self, token: int) -> str:
        tokenizer = self.tokenizer
        check_id(token, tokenizer.vocab_size)
        if tokenizer.processor.is_byte(token):
            self.bytes += tokenizer.token_bytes(token) or b""
            return self._take(final=False)
        text = self._take(final=True)
        self.at_start = self.at_start and not self.started
        if tokenizer.processor.is_control(token):
            return text
        if tokenizer.processor.is_unknown(token):
            piece = tokenizer.processor.decode([token])  # the model's unk_surface
        else:
            piece = tokenizer.processor.id_to_piece(token)
            if self.at_start and tokenizer.strips and piece.startswith(SPACE):
                piece = piece[1:]
                self.started |= not tokenizer.strips_all
            piece = piece.replace(SPACE, " ")
        self.started |= bool(piece)
        return text + piece

    def finish(self) -> str:
        return self._take(final=True)

    def _take(self, final: bool) -> str:
        """Characters off the front of the waiting bytes, as many as are certain; all of them if `final`."""
        text = ""
        while self.bytes:
            lead = self.bytes[0]
            size = 1 if lead < 0xC2 else 2 if lead < 0xE0 else 3 if lead < 0xF0 else 4 if lead < 0xF5 else 1
            try:
                text += self.bytes[:size].decode()
            except UnicodeDecodeError as error:
                if error.reason == "unexpected end of data" and len(self.bytes) < size and not final:
                    break
                text += REPLACEMENT
                size = 1
            self.bytes = self.bytes[size:]
        self.started |= bool(text)
        return text
