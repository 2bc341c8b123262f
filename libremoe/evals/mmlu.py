"""MMLU, 5-shot: 57 subjects of four-way multiple choice (Hendrycks et al. 2021, arXiv:2009.03300).

The prompt is that of the authors' evaluation (github.com/hendrycks/test, evaluate.py): a line that names the subject,
the first five questions of the subject's dev file with their answers, the question. The answer is the letter of the
four that is most probable after "Answer:". Accuracy is over all questions, as there, not the mean over subjects.
"""

from __future__ import annotations

from libremoe.errors import LibremoeError
from libremoe.evals.data import Data, csv_rows
from libremoe.evals.task import Answer, Example, Prompt, Score, choice_score, choose

N_SHOTS = 5
LETTERS = ("A", "B", "C", "D")


class MMLU:
    name, title, metric = "mmlu", "MMLU (5-shot)", "accuracy"

    def __init__(self, data: Data):
        files = data.members("mmlu", ["data", "."], ["mmlu.tar.gz", "data.tar", "mmlu.tar", "data.tar.gz"], ".csv")
        self._tests = _split(files, "test")
        dev = _split(files, "dev")
        if not self._tests:
            raise LibremoeError("mmlu: there is no file test/<subject>_test.csv among the data")
        self._shots = {}
        for subject in self._tests:
            if len(dev.get(subject, [])) < N_SHOTS:
                raise LibremoeError(f"mmlu: dev/{subject}_dev.csv is missing or has fewer than {N_SHOTS} rows")
            self._shots[subject] = tuple(_question(row) + f" {row[5]}\n\n" for row in dev[subject][:N_SHOTS])
        self.settings = {"shots": N_SHOTS, "prompt": "hendrycks/test"}

    def examples(self) -> list[Example]:
        return [Example(f"{subject}/{i}", {"question": row[0], "options": row[1:5], "answer": row[5]}, subject)
                for subject, rows in self._tests.items() for i, row in enumerate(rows)]

    def prompt(self, example: Example) -> Prompt:
        subject = example.group.replace("_", " ")
        head = f"The following are multiple choice questions (with answers) about {subject}.\n\n"
        question = _question([example.fields["question"], *example.fields["options"]])
        options = tuple(f" {letter}" for letter in LETTERS)
        return Prompt(question, head, self._shots[example.group], options, stop=("\n",), max_tokens=8)

    def score(self, example: Example, answer: Answer) -> Score:
        return choice_score(choose(answer), LETTERS.index(example.fields["answer"]), len(LETTERS))


def _question(row: list[str]) -> str:
    options = "".join(f"\n{letter}. {text}" for letter, text in zip(LETTERS, row[1:5], strict=True))
    return f"{row[0]}{options}\nAnswer:"


def _split(files: dict[str, str], split: str) -> dict[str, list[list[str]]]:
    """Rows by subject of the files <split>/<subject>_<split>.csv."""
    found = {}
    for path, text in files.items():
        folder, _, file = path.rpartition("/")
        if folder.rpartition("/")[2] != split or not file.endswith(f"_{split}.csv"):
            continue
        rows = csv_rows(path, text, 6)
        for number, row in enumerate(rows, 1):
            if row[5] not in LETTERS:
                raise LibremoeError(f"{path}: row {number} has the answer {row[5][:20]!r}, not A, B, C or D")
        found[file.removesuffix(f"_{split}.csv")] = rows
    return found
