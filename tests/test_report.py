"""The report of runs: the table, and a page in which answers are nothing but text."""

import argparse
import base64
import hashlib
import json
import random
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from libremoe import cli
from libremoe.errors import LibremoeError
from libremoe.evals import report, report_page

SUBJECTS = ("abstract_algebra", "anatomy", "world_religions", "virology")
PAYLOADS = ("<script>alert(1)</script>", "</pre></details><img src=x onerror=alert(1)>", "\"><svg onload=alert(1)>",
            "</style><style>*{display:none}</style>", "<!-- ", "]]>", "&lt;script&gt;", "{{7*7}}",
            "javascript:alert(1)", "<a href=//example.org>x</a>", "\u202eevil\u202c", "zero\u200bwidth",
            "\x00\x1b[31m", "\ud800", "\U000e0041")


def make_run(folder: Path, seed: int = 0, extra: str = "", n: int = 40) -> Path:
    """A run with made-up answers, in the format of `libremoe eval`."""
    random.seed(seed)
    for task, title in (("mmlu", "MMLU (5-shot)"), ("humaneval", "HumanEval (0-shot, pass@1)")):
        lines = [{"kind": "run", "format": "libremoe eval 1", "task": task, "title": title, "metric": "accuracy",
                  "settings": {"shots": 5}, "data": {}, "model": {"model": f"made-up{extra}"}, "seed": 0,
                  "n_items": 100},
                 {"kind": "session", "number": 1}, {"kind": "prefix", "number": 0, "text": f"shots{extra}\n"}]
        for i in range(n):
            right = random.random() < 0.3 + 0.3 * seed
            code = task == "humaneval"
            outcome = ("passed" if code else "right") if right else random.choice(
                ["wrong", "exception", "timeout", "syntax error", "refused"]) if code else "wrong"
            lines.append({
                "kind": "item", "id": f"{i}{extra}", "group": "" if code else SUBJECTS[i % 4] + extra, "session": 1,
                "at": i, "prefix": 0, "question": f"What is {i}?{extra}",
                "options": [] if code else [f" A{extra}", " B", " C", " D"],
                "answer": {"how": "generated" if code else "logprobs", "text": f"    return {i}{extra}" if code else "",
                           "logprobs": [] if code else [-1.0, -2.0, None, -0.5], "prompt_tokens": 500, "error": extra,
                           "completion_tokens": 20, "seconds": random.expovariate(2 - seed)},
                "score": {"value": float(right), "said": f"A{extra}", "wanted": f"B{extra}", "outcome": outcome,
                          "also": {}},
            })
        (folder / task).mkdir(parents=True)
        (folder / task / "answers.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


class Elements(HTMLParser):
    """Every element and attribute of a page, and its text by element."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[str] = []
        self.attributes: set[str] = set()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.open: list[str] = []
        self.shown = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes |= {name for name, _ in attrs}
        self.ids += [value or "" for name, value in attrs if name == "id"]
        self.links += [value or "" for name, value in attrs if name in ("href", "src")]
        if tag not in ("meta", "line"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.shown += data


def test_the_table_has_runs_and_published_figures(tmp_path: Path, capsys) -> None:
    runs = [make_run(tmp_path / "one"), make_run(tmp_path / "two", 1)]
    args = argparse.Namespace(runs=runs, html=None, json=False, markdown=False)
    assert report.command(args) == 0
    said = capsys.readouterr().out
    for part in ("MMLU (5-shot)", "HumanEval", "one", "two", "Grok-1, published", "73.0 %", "63.2 %", "40 of 100"):
        assert part in said


def test_the_json_is_the_results(tmp_path: Path, capsys) -> None:
    report.command(argparse.Namespace(runs=[make_run(tmp_path / "one")], html=None, json=True, markdown=False))
    rows = json.loads(capsys.readouterr().out)
    assert [row["task"] for row in rows] == ["humaneval", "mmlu"]
    for row in rows:
        assert row["n"] == 40 and row["interval"]["low"] < row["score"] < row["interval"]["high"]
        assert sum(row["outcomes"].values()) == 40
    assert set(rows[1]["groups"]) == set(SUBJECTS)



def test_the_table_in_markdown(tmp_path: Path, capsys) -> None:
    runs = [str(make_run(tmp_path / "one")), str(make_run(tmp_path / "t|wo\u202e", 1, n=10))]
    assert cli.main(["eval", "report", *runs, "--markdown"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("| benchmark | one | t\\|wo<U+202E> | Grok-1, published | GPT-3.5, published |")
    assert len(lines) == 4 and {len(re.findall(r"(?<!\\)\|", line)) for line in lines} == {7}
    (mmlu,) = (line for line in lines if line.startswith("| MMLU (5-shot) |"))
    results = {one.run: one.result for one in report.read_runs([Path(run) for run in runs]) if one.task == "mmlu"}
    one, two = results.values()
    assert f"| {100 * one['score']:.1f} % (" in mmlu and ", 40 of 100 |" in mmlu and ", 10 of 100 |" in mmlu
    assert f" to {100 * two['interval']['high']:.1f}), 10 of 100" in mmlu
    assert "| 73.0 % (72.3 to 73.7) | 70.0 % (69.2 to 70.8) | 68.9 % (68.1 to 69.7) |" in mmlu


def test_the_interval_of_a_saved_result_is_taken(tmp_path: Path) -> None:
    run = make_run(tmp_path / "one")
    saved = {"n": 40, "interval": {"low": 0.01, "high": 0.99, "method": "confidence sequence"}, "stopped": "decided",
             "dollars_per_item": 0.002}
    (run / "mmlu" / "result.json").write_text(json.dumps(saved))
    result = report.read_runs([run])[1].result
    assert result["interval"] == saved["interval"] and result["stopped"] == "decided"
    assert "$0.00200" in report_page.page(report.read_runs([run]))
    (run / "mmlu" / "result.json").write_text(json.dumps({**saved, "n": 39}))  # of an earlier session
    assert report.read_runs([run])[1].result["interval"]["method"] == "Wilson"


def test_the_page_holds_every_answer_as_text(tmp_path: Path) -> None:
    text = report_page.page(report.read_runs([make_run(tmp_path / "one"), make_run(tmp_path / "two", 1)]))
    found = Elements(text)
    assert found.open == [] and len(found.ids) == len(set(found.ids))
    for i in range(40):
        assert f"What is {i}?" in found.shown and f"    return {i}" in found.shown
    assert found.links and all(link.startswith("#") and link[1:] in found.ids for link in found.links)
    assert found.tags.count("h1") == 1 and "main" in found.tags and "nav" in found.tags


@pytest.mark.parametrize("payload", PAYLOADS)
def test_hostile_text_stays_text(payload: str, tmp_path: Path) -> None:
    plain = Elements(report_page.page(report.read_runs([make_run(tmp_path / "plain", extra="x", n=8)])))
    text = report_page.page(report.read_runs([make_run(tmp_path / "hostile", extra=payload, n=8)]))
    found = Elements(text)
    assert (found.tags, found.attributes, found.links) == (plain.tags, plain.attributes, plain.links)
    text.encode()
    assert report.visible(payload) in found.shown
    assert not {c for c in text if report._unseen(ord(c))}


def test_escaping_taken_away_is_noticed(tmp_path: Path, monkeypatch) -> None:
    plain = Elements(report_page.page(report.read_runs([make_run(tmp_path / "plain", extra="x", n=8)])))
    monkeypatch.setattr(report_page, "t", str)
    found = Elements(report_page.page(report.read_runs([make_run(tmp_path / "hostile", extra="<b>x</b>", n=8)])))
    assert found.tags != plain.tags


def test_the_page_allows_nothing_but_its_own_style(tmp_path: Path) -> None:
    text = report_page.page(report.read_runs([make_run(tmp_path / "one")]))
    style = re.findall(r"<style>(.*?)</style>", text, re.DOTALL)
    assert len(style) == 1
    digest = base64.b64encode(hashlib.sha256(style[0].encode()).digest()).decode()
    assert f"default-src 'none'; style-src 'sha256-{digest}'" in text
    found = Elements(text)
    assert not {"script", "img", "iframe", "object", "link", "form", "base"} & set(found.tags)
    assert not {a for a in found.attributes if a.startswith("on") or a in ("style", "src", "srcdoc")}


def test_the_page_is_written_whole(tmp_path: Path, capsys) -> None:
    run, out = make_run(tmp_path / "one"), tmp_path / "report.html"
    assert report.command(argparse.Namespace(runs=[run], html=out, json=False, markdown=False)) == 0
    assert out.read_text().endswith("</html>\n")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "report.html"]
    with pytest.raises(LibremoeError, match="--html .*cannot be written"):
        report.command(argparse.Namespace(runs=[run], html=tmp_path / "no" / "x.html", json=False, markdown=False))


@pytest.mark.parametrize("line", ["nonsense", "[]", "{}", '{"kind": "item"}', '{"kind": "run"}',
                                  '{"kind": "item", "id": 1, "group": "", "answer": [], "score": {}}', "[" * 100_000])
def test_a_damaged_file_gets_a_sentence(line: str, tmp_path: Path) -> None:
    run = make_run(tmp_path / "one", n=2)
    path = run / "mmlu" / "answers.jsonl"
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(LibremoeError, match="line 6 is not a line of answers|answer 3 is none of"):
        report.read_runs([run])


def test_a_line_that_was_cut_short_is_left_out(tmp_path: Path) -> None:
    run = make_run(tmp_path / "one", n=3)
    path = run / "mmlu" / "answers.jsonl"
    path.write_bytes(path.read_bytes()[:-20])
    assert report.read_runs([run])[1].result["n"] == 2


def test_a_folder_without_answers_gets_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(LibremoeError, match="no run of `libremoe eval`"):
        report.read_runs([tmp_path])


def test_runs_of_the_same_name_are_told_apart(tmp_path: Path) -> None:
    runs = report.read_runs([make_run(tmp_path / "a" / "m"), make_run(tmp_path / "b" / "m")])
    assert {one.run for one in runs} == {"a/m", "b/m"}
