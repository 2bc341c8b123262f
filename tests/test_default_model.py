"""The model of the package: whole, small, described by its card, and able to do what it was trained for."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

from mix import write_mix

import libremoe
from libremoe.chat.template import ModelTemplate, find_template
from libremoe.run import default_model
from libremoe.train import behaviours, corpus
from libremoe.verify import verify

CARD = Path(__file__).parent.parent / "docs" / "model-card.md"
MOST_BYTES = 40 << 20
N_ITEMS = 12  # of each behaviour and language; the card has the scores of 200
FLOORS = {"cites": 0.5, "calculates": 0.85, "names_itself": 0.8, "ends": 0.95, "no_loops": 0.95}


def test_it_is_whole_and_small_and_the_card_is_of_it() -> None:
    folder = default_model()
    assert verify(folder)["ok"]
    assert sum(path.stat().st_size for path in folder.iterdir()) <= MOST_BYTES
    record, card = json.loads((folder / "train.json").read_text()), CARD.read_text()
    assert record["balanced"] and record["commit"]
    assert f"{record['tokens_seen']:,} in {record['steps']:,} steps" in card and record["commit"] in card


def test_it_does_what_it_was_trained_for(tmp_path: Path) -> None:
    """Held-out phrasings over the test's own short word lists."""
    lists = corpus.word_lists(write_mix(tmp_path))
    lm = libremoe.load(default_model())
    template = find_template(default_model())
    assert template is not None and lm.tokenizer is not None
    with asyncio.Runner() as runner:
        own = ModelTemplate(template, lm.tokenizer)
        try:
            items = behaviours.make_items(lists, N_ITEMS, 0)
            answers = behaviours.answer_all(
                items, lambda some, params: behaviours.ask_model(lm, own, runner, some, params, 0))
        finally:
            runner.run(own.close())
    found = {name: sides["all"]["score"] for name, sides in behaviours.score(items, answers).items()}
    assert {name: score for name, score in found.items() if score < FLOORS.get(name, 0)} == {}
