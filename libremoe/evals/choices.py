"""Multiple choice by whole answers: which of the written-out options is the most probable continuation.

As in the common harness: the question, then each option; its log-probability divided by its length in bytes, so that
short options have no start; the plain sum is reported beside. An endpoint that cannot score a given text gets the
options as letters.
"""

from __future__ import annotations

from collections.abc import Sequence

from libremoe.evals.task import Answer, Prompt, Score, choice_score, choose, lettered

PLAIN = "accuracy, not divided by length"


def question(text: str, options: Sequence[str], shown: str = "") -> Prompt:
    """text ends where an option begins, without a space. shown: the question for the lettered form; text by default."""
    letters = f"{shown or text}\n{lettered(options)}Answer with the letter of the right option.\nAnswer:"
    return Prompt(text, options=tuple(f" {option}" for option in options), lettered=letters, max_tokens=8)


def score(options: Sequence[str], right: int, answer: Answer) -> Score:
    if answer.how != "logprobs":
        return choice_score(choose(answer), right, len(options))
    lengths = [max(1, len(option.encode())) for option in options]
    also = {PLAIN: (float(choose(answer) == right), 1.0)}
    return choice_score(choose(answer, lengths), right, len(options), also)
