"""What a benchmark is: examples, a prompt for each, a score for each answer. One file a benchmark has all three.

    task = open_task("mmlu", Data(folder))
    for example in task.examples():
        prompt = task.prompt(example)            # what is asked
        ...                                      # a Sampler (sampler.py, endpoint.py) makes an Answer of it
        score = task.score(example, answer)      # 0 to 1
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from libremoe.errors import LibremoeError
from libremoe.evals.data import Data

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
How = Literal["logprobs", "top_logprobs", "generated"]

# name on the command line: where its file and its class are
TASKS = {
    "mmlu": "mmlu:MMLU",
    "gsm8k": "gsm8k:GSM8K",
    "math": "competition_math:CompetitionMath",
    "arc_challenge": "arc:ARC",
    "openbookqa": "openbookqa:OpenBookQA",
    "piqa": "piqa:PIQA",
    "hellaswag": "hellaswag:HellaSwag",
    "winogrande": "winogrande:WinoGrande",
    "truthfulqa": "truthfulqa:TruthfulQA",
    "ifeval": "ifeval:IFEval",
    "bbh": "bbh:BBH",
    "humaneval": "humaneval:HumanEval",
    "humaneval+": "humaneval:HumanEvalPlus",
    "mbpp": "mbpp:MBPP",
    "mbpp+": "mbpp:MBPPPlus",
}


@dataclass(frozen=True)
class Example:
    """One item. id: unique in its task and stable, since answers are kept under it. group: a subject or level; the
    sample is stratified by it and the report shows its scores."""

    id: str
    fields: dict[str, Any]
    group: str = ""


@dataclass(frozen=True)
class Prompt:
    """What is asked: head, worked shots and the question, joined as they are; each brings its own line ends.

    options: continuations among which the most probable is the answer; none: the model writes. lettered: where the
    options are not letters, the same question with options named A, B, ..., for an endpoint that gives no
    log-probabilities of a given text; empty where there is no such form. stop, max_tokens: for writing.
    """

    question: str
    head: str = ""
    shots: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    lettered: str = ""
    stop: tuple[str, ...] = ()
    chat_stop: tuple[str, ...] | None = None  # instead of stop, where a chat writes its answer in a form of its own
    max_tokens: int = 512

    def prefix(self, n_shots: int | None = None) -> str:
        """What comes before the question, with the first n_shots shots; all by default."""
        return self.head + "".join(self.shots[:n_shots])

    def text(self, n_shots: int | None = None) -> str:
        return self.prefix(n_shots) + self.question


@dataclass(frozen=True)
class Answer:
    """What came of a prompt.

    how: "logprobs", the exact log-probability of each option; "top_logprobs", of the letters among the most probable
    first tokens; "generated", text. logprobs: natural, one an option, None for a letter that was not among the
    first tokens; empty where how is "generated". seconds: from asking to the last token. error: a sentence where the
    item could not be asked (too long for the context); it counts as wrong.
    """

    how: How
    text: str = ""
    logprobs: tuple[float | None, ...] = ()
    finish_reason: str = ""
    prompt_tokens: int = 0
    shared_tokens: int = 0  # of these, found in the cache
    completion_tokens: int = 0
    seconds: float = 0.0
    dropped_shots: int = 0  # left out, the last first, so that the prompt fits the context
    error: str = ""


@dataclass(frozen=True)
class Score:
    """value: 0 to 1. said, wanted: what was read out of the answer, and what is right. outcome: one word for counting,
    such as "right", "wrong", "unreadable". also: other metrics by name, as (achieved, out of)."""

    value: float
    said: str
    wanted: str
    outcome: str = ""
    also: dict[str, tuple[float, float]] = field(default_factory=dict)


class Task(Protocol):
    """A benchmark. Made from Data; raises LibremoeError where its files are missing or malformed."""

    name: str  # as on the command line
    title: str  # as in the report
    metric: str  # what value means, such as "accuracy"
    settings: dict[str, Any]  # whatever changes prompts or scores: shots, version. Runs that differ are not mixed

    def examples(self) -> list[Example]: ...

    def prompt(self, example: Example) -> Prompt: ...

    def score(self, example: Example, answer: Answer) -> Score: ...


# Prompts in, answers out, each with its key, in whatever order they come; prompts are drawn as there is room for them.
Sampler = Callable[[Iterable[tuple[str, Prompt]]], Iterator[tuple[str, Answer]]]


def open_task(name: str, data: Data) -> Task:
    """Raises LibremoeError for an unknown name, and what the task raises for its files."""
    if name not in TASKS:
        raise LibremoeError(f"no benchmark {name!r}; there are: {', '.join(TASKS)}")
    module, cls = TASKS[name].split(":")
    task: Task = getattr(importlib.import_module(f"libremoe.evals.{module}"), cls)(data)
    return task


def lettered(options: Sequence[str]) -> str:
    """Options a line each, as "A. first"."""
    return "".join(f"{letter}. {option}\n" for letter, option in zip(LETTERS, options, strict=False))


def choose(answer: Answer, lengths: Sequence[int] | None = None) -> int | None:
    """The option that an answer chose: the most probable, the first on ties; or the letter that was written. None where
    there is no such letter. lengths: of the options, by which log-probabilities are divided."""
    known = [(p / (lengths[i] if lengths else 1), -i) for i, p in enumerate(answer.logprobs) if p is not None]
    if known:
        return -max(known)[1]
    letter = written_letter(answer.text)
    return None if letter is None else LETTERS.index(letter)


def written_letter(text: str) -> str | None:
    """The option that a written answer names: after "answer is", else at its start, else the last capital alone."""
    said = re.findall(r"answer(?:\s+is|:)?\s*:?\s*[*(\"']*([A-Z])\b(?!')", text, re.IGNORECASE)
    said = [letter for letter in said if letter.isupper()]
    if said:
        return str(said[-1])
    start = re.match(r"[\s*(\"']*([A-Z])(?:[).:*\"']|\s*$|\s*\n)", text)
    if start:
        return start[1]
    alone = re.findall(r"\b([A-Z])\b(?!')", text)
    return str(alone[-1]) if alone else None


def choice_score(chosen: int | None, right: int, n_options: int, also: dict[str, tuple[float, float]] | None = None,
                 ) -> Score:
    """The score of a question with one right option, options shown as letters."""
    readable = chosen is not None and chosen < n_options
    said = LETTERS[chosen] if chosen is not None and readable else ""
    outcome = "unreadable" if not readable else "right" if chosen == right else "wrong"
    return Score(float(chosen == right), said, LETTERS[right], outcome, also or {})
