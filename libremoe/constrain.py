"""Constrained decoding: only tokens that keep the text inside a grammar may be sampled. llguidance does the parsing.

    grammars = Grammars(tokenizer, eos_id, vocab_size)
    constraint = grammars.json_schema({"type": "object", ...})     # one for each sequence
    engine.stream(prompt, params, constraint=constraint)

llguidance says nothing by itself when something is wrong: its matcher goes into an error state. So the error is
looked at after each step here, and raised.
"""

from __future__ import annotations

import json
from typing import Any

import llguidance
import numpy as np
import torch

from libremoe.errors import LibremoeError
from libremoe.tokenizer import Tokenizer

MAX_GRAMMAR_CHARACTERS = 256 << 10


class Grammars:
    """Makes constraints for one tokenizer. Building the tables for a vocabulary takes about a second per 100,000
    tokens."""

    def __init__(self, tokenizer: Tokenizer, eos_id: int | None, vocab_size: int):
        """vocab_size: of the model's logits, which may be more than the tokenizer's."""
        self.vocab_size = vocab_size
        self.eos_id = eos_id
        self._library = llguidance.LLTokenizer(
            llguidance.TokenizerWrapper(_Vocabulary(tokenizer, eos_id, vocab_size)), n_vocab=vocab_size)

    def json_object(self) -> TokenConstraint:
        return self.json_schema({"type": "object"})

    def json_schema(self, schema: dict[str, Any]) -> TokenConstraint:
        """Text that is one JSON value of this schema. Raises LibremoeError for a schema that cannot be used."""
        try:
            # without white space between the parts, in which a small model gets lost
            grammar = llguidance.LLMatcher.grammar_from_json_schema(
                json.dumps(schema), defaults={"whitespace_flexible": False})
            return self._constraint(grammar)
        except (ValueError, RecursionError) as error:
            raise LibremoeError(f"the JSON schema cannot be used: {error}") from error

    def lark(self, grammar: str) -> TokenConstraint:
        """Text of a grammar in llguidance's dialect of Lark."""
        return self._constraint(llguidance.LLMatcher.grammar_from_lark(grammar))

    def _constraint(self, grammar: str) -> TokenConstraint:
        if len(grammar) > MAX_GRAMMAR_CHARACTERS:
            raise LibremoeError(f"the schema or grammar has {len(grammar)} characters; at most "
                                f"{MAX_GRAMMAR_CHARACTERS} are possible")
        matcher = llguidance.LLMatcher(self._library, grammar, log_level=0)
        if matcher.is_error():
            raise LibremoeError(f"the JSON schema or grammar cannot be used: {_first_line(matcher.get_error())}")
        return TokenConstraint(matcher, self.eos_id, self.vocab_size)


class TokenConstraint:
    """engine.sequence.Constraint over an llguidance matcher: one sequence's place in a grammar."""

    def __init__(self, matcher: llguidance.LLMatcher, eos_id: int | None, vocab_size: int):
        self.matcher = matcher
        self.eos_id = eos_id
        self.vocab_size = vocab_size
        self.num_accepted = 0
        self.complete_at: int | None = None  # tokens after which the text could not go on: the answer ends there

    def mask(self) -> torch.Tensor | None:
        """(V,) bool, True where allowed. After the end of the grammar only the end of text is; None if there is no
        such id."""
        if self.complete_at is not None and self.eos_id is None:
            return None
        bits = np.frombuffer(self.matcher.compute_bitmask(), dtype=np.uint8)
        self._check()
        allowed = np.unpackbits(bits, bitorder="little")[: self.vocab_size].astype(bool)
        return torch.from_numpy(allowed)

    def accept(self, token: int) -> None:
        if self.complete_at is not None:
            return
        self.num_accepted += 1
        self.matcher.consume_token(token)
        self._check()
        if self.matcher.is_stopped():
            self.complete_at = self.num_accepted

    def _check(self) -> None:
        if self.matcher.is_error():
            raise LibremoeError(f"the grammar cannot go on: {_first_line(self.matcher.get_error())}")


class _Vocabulary:
    """What llguidance.TokenizerWrapper asks of a tokenizer."""

    def __init__(self, tokenizer: Tokenizer, eos_id: int | None, vocab_size: int):
        self.tokenizer = tokenizer
        self.bos_token_id = tokenizer.bos_id
        # Without an end-of-text id, a byte that UTF-8 never uses stands for one: it must be some id that no
        # grammar admits.
        self.special_token_ids: list[int] = []
        self.tokens: list[bytes] = []
        for i in range(vocab_size):
            known = i < tokenizer.vocab_size and not tokenizer.is_special(i)
            content = tokenizer.token_bytes(i) if known else None
            if not content:
                self.special_token_ids.append(i)
                content = b"<|%d|>" % i
            self.tokens.append(content)
        if eos_id is None:
            if not self.special_token_ids:
                raise LibremoeError("constrained decoding needs a tokenizer with an end-of-text id")
            eos_id = self.special_token_ids[0]
        self.eos_token_id = eos_id
        # SentencePiece puts a space in front of what it encodes; inside a text there is none, and a mask made with it
        # would be silently wrong. So text is encoded after a character that is then taken off again.
        self.front = tokenizer.encode_untrusted("\n")

    def __call__(self, text: bytes | str) -> list[int]:
        text = text.decode("utf-8", "replace") if isinstance(text, bytes) else text
        ids = self.tokenizer.encode_untrusted("\n" + text)
        if ids[: len(self.front)] == self.front:
            return ids[len(self.front) :]
        return self._byte_by_byte(text)

    def _byte_by_byte(self, text: str) -> list[int]:
        """Ids that spell the text for certain, longest pieces first, where the newline merged with what follows."""
        rest = text.encode()
        ids: list[int] = []
        by_bytes = {
            content: i for i, content in reversed(list(enumerate(self.tokens))) if i not in self.special_token_ids
        }
        while rest:
            n = next((n for n in range(min(len(rest), 32), 0, -1) if rest[:n] in by_bytes), 0)
            if not n:
                return ids
            ids.append(by_bytes[rest[:n]])
            rest = rest[n:]
        return ids


def _first_line(text: str) -> str:
    return text.strip().splitlines()[0][:300] if text.strip() else "unknown error"
