"""Many prompts at once: the answers of one at a time, experts asked for once a step, nothing lost on kill -9."""

from __future__ import annotations

import dataclasses
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny
import torch

from libremoe import cli
from libremoe.answer_file import AnswerFile
from libremoe.batch import BLOCK_SIZE, KVCache
from libremoe.config import preset
from libremoe.engine.engine import Engine
from libremoe.errors import LibremoeError
from libremoe.language_model import LanguageModel
from libremoe.loading import Budget, build, build_streamed, plan_budget
from libremoe.sampling import SamplingParams
from libremoe.streaming import slot_size
from libremoe.throughput import answers, engine_for, most_tokens, read_prompts
from libremoe.tiny import make_tiny
from libremoe.weights import open_checkpoint

CKPT = Path(__file__).parent / "golden" / "tiny-grok1" / "ckpt-0"
ARGS = ["--tokenizer", "bytes", "--temperature", "1", "--seed", "7", "--max-tokens", "10"]
TEXTS = ["one", "two and more", "three " * 5, "x", "one"]


def throughput(prompts: Path, output: Path, *more: str) -> list[str]:
    return ["run", str(CKPT), "--throughput", "--prompts", str(prompts), "--output", str(output), *ARGS, *more]


def alone(text: str, seed: int, capsys: pytest.CaptureFixture[str]) -> dict:
    args = [*ARGS[:4], "--seed", str(seed), *ARGS[6:]]
    assert cli.main(["run", str(CKPT), text, "--json", *args]) == 0
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def records(output: Path) -> list[dict]:
    return [json.loads(line) for line in output.read_text().splitlines()]


def test_answers_are_those_of_one_at_a_time_in_the_order_of_prompts(tmp_path, capsys):
    prompts, output = tmp_path / "prompts.txt", tmp_path / "answers.jsonl"
    prompts.write_text("\n".join(TEXTS) + "\n\n")
    assert cli.main(throughput(prompts, output, "--json")) == 0
    summary = json.loads(capsys.readouterr().out)
    assert (summary["prompts"], summary["failed"], summary["tokens"]) == (5, 0, 50)
    found = records(output)
    assert [record["index"] for record in found] == [0, 1, 2, 3, 4]
    for i, text in enumerate(TEXTS):
        one = alone(text, 7 + i, capsys)
        assert (found[i]["tokens"], found[i]["text"]) == (one["tokens"], one["text"])
    assert found[0]["tokens"] != found[4]["tokens"], "each prompt has a seed of its own"
    assert sorted(tmp_path.iterdir()) == [output, prompts]


def test_one_bad_prompt_ends_no_other(tmp_path, capsys):
    prompts, output = tmp_path / "prompts.jsonl", tmp_path / "answers.jsonl"
    lines = [{"prompt": "fine", "id": "a"}, {"ids": [], "id": 2}, {"ids": [1 << 40]}, "fine", {"prompt": "y" * 5000}]
    prompts.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert cli.main(throughput(prompts, output)) == 1
    found = records(output)
    assert [("error" in record, record.get("id")) for record in found] == [
        (False, "a"), (True, 2), (True, None), (False, None), (True, None)]
    assert "5000" in found[4]["error"] and "3 of them failed" in capsys.readouterr().out


def test_a_stop_string_ends_one_answer_and_frees_its_place(tmp_path, capsys):
    prompts, output = tmp_path / "prompts.txt", tmp_path / "answers.jsonl"
    prompts.write_text("\n".join(TEXTS))
    text = alone(TEXTS[1], 8, capsys)["text"]
    stop = text[3]
    assert cli.main(throughput(prompts, output, "--stop", stop, "--batch", "2")) == 0
    found = records(output)
    assert found[1]["text"] == text[: text.index(stop)] and found[1]["finish_reason"] == "stop"
    assert all(stop not in record["text"] for record in found)


class CountingExperts:
    """Counts how often each layer asks; the compute is that of the experts inside."""

    def __init__(self, experts):
        self._experts, self.asked = experts, []

    def __getattr__(self, name):
        method = getattr(self._experts, name)

        def call(layer, *rest):
            self.asked.append((layer, rest[0]))
            return method(layer, *rest)

        return call


def test_all_prompts_are_one_wave_and_all_sequences_one_step():
    model = tiny.model(tiny.GROK)
    counting = CountingExperts(model.blocks[0].moe.experts)
    for block in model.blocks:
        block.moe.experts = counting
    lm = LanguageModel(model)
    prompts = tiny.prompts(40, 100)
    params = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True)
    engine = engine_for(lm, [len(p) for p in prompts], 6, batch=64)
    done = [one for step in answers(lm, engine, [(i, p, params) for i, p in enumerate(prompts)]) for one in step]
    assert len(done) == 40 and engine.stats().steps == 6 and engine.stats().preemptions == 0
    each = len(counting.asked) / (6 * tiny.GROK.n_layers)
    assert each <= tiny.GROK.n_experts, f"{each} requests for experts in a layer and a step"


def test_an_engine_with_little_room_runs_fewer_and_gives_the_same(monkeypatch):
    lm = LanguageModel(tiny.model(tiny.GROK))
    prompts = tiny.prompts(9, 100)
    params = SamplingParams(temperature=0, max_tokens=30, ignore_eos=True)
    asked = [(i, p, params) for i, p in enumerate(prompts)]

    def tokens(batch: int) -> dict[int, list[int]]:
        engine = engine_for(lm, [len(p) for p in prompts], 30, batch)
        found = {i: answer.tokens for step in answers(lm, engine, asked) for i, answer in step}
        assert engine.stats().preemptions == 0
        return found

    wide = tokens(64)
    monkeypatch.setattr("libremoe.throughput.available_bytes", lambda: 1 << 20)
    narrow = engine_for(lm, [100] * 9, 30, 64)
    assert narrow.scheduler.max_running < 9
    assert tokens(64) == wide == tokens(1)


MISTAKES = [
    ("a.txt", "", [], "no prompts"),
    ("a.csv", "x", [], ".jsonl"),
    ("a.jsonl", "{", [], "line 1: not JSON"),
    ("a.jsonl", '"fine"\n{"prompt": "x", "ids": [1]}', [], "line 2: must be a text"),
    ("a.jsonl", '{"ids": [true]}', [], "whole numbers"),
    ("a.jsonl", '{"prompt": 5}', [], '"prompt" must be a text'),
    ("a.jsonl", '{"prompt": "x", "id": 1.5}', [], '"id" must be'),
    ("a.txt", "x", ["--batch", "0"], "--batch is 0"),
    ("a.txt", "x", ["--ids", "1"], "none from the command line"),
]


@pytest.mark.parametrize(("name", "content", "more", "says"), MISTAKES)
def test_a_mistake_is_one_sentence(name, content, more, says, tmp_path, capsys):
    prompts = tmp_path / name
    prompts.write_text(content)
    assert cli.main(throughput(prompts, tmp_path / "out.jsonl", *more)) == 2
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1
    assert not (tmp_path / "out.jsonl").exists()


def test_flags_that_lack_their_others(tmp_path, capsys):
    assert cli.main(["run", str(CKPT), "--throughput", "--output", "x"]) == 2
    assert "--prompts" in capsys.readouterr().err
    assert cli.main(["run", str(CKPT), "x", "--output", "x"]) == 2
    assert "--throughput" in capsys.readouterr().err


def test_text_that_is_not_utf8_is_named(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"fine\n\xff")
    with pytest.raises(LibremoeError, match="not UTF-8 at byte 5"):
        read_prompts(tmp_path / "a.txt")


# Interruptions.


def test_an_answer_file_survives_a_cut_at_every_byte(tmp_path):
    path, job = tmp_path / "out.jsonl", {"prompts": "abc"}
    with AnswerFile(path, job) as file:
        file.append([{"index": 2, "text": "c"}])
        file.append([{"index": 0, "text": "ä\n"}, {"index": 1, "text": ""}])
    whole = file.partial.read_bytes()
    for cut in range(len(whole) + 1):
        file.partial.write_bytes(whole[:cut])
        with AnswerFile(path, job) as again:
            n_whole = max(0, whole[:cut].count(b"\n") - 1)
            assert len(again.done) == n_whole
            again.append([{"index": i, "text": "new"} for i in range(3) if i not in again.done])
            again.finish()
        assert [record["index"] for record in records(path)] == [0, 1, 2]
        path.unlink()


def test_an_answer_file_refuses_what_is_not_its_own(tmp_path):
    path = tmp_path / "out.jsonl"
    with (AnswerFile(path, {"prompts": "abc", "seed": 1}) as file,
          pytest.raises(LibremoeError, match="another process")):
        AnswerFile(path, {"prompts": "abc", "seed": 1})
    with pytest.raises(LibremoeError, match="differs in seed"):
        AnswerFile(path, {"prompts": "abc", "seed": 2})
    file.partial.write_bytes(file.partial.read_bytes() + b"nonsense\n")
    with pytest.raises(LibremoeError, match="line 2 is no answer"):
        AnswerFile(path, {"prompts": "abc", "seed": 1})
    file.partial.unlink()
    path.write_text("precious")
    with pytest.raises(LibremoeError, match="exists already"):
        AnswerFile(path, {"prompts": "abc", "seed": 1})
    assert path.read_text() == "precious"
    with pytest.raises(LibremoeError, match="cannot be written"):
        AnswerFile(tmp_path / "nowhere" / "out.jsonl", {})


def test_killed_and_run_again_it_gives_the_same_file_and_computes_nothing_twice(tmp_path, capsys):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n".join(f"prompt {i}" for i in range(40)))
    calm, output = tmp_path / "calm.jsonl", tmp_path / "out.jsonl"
    assert cli.main(throughput(prompts, calm)) == 0
    partial = tmp_path / "out.jsonl.partial"
    command = [sys.executable, "-m", "libremoe.cli", *throughput(prompts, output, "--batch", "1")]
    for wanted in (1, 6):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None and (not partial.exists() or partial.read_bytes().count(b"\n") <= wanted):
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait()
        if output.exists():
            break  # it was faster than the signal
    n_done = 0 if output.exists() else partial.read_bytes().count(b"\n") - 1
    capsys.readouterr()
    if not output.exists():
        assert cli.main(throughput(prompts, output, "--json")) == 0
        summary = json.loads(capsys.readouterr().out)
        assert summary["answered_before"] == n_done and summary["tokens"] == 10 * (40 - n_done)
    assert output.read_bytes() == calm.read_bytes()


# With streamed experts.


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    dims = dataclasses.replace(preset("tiny"), dim=64, hidden_dim=192, n_layers=3, n_heads=4, n_kv_heads=2, head_dim=16,
                               vocab_size=270)
    return Path(make_tiny(tmp_path_factory.mktemp("streamed") / "m", dims=dims, format="int4", seed=3)["dst"])


def streamed(folder: Path, n_slots: int) -> LanguageModel:
    reader = open_checkpoint(folder)
    one = slot_size(reader.expert_pieces(layer, e) for layer in range(reader.config.n_layers) for e in range(8))
    return LanguageModel(build_streamed(reader, Budget(0, 0, 0, 0, 0, n_slots * one)))


def all_tokens(lm: LanguageModel, draft: int = 0) -> tuple[dict[int, list[int]], Engine]:
    prompts = tiny.prompts(12, 40, vocab_size=250)
    params = [SamplingParams(seed=i, temperature=i % 2, max_tokens=8, ignore_eos=True) for i in range(12)]
    lm.draft = draft
    engine = engine_for(lm, [len(p) for p in prompts], 8, 64)
    asked = list(zip(range(12), prompts, params, strict=True))
    return {i: answer.tokens for step in answers(lm, engine, asked) for i, answer in step}, engine


def test_each_expert_is_read_at_most_once_a_step_however_few_slots(folder: Path) -> None:
    wanted, _ = all_tokens(LanguageModel(build(open_checkpoint(folder))))
    for n_slots in (1, 5, 24):
        lm = streamed(folder, n_slots)
        found, engine = all_tokens(lm)
        assert found == wanted
        stats = lm.streamed.stats()
        assert stats.hits + stats.misses <= engine.stats().steps * 3 * 8, "asked for once a layer and step"
        assert stats.misses <= (24 if n_slots == 24 else engine.stats().steps * 3 * 8)


def test_streamed_and_drafted_gives_the_same_tokens(folder: Path) -> None:
    wanted, _ = all_tokens(LanguageModel(build(open_checkpoint(folder))))
    for n_slots in (2, 10):
        found, engine = all_tokens(streamed(folder, n_slots), draft=3)
        assert found == wanted
        assert engine.draft_stats().passes > 0


def test_a_budget_for_many_gives_more_to_keys_and_steps(folder: Path) -> None:
    reader = open_checkpoint(folder)
    one, many = (plan_budget(reader, 2 << 30, torch.float32, batch) for batch in (1, 64))
    assert many.kv_bytes >= one.kv_bytes and many.step_tokens > one.step_tokens == 512
    assert many.total == one.total
    known = plan_budget(reader, 2 << 30, torch.float32, 64, tokens=640)
    block = KVCache.bytes_per_token(reader.config, torch.float32) * BLOCK_SIZE
    assert known.kv_bytes == min(many.kv_bytes, (10 + 64) * block) < many.kv_bytes


def test_the_tokens_of_prompts_are_bounded_before_they_are_counted() -> None:
    assert most_tokens([[1, 2, 3], [4]], 10, 8) == 13 + 11 and most_tokens([[1, 2, 3], [4]], 10, 1) == 13
    assert most_tokens(["ab\u00e9"], 0, 8) == 2 * 4 + 4
