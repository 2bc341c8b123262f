"""GSM8K, 8-shot with worked answers: grade-school word problems (Cobbe et al. 2021, arXiv:2110.14168).

Chain of thought as in Wei et al. 2022 (arXiv:2201.11903): each shot reasons and ends with "The answer is N." The eight
shots were written for this project. Scored by the final number, exactly.
"""

from __future__ import annotations

import re
from decimal import Decimal, InvalidOperation

from libremoe.errors import LibremoeError
from libremoe.evals.data import Data, json_lines, need
from libremoe.evals.task import Answer, Example, Prompt, Score

SHOTS = (
    ("A baker has 18 rolls and bakes 2 more trays of 12 rolls each. How many rolls are there now?",
     "Two trays of 12 rolls are 2 * 12 = 24 rolls. With the 18 from before there are 18 + 24 = 42 rolls.", "42"),
    ("Tom owns 35 stamps. He gives 8 to his sister and then buys 3 packs of 5 stamps. How many stamps has he got?",
     "After the gift he has 35 - 8 = 27 stamps. The packs bring 3 * 5 = 15 stamps. 27 + 15 = 42, so he has 42.", "42"),
    ("A train covers 90 kilometres in an hour. How far does it go in 2 and a half hours?",
     "In 2 hours it covers 2 * 90 = 180 kilometres, in half an hour 90 / 2 = 45. Together 180 + 45 = 225.", "225"),
    ("A jacket costs $80. In the sale its price falls by 25%. What does Ada pay for two such jackets?",
     "25% of $80 is 80 * 25 / 100 = $20, so one costs 80 - 20 = $60. Two of them cost 2 * 60 = $120.", "120"),
    ("Lea is 4 years older than Max. In 6 years Max will be 20. How old is Lea today?",
     "Max is 20 - 6 = 14 years old today. Lea is 4 years older: 14 + 4 = 18.", "18"),
    ("A farmer packs 150 eggs into boxes of 6. He sells each box for $3. How much does he earn?",
     "He fills 150 / 6 = 25 boxes. At $3 each they earn 25 * 3 = $75.", "75"),
    ("Three friends share a pizza of 12 slices. Sam eats a third of it, Kim eats 5 slices. How many are left for Jo?",
     "Sam eats 12 / 3 = 4 slices. Sam and Kim eat 4 + 5 = 9 slices. That leaves 12 - 9 = 3 slices.", "3"),
    ("A pool holds 1,200 litres. A tap fills 40 litres a minute while 10 litres a minute leak away. How many minutes "
     "until the empty pool is full?",
     "Each minute the pool gains 40 - 10 = 30 litres. 1200 / 30 = 40, so it takes 40 minutes.", "40"),
)
NUMBER = r"-?\$?(?:\d[\d,]*(?:\.\d+)?|\.\d+)"


class GSM8K:
    name, title, metric = "gsm8k", "GSM8K (8-shot)", "exact match of the final number"

    def __init__(self, data: Data):
        path, text = data.text("gsm8k", "test.jsonl")
        self._rows = json_lines(path, text)
        for row in self._rows:
            need(row, "question")
            if final_number(need(row, "answer").rpartition("####")[2]) is None:
                raise LibremoeError(f"{row['_where']}: the answer has no number after ####")
        self._shots = tuple(f"Question: {q}\nAnswer: {a} The answer is {n}.\n\n" for q, a, n in SHOTS)
        self.settings = {"shots": len(SHOTS), "prompt": "chain of thought, own shots 1"}

    def examples(self) -> list[Example]:
        return [Example(str(i), {"question": row["question"], "answer": row["answer"]})
                for i, row in enumerate(self._rows)]

    def prompt(self, example: Example) -> Prompt:
        question = f"Question: {example.fields['question'].strip()}\nAnswer:"
        return Prompt(question, "", self._shots, stop=("\nQuestion:", "\n\nQuestion"), max_tokens=400)

    def score(self, example: Example, answer: Answer) -> Score:
        wanted = final_number(example.fields["answer"])
        said = final_number(answer.text)
        outcome = "unreadable" if said is None else "right" if said == wanted else "wrong"
        return Score(float(said is not None and said == wanted), "" if said is None else f"{said:f}",
                     f"{wanted:f}", outcome)


def final_number(text: str) -> Decimal | None:
    """The number after "####" or the first "answer is", else the last one; None where there is none."""
    marked = re.search(rf"(?:####|answer is:?)[^\d\n.$-]*({NUMBER})", text, re.IGNORECASE)
    numbers = [marked[1]] if marked else re.findall(NUMBER, text)
    if not numbers:
        return None
    try:
        return Decimal(numbers[-1].replace(",", "").replace("$", "")).normalize() + 0
    except InvalidOperation:
        return None
