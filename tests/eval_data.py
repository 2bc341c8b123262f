"""Benchmark files in the published layouts, with questions made up here: arithmetic, which needs no author."""

from __future__ import annotations

import csv
import json
import os
import random
import tarfile
from collections.abc import Sequence
from pathlib import Path

# The published files, where a folder shared/ beside the repository or $LIBREMOE_SHARED has them
PUBLISHED = next((p / "data" / "eval" for p in (Path(__file__).parents[2] / "shared",
                                                Path(os.environ.get("LIBREMOE_SHARED", "/nowhere")))
                  if (p / "data" / "eval").is_dir()), None)
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


def published_mmlu(folder: Path, subjects: Sequence[str]) -> Path:
    """The published questions of these subjects, as mmlu() lays them out."""
    assert PUBLISHED is not None
    with tarfile.open(PUBLISHED / "mmlu" / "mmlu.tar.gz") as archive:
        for member in archive:
            path = Path(member.name)
            if path.name.rpartition("_")[0] in subjects and path.parent.name in ("dev", "test"):
                kept = folder / "mmlu" / "data" / path.parent.name / path.name
                kept.parent.mkdir(parents=True, exist_ok=True)
                read = archive.extractfile(member)
                assert read is not None
                kept.write_bytes(read.read())
    return folder
