"""Trains tokenizer.model beside this file: a small SentencePiece model with the layout of Grok-1's own.

python tests/golden/spm/train.py. The text is made here, from the lists below, so that the model is the
project's own. Layout as in Grok-1's tokenizer: ids 0 to 3 [PAD] [BOS] [EOS] [UNK], 4 to 68 user-defined, 69
to 324 bytes, then 675 ordinary pieces; identity normaliser, dummy leading space, digits split, byte fallback.
"""

from __future__ import annotations

import io
import itertools
import os
from pathlib import Path

import sentencepiece

VOCAB_SIZE = 1000
WHO = "the miller|a quiet neighbour|our teacher|the old engineer|every student|the train|a dog|my sister"
DID = "carries|measures|repairs|remembers|is looking for|has forgotten|understands|wants to describe|sells"
WHAT = (
    "the wooden bridge|a letter from the harbour|seven questions|the weather of tomorrow|an expensive machine"
    "|the shortest path through the forest|their common language|a model with many experts|nothing at all"
)
WHEN = "before breakfast|in the winter|after the talk|while it rains|without asking anybody|since she can"
MORE = """
Every token begins as text, and text begins as somebody's thought.
def total(prices):\n    return sum(price for price in prices if price > 0)\n
for (int i = 0; i < count; i++) { values[i] = values[i] * 2 + 1; }
The answer, which nobody expected, was "perhaps"; the question was better than the answer.
Größe, Höhe und Länge der Brücke sind bekannt. Où est la clé de la bibliothèque? El niño comió una manzana.
{"name": "value", "list": [1, 2, 3], "empty": null}
A formula: x^2 + y^2 = z^2, so |x| <= |z|. See https://example.org/page?query=text.
"""


def user_defined() -> list[str]:
    """The 65 user-defined pieces of Grok-1, ids 4 to 68, in order."""
    pieces = ["\n" * n for n in range(1, 11)] + [str(digit) for digit in range(10)]
    pieces += ["\t" * n for n in range(1, 9)] + [" " * n for n in range(2, 17)]
    return pieces + ["<|separator|>", "<|mask|>"] + [f"<|control{n}|>" for n in range(1, 21)]


def sentences() -> list[str]:
    choices = [part.split("|") for part in (WHO, DID, WHAT, WHEN)]
    made = [f"{' '.join(words).capitalize()}." for words in itertools.product(*choices)]
    return made + MORE.strip().splitlines() * 50


def main() -> None:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences()), model_writer=model, model_type="bpe", vocab_size=VOCAB_SIZE,
        byte_fallback=True, split_digits=True, normalization_rule_name="identity", add_dummy_prefix=True,
        remove_extra_whitespaces=False, max_sentencepiece_length=16, character_coverage=1.0,
        pad_id=0, bos_id=1, eos_id=2, unk_id=3, num_threads=1, minloglevel=1,
        pad_piece="[PAD]", bos_piece="[BOS]", eos_piece="[EOS]", unk_piece="[UNK]",
        user_defined_symbols=user_defined(),
    )  # fmt: skip
    path = Path(__file__).with_name("tokenizer.model")
    unfinished = path.with_suffix(".new")
    unfinished.write_bytes(model.getvalue())
    os.replace(unfinished, path)


if __name__ == "__main__":
    main()
