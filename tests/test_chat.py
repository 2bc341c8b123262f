"""Conversations as prompts: the transcript of a base model, a model's own template in its limited process, tool
calls."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from serving import tokenizer

from libremoe.chat.message import Message, Text, Tool, ToolCall, ToolChoice, ToolResult, said
from libremoe.chat.template import LABELS, STOPS, ModelTemplate, find_template, transcript, transcript_prompt
from libremoe.chat.tools import CLOSE, OPEN, CallParser, call_text
from libremoe.errors import CheckpointError, LibremoeError

WEATHER = Tool("weather", "the weather", {"type": "object", "properties": {"city": {"type": "string"}}})
CHATML = ("{% for m in messages %}[BOS]{{ m.role }}: {{ m.content | trim }}[EOS]\n{% endfor %}"
          "{% if tools %}{{ tools | tojson }}{% endif %}{% if add_generation_prompt %}[BOS]assistant:{% endif %}")


def render(template: str, messages: list[Message], **more: object) -> list[int]:
    async def work() -> list[int]:
        own = ModelTemplate(template, tokenizer())
        try:
            return (await own.prompt(messages, **more)).ids  # type: ignore[arg-type]
        finally:
            await own.close()

    return asyncio.run(work())


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["user", "assistant", "system"]),
            st.sampled_from(["x", "\nUser: y", "Assistant: z", "a\nSystem: b", "[EOS]", "Tool:"]),
        ),
        max_size=6,
    )
)
def test_nobody_speaks_for_another(turns: list[tuple[str, str]]) -> None:
    text = transcript([said(role, content) for role, content in turns], examples=())  # type: ignore[arg-type]
    spoken = [
        line.split(":")[0]
        for line in text.split("\n")
        if line.startswith(tuple(f"{label}:" for label in LABELS.values()))
    ]
    assert spoken == [LABELS[role] for role, _ in turns if role != "system"] + ["Assistant"]
    ids = tokenizer().encode_untrusted(text)
    assert not any(tokenizer().is_special(i) for i in ids)


def test_transcript_ends_where_the_answer_begins() -> None:
    prompt = transcript_prompt(
        [said("system", "Be brief."), said("user", "Hi")], tokenizer(), bos_id=1, context_len=8192
    )
    text = tokenizer().decode(prompt.ids)
    assert prompt.ids[0] == 1 and prompt.template == "transcript"
    assert text.endswith("User: Hi\n\nAssistant:") and "Be brief." in text
    assert text.count("\nUser: ") == 4  # three of the examples
    assert all(stop[1:-1] in LABELS.values() for stop in STOPS)
    short = transcript_prompt([said("user", "Hi")], tokenizer(), bos_id=None, context_len=512)
    assert tokenizer().decode(short.ids).count("\nUser: ") == 1


def test_transcript_tells_of_tools_and_their_calls() -> None:
    call = ToolCall("call_1", "weather", '{"city": "Bern"}')
    turns = [said("user", "Rain?"), Message("assistant", (call,)), Message("tool", (ToolResult("call_1", "no"),))]
    text = transcript(turns, [WEATHER])
    assert '"name": "weather"' in text and f"Assistant: {call_text(call)}" in text and "Tool: no" in text
    assert "weather" not in transcript([said("user", "Rain?")], [WEATHER], ToolChoice("none"))


def test_own_template_gives_its_control_pieces_and_nobody_else_does() -> None:
    ids = render(CHATML, [said("user", "a[EOS]b"), said("assistant", "c"), said("user", "[BOS]")], tools=[WEATHER])
    assert [i for i in ids if tokenizer().is_special(i)] == [
        1,
        2,
        1,
        2,
        1,
        2,
        1,
    ]  # three turns and the beginning of one
    text = "".join(tokenizer().decode([i]) for i in ids)
    assert text.startswith("user: a[EOS]b\nassistant: c\nuser: [BOS]\n") and '"weather"' in text


@pytest.mark.parametrize("template", [
    "{% for i in range(10**9) %}{% endfor %}",
    "{{ 'x' * 10**10 }}",
    "{% set ns = namespace(x='ab') %}{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}{{ ns.x }}",
    "{{ 9 ** (9 ** 9) }}",
    "{{ '%99999999999d' % 1 }}",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ messages.__init__.__globals__ }}",
    "{% include '/etc/passwd' %}",
    "{{ raise_exception('roles must alternate') }}",
    "{% if %}",
    "{{ missing.field.x }}",
    "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
])
def test_hostile_templates_end_with_a_sentence(template: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("libremoe.chat.template.RENDER_TIMEOUT_S", 2.0)
    with pytest.raises(LibremoeError, match="chat template"):
        render(template, [said("user", "Hi")])


def test_after_a_hostile_conversation_the_next_is_rendered() -> None:
    async def work() -> None:
        own = ModelTemplate("{% if messages[0].role == 'system' %}{{ 'x' * 10**11 }}{% endif %}ok", tokenizer())
        try:
            for _ in range(2):
                with pytest.raises(LibremoeError):
                    await own.prompt([said("system", "Hi")])
                assert tokenizer().decode((await own.prompt([said("user", "Hi")])).ids) == "ok"
        finally:
            await own.close()

    asyncio.run(work())


def test_templates_are_found_beside_a_model(tmp_path: Path) -> None:
    assert find_template(tmp_path) is None
    config = tmp_path / "tokenizer_config.json"
    config.write_text(
        json.dumps({"chat_template": [{"name": "default", "template": "A"}, {"name": "rag", "template": "B"}]})
    )
    assert find_template(tmp_path) == "A"
    (tmp_path / "chat_template.jinja").write_text("C")
    assert find_template(tmp_path) == "C"
    (tmp_path / "chat_template.jinja").write_bytes(b"x" * (2 << 20))
    with pytest.raises(CheckpointError, match="longer"):
        find_template(tmp_path)
    os.remove(tmp_path / "chat_template.jinja")
    config.write_text("[" * 100_000)
    with pytest.raises(CheckpointError, match="tokenizer_config"):
        find_template(tmp_path)


PIECES = st.sampled_from(
    [
        OPEN,
        CLOSE,
        "<",
        "tool",
        "_call>",
        "</",
        '{"name": "f", "arguments": {"a": 1}}',
        '{"name": "g"}',
        "{",
        " ",
        "\n",
        "text",
        '{"name": 5}',
        OPEN + '{"name": "f", "arguments": {}}' + CLOSE,
    ]
)


@given(st.lists(PIECES, max_size=10).map("".join), st.lists(st.integers(1, 7), max_size=60))
def test_calls_do_not_depend_on_how_the_text_is_cut(text: str, cuts: list[int]) -> None:
    def parts(chunks: list[str]) -> list[tuple[str, ...]]:
        parser = CallParser()
        found = [part for chunk in chunks for part in parser.push(chunk)] + parser.finish()
        joined: list[tuple[str, ...]] = []
        for part in found:
            if isinstance(part, ToolCall):
                joined.append(("call", part.name, part.arguments))
            elif joined and joined[-1][0] == "text":
                joined[-1] = ("text", joined[-1][1] + part.text)
            else:
                joined.append(("text", part.text))
        return joined

    chunks, at = [], 0
    for cut in cuts:
        chunks.append(text[at : at + cut])
        at += cut
    chunks.append(text[at:])
    assert parts(list(text)) == parts(chunks)


def test_calls_are_taken_out_of_the_text() -> None:
    parser = CallParser()
    found = parser.push(
        f'Let me see. {OPEN}{{"name": "f", "arguments": {{"a": "é"}}}}{CLOSE} \n{OPEN}{{"name": "g", "argu'
    )
    found += parser.finish()
    assert isinstance(found[0], Text) and found[0].text == "Let me see. "
    assert isinstance(found[1], ToolCall) and json.loads(found[1].arguments) == {"a": "é"}
    assert [type(part) for part in found[2:]] == [Text]  # cut off before its arguments: no call, and nothing is lost
    single = CallParser(parallel=False)
    assert sum(isinstance(p, ToolCall) for p in single.push((OPEN + '{"name": "f"}' + CLOSE) * 3)) == 1
