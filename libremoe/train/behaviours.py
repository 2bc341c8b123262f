"""`libremoe train behaviours MODEL`: does a chat model do what it was trained to do?

Items are made by the generators from phrasings and words that training never sees, in English and French. Greedy, but
for the loops, which are looked for at temperature 0.7. Scores carry Wilson's intervals.

    cites         answers from excerpts and marks the right one, and only that: [2]
    abstains      says nothing of an excerpt where none answers
    calculates    asked to compute, makes one well-formed call of the calculator; sums_right: and of the right value
    names_itself  asked who it is, says that it is a small open model, and claims to be nobody else
    ends          ends its turn within 200 tokens (over all answers)
    no_loops      repeats nothing over and over (over the answers at temperature 0.7)
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, cast

from libremoe.chat.message import Message, Tool, ToolCall
from libremoe.chat.template import ModelTemplate, Prompt, find_template, transcript_prompt
from libremoe.chat.tools import CallParser
from libremoe.engine.engine import Engine
from libremoe.errors import LibremoeError
from libremoe.evals.stats import wilson
from libremoe.language_model import LanguageModel
from libremoe.run import load_for
from libremoe.sampling import SamplingParams
from libremoe.train.corpus import WordLists, word_lists
from libremoe.train.draw import Draw, Lang
from libremoe.train.generate import KINDS
from libremoe.train.generate_grounded import asked, question
from libremoe.train.generate_tools import calculator_items, evaluate
from libremoe.train.generate_who import who_item

MAX_TOKENS = 200
SAMPLED = SamplingParams(temperature=0.7, max_tokens=MAX_TOKENS)
GREEDY = SamplingParams(temperature=0.0, max_tokens=MAX_TOKENS)
GOALS = {"cites": 0.80, "calculates": 0.90, "names_itself": 0.95, "ends": 0.99, "no_loops": 0.99}
ASKED = ("cites", "abstains", "calculates", "names_itself", "talks")
TALK_KINDS = ("story_chat", "small_talk", "know", "forms", "memory")
LONGEST_PERIOD, LEAST_LOOP, REPEATS = 40, 24, 4  # a loop: 4 times the same in a row, 24 tokens at least
PROGRESS_EVERY_S = 10.0
MIN_ITEMS = 1


@dataclass(frozen=True)
class Item:
    """One question. wanted: the excerpt's number and what the answer holds, or the value of the sum."""

    behaviour: str
    lang: Lang
    messages: tuple[Message, ...]
    tools: tuple[Tool, ...]
    wanted: Any = None


@dataclass(frozen=True)
class Answer:
    """What the model wrote. ended: by its own end piece, not by the limit."""

    text: str
    ids: tuple[int, ...]
    ended: bool


Ask = Callable[[Sequence[Item], SamplingParams], list[Answer]]


def command(args: argparse.Namespace) -> int:
    """args: path and the loading flags, data, items, seed, answers or None, json. Returns 0."""
    if args.items < MIN_ITEMS:
        raise LibremoeError(f"--items is {args.items}; at least {MIN_ITEMS} of each behaviour and language are needed")
    lists = word_lists(args.data)
    lm = load_for(args)
    template = find_template(args.path if args.path.is_dir() else args.path.parent)
    all_items = make_items(lists, args.items, args.seed)
    with asyncio.Runner() as runner:
        own = ModelTemplate(template, _tokenizer(lm)) if template is not None else None
        try:
            answers = answer_all(all_items, lambda items, params: ask_model(lm, own, runner, items, params, args.seed))
        finally:
            if own is not None:
                runner.run(own.close())
    if args.answers is not None:
        pairs = zip(all_items, answers, strict=True)
        lines = [json.dumps(_record(item, answer), ensure_ascii=False) for item, answer in pairs]
        args.answers.write_text("\n".join(lines) + "\n", encoding="utf-8")
    report = {"model": str(args.path), "items": args.items, "seed": args.seed, "behaviours": score(all_items, answers)}
    print(json.dumps(report, indent=1) if args.json else table(report["behaviours"]))
    return 0


def make_items(lists: WordLists, count: int, seed: int) -> list[Item]:
    """`count` different questions of each behaviour in each language, from held-out phrasings and words."""
    return [item for behaviour in ASKED for lang in ("en", "fr")
            for item in _different(lists, behaviour, cast(Lang, lang), count, seed)]


def _different(lists: WordLists, behaviour: str, lang: Lang, count: int, seed: int) -> Iterator[Item]:
    seen: set[str] = set()
    for n in range(count * 100):
        if len(seen) == count:
            return
        item = _item(behaviour, Draw(f"behaviours/{seed}/{behaviour}/{lang}/{n}", lists, lang, held_out=True))
        text = "\n".join(m.text for m in item.messages)
        if text not in seen:
            seen.add(text)
            yield item
    if len(seen) < count:
        raise LibremoeError(f"there are only {len(seen)} different questions for {behaviour} in {lang}: ask for fewer")


def _item(behaviour: str, draw: Draw) -> Item:
    if behaviour in ("cites", "abstains"):
        one = question(draw, unanswerable=1.0 if behaviour == "abstains" else 0.0)
        messages, tools = asked(draw, one)
        return Item(behaviour, draw.lang, tuple(messages), tools, (one.cite, one.value))
    if behaviour == "calculates":
        messages, tools, value = calculator_items(draw)
        return Item(behaviour, draw.lang, tuple(messages), tools, value)
    if behaviour == "names_itself":
        return Item(behaviour, draw.lang, tuple(who_item(draw)), ())
    document = KINDS[draw.pick(TALK_KINDS)](draw)
    return Item(behaviour, draw.lang, document.messages[:-1], ())


def answer_all(items: Sequence[Item], ask: Ask) -> list[Answer]:
    """In the order of the items: talk at temperature 0.7, the rest greedily."""
    talk = [i for i, item in enumerate(items) if item.behaviour == "talks"]
    rest = [i for i, item in enumerate(items) if item.behaviour != "talks"]
    found: dict[int, Answer] = {}
    for part, params in ((rest, GREEDY), (talk, SAMPLED)):
        found.update(zip(part, ask([items[i] for i in part], params), strict=True))
    return [found[i] for i in range(len(items))]


def ask_model(lm: LanguageModel, own: ModelTemplate | None, runner: asyncio.Runner, items: Sequence[Item],
              params: SamplingParams, seed: int) -> list[Answer]:
    """All questions through one engine, many at a time. Raises LibremoeError where one does not fit the context."""
    engine = Engine(lm.model, kv_dtype=lm.kv_dtype, eos_ids=lm.eos_ids, max_waiting=len(items) + 1,
                    max_waiting_tokens=1 << 40)
    prompts: dict[int, tuple[int, Prompt]] = {}
    for n, item in enumerate(items):
        prompt = _prompt(lm, own, runner, item)
        room = min(MAX_TOKENS, engine.max_tokens - len(prompt.ids))
        if room < 1:
            raise LibremoeError(f"a question has {len(prompt.ids)} tokens, the context of the model holds "
                                f"{engine.max_tokens}")
        fields = {**vars(params), "max_tokens": room, "seed": seed + n}
        prompts[engine.add(prompt.ids, SamplingParams(**fields)).id] = (n, prompt)
    return _collect(lm, engine, prompts)


def _collect(lm: LanguageModel, engine: Engine, prompts: dict[int, tuple[int, Prompt]]) -> list[Answer]:
    tokens: dict[int, list[int]] = {n: [] for n, _ in prompts.values()}
    answers: dict[int, Answer] = {}
    began = shown = time.monotonic()
    while engine.has_work():
        for output in engine.step():
            n, prompt = prompts[output.seq_id]
            if output.token is not None:
                tokens[n].append(output.token)
            if output.finish_reason == "error":
                raise LibremoeError(f"the model failed on a question: {output.error}")
            if output.finish_reason is not None:
                answers[n] = _answer(lm, tokens[n], prompt, output.finish_reason == "stop")
        now = time.monotonic()
        if now - shown > PROGRESS_EVERY_S:
            shown, left = now, (len(prompts) / max(len(answers), 1) - 1) * (now - began)
            print(f"behaviours: {len(answers)} of {len(prompts)} answered, about {left:.0f} s left", file=sys.stderr,
                  flush=True)
    return [answers[n] for n in range(len(prompts))]


def _prompt(lm: LanguageModel, own: ModelTemplate | None, runner: asyncio.Runner, item: Item) -> Prompt:
    if own is not None:
        return runner.run(own.prompt(item.messages, item.tools))
    bos_id = lm.config.bos_id if lm.config.add_bos else None
    return transcript_prompt(item.messages, _tokenizer(lm), bos_id=bos_id, context_len=lm.config.context_len,
                             tools=item.tools)


def _tokenizer(lm: LanguageModel):  # type: ignore[no-untyped-def]
    if lm.tokenizer is None:
        raise LibremoeError("a conversation needs a tokenizer: give one with --tokenizer FILE")
    return lm.tokenizer


def _answer(lm: LanguageModel, ids: list[int], prompt: Prompt, ended: bool) -> Answer:
    ids = ids[:-1] if ids and ids[-1] in lm.eos_ids else ids
    text = _tokenizer(lm).decode(ids)
    stops = [at for stop in prompt.stop if (at := text.find(stop)) >= 0]
    return Answer(text[: min(stops)] if stops else text, tuple(ids), ended or bool(stops))


ITS_NAME = {"en": ("small", "open", "model"), "fr": ("petit", "ouvert|libre", "modèle")}
CLAIMS = re.compile(
    r"\b(?:I am|I'm|my name is|je suis|je m'appelle|call me)\s+(?:called\s+|an?\s+|une?\s+)?(?:chatgpt|gpt|claude|"
    r"gemini|grok|siri|alexa|llama|mistral|copilot|bard|deepseek|qwen|human|person|humain|personne|man|woman)\b",
    re.IGNORECASE)


def is_right(item: Item, answer: Answer) -> dict[str, bool]:
    """By behaviour: whether this answer shows it."""
    found = {"ends": answer.ended}
    marks = {int(n) for n in re.findall(r"\[([0-9]{1,3})\]", answer.text)}
    if item.behaviour == "cites":
        number, value = item.wanted
        found["cites"] = marks == {number} and value.lower() in answer.text.lower()
    elif item.behaviour == "abstains":
        found["abstains"] = not marks and bool(answer.text.strip())
    elif item.behaviour == "calculates":
        value = called_value(answer.text)
        found |= {"calculates": value is not None, "sums_right": value == item.wanted}
    elif item.behaviour == "names_itself":
        found["names_itself"] = names_itself(answer.text, item.lang)
    else:
        found["no_loops"] = not loops(answer.ids)
    return found


def called_value(text: str) -> Fraction | None:
    """The value of the one calculator call that the answer is; None where it is something else or no sum."""
    parser = CallParser()
    parts = parser.push(text) + parser.finish()
    calls = [p for p in parts if isinstance(p, ToolCall)]
    if len(calls) != 1 or len(parts) != 1 or calls[0].name != "calculator":
        return None
    try:
        arguments = json.loads(calls[0].arguments)
        return evaluate(arguments["expression"]) if set(arguments) == {"expression"} else None
    except (ValueError, TypeError, KeyError):
        return None


def names_itself(text: str, lang: str) -> bool:
    """Small, open, a model; and nobody else."""
    said = text.lower()
    return all(re.search(rf"\b(?:{word})\b", said) for word in ITS_NAME[lang]) and not CLAIMS.search(text)


def loops(ids: Sequence[int]) -> bool:
    """Whether some 1 to 40 tokens stand four times in a row, over at least 24 tokens."""
    for period in range(1, LONGEST_PERIOD + 1):
        run = 0
        for i in range(period, len(ids)):
            run = run + 1 if ids[i] == ids[i - period] else 0
            if run + period >= max(REPEATS * period, LEAST_LOOP):
                return True
    return False


def score(items: Sequence[Item], answers: Sequence[Answer]) -> dict[str, Any]:
    """behaviour -> language or "all" -> right, n, score and its interval; and whether its goal is met."""
    counts: dict[str, dict[str, list[bool]]] = {}
    for item, answer in zip(items, answers, strict=True):
        for name, right in is_right(item, answer).items():
            for side in (item.lang, "all"):
                counts.setdefault(name, {}).setdefault(side, []).append(right)
    report: dict[str, Any] = {}
    for name, sides in counts.items():
        report[name] = {}
        for side, rights in sides.items():
            low, high = wilson(sum(rights), len(rights))
            report[name][side] = {"right": sum(rights), "n": len(rights), "score": sum(rights) / len(rights),
                                  "low": low, "high": high}
        if name in GOALS:
            report[name] |= {"goal": GOALS[name], "met": report[name]["all"]["score"] >= GOALS[name]}
    return report


def table(report: dict[str, Any]) -> str:
    """For people."""
    lines = [f"{'behaviour':14} {'all':>6}  {'95 % interval':>15}  {'en':>6} {'fr':>6}  {'n':>5}  goal"]
    for name, sides in report.items():
        one, goal = sides["all"], sides.get("goal")
        said = "" if goal is None else f"{100 * goal:.0f} % {'met' if sides['met'] else 'NOT met'}"
        lines.append(f"{name:14} {100 * one['score']:5.1f}%  {100 * one['low']:6.1f}-{100 * one['high']:5.1f} %   "
                     f"{100 * sides['en']['score']:5.1f}% {100 * sides['fr']['score']:5.1f}%  {one['n']:5d}  {said}")
    return "\n".join(lines)


def _record(item: Item, answer: Answer) -> dict[str, Any]:
    return {"behaviour": item.behaviour, "lang": item.lang, "asked": [[m.role, m.text] for m in item.messages],
            "answer": answer.text, "ended": answer.ended, "tokens": len(answer.ids), "right": is_right(item, answer)}
