"""Each benchmark on a few items made up here: its layouts are read, right answers are right, wrong ones wrong."""

from __future__ import annotations

import io
import json
import math
import tarfile
import time
from pathlib import Path
from typing import Any

import eval_data
import pytest

from libremoe.errors import LibremoeError
from libremoe.evals import competition_math
from libremoe.evals.competition_math import Comparing, boxed, final_answer
from libremoe.evals.data import Data
from libremoe.evals.ifeval_checks import CHECKS, follows
from libremoe.evals.task import Answer, Task, open_task


def written(text: str) -> Answer:
    return Answer("generated", text)


def task_of(folder: Path, name: str, file: str, content: str) -> Task:
    path = folder / name / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    return open_task(name, Data(folder))


def lines(*rows: dict[str, Any]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


ARC_A = {"id": "x1", "question": "What melts?", "choices": {"text": ["ice", "a stone wall", "fire"],
                                                            "label": ["1", "2", "3"]}, "answerKey": "1"}
ARC_B = {"id": "x1", "question": {"stem": "What melts?", "choices": [{"text": "ice", "label": "A"}, {
    "text": "a stone wall", "label": "B"}, {"text": "fire", "label": "C"}]}, "answerKey": "A"}
OBQA = "ID\tQuestion Stem\tChoices\tComplete Question\tAnswer Key\n" \
       "7-1\tWater that is cold becomes\t(A) ice (B) fire, hot (C) a stone wall (D) air\twhole\tA\n"
CHOICES = [
    ("arc_challenge", "test.jsonl", lines(ARC_A), ("ice", "a stone wall", "fire")),
    ("arc_challenge", "ARC-Challenge-Test.jsonl", lines(ARC_B), ("ice", "a stone wall", "fire")),
    ("openbookqa", "test.tsv", OBQA, ("ice", "fire, hot", "a stone wall", "air")),
    ("openbookqa", "test.jsonl", lines(ARC_B), ("ice", "a stone wall", "fire")),
    ("hellaswag", "hellaswag_val.jsonl",
     lines({"ind": 4, "activity_label": "Cooling", "ctx_a": "Water stands outside.", "ctx_b": "it becomes",
            "endings": ["ice", "a [step] stone wall"], "label": 0}), ("ice", "a stone wall")),
]


@pytest.mark.parametrize("name,file,content,options", CHOICES, ids=lambda value: str(value)[:20])
def test_written_out_options(name: str, file: str, content: str, options: tuple[str, ...], tmp_path: Path) -> None:
    task = task_of(tmp_path, name, file, content)
    (example,) = task.examples()
    prompt = task.prompt(example)
    assert prompt.options == tuple(f" {option}" for option in options)
    assert f"A. {options[0]}\nB. {options[1]}" in prompt.lettered and "[" not in prompt.text()
    # by whole sums the short option wins; divided by bytes, one that has more of them
    logprobs = [-3.0 * len(option) for option in options]
    assert task.score(example, Answer("logprobs", logprobs=tuple(logprobs))).also == {
        "accuracy, not divided by length": (1.0, 1.0)}
    favoured = [-1.0 * len(option) + (0.5 * len(option) if option == "a stone wall" else 0) for option in options]
    assert task.score(example, Answer("logprobs", logprobs=tuple(favoured))).value == 0
    favoured = [-1.0 * len(option) + (2.5 if option == "ice" else 0) for option in options]
    assert task.score(example, Answer("logprobs", logprobs=tuple(favoured))).value == 1
    assert task.score(example, written("A")).value == 1 and task.score(example, written("(B)")).value == 0
    assert task.score(example, written("no idea")).outcome == "unreadable"
    assert task.score(example, Answer("top_logprobs", logprobs=(-1.0, None, -2.0))).value == 1


def test_piqa(tmp_path: Path) -> None:
    (tmp_path / "piqa").mkdir()
    (tmp_path / "piqa" / "valid-labels.lst").write_text("1\n0\n")
    rows = lines(*({"goal": f"Open jar {i}", "sol1": "Hit it", "sol2": "Turn its lid"} for i in range(2)))
    task = task_of(tmp_path, "piqa", "valid.jsonl", rows)
    assert [task.score(example, written("B")).value for example in task.examples()] == [1, 0]
    (tmp_path / "piqa" / "valid-labels.lst").write_text("1\n")
    with pytest.raises(LibremoeError, match="a 0 or 1 for each of the 2 rows"):
        open_task("piqa", Data(tmp_path))


def test_winogrande_scores_the_end_of_the_sentence_only(tmp_path: Path) -> None:
    row = {"qID": "q", "sentence": "The cup fell off the table because the _ was wet.", "option1": "cup",
           "option2": "table", "answer": "1"}
    task = task_of(tmp_path, "winogrande", "dev.jsonl", lines(row))
    (example,) = task.examples()
    prompt = task.prompt(example)
    assert prompt.text().endswith("because the")
    assert prompt.options == (" cup was wet.", " table was wet.", " cup", " table")
    # the second name is likelier, the end after the first is
    assert task.score(example, Answer("logprobs", logprobs=(-9.0, -8.0, -6.0, -2.0))).value == 1
    assert task.score(example, Answer("logprobs", logprobs=(-9.0, -8.0, -2.0, -6.0))).value == 0
    assert task.score(example, written("A")).value == 1


def test_truthfulqa(tmp_path: Path) -> None:
    row = {"question": "Do ducks read?", "mc1_targets": {"No.": 1, "Yes.": 0, "At night.": 0},
           "mc2_targets": {"No.": 1, "They do not.": 1, "Yes.": 0}}
    task = task_of(tmp_path, "truthfulqa", "mc_task.json", json.dumps([row]))
    (example,) = task.examples()
    assert len(task.prompt(example).options) == 6 and task.prompt(example).text().count("Q:") == 7
    score = task.score(example, Answer("logprobs", logprobs=(-1.0, -2.0, -3.0, -1.0, -2.0, -2.0)))
    share = (math.exp(-1) + math.exp(-2)) / (math.exp(-1) + 2 * math.exp(-2))
    assert score.value == 1 and score.also["MC2"][0] == pytest.approx(share)
    far = task.score(example, Answer("logprobs", logprobs=(-2e3, -1e3, -3e3, -2e3, -2e3, -1e3)))  # no underflow
    assert far.value == 0 and far.also["MC2"][0] == pytest.approx(0)
    assert task.score(example, written("B")).value == 0


def test_bbh(tmp_path: Path) -> None:
    for task_name, target in (("web_of_lies", "Yes"), ("dyck_languages", "] ) >")):
        (tmp_path / "bbh" / "bbh").mkdir(parents=True, exist_ok=True)
        (tmp_path / "bbh" / "cot-prompts").mkdir(exist_ok=True)
        (tmp_path / "bbh" / "bbh" / f"{task_name}.json").write_text(
            json.dumps({"examples": [{"input": "Is it?", "target": target}]}))
        (tmp_path / "bbh" / "cot-prompts" / f"{task_name}.txt").write_text("for crawlers\n-----\nTell.\n\nQ: a\nA: b")
    task = open_task("bbh", Data(tmp_path))
    for example, target in zip(task.examples(), ("] ) >", "Yes"), strict=True):
        prompt = task.prompt(example).text()
        assert prompt.startswith("Tell.\n\nQ: a") and prompt.endswith("\n\nQ: Is it?\nA: Let's think step by step.\n")
        assert task.score(example, written(f"Well. So the answer is {target}.")).value == 1
        assert task.score(example, written("So the answer is no.")).value == 0


@pytest.mark.skipif(eval_data.PUBLISHED is None, reason="the published files are not beside the repository")
def test_the_published_answers_of_gsm8k_score_in_full() -> None:
    task = open_task("gsm8k", Data(eval_data.PUBLISHED))
    examples = task.examples()
    assert len(examples) == 1319
    for example in examples:
        reasons, _, number = example.fields["answer"].partition("####")
        said = number.strip()
        assert task.score(example, written(example.fields["answer"])).value == 1
        assert task.score(example, written(f" {reasons}The answer is {said}.")).value == 1
        wrong = int(said.replace(",", "")) + 1
        assert task.score(example, written(f" {reasons}The answer is {wrong}.")).value == 0


MATH_ROWS = [
    {"problem": "Halve one.", "level": "Level 1", "type": "Prealgebra",
     "solution": "It is $\\frac{1}{2}$: $\\boxed{\\frac{1}{2}}$."},
    {"problem": "Where is it?", "level": "Level 3", "type": "Algebra", "solution": "$x<3$, so $\\boxed{(-\\infty,3)}$"},
    {"problem": "Root.", "level": "Level 5", "type": "Algebra",
     "solution": "First $\\boxed{1}$? No: $\\boxed{2\\sqrt{3}}$"},
    {"problem": "Count.", "level": "Level 2", "type": "Number Theory", "solution": "\\boxed{1,200}"},
    {"problem": "Point.", "level": "Level 2", "type": "Geometry",
     "solution": "\\boxed{\\left(1, \\frac{3}{4}\\right)}"},
    {"problem": "Word.", "level": "Level 2", "type": "Algebra", "solution": "\\boxed{\\text{even}}"},
]
EQUAL = ["0.5", "(-\\infty, 3)", "\\sqrt{12}", "1200", "(1,0.75)", "\\text{even}"]
UNEQUAL = ["0.6", "(3,\\infty)", "\\sqrt{13}", "1201", "(1,0.7)", "\\text{odd}"]


def math_folder(folder: Path, kind: str) -> Path:
    (folder / "math").mkdir(parents=True)
    if kind == "jsonl":
        (folder / "math" / "test.jsonl").write_text(lines(*MATH_ROWS))
        return folder
    names = [f"MATH/test/{row['type'].lower()}/{i}.json" for i, row in enumerate(MATH_ROWS)]
    if kind == "folder":
        for name, row in zip(names, MATH_ROWS, strict=True):
            (folder / "math" / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / "math" / name).write_text(json.dumps(row))
        return folder
    with tarfile.open(folder / "math" / "MATH.tar", "w") as tar:
        for name, row in [*zip(names, MATH_ROWS, strict=True), ("MATH/train/algebra/1.json", MATH_ROWS[0])]:
            content = json.dumps(row).encode()
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return folder


@pytest.mark.parametrize("kind", ["jsonl", "folder", "tar"])
def test_math_reference_answers_score_in_full(kind: str, tmp_path: Path) -> None:
    pytest.importorskip("math_verify")
    task = open_task("math", Data(math_folder(tmp_path, kind)))
    examples = sorted(task.examples(), key=lambda example: [row["problem"] for row in MATH_ROWS].index(
        example.fields["problem"]))
    assert len(examples) == len(MATH_ROWS)
    for example in examples:
        assert task.score(example, written(example.fields["solution"])).value == 1
    if kind == "jsonl":
        for example, equal, other in zip(examples, EQUAL, UNEQUAL, strict=True):
            assert task.score(example, written(f"The final answer is $\\boxed{{{equal}}}$.")).value == 1, equal
            assert task.score(example, written(f"Then the final answer is ${equal}$.")).value == 1, equal
            assert task.score(example, written(f"\\boxed{{{other}}}")).value == 0, other
        assert task.score(examples[0], written("I do not know.")).outcome == "unreadable"


def test_a_formula_that_computes_for_ever_is_wrong_and_the_next_one_is_compared(monkeypatch: Any) -> None:
    pytest.importorskip("math_verify")
    monkeypatch.setattr(competition_math, "TIMEOUT_S", 4.0)
    comparing = Comparing()
    assert comparing.compare("\\frac{1}{2}", "0.5") == "right"
    began = time.monotonic()
    for bomb in ("9^{9^{9^{9^9}}}", "(" * 5000 + "1" + ")" * 5000, "\\sqrt{" * 300, "10^{10^{10}}!"):
        assert comparing.compare("7", bomb) in ("wrong", "timeout")
    assert time.monotonic() - began < 300  # it ends; how soon is the machine's affair
    assert comparing.compare("1", "2") == "wrong" and comparing.compare("1", "1.0") == "right"
    comparing.close()


@pytest.mark.parametrize("text,want", [
    ("\\boxed{1}", "1"), ("a \\boxed{x} b \\boxed{\\frac{1}{2}} c", "\\frac{1}{2}"), ("\\fbox{7}", "7"),
    ("$\\boxed 3$", "3"), ("none", None), ("\\boxed{never closed", None), ("\\boxed", None),
])
def test_boxed(text: str, want: str | None) -> None:
    assert boxed(text) == want


def test_final_answer_without_a_box() -> None:
    assert final_answer("Final Answer: The final answer is $\\sqrt{2}$. I hope it is correct.") == "\\sqrt{2}"
    assert final_answer("so $x=1$ and then $y=2$") == "y=2" and final_answer("nothing") == ""


FOLLOWED = [  # instruction, arguments, a text that follows it, one that does not
    ("keywords:existence", {"keywords": ["duck", "pond"]}, "A Duck on the pond.", "A duck."),
    ("keywords:frequency", {"keyword": "duck", "frequency": 2, "relation": "at least"}, "Duck, duck.", "One duck."),
    ("keywords:frequency", {"keyword": "duck", "frequency": 2, "relation": "less than"}, "One duck.", "Duck duck."),
    ("keywords:forbidden_words", {"forbidden_words": ["duck"]}, "Duckling.", "A Duck!"),
    ("keywords:letter_frequency", {"letter": "q", "let_frequency": 2, "let_relation": "at least"}, "Qq", "q"),
    ("language:response_language", {"language": "fr"}, "Le canard nage sur la rivière et mange du pain.",
     "The duck swims on the river and eats some bread."),
    ("length_constraints:number_sentences", {"num_sentences": 3, "relation": "at least"}, "One. Two! Is it Dr. Three?",
     "Dr. One comes. Then he goes."),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, "One\n***\nTwo", "One\n\nTwo"),
    ("length_constraints:number_words", {"num_words": 3, "relation": "at least"}, "It doesn't rain", "One well-made"),
    ("length_constraints:nth_paragraph_first_word", {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "then"},
     "First.\n\n\"Then, it", "Then.\n\nFirst"),
    ("detectable_content:number_placeholders", {"num_placeholders": 2}, "[name], [address]", "[name]"),
    ("detectable_content:postscript", {"postscript_marker": "P.S."}, "Bye\nP.S. more", "Bye. Nothing"),
    ("detectable_content:postscript", {"postscript_marker": "P.P.S"}, "Bye\nP.P.S more", "Bye\nP.S. more"),
    ("detectable_format:number_bullet_lists", {"num_bullets": 2}, "* one\n- two", "* one\n**two**"),
    ("detectable_format:constrained_response", {}, "My answer is maybe.", "Perhaps."),
    ("detectable_format:number_highlighted_sections", {"num_highlights": 2}, "*one* and *two*", "*one* and * *"),
    ("detectable_format:multiple_sections", {"section_spliter": "Day", "num_sections": 2}, "Day 1 a\nDay 2 b", "Day 1"),
    ("detectable_format:json_format", {}, '```json\n{"a": [1]}\n```', "{a: 1}"),
    ("detectable_format:title", {}, "<<On ducks>>\nThey swim.", "<On ducks>"),
    ("combination:two_responses", {}, "One\n******\nTwo", "One\n******\nOne"),
    ("combination:repeat_prompt", {"prompt_to_repeat": "Say it."}, "say it. Yes.", "Yes. Say it."),
    ("startend:end_checker", {"end_phrase": "That is all!"}, "Done. that is all!", "That is all! Bye."),
    ("startend:quotation", {}, '"Quoted"', '"Half'),
    ("change_case:capital_word_frequency", {"capital_frequency": 2, "capital_relation": "at least"}, "NO and NO", "No"),
    ("change_case:english_capital", {}, "THE DUCK SWIMS ON THE RIVER AND EATS SOME BREAD.", "The duck swims."),
    ("change_case:english_lowercase", {}, "the duck swims on the river and eats some bread.", "The duck swims."),
    ("punctuation:no_comma", {}, "No comma.", "A comma, here."),
]


@pytest.mark.parametrize("id,arguments,good,bad", FOLLOWED, ids=lambda value: value if isinstance(value, str) else "")
def test_instructions(id: str, arguments: dict[str, Any], good: str, bad: str) -> None:
    if "language" in id or "english" in id:
        pytest.importorskip("py3langid")
    assert follows(id, arguments, good) and not follows(id, arguments, bad) and not follows(id, arguments, " ")


def test_every_instruction_is_tested() -> None:
    assert {id for id, *_ in FOLLOWED} == set(CHECKS) and len(CHECKS) == 25


def test_ifeval_counts_prompts_and_instructions_strictly_and_loosely(tmp_path: Path) -> None:
    rows = lines({"key": 1, "prompt": "Write.", "instruction_id_list": ["punctuation:no_comma", "startend:quotation"],
                  "kwargs": [{}, {"num_words": None}]})
    task = task_of(tmp_path, "ifeval", "input_data.jsonl", rows)
    (example,) = task.examples()
    assert task.score(example, written('"Good."')).value == 1
    half = task.score(example, written('Here it is:\n"Good."'))
    assert half.value == 0 and half.said == "broken: startend:quotation"
    assert half.also == {"instructions followed strictly": (1.0, 2.0), "prompts followed loosely": (1.0, 1.0),
                         "instructions followed loosely": (2.0, 2.0)}
    for bad in ({"instruction_id_list": ["punctuation:more"], "kwargs": [{}]},
                {"instruction_id_list": ["keywords:existence"], "kwargs": [{}]},
                {"instruction_id_list": ["keywords:frequency"], "kwargs": [{"keyword": 3}]}):
        with pytest.raises(LibremoeError, match="line 1"):
            task_of(tmp_path, "ifeval", "input_data.jsonl", lines({"key": 1, "prompt": "p", **bad}))


def test_archives_and_folders_of_mmlu_are_the_same(tmp_path: Path) -> None:
    folder = eval_data.mmlu(tmp_path / "a")
    (tmp_path / "b" / "mmlu").mkdir(parents=True)
    with tarfile.open(tmp_path / "b" / "mmlu" / "mmlu.tar.gz", "w:gz") as tar:
        tar.add(folder / "mmlu" / "data", "data")
    first, second = (open_task("mmlu", Data(tmp_path / each)) for each in "ab")
    assert first.examples() == second.examples() and len(first.examples()) == 36
    for one, other in zip(first.examples(), second.examples(), strict=True):
        assert first.prompt(one) == second.prompt(other)
    prompt = first.prompt(first.examples()[0]).text()
    assert prompt.startswith("The following are multiple choice questions (with answers) about adding up.\n\nHow much")
    assert prompt.count("\nAnswer:") == 6 and prompt.endswith("\nAnswer:")
