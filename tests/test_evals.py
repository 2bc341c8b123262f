"""`libremoe eval`: known mistakes get the known score, nothing is asked twice, and local and HTTP agree."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import eval_data
import pytest
import tiny
from eval_endpoint import chat_reply, scripted
from serving import CONTEXT, VOCAB, served, tiny_engine, tokenizer

from libremoe import cli
from libremoe.engine.engine import Engine
from libremoe.errors import LibremoeError
from libremoe.evals import results, run
from libremoe.evals.data import Data
from libremoe.evals.endpoint import Endpoint
from libremoe.evals.run import Plan, run_task
from libremoe.evals.sampler import LocalSampler
from libremoe.evals.store import read_answers
from libremoe.evals.task import Answer, Prompt, open_task, written_letter
from libremoe.language_model import LanguageModel
from libremoe.sampling import SamplingParams

pytest.importorskip("httpx2")


def no_completions(path: str) -> bool:
    return path.endswith("/completions") and not path.endswith("/chat/completions")


def tiny_lm() -> LanguageModel:
    config = dataclasses.replace(tiny.GROK, vocab_size=VOCAB, context_len=CONTEXT)
    return LanguageModel(tiny.model(config), tokenizer())


def sums(text: str) -> int:
    """The right answer to the last question of a GSM8K prompt."""
    a, b = re.findall(r"has (\d+) nuts and finds (\d+)", text)[-1]
    return int(a) + int(b)


def wrong_every_third(path: str, body: dict[str, Any]) -> tuple[int, Any]:
    if no_completions(path):
        return 404, {"error": {"message": "no such route"}}
    text = body["messages"][0]["content"]
    number = int(re.findall(r"Item (\d+):", text)[-1])
    return chat_reply(f"Counting gives it. The answer is {sums(text) + (number % 3 == 0):,}.")


@pytest.mark.parametrize("limit", [None, 10])
def test_known_mistakes_get_exactly_the_known_score(limit: int | None, tmp_path: Path, capsys: Any) -> None:
    data = eval_data.gsm8k(tmp_path / "data", 30)
    more = [] if limit is None else ["--limit", str(limit)]
    with scripted(wrong_every_third) as endpoint:
        code = cli.main(["eval", endpoint.url, "--tasks", "gsm8k", "--data", str(data), "--out", str(tmp_path / "run"),
                         "--json", "--price", "1,2", *more])
    result = json.loads(capsys.readouterr().out)["results"][0]
    _, items, prefixes = read_answers(tmp_path / "run" / "gsm8k")
    asked = [int(item["id"]) for item in items]
    assert code == 0 and result["n"] == len(asked) == (limit or 30)
    assert result["score"] == sum(i % 3 != 0 for i in asked) / len(asked)
    assert all(item["score"]["value"] == (int(item["id"]) % 3 != 0) for item in items)
    assert result["how"] == {"generated": len(asked)} and result["model"]["api"] == "chat"
    assert result["interval"]["low"] < result["score"] < result["interval"]["high"]
    assert result["dollars"] == pytest.approx(len(asked) * (10 * 1 + 3 * 2) / 1e6)
    assert result["stopped"] == ("limit" if limit else "all")
    assert all(prefixes[item["prefix"]].count("Question:") == 8 for item in items)
    assert json.loads((tmp_path / "run" / "gsm8k" / "result.json").read_text()) == result


@pytest.mark.parametrize("ways", ["top_logprobs", "generated"])
def test_choices_in_a_chat_say_how_they_were_made(ways: str, tmp_path: Path) -> None:
    """Every answer is B, by the most probable first token or by what is written."""

    def say(path: str, body: dict[str, Any]) -> tuple[int, Any]:
        if no_completions(path):
            return 404, {"error": "no"}
        if ways == "generated":
            refused = [name for name in ("logprobs", "top_logprobs", "seed") if name in body]
            if refused:
                return 400, {"error": {"message": f"{refused[-1]} and top_logprobs are not supported"}}
            return chat_reply("I think the answer is (B), not A.")
        top = [{"token": " A", "logprob": -2.0}, {"token": "B", "logprob": -1.0}, {"token": "The", "logprob": -0.9}]
        return chat_reply("The", logprobs={"content": [{"token": "The", "logprob": -0.9, "top_logprobs": top}]})

    data = Data(eval_data.mmlu(tmp_path / "data"))
    task = open_task("mmlu", data)
    with scripted(say) as endpoint:
        sampler = Endpoint(endpoint.url)
        result = run_task(task, data, sampler, sampler.describe(), tmp_path / "run", Plan(shown=False))
    rights = Counter(example.fields["answer"] for example in task.examples())
    assert result["score"] == rights["B"] / 36 and result["how"] == {ways: 36}
    assert set(result["groups"]) == set(eval_data.SUBJECTS)


def test_local_and_http_give_the_same_log_probabilities(tmp_path: Path) -> None:
    """Letters in one pass with shared shots, against whole prompts echoed over HTTP without sharing; and longer
    options, of which one has letters beyond ASCII."""
    data = Data(eval_data.mmlu(tmp_path / "data", 4))
    task = open_task("mmlu", data)
    prompts = [(example.id, task.prompt(example)) for example in task.examples()]
    words = ("water", "a wet bird", "über")
    prompts += [(f"words {i}", Prompt(f"Ducks like {'very ' * i}", options=words)) for i in range(4)]
    prompts += [("write", Prompt("Once upon", stop=("q",), max_tokens=12))]
    local = dict(LocalSampler(tiny_lm(), max_running=5)(prompts))
    with served(tiny_engine()) as running:
        far = dict(Endpoint(running.url)(prompts))
    assert local.keys() == far.keys() == dict(prompts).keys()
    for key, prompt in prompts:
        assert (local[key].how, local[key].text) == (far[key].how, far[key].text)
        assert len(local[key].logprobs) == len(prompt.options)
        assert local[key].logprobs == pytest.approx(far[key].logprobs, abs=2e-4)
        assert local[key].prompt_tokens > 0
    shared = [local[key].shared_tokens for key, _ in prompts[:12]]
    assert sum(shared) > 0 and max(shared) >= 64  # the shots, whole blocks of them


def test_scoring_from_an_index_shares_and_agrees_with_scoring_all() -> None:
    model = tiny.model(tiny.GROK)
    prompt = tiny.prompts(1, 256, seed=4)[0] if hasattr(tiny, "prompts") else list(range(3, 203))
    prompt = (prompt * 40)[:200]
    engine = Engine(model)
    whole = engine.add(prompt, SamplingParams(max_tokens=0), prompt_logprobs=0)
    tiny.finish(engine)
    for start in (1, 63, 64, 65, 150, 199, 200):
        seq = engine.add(prompt, SamplingParams(temperature=0, max_tokens=1, logprobs=0, logprob_token_ids=(5, 9)),
                         prompt_logprobs=0, prompt_logprobs_from=start)
        (output,) = [output for output in tiny.finish(engine)[seq.id] if output.token is not None]
        assert output.prompt_logprobs is not None
        assert output.prompt_logprobs[:start] == (None,) * start
        got = [logprob.logprob for logprob in output.prompt_logprobs[start:] if logprob is not None]
        want = [logprob.logprob for logprob in whole.prompt_logprobs[start:] if logprob is not None]
        assert got == pytest.approx(want, abs=1e-5) and len(got) == 200 - start
        assert seq.num_shared == (start - 1) // 64 * 64
        assert [token for token, _ in output.top] == [5, 9]
    with pytest.raises(LibremoeError, match="prompt_logprobs_from"):
        engine.add(prompt, prompt_logprobs=0, prompt_logprobs_from=201)
    with pytest.raises(LibremoeError, match="logprob_token_ids"):
        engine.add(prompt, SamplingParams(logprobs=0, logprob_token_ids=(999,)))


def test_killed_runs_go_on_and_no_answer_is_asked_for_twice(tmp_path: Path) -> None:
    """kill -9 at three random moments; what was on disk is never asked again, and the score is that of a whole run."""
    data = eval_data.gsm8k(tmp_path / "data", 40)
    draw = random.Random(1)
    folder = tmp_path / "run" / "gsm8k"
    known: set[str] = set()

    def items() -> list[dict[str, Any]]:
        """What is on disk; nothing until the header is there whole."""
        path = folder / "answers.jsonl"
        return read_answers(folder)[1] if path.exists() and b"\n" in path.read_bytes() else []

    with scripted(wrong_every_third, delay_s=0.01) as endpoint:
        command = [sys.executable, "-m", "libremoe.cli", "eval", endpoint.url, "--tasks", "gsm8k", "--data", str(data),
                   "--out", str(tmp_path / "run"), "--concurrency", "2", "--json"]
        for kill in (True, True, True, False):
            endpoint.asked.clear()
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
            if kill:
                wanted = len(known) + draw.randint(2, 9)
                while len(items()) < wanted:
                    assert process.poll() is None
                    time.sleep(0.002)
                process.kill()
                process.wait()
                assert process.stdout is not None
                process.stdout.close()
                with (folder / "answers.jsonl").open("ab") as file:
                    file.write(b'{"kind": "item", "id": "torn')  # as a write under way would leave it
            else:
                out, _ = process.communicate(timeout=120)
            asked = {re.findall(r"Item (\d+):", body["messages"][0]["content"])[-1] for body in endpoint.asked
                     if "messages" in body}
            assert not asked & known
            done = (folder / "answers.jsonl").read_bytes()
            known = {json.loads(line)["id"] for line in done[: done.rfind(b"\n") + 1].splitlines() if b'"item"' in line}
    result = json.loads(out)["results"][0]
    found = items()
    assert len(found) == len({item["id"] for item in found}) == result["n"] == 40
    assert result["score"] == sum(i % 3 != 0 for i in range(40)) / 40


def test_ctrl_c_keeps_what_is_under_way(tmp_path: Path) -> None:
    data = eval_data.gsm8k(tmp_path / "data", 200)
    with scripted(wrong_every_third, delay_s=0.05) as endpoint:
        command = [sys.executable, "-m", "libremoe.cli", "eval", endpoint.url, "--tasks", "gsm8k", "--data", str(data),
                   "--out", str(tmp_path / "run"), "--concurrency", "3"]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        while sum("messages" in body for body in endpoint.asked) < 5:
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=60)
        asked = sum("messages" in body for body in endpoint.asked)
    assert process.returncode == 130 and "goes on from here" in err and "GSM8K" in out
    assert len(read_answers(tmp_path / "run" / "gsm8k")[1]) == asked < 200


def test_other_settings_are_not_mixed(tmp_path: Path) -> None:
    data = eval_data.gsm8k(tmp_path / "data", 6)
    opened = Data(data)
    task = open_task("gsm8k", opened)

    def right(prompts: Any) -> Any:
        return ((id, Answer("generated", f"The answer is {sums(prompt.text())}.")) for id, prompt in prompts)

    def go(model: str, seed: int = 0, limit: int | None = None) -> dict[str, Any]:
        return run_task(task, opened, right, {"model": model}, tmp_path / "run", Plan(limit, seed=seed, shown=False))

    assert go("one", limit=3)["n"] == 3
    assert go("one")["score"] == 1.0  # a larger sample goes on from the smaller one
    with pytest.raises(LibremoeError, match="model .*not mixed.*--out"):
        go("two")
    with pytest.raises(LibremoeError, match="seed"):
        go("one", seed=1)
    (data / "gsm8k" / "test.jsonl").write_text((data / "gsm8k" / "test.jsonl").read_text() + "\n")
    opened = Data(data)
    task = open_task("gsm8k", opened)
    with pytest.raises(LibremoeError, match="data"):
        go("one")


@pytest.mark.parametrize("rate,want", [(0.95, "above"), (0.1, "below")])
def test_a_budget_stops_when_it_is_decided(rate: float, want: str, tmp_path: Path) -> None:
    data = Data(eval_data.gsm8k(tmp_path / "data", 1000))
    task = open_task("gsm8k", data)
    draw = random.Random(3)

    def sampler(prompts: Any) -> Any:
        return ((id, Answer("generated", str(sums(prompt.text()) + (draw.random() > rate)))) for id, prompt in prompts)

    plan = Plan(budget_s=600, against=run.against(None, "gsm8k"), shown=False)
    result = run_task(task, data, sampler, {}, tmp_path / "run", plan)
    assert (result["stopped"], result["against"]["decision"]) == ("decided", want)
    assert result["n"] < 300 and result["interval"]["method"] == results.RUNNING
    text = "\n".join(results.lines([result]))
    assert f"    {want} Grok-1's 62.9 %" in text and f"{result['n']} of 1000" in text
    result["against"] = {"name": run.against("70%", "gsm8k")[0], "score": 0.7, "decision": want}
    assert f"    {want} 70.0 % (" in "\n".join(results.lines([result]))


def test_a_spent_budget_says_so(tmp_path: Path) -> None:
    data = Data(eval_data.gsm8k(tmp_path / "data", 500))
    task = open_task("gsm8k", data)

    def slow(prompts: Any) -> Any:
        for id, _ in prompts:
            time.sleep(0.02)
            yield id, Answer("generated", "no idea")

    result = run_task(task, data, slow, {}, tmp_path / "run", Plan(budget_s=0.2, shown=False))
    assert result["stopped"] == "budget" and 0 < result["n"] < 500 and result["outcomes"] == {"unreadable": result["n"]}


def test_too_long_questions_lose_shots_and_then_count_as_wrong(tmp_path: Path) -> None:
    data = Data(eval_data.mmlu(tmp_path / "data", 2))
    prompts = {example.id: open_task("mmlu", data).prompt(example) for example in open_task("mmlu", data).examples()}
    config = dataclasses.replace(tiny.GROK, vocab_size=VOCAB, context_len=320)
    lm = LanguageModel(tiny.model(config), tokenizer())
    long = Prompt("x" * 400, options=(" A", " B"))
    answers = dict(LocalSampler(lm)([*prompts.items(), ("long", long), ("write", Prompt("y" * 330, max_tokens=5))]))
    assert answers["long"].error and answers["write"].error and not answers["long"].logprobs
    for id in prompts:
        assert 0 < answers[id].dropped_shots < 5 and len(answers[id].logprobs) == 4


MALFORMED = [
    ("gsm8k/test.jsonl", b"", "empty"), ("gsm8k/test.jsonl", b"{", "line 1: not JSON"),
    ("gsm8k/test.jsonl", b"[1]\n", "not a JSON object"), ("gsm8k/test.jsonl", b"\xff\xfe{}", "not UTF-8"),
    ("gsm8k/test.jsonl", b'{"question": 3, "answer": "#### 1"}', "'question' is of the type int"),
    ("gsm8k/test.jsonl", b'{"question": "q", "answer": "none"}', "no number after ####"),
    ("gsm8k/test.jsonl", b"[" * 100_000, "not JSON"), ("gsm8k/test.jsonl.gz", b"\x1f\x8bxxxx", "broken gzip"),
    ("mmlu/data.tar", b"no tar at all" * 99, "not a tar archive"),
    ("mmlu/mmlu.tar.gz", b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03", "broken gzip"),
    ("mmlu/data/test/x_test.csv", b"a,b,c\n", "row 1 has 3 columns"),
    ("mmlu/data/test/x_test.csv", b"q,1,2,3,4,E\n", "'E', not A, B, C or D"),
    ("mmlu/data/test/x_test.csv", b"q,1,2,3,4,A\n", "dev/x_dev.csv is missing"),
    ("mmlu/data/readme.txt", b"x", "holds no .csv file"),
    ("else", b"", "is not there; wanted"),
]


@pytest.mark.parametrize("name,content,says", MALFORMED, ids=lambda value: value if isinstance(value, str) else "")
def test_malformed_data_gets_a_sentence(name: str, content: bytes, says: str, tmp_path: Path, capsys: Any) -> None:
    path = tmp_path / "data" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    task = "gsm8k" if "gsm8k" in name else "mmlu"
    code = cli.main(["eval", "http://127.0.0.1:9", "--tasks", task, "--data", str(tmp_path / "data"), "--out",
                     str(tmp_path / "run")])
    out, err = capsys.readouterr()
    assert (code, out) == (2, "") and says in err and len(err.splitlines()) == 1
    assert not (tmp_path / "run").exists()


MISTAKES = [
    (("m", "--tasks", "nothing"), "no benchmark nothing; there are: mmlu"),
    (("m", "--tasks", ","), "names none"),
    (("m", "--tasks", "gsm8k"), "libremoe eval fetch gsm8k"),
    (("m", "--tasks", "gsm8k", "--data", "nowhere"), "nowhere: no such folder"),
    (("m", "--tasks", "gsm8k", "--budget", "soon"), "--budget soon"),
    (("m", "--tasks", "gsm8k", "--limit", "0"), "--limit 0"),
    (("m", "--tasks", "gsm8k", "--price", "1"), "--price 1"),
    (("m", "--tasks", "gsm8k", "--data", "DATA", "--against", "elephants"), "--against elephants"),
    (("m", "--tasks", "gsm8k", "--data", "DATA"), "m: no such file or folder"),
    (("http://[", "--tasks", "gsm8k", "--data", "DATA"), "not a URL"),
    (("http://x", "--tasks", "gsm8k", "--data", "DATA", "--api-key-env", "NO_SUCH_KEY_"), "NO_SUCH_KEY_"),
]


@pytest.mark.parametrize("args,says", MISTAKES, ids=lambda value: value if isinstance(value, str) else "")
def test_a_mistake_gets_a_sentence(args: tuple[str, ...], says: str, tmp_path: Path, capsys: Any, monkeypatch: Any,
                                   ) -> None:
    data = eval_data.gsm8k(tmp_path / "data", 2)
    monkeypatch.chdir(tmp_path)
    code = cli.main(["eval", *(str(data) if arg == "DATA" else arg for arg in args)])
    out, err = capsys.readouterr()
    assert (code, out) == (2, "") and says in err and len(err.splitlines()) == 1


def test_refusals_of_an_endpoint_are_sentences(monkeypatch: Any) -> None:
    monkeypatch.setattr("time.sleep", lambda s: None)
    with scripted(lambda path, body: (401, {"error": {"message": "who are you?"}})) as endpoint, \
            pytest.raises(LibremoeError, match="401: who are you.*--api-key-env"):
        Endpoint(endpoint.url)
    with scripted(lambda path, body: (200, ["no object"])) as endpoint, pytest.raises(LibremoeError, match="JSON obj"):
        Endpoint(endpoint.url)
    times = []

    def busy(path: str, body: dict[str, Any]) -> tuple[int, Any]:
        times.append(path)
        return (503, {"error": "busy"}) if len(times) % 3 else chat_reply("7")

    with scripted(busy) as endpoint:
        ((_, answer),) = Endpoint(endpoint.url, api="chat")([("a", Prompt("3 + 4"))])
        assert answer.text == "7" and len(times) == 3
    with pytest.raises(LibremoeError, match="tried 7 times"):
        Endpoint(endpoint.url)


@pytest.mark.parametrize("text,letter", [
    (" B", "B"), ("B. because", "B"), ("(C)", "C"), ("The answer is D.", "D"), ("Answer: **A**", "A"),
    ("It can't be A or B, so the answer is C", "C"), ("A duck swims. So I choose D", "D"), ("none", None), ("", None),
])
def test_a_written_letter_is_found(text: str, letter: str | None) -> None:
    assert written_letter(text) == letter


def test_gsm8k_reads_numbers_as_people_write_them(tmp_path: Path) -> None:
    data = Data(eval_data.gsm8k(tmp_path))
    task = open_task("gsm8k", data)
    example = dataclasses.replace(task.examples()[0], fields={"question": "", "answer": "so\n#### 1,050"})
    for text in ("The answer is 1050.", "the answer is $1,050.00", "#### 1050", "we get 3, then 1,050", " 1050\n"):
        assert task.score(example, Answer("generated", text)).value == 1, text
    for text in ("The answer is 1,051.", "The answer is 10.50", "", "1050 but the answer is 3", "-1050"):
        assert task.score(example, Answer("generated", text)).value == 0, text
    for example in task.examples():
        assert task.score(example, Answer("generated", example.fields["answer"])).value == 1
