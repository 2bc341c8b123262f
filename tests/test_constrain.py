"""Constrained decoding: whatever the model says, the text is of the grammar; and masks agree with the text that
tokens make."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Any

import pytest
from serving import VOCAB, tokenizer

from libremoe.chat.message import Tool, ToolChoice
from libremoe.chat.tools import CallParser, call_grammar
from libremoe.constrain import Grammars
from libremoe.errors import LibremoeError
from libremoe.tokenizer import Tokenizer, open_tokenizer

SHARED = Path(os.environ.get("LIBREMOE_SHARED", Path(__file__).parent.parent.parent / "shared"))
OFFICIAL = SHARED / "tokenizer" / "tokenizer.model"
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 5},
        "n": {"type": "integer", "minimum": 0, "maximum": 99},
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 2},
    },
    "required": ["name", "n", "tags"],
    "additionalProperties": False,
}


def walk(constraint: Any, tokens: Tokenizer, eos_id: int | None, seed: int, most: int = 200) -> str:
    """A text that a model without any sense would write under the constraint."""
    rng = random.Random(seed)
    ids: list[int] = []
    for _ in range(most):
        mask = constraint.mask()
        if mask is None:
            break
        token = rng.choice(mask.nonzero().flatten().tolist())
        constraint.accept(token)
        if token == eos_id:
            break
        ids.append(token)
    return b"".join(tokens.token_bytes(i) or b"" for i in ids).decode()


@pytest.mark.parametrize("eos_id", [2, None])
def test_any_walk_is_of_the_schema(eos_id: int | None) -> None:
    grammars = Grammars(tokenizer(), eos_id, VOCAB)
    for seed in range(30):
        constraint = grammars.json_schema(SCHEMA)
        found = json.loads(walk(constraint, tokenizer(), eos_id, seed))
        assert found.keys() == {"name", "n", "tags"} and 0 <= found["n"] <= 99 and len(found["name"]) <= 5
        assert constraint.complete_at is not None


def test_any_walk_is_a_call() -> None:
    tools = [
        Tool("f", parameters=SCHEMA),
        Tool("g", parameters={"type": "object", "properties": {}, "additionalProperties": False}),
    ]
    grammars = Grammars(tokenizer(), 2, VOCAB)
    names = set()
    for seed in range(20):
        for choice in (ToolChoice("required"), ToolChoice("named", "g")):
            (call,) = CallParser().push(walk(grammars.lark(call_grammar(tools, choice)), tokenizer(), 2, seed))
            assert choice.mode == "required" or call.name == "g"
            json.loads(call.arguments)
            names.add(call.name)
    assert names == {"f", "g"}
    assert call_grammar(tools, ToolChoice("auto")) is None and call_grammar(tools, ToolChoice("none")) is None


@pytest.mark.parametrize("schema", [{"type": "nonsense"}, {"$ref": "#/nowhere"}, {"type": "string", "pattern": "("},
                                    {"type": "object", "minProperties": -1}, {"enum": []}, {"not": {}}])
def test_schemas_that_cannot_be_used(schema: dict[str, Any]) -> None:
    with pytest.raises(LibremoeError, match="cannot be used"):
        Grammars(tokenizer(), 2, VOCAB).json_schema(schema)


def test_a_token_that_is_not_allowed_is_an_error_at_once() -> None:
    constraint = Grammars(tokenizer(), 2, VOCAB).json_object()
    with pytest.raises(LibremoeError, match="grammar"):
        constraint.accept(tokenizer().encode("x")[0])
    with pytest.raises(LibremoeError, match="grammar"):
        constraint.mask()


def test_very_long_grammars_are_refused() -> None:
    with pytest.raises(LibremoeError, match="characters"):
        Grammars(tokenizer(), 2, VOCAB).json_schema({"enum": ["x" * 300_000]})


@pytest.mark.skipif(not OFFICIAL.exists(), reason="the official tokenizer.model is not here (LIBREMOE_SHARED)")
def test_no_dummy_prefix_with_the_official_vocabulary() -> None:
    """SentencePiece would put a space in front of each text that is encoded; a mask made with it is silently wrong."""
    official = open_tokenizer(OFFICIAL)
    grammars = Grammars(official, official.eos_id, official.vocab_size)
    for text in ("hello", " hello", '{"a": 1}', "\nx", "  two", "é€", "\n\n"):
        ids = grammars._library.tokenize_str(text)
        assert b"".join(official.token_bytes(i) or b"" for i in ids).decode() == text
    constraint = grammars.json_schema({"enum": ["hello"]})
    allowed = constraint.mask().nonzero().flatten().tolist()
    assert allowed and all(
        '"hello"'.startswith((official.token_bytes(i) or b"?").decode("utf-8", "replace")) for i in allowed
    )
    for seed in range(5):
        json.loads(walk(grammars.json_schema(SCHEMA), official, official.eos_id, seed))
