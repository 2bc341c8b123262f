"""Training data: rendering as the server does it, shards, held-out sides, no evaluation items, right generators."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import random
import re
from collections.abc import Iterator
from fractions import Fraction
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mix import write_mix

from libremoe.chat.message import Message, Text, Tool, ToolCall, ToolResult, said
from libremoe.chat.template import ModelTemplate
from libremoe.chat.tools import CallParser
from libremoe.errors import CheckpointError, LibremoeError
from libremoe.tokenizer import Tokenizer, open_tokenizer
from libremoe.train import behaviours, corpus, pack
from libremoe.train.decontaminate import SHORTEST, N, Overlap, evaluation_items
from libremoe.train.draw import _ENDS, PHRASE_EVERY, Draw
from libremoe.train.generate import KINDS, generate
from libremoe.train.generate_grounded import EN, FR, NOT_THERE, question
from libremoe.train.generate_tools import evaluate
from libremoe.train.mixes import MIXES
from libremoe.train.phrasings import ALSO
from libremoe.train.render import TEMPLATE, Document, Renderer
from libremoe.train.vocabulary import SPECIAL, train_tokenizer


@pytest.fixture(scope="session")
def mix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_mix(tmp_path_factory.mktemp("mix"))


@pytest.fixture(scope="session")
def lists(mix: Path) -> corpus.WordLists:
    return corpus.word_lists(mix)


@pytest.fixture(scope="session")
def tokenizer(lists: corpus.WordLists, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    texts = [d.all_text() for kind in KINDS for lang in ("en", "fr") for d in islice(
        generate(kind, lang, lists, 0, False), 40)]  # type: ignore[arg-type]
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    path.write_bytes(train_tokenizer(texts, 800))
    return open_tokenizer(path)


@pytest.fixture(scope="module")
def server(tokenizer: Tokenizer) -> Iterator[tuple[asyncio.Runner, ModelTemplate]]:
    """The path that a served conversation takes."""
    with asyncio.Runner() as runner:
        own = ModelTemplate(TEMPLATE.read_text(), tokenizer)
        try:
            yield runner, own
        finally:
            runner.run(own.close())


def test_special_ids_are_the_official_ones(tokenizer: Tokenizer) -> None:
    assert [tokenizer.piece(i) for i in range(4)] == ["[PAD]", "[BOS]", "[EOS]", "[UNK]"]
    spelled = [tokenizer.piece(i).replace("\u2581", " ") for i in range(4, 69)]
    assert spelled == SPECIAL and len(SPECIAL) == 65
    assert [tokenizer.token_bytes(69 + b) for b in range(256)] == [bytes([b]) for b in range(256)]
    assert [tokenizer.piece(i) for i in tokenizer.encode("12")][-2:] == ["1", "2"]


@pytest.mark.parametrize("pieces", [10, 1 << 20])
def test_tokenizer_sizes_are_bounded(pieces: int) -> None:
    with pytest.raises(LibremoeError, match="pieces"):
        train_tokenizer(["a"], pieces)


TEXTS = st.text(st.sampled_from(list("ab 1\n<|>[]")) | st.sampled_from("éà€"), max_size=12) | st.sampled_from(
    ["<|control3|>", "[EOS]", " x ", "<tool_call>", "a<|control2|>b", "[1] Title: text", "- a\n- b", "\t", "  "])
NAMES = st.sampled_from(["calculator", "search", "x<|control3|>", "a[EOS]"])
VALUES = TEXTS.filter(lambda t: not set('"\\\n\t') & set(t)) | st.integers(-99, 99) | st.booleans() | st.none()


@st.composite
def messages(draw: st.DrawFn) -> tuple[Message, ...]:
    role = draw(st.sampled_from(["system", "user", "assistant", "tool"]))
    if role == "tool":
        return (Message("tool", (ToolResult("call_1", draw(TEXTS)),)),)
    if role == "assistant" and draw(st.booleans()):
        arguments = draw(st.dictionaries(NAMES, VALUES, max_size=2))
        text = [Text(draw(TEXTS))] if draw(st.booleans()) else []
        call = ToolCall("call_1", draw(NAMES), json.dumps(arguments, ensure_ascii=False))
        return (Message("assistant", (*text, *[call] * draw(st.integers(1, 2)))),)
    return (said(role, draw(TEXTS)),)  # type: ignore[arg-type]


TOOLS = st.lists(st.builds(lambda n, d, p: Tool(n, d, {"type": "object", "properties": {k: {} for k in p}}), NAMES,
                        TEXTS,
                           st.lists(NAMES, max_size=2)), max_size=2)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow,
                        HealthCheck.function_scoped_fixture])
@given(turns=st.lists(messages(), max_size=5), tools=TOOLS)
def test_training_writes_a_conversation_as_the_server_does(
        turns: list[tuple[Message, ...]], tools: list[Tool], tokenizer: Tokenizer,
        server: tuple[asyncio.Runner, ModelTemplate]) -> None:
    conversation = [m for group in turns for m in group]
    runner, own = server
    served = runner.run(own.prompt(conversation, tools)).ids
    assert Renderer(tokenizer).prompt(conversation, tools) == served
    controls = sum(tokenizer.is_special(i) for i in served)
    n_shown = sum(m.role != "system" for m in conversation)  # models of this mix read no system messages
    assert controls == bool(tools) + n_shown + sum(m.role == "assistant" for m in conversation) + 1


def test_targets_are_the_answers_and_their_ends(tokenizer: Tokenizer) -> None:
    document = Document(messages=(said("user", "Hi"), said("assistant", "Hello there"), said("user", "Bye"),
                                  said("assistant", "Bye now")))
    one = Renderer(tokenizer).render(document)
    learned = [i for i, target in zip(one.ids, one.targets, strict=True) if target]
    texts, rest = [], learned
    while rest:
        at = rest.index(tokenizer.eos_id)  # type: ignore[arg-type]
        texts.append(tokenizer.decode(rest[:at]))
        rest = rest[at + 1 :]
    assert texts == ["Hello there", "Bye now"]
    first = next(i for i, t in enumerate(one.ids) if t == tokenizer.eos_id) + 1
    cut = Renderer(tokenizer).cut(one, len(one.ids) - 1)
    assert cut is not None and cut.ids == one.ids[:first] and cut.targets == one.targets[:first]
    assert Renderer(tokenizer).cut(one, 3) is None


def test_made_calls_are_read_back_by_the_server(tokenizer: Tokenizer, lists: corpus.WordLists) -> None:
    for kind in ("calculator", "units", "dates", "cite"):
        for lang in ("en", "fr"):
            for document in islice(generate(kind, lang, lists, 1, False), 20):  # type: ignore[arg-type]
                for message in document.messages:
                    if message.tool_calls:
                        one = Renderer(tokenizer).render(Document(messages=(message,)))
                        parser = CallParser()
                        parts = parser.push(tokenizer.decode(one.ids[1:-1])) + parser.finish()
                        assert [(p.name, json.loads(p.arguments)) for p in parts if isinstance(p, ToolCall)] == [
                            (c.name, json.loads(c.arguments)) for c in message.tool_calls]
                        assert {c.name for c in message.tool_calls} <= {t.name for t in document.tools}


@given(st.recursive(st.integers(0, 99).map(str) | st.decimals(0, 9, places=2).map(str), lambda inner: st.builds(
    lambda a, op, b, space: f"({a}{space}{op}{space}{b})", inner, st.sampled_from("+-*/"), inner, st.sampled_from(["",
                        " "])),
    max_leaves=8))
def test_sums_are_worked_out_exactly(expression: str) -> None:
    exact = re.sub(r"[0-9]+(?:\.[0-9]+)?", lambda m: f"Fraction('{m[0]}')", expression)
    try:
        wanted = eval(exact, {"Fraction": Fraction})  # of our own text: numbers, operators and brackets
    except ZeroDivisionError:
        with pytest.raises(ValueError, match="zero"):
            evaluate(expression)
        return
    assert evaluate(expression) == wanted


@pytest.mark.parametrize("expression", ["", "1 +", "(1", "1 2", "a", "1; 2", "2 ** 3", "* 2", ")", "(" * 5000 + "1"])
def test_what_is_no_sum_is_refused(expression: str) -> None:
    with pytest.raises(ValueError):
        evaluate(expression)


@pytest.mark.parametrize("lang", ["en", "fr"])
def test_generated_answers_are_right(lists: corpus.WordLists, lang: str) -> None:
    for document in islice(generate("calculator", lang, lists, 2, False), 200):  # type: ignore[arg-type]
        for call, result, answer in zip(document.messages[1:], document.messages[2:], document.messages[3:],
                        strict=False):
            if call.tool_calls:
                value = evaluate(json.loads(call.tool_calls[0].arguments)["expression"])
                assert abs(Fraction(result.text) - value) <= Fraction(1, 10_000)
                assert result.text.replace(".", ",") in answer.text.replace(".", ",")
    for n in range(200):
        one = question(Draw(str(n), lists, lang, False))  # type: ignore[arg-type]
        shown = one.shown.split("\n")
        assert [line[: line.index("]") + 1] for line in shown] == [f"[{i}]" for i in range(1, len(shown) + 1)]
        if one.cite is None:
            assert one.said in NOT_THERE[lang]
        else:
            assert one.value in shown[one.cite - 1] and one.said.endswith(f"[{one.cite}].")
            assert one.value.lower() in one.said.lower()


def test_unneeded_tools_are_offered_and_a_needed_search_is_not(lists: corpus.WordLists) -> None:
    draw = random.Random(1)
    for part, kind in (("gen/memory/en", "memory"), ("gen/cite/en", "cite"), ("gen/calculator/en", "calculator")):
        before = list(islice(generate(kind, "en", lists, 0, False), 400))
        after = [pack._with_unneeded_tools(document, part, draw) for document in before]
        assert all(a.messages == b.messages and (not b.tools or a.tools == b.tools)
                   for a, b in zip(after, before, strict=True))
        plain = [a for a, b in zip(after, before, strict=True) if not b.tools]
        if kind == "calculator":
            assert plain and not any(a.tools for a in plain)
            continue
        assert 0.2 < sum(bool(a.tools) for a in plain) / len(plain) < 0.4
        assert any(t.name == "search" for a in plain for t in a.tools) == (kind != "cite")


def test_names_of_training_are_partly_letters_by_lot_and_those_held_out_never(lists: corpus.WordLists) -> None:
    for held_out in (False, True):
        draws = [Draw(f"names/{n}", lists, "en", held_out) for n in range(400)]
        places = [draw.place() for draw in draws]
        ends = tuple(_ENDS.split())
        assert all(place.isalpha() and place[0].isupper() for place in places)
        share = sum(place.endswith(ends) for place in places) / len(places)
        assert share == 1 if held_out else 0.5 < share < 0.8


def test_excerpts_are_asked_about_more_than_once_and_rightly(lists: corpus.WordLists) -> None:
    n_more = 0
    for n in range(300):
        one = question(Draw(f"more/{n}", lists, "en", False))
        lines = dict(enumerate(one.shown.split("\n"), 1))
        for _, told in one.more:
            n_more += 1
            marks = re.findall(r"\[(\d+)\]", told)
            if told in NOT_THERE["en"]:
                continue
            value = told.rsplit(" [", 1)[0].split()[-1]
            assert len(marks) == 1 and (value in lines[int(marks[0])] or told.split()[0] in lines[int(marks[0])]), told
    assert n_more > 150


def test_further_phrasings_are_for_everything_that_is_asked_and_in_no_test(lists: corpus.WordLists) -> None:
    about = [one for kinds in (EN, FR) for attributes in kinds.values() for one in attributes]
    assert set(ALSO) == {one.noun for one in about} and len(ALSO) == len(about)
    tested = {phrase for one in about for phrase in one.questions[PHRASE_EVERY - 1 :: PHRASE_EVERY]}
    further = [phrase for phrases in ALSO.values() for phrase in phrases]
    assert not tested & set(further) and all(phrase.count("{e}") == 1 for phrase in further)
    own = {phrase for one in about for phrase in one.questions}
    for n in range(300):
        lang = ("en", "fr")[n % 2]
        one = question(Draw(str(n), lists, lang, held_out=True))  # type: ignore[arg-type]
        assert any(re.fullmatch(re.escape(p).replace(r"\{e\}", ".+"), one.asked) for p in own), one.asked


def test_held_out_phrasings_and_rows_stay_out(mix: Path, lists: corpus.WordLists) -> None:
    for kind in set(KINDS) - {"story"}:
        for lang in ("en", "fr"):
            trained, held = ({d.messages[0].text for d in islice(
                generate(kind, lang, lists, 3, side), 300)} for side in (False, True))  # type: ignore[arg-type]
            assert not trained & held, (kind, lang)
    for part in corpus.PARTS:
        trained, held = ({d.all_text() for d in corpus.documents(mix, part, side)} for side in (False, True))
        assert trained and held and not trained & held, part
    dialogues = list(corpus.documents(mix, "schema_guided_dialogue", True))
    assert len(dialogues) >= 40  # all of sgd/test


def test_all_parts_of_the_mix_are_read(mix: Path) -> None:
    assert len({part.path for part in corpus.PARTS.values()}) == 24
    assert {p for stages in MIXES["gpu"].values() for p in stages if not p.startswith("gen/")} == set(
        corpus.PARTS) - {"childrens_books"}
    worked = next(corpus.documents(mix, "gsm8k_train", False)).messages[1].text
    assert "<<" not in worked and "The answer is " in worked
    assert next(corpus.documents(mix, "grounded_answers", False)).messages[1].text.endswith(" [2].")


def test_damage_is_named(mix: Path, tmp_path: Path) -> None:
    path = tmp_path / corpus.PARTS["recipes"].path
    path.parent.mkdir(parents=True)
    path.write_bytes((mix / corpus.PARTS["recipes"].path).read_bytes()[:200])
    with pytest.raises(CheckpointError, match=r"recipes.*cannot be read"):
        list(corpus.documents(tmp_path, "recipes", False))
    with pytest.raises(CheckpointError, match="word_lists"):
        corpus.word_lists(tmp_path)
    with pytest.raises(CheckpointError, match="no evaluation items"):
        list(evaluation_items(tmp_path))


WORDS = st.lists(st.sampled_from("abc"), max_size=40).map(" ".join)


@given(st.lists(WORDS, max_size=4), WORDS)
def test_overlap_finds_what_a_plain_search_finds(items: list[str], text: str) -> None:
    padded = f" {text} "
    wanted = False
    for words in (item.split() for item in items):
        n = min(len(words), N)
        wanted |= n >= SHORTEST and any(f" {' '.join(words[i:i + n])} " in padded for i in range(len(words) - n + 1))
    assert (Overlap(("set", item) for item in items).find(text) is not None) == wanted


def test_evaluation_files_of_all_kinds_are_read(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.jsonl").write_text('{"q": "one", "n": 1}\n{"q": ["two"]}\n')
    (tmp_path / "a" / "x.csv").write_text('three,"four, five"\n')
    (tmp_path / "a" / "data.json").write_text('{"train": ["left out"], "test": ["six"]}')
    (tmp_path / "a" / "mbpp.jsonl").write_text('{"task_id": 511, "t": "left out"}\n{"task_id": 5, "t": "seven"}\n')
    found = [text for _, text in evaluation_items(tmp_path)]
    assert sorted(found) == sorted(["one", "two", "three", "four, five", "six", "seven"])


@pytest.fixture(scope="session")
def shards(mix: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    """The cpu mix of the made-up parts, with one of its stories as an evaluation item."""
    evaluation = tmp_path_factory.mktemp("evaluation")
    (evaluation / "known").mkdir()
    planted = next(corpus.documents(mix, "storybooks_en", False)).text.split("\n\n")[0]
    (evaluation / "known" / "test.txt").write_text(planted)
    out = tmp_path_factory.mktemp("shards")
    return out, pack.build(mix, "cpu", out, pieces=700, evaluation=evaluation, scale=0.003, shown=False)


def test_shards_hold_what_they_promise(shards: tuple[Path, dict]) -> None:
    out, report = shards
    tokenizer = open_tokenizer(out / "tokenizer.model")
    for stage in ("pretrain", "chat", "valid-pretrain", "valid-chat"):
        meta = json.loads((out / stage / "meta.json").read_text())
        tokens = np.fromfile(out / stage / "tokens.bin", "<u2")
        mask, docs = np.fromfile(out / stage / "mask.bin", np.uint8), np.fromfile(out / stage / "docs.bin", "<i8")
        assert meta["stage"] == stage and meta["tokens"] == len(tokens) == len(mask) and meta["docs"] == len(docs)
        assert tokens.max() < meta["vocab_size"] == tokenizer.vocab_size and not mask[docs].any()
        assert docs[0] == 0 and (np.diff(docs) > 1).all() and docs[-1] < len(tokens) - 1
        assert meta["targets"] == mask.sum() and set(np.unique(mask)) == {0, 1}
        for name, digest in meta["files"].items():
            assert hashlib.sha256((out / stage / name).read_bytes()).hexdigest() == digest
        if stage.endswith("chat"):
            ends = np.append(docs[1:], len(tokens)) - 1
            assert (tokens[ends] == tokenizer.eos_id).all() and mask[ends].all()
            assert not mask[tokens == 50].any()  # <|control2|>: nobody learns to speak for the person
    assert report["stages"]["pretrain"]["parts"]["storybooks_en"]["dropped"] == {"known": 1}
    assert "| storybooks_en |" in pack.table(report) and "known" in pack.table(report)


def test_evaluation_text_is_in_no_shard(shards: tuple[Path, dict], mix: Path) -> None:
    out, _ = shards
    tokenizer = open_tokenizer(out / "tokenizer.model")
    planted = next(corpus.documents(mix, "storybooks_en", False)).text.split("\n\n")[0]
    text = tokenizer.decode(np.fromfile(out / "pretrain" / "tokens.bin", "<u2").tolist())
    assert planted not in text and "ducks swam over" in text


def test_same_arguments_same_bytes(shards: tuple[Path, dict], mix: Path, tmp_path: Path) -> None:
    out, report = shards
    pack.build(mix, "cpu", tmp_path, pieces=700, scale=0.003, shown=False)
    assert (tmp_path / "tokenizer.model").read_bytes() == (out / "tokenizer.model").read_bytes()
    again = pack.build(mix, "cpu", tmp_path / "b", tokenizer=tmp_path / "tokenizer.model", scale=0.003, shown=False)
    for stage in again["stages"]:
        for name in ("tokens.bin", "mask.bin", "docs.bin"):
            assert (tmp_path / stage / name).read_bytes() == (tmp_path / "b" / stage / name).read_bytes()
    other = pack.build(mix, "cpu", tmp_path / "c", tokenizer=tmp_path / "tokenizer.model", scale=0.003, seed=1,
                       shown=False)
    assert other["stages"] != again["stages"] and report["mix"] == "cpu"


def test_the_command_says_what_is_wrong(mix: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from libremoe.cli import main

    for flags, said_ in (
        (["--mix", "none"], "no mix 'none'"), (["--scale", "0"], "--scale"), (["--context", "4"], "--context"),
        (["--tokenizer", str(tmp_path / "none.model")], "none.model"), (["--pieces", "9"], "pieces"),
        (["--eval", str(tmp_path / "none")], "no evaluation items"),
    ):
        assert main(["train", "data", "--data", str(mix), "--out", str(tmp_path / "out"), *flags]) == 2
        assert said_ in capsys.readouterr().err


def test_a_tokenizer_without_control_pieces_is_refused(tmp_path: Path) -> None:
    plain = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(["a b c d e f"] * 9), model_writer=plain,
                                             model_type="bpe", vocab_size=300, byte_fallback=True, minloglevel=2,
                                             hard_vocab_limit=False)
    (tmp_path / "tokenizer.model").write_bytes(plain.getvalue())
    with pytest.raises(LibremoeError, match="control"):
        Renderer(open_tokenizer(tmp_path / "tokenizer.model"))


def _perfect(item: behaviours.Item) -> str:
    if item.behaviour == "cites":
        return f"It is {item.wanted[1]} [{item.wanted[0]}]."
    if item.behaviour == "calculates":
        sum_ = f"{item.wanted.numerator} / {item.wanted.denominator}" if item.wanted >= 0 else (
            f"0 - {-item.wanted.numerator} / {item.wanted.denominator}")
        return f'<tool_call>{{"name": "calculator", "arguments": {{"expression": "{sum_}"}}}}</tool_call>'
    if item.behaviour == "names_itself":
        return {"en": "I am a small open model.", "fr": "Je suis un petit modèle ouvert."}[item.lang]
    return "I do not know."


def test_behaviours_know_right_from_wrong(lists: corpus.WordLists) -> None:
    items = behaviours.make_items(lists, 20, seed=0)
    assert len(items) == 20 * 2 * len(behaviours.ASKED)

    def score(write, ids=(1, 2, 3), ended=True):  # type: ignore[no-untyped-def]
        def ask(part, params):  # type: ignore[no-untyped-def]
            return [behaviours.Answer(write(item), tuple(ids), ended) for item in part]

        return behaviours.score(items, behaviours.answer_all(items, ask))

    good = score(_perfect)
    assert all(sides["all"]["score"] == 1 for sides in good.values())
    assert all(good[name]["met"] for name in behaviours.GOALS)
    assert good["cites"]["all"]["n"] == 40 and good["ends"]["all"]["n"] == len(items)
    bad = score(lambda item: "I am ChatGPT, a small open model, un petit modèle ouvert. [9] <tool_call>{}</tool_call>",
                ids=[5, 6] * 20, ended=False)
    assert all(sides["all"]["score"] == 0 for sides in bad.values())
    assert "NOT met" in behaviours.table(bad) and "100.0%" in behaviours.table(good)


@pytest.mark.parametrize("text", [
    "12 + 3", '<tool_call>{"name": "calculator", "arguments": {"expression": "12 +"}}</tool_call>',
    '<tool_call>{"name": "search", "arguments": {"expression": "1"}}</tool_call>',
    '<tool_call>{"name": "calculator", "arguments": {"expression": 5}}</tool_call>',
    '<tool_call>{"name": "calculator", "arguments": {"expression": "1", "x": 2}}</tool_call>',
    'Sure! <tool_call>{"name": "calculator", "arguments": {"expression": "1"}}</tool_call>',
])
def test_a_bad_call_has_no_value(text: str) -> None:
    assert behaviours.called_value(text) is None


@given(st.lists(st.integers(0, 3), max_size=120))
def test_loops_are_found_as_by_hand(ids: list[int]) -> None:
    def by_hand() -> bool:
        for period in range(1, behaviours.LONGEST_PERIOD + 1):
            length = max(behaviours.REPEATS * period, behaviours.LEAST_LOOP)
            for at in range(len(ids) - length + 1):
                part = ids[at : at + length]
                if part == (part[:period] * length)[:length]:
                    return True
        return False

    assert behaviours.loops(ids) == by_hand()
    assert behaviours.loops([*ids, *[1, 2, 3] * 8]) and not behaviours.loops([])


def test_behaviours_ask_a_model_through_the_engine(tokenizer: Tokenizer, lists: corpus.WordLists,
                                                   server: tuple[asyncio.Runner, ModelTemplate]) -> None:
    import dataclasses

    import tiny

    from libremoe.language_model import LanguageModel

    config = dataclasses.replace(tiny.GROK, vocab_size=tokenizer.vocab_size, context_len=1024)
    lm = LanguageModel(tiny.model(config), tokenizer)
    items = behaviours.make_items(lists, 1, seed=0)
    params = dataclasses.replace(behaviours.GREEDY, max_tokens=8)

    def ask(own):  # type: ignore[no-untyped-def]
        return behaviours.answer_all(items, lambda part, p: behaviours.ask_model(lm, own, server[0], part, p, 0))

    behaviours_max, behaviours.MAX_TOKENS = behaviours.MAX_TOKENS, params.max_tokens or 8
    try:
        answers = ask(server[1])
        assert [a.text for a in answers] == [a.text for a in ask(server[1])]
        assert all(len(a.ids) <= 8 for a in answers) and len(answers) == len(items)
        assert behaviours.score(items, answers)["names_itself"]["all"]["score"] == 0
        assert len(ask(None)) == len(items)  # a model without a template is asked as a base model
    finally:
        behaviours.MAX_TOKENS = behaviours_max


def test_a_model_is_scored_on_the_rows_of_the_baseline(shards: tuple[Path, dict]) -> None:
    """An untrained model is as good as an even guess, and the 5-gram model of the same shards far better."""
    import dataclasses
    import math

    import tiny

    from libremoe.errors import LibremoeError
    from libremoe.language_model import LanguageModel
    from libremoe.train.held_out import scores
    from libremoe.train.kneser_ney import baseline

    folder, report = shards
    config = dataclasses.replace(tiny.GROK, vocab_size=report["vocab_size"], context_len=1024)
    lm = LanguageModel(tiny.model(config), None)
    found = scores(lm, folder, 256, 4)
    assert set(found) == {"valid-pretrain", "valid-chat"}
    one, other = found["valid-pretrain"], baseline(folder, "pretrain", 5, 256, 4)
    assert one["nats_per_token"] == pytest.approx(math.log(config.vocab_size), abs=1.5)
    characters_a_token = one["nats_per_token"] / one["nats_per_character"]
    assert characters_a_token == pytest.approx(other["nats_per_token"] / other["nats_per_character"])
    small = LanguageModel(tiny.model(dataclasses.replace(config, vocab_size=600)), None)
    with pytest.raises(LibremoeError, match="made with its tokenizer"):
        scores(small, folder, 256, 4)
