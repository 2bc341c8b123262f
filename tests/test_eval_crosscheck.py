"""The same questions through lm-eval over HTTP and through `libremoe eval` in this process: equal item by item."""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import eval_data
import pytest
import tiny
from serving import CONTEXT, MODEL, VOCAB, served, serving_command, tiny_engine, tokenizer

from libremoe.evals.data import Data
from libremoe.evals.run import Plan, run_task
from libremoe.evals.sampler import LocalSampler
from libremoe.evals.store import read_answers
from libremoe.evals.task import open_task
from libremoe.language_model import LanguageModel, load
from libremoe.run import DEFAULT_NAME, default_model
from libremoe.tiny import byte_tokenizer

PER_SUBJECT = 170  # three subjects: 510 items
SHORT_SUBJECTS = ("conceptual_physics", "management", "world_religions")  # 509 items, 512 tokens with five shots
TOLERANCE = 1e-3  # lm-eval reads log-probabilities of whole prompts, we of a shared prefix

TASK = """task: cross_{subject}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {folder}/{subject}_test.jsonl
    dev: {folder}/{subject}_dev.jsonl
test_split: test
fewshot_split: dev
fewshot_config:
  sampler: first_n
num_fewshot: 5
output_type: multiple_choice
description: "The following are multiple choice questions (with answers) about {name}.\\n\\n"
doc_to_text: "{{{{question}}}}\\nA. {{{{a}}}}\\nB. {{{{b}}}}\\nC. {{{{c}}}}\\nD. {{{{d}}}}\\nAnswer:"
doc_to_choice: ["A", "B", "C", "D"]
doc_to_target: "{{{{answer}}}}"
metric_list:
  - metric: acc
"""

pytestmark = pytest.mark.soak  # minutes: lm-eval sends every option with its whole prompt


def own_items(lm: LanguageModel, data: Data, folder: Path) -> dict[str, Any]:
    """What `libremoe eval` keeps of each item, by the item's id."""
    result = run_task(open_task("mmlu", data), data, LocalSampler(lm), {}, folder, Plan(shown=False))
    own = {item["id"]: item for item in read_answers(folder)[1]}
    assert result["n"] == len(own) >= 500 and not result["with_fewer_shots"]
    assert 0 < result["score"] < 1  # the four letters are all chosen now and then
    return own


def lm_eval_samples(folder: Path, subjects: tuple[str, ...], model_args: str) -> list[dict[str, Any]]:
    """What lm-eval says of each item of folder/data/mmlu, asking over HTTP."""
    for subject in subjects:
        for split in ("dev", "test"):
            with (folder / "data/mmlu/data" / split / f"{subject}_{split}.csv").open(newline="") as file:
                rows = [dict(zip(("question", "a", "b", "c", "d", "answer"), row, strict=True))
                        for row in csv.reader(file)]
            for i, row in enumerate(rows):
                row |= {"answer": "ABCD".index(row["answer"]), "id": f"{subject}/{i}"}
            (folder / f"{subject}_{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (folder / f"cross_{subject}.yaml").write_text(
            TASK.format(subject=subject, folder=folder, name=subject.replace("_", " ")))
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "hf"), "OPENAI_API_KEY": "none"}
    done = subprocess.run(
        [sys.executable, "-m", "lm_eval", "--model", "local-completions", "--model_args", model_args, "--tasks",
         ",".join(f"cross_{subject}" for subject in subjects), "--include_path", str(folder),
         "--output_path", str(folder / "out"), "--log_samples"],
        env=environment, capture_output=True, text=True, timeout=3000)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for path in (folder / "out").rglob("samples_cross_*") for line in path.open()]


def assert_equal(own: dict[str, Any], samples: list[dict[str, Any]]) -> None:
    assert {sample["doc"]["id"] for sample in samples} == own.keys()
    for sample in samples:
        item = own[sample["doc"]["id"]]
        theirs = [float(response[0]) for response in sample["filtered_resps"]]
        assert item["answer"]["logprobs"] == pytest.approx(theirs, abs=TOLERANCE)
        assert item["score"]["value"] == sample["acc"]
    print(f"{len(own)} items, {sum(sample['acc'] for sample in samples):g} right in both")


def test_mmlu_equals_lm_eval_item_by_item(tmp_path: Path) -> None:
    """A tiny random model, whose tokenizer lm-eval reads from a folder."""
    pytest.importorskip("lm_eval")
    data = Data(eval_data.mmlu(tmp_path / "data", PER_SUBJECT))
    config = dataclasses.replace(tiny.GROK, vocab_size=VOCAB, context_len=CONTEXT)
    own = own_items(LanguageModel(tiny.model(config), tokenizer()), data, tmp_path / "run")
    tokens = tmp_path / "tokenizer"
    tokens.mkdir()
    (tokens / "tokenizer.json").write_text(byte_tokenizer(VOCAB))
    (tokens / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast",
                                                              "eos_token": "[EOS]", "bos_token": "[BOS]"}))
    with served(tiny_engine()) as running:
        arguments = (f"model={MODEL},base_url={running.url}/v1/completions,tokenizer={tokens},num_concurrent=8,"
                     f"max_length={CONTEXT},tokenizer_backend=huggingface")
        assert_equal(own, lm_eval_samples(tmp_path, eval_data.SUBJECTS, arguments))


@pytest.mark.skipif(eval_data.PUBLISHED is None, reason="the published files are not beside the repository")
def test_published_questions_to_the_default_model_equal_lm_eval_item_by_item(tmp_path: Path) -> None:
    """The model of the package, served by the command; lm-eval asks the server for tokens."""
    pytest.importorskip("lm_eval")
    data = Data(eval_data.published_mmlu(tmp_path / "data", SHORT_SUBJECTS))
    own = own_items(load(default_model()), data, tmp_path / "run")
    with serving_command(tmp_path) as url:
        arguments = f"model={DEFAULT_NAME},base_url={url}/v1/completions,num_concurrent=8,max_length=512"
        assert_equal(own, lm_eval_samples(tmp_path, SHORT_SUBJECTS, arguments))
