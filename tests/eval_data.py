"""Benchmark files in the published layouts, with questions made up here: arithmetic, which needs no author."""

from __future__ import annotations

import csv
import json
import random
from pathlib import Path

SUBJECTS = ("adding_up", "taking_away", "both_ways")


def mmlu(folder: Path, per_subject: int = 12, seed: int = 0) -> Path:
    """folder/mmlu/data/{dev,test}/<subject>_<split>.csv"""
    draw = random.Random(seed)
    for split, n in (("dev", 5), ("test", per_subject)):
        (folder / "mmlu" / "data" / split).mkdir(parents=True)
        for subject in SUBJECTS:
            with (folder / "mmlu" / "data" / split / f"{subject}_{split}.csv").open("w", newline="") as file:
                for _ in range(n):
                    a, b = draw.randint(2, 99), draw.randint(2, 99)
                    options = draw.sample(range(4, 199), 4)
                    right = draw.randrange(4)
                    options[right] = a + b
                    csv.writer(file).writerow([f"How much is {a} + {b}, \"exactly\"?", *options, "ABCD"[right]])
    return folder


def gsm8k(folder: Path, n: int = 30, seed: int = 0) -> Path:
    """folder/gsm8k/test.jsonl"""
    draw = random.Random(seed)
    (folder / "gsm8k").mkdir(parents=True)
    rows = []
    for i in range(n):
        a, b = draw.randint(2, 999), draw.randint(2, 999)
        rows.append({"question": f"Item {i}: Ana has {a} nuts and finds {b}. How many has she?",
                     "answer": f"{a} + {b} = <<{a}+{b}={a + b}>>{a + b}\n#### {a + b:,}"})
    (folder / "gsm8k" / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder
