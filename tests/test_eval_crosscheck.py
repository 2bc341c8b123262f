"""The same questions through lm-eval over HTTP and through `libremoe eval` in this process: equal item by item."""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import eval_data
import pytest
import tiny
from serving import CONTEXT, MODEL, VOCAB, served, tiny_engine, tokenizer

from libremoe.evals.data import Data
from libremoe.evals.run import Plan, run_task
from libremoe.evals.sampler import LocalSampler
from libremoe.evals.store import read_answers
from libremoe.evals.task import open_task
from libremoe.language_model import LanguageModel
from libremoe.tiny import byte_tokenizer

PER_SUBJECT = 170  # three subjects: 510 items
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


@pytest.mark.soak  # minutes: lm-eval sends every option with its whole prompt
def test_mmlu_equals_lm_eval_item_by_item(tmp_path: Path) -> None:
    pytest.importorskip("lm_eval")
    data = Data(eval_data.mmlu(tmp_path / "data", PER_SUBJECT))
    task = open_task("mmlu", data)
    config = dataclasses.replace(tiny.GROK, vocab_size=VOCAB, context_len=CONTEXT)
    sampler = LocalSampler(LanguageModel(tiny.model(config), tokenizer()))
    result = run_task(task, data, sampler, {}, tmp_path / "run", Plan(shown=False))
    own = {item["id"]: item for item in read_answers(tmp_path / "run")[1]}
    assert result["n"] == len(own) == 3 * PER_SUBJECT >= 500

    for subject in eval_data.SUBJECTS:
        for split in ("dev", "test"):
            with (tmp_path / "data/mmlu/data" / split / f"{subject}_{split}.csv").open(newline="") as file:
                rows = [dict(zip(("question", "a", "b", "c", "d", "answer"), row, strict=True))
                        for row in csv.reader(file)]
            for i, row in enumerate(rows):
                row |= {"answer": "ABCD".index(row["answer"]), "id": f"{subject}/{i}"}
            (tmp_path / f"{subject}_{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (tmp_path / f"cross_{subject}.yaml").write_text(
            TASK.format(subject=subject, folder=tmp_path, name=subject.replace("_", " ")))
    tokens = tmp_path / "tokenizer"
    tokens.mkdir()
    (tokens / "tokenizer.json").write_text(byte_tokenizer(VOCAB))
    (tokens / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast",
                                                              "eos_token": "[EOS]", "bos_token": "[BOS]"}))
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf"), "OPENAI_API_KEY": "none"}
    with served(tiny_engine()) as running:
        arguments = (f"model={MODEL},base_url={running.url}/v1/completions,tokenizer={tokens},num_concurrent=8,"
                     f"max_length={CONTEXT}")
        done = subprocess.run(
            [sys.executable, "-m", "lm_eval", "--model", "local-completions", "--model_args", arguments, "--tasks",
             ",".join(f"cross_{subject}" for subject in eval_data.SUBJECTS), "--include_path", str(tmp_path),
             "--output_path", str(tmp_path / "out"), "--log_samples"],
            env=environment, capture_output=True, text=True, timeout=3000)
    assert done.returncode == 0, done.stderr[-3000:]
    samples = [json.loads(line) for path in (tmp_path / "out").rglob("samples_cross_*") for line in path.open()]
    assert {sample["doc"]["id"] for sample in samples} == own.keys()
    for sample in samples:
        item = own[sample["doc"]["id"]]
        theirs = [float(response[0]) for response in sample["filtered_resps"]]
        assert item["answer"]["logprobs"] == pytest.approx(theirs, abs=TOLERANCE)
        assert item["score"]["value"] == sample["acc"]
    assert 0 < result["score"] < 1  # the four letters are all chosen now and then
