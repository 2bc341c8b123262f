"""Perplexity, the cost of a quantisation, and fetching, against what can be computed directly."""

from __future__ import annotations

import errno
import gzip
import hashlib
import io
import json
import math
import os
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libremoe import cli
from libremoe.evals import fetch
from libremoe.evals.perplexity import perplexity, windows
from libremoe.evals.quant import compare
from libremoe.language_model import LanguageModel, load
from libremoe.tiny import make_tiny

TEXT = "Ducks swim on the pond; überall, and the water is cold. " * 8
TOLERANCE = 2e-4  # of a log-probability: the cached pass rounds otherwise than the whole one


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("quality")
    for format in ("f32", "int4"):
        make_tiny(folder / format, format=format)
    (folder / "text.txt").write_text(TEXT)
    (folder / "text.txt.gz").write_bytes(gzip.compress(TEXT.encode()))
    return {each.name: each for each in folder.iterdir()}


@pytest.fixture(scope="module")
def lm(models: dict[str, Path]) -> LanguageModel:
    return load(models["f32"])


@given(st.integers(1, 300), st.integers(2, 60), st.data())
def test_windows_score_each_token_once_with_enough_before_it(n: int, length: int, data: st.DataObject) -> None:
    stride = data.draw(st.integers(1, length))
    scored = []
    for begin, end, first in windows(n, length, stride):
        assert end - begin <= length and begin <= first < end
        assert first == 0 or first - begin >= min(length - stride, first)
        scored += range(first, end)
    assert scored == list(range(n))


def test_what_narrow_keys_and_values_cost(models: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    path, text = str(models["f32"]), str(models["text.txt"])
    assert cli.main(["eval", "quant", path, path, "--text", text, "--kv", "int8", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["candidates"].values()
    assert 0 < row["kl_mean"] < 1e-3  # the reference keeps its own as they are, and int8 is near
    assert cli.main(["eval", "perplexity", path, "--text", text, "--kv", "int8", "--json"]) == 0
    through_engine = json.loads(capsys.readouterr().out)
    lm = load(path, kv="int8")
    assert through_engine["perplexity"] == pytest.approx(perplexity(lm, TEXT)["perplexity"], rel=1e-6)
    assert through_engine["perplexity"] != perplexity(load(path), TEXT)["perplexity"]


def test_perplexity_is_that_of_the_logits(lm: LanguageModel) -> None:
    ids = lm.encode(TEXT)
    logprobs = lm.logits(ids).log_softmax(-1)
    total = sum(float(logprobs[i - 1, ids[i]]) for i in range(1, len(ids)))
    whole = perplexity(lm, TEXT)
    assert whole["tokens"] == len(ids) - 1 and whole["bytes"] == len(TEXT.encode()) > whole["characters"] == len(TEXT)
    assert whole["log_likelihood"] == pytest.approx(total, abs=TOLERANCE * len(ids))
    assert whole["perplexity"] == pytest.approx(math.exp(-total / (len(ids) - 1)), rel=1e-3)
    assert whole["bits_per_byte"] == pytest.approx(-total / math.log(2) / len(TEXT.encode()), rel=1e-3)
    cut = perplexity(lm, TEXT, window=100, stride=40)
    direct = 0.0
    for begin, end, first in windows(len(ids), 100, 40):
        part = lm.logits(ids[begin:end]).log_softmax(-1)
        direct += sum(float(part[i - 1 - begin, ids[i]]) for i in range(max(first, begin + 1), end))
    assert cut["log_likelihood"] == pytest.approx(direct, abs=TOLERANCE * len(ids))
    assert perplexity(lm, TEXT, max_tokens=50)["tokens"] == 49


def test_quant_is_that_of_the_logits(models: dict[str, Path], lm: LanguageModel) -> None:
    paths = [str(models[name]) for name in ("f32", "f32", "int4")]
    found = compare([*paths[:1], paths[0], paths[2]], 120, 50, TEXT)
    same, narrow = found["candidates"][paths[0]], found["candidates"][paths[2]]
    assert same["kl_mean"] == same["kl_max"] == 0 and same["top1_agreement"] == same["router_agreement"] == 1
    assert same["perplexity"] == found["reference"]["perplexity"]
    ids, other = lm.encode(TEXT)[:120], load(models["int4"])
    kl, top, total = [], [], 0.0
    for begin in range(0, 120, 50):
        part = ids[begin : begin + 50]
        a, b = (each.logits(part).log_softmax(-1) for each in (lm, other))
        kl += (a.exp() * (a - b)).sum(-1).tolist()
        top += (a.argmax(-1) == b.argmax(-1)).tolist()
        total += sum(float(b[i - 1, part[i]]) for i in range(1, len(part)))
    assert narrow["kl_mean"] == pytest.approx(sum(kl) / 120, rel=1e-3) and narrow["kl_mean"] > 0
    assert narrow["top1_agreement"] == pytest.approx(sum(top) / 120)
    assert narrow["perplexity"] == pytest.approx(math.exp(-total / (120 - 3)), rel=1e-4)
    assert 0 < narrow["router_same"] <= narrow["router_agreement"] < 1
    assert narrow["bits_per_weight"] < 6 < found["reference"]["bits_per_weight"]


def test_the_commands(models: dict[str, Path], capsys: Any) -> None:
    assert cli.main(["eval", "perplexity", str(models["f32"]), "--text", str(models["text.txt"]), "--json"]) == 0
    plain = json.loads(capsys.readouterr().out)
    assert cli.main(["eval", "perplexity", str(models["f32"]), "--text", str(models["text.txt.gz"])]) == 0
    assert f"{plain['perplexity']:.4f} by token" in capsys.readouterr().out
    arguments = ["eval", "quant", str(models["f32"]), str(models["int4"]), "--text", str(models["text.txt"]),
                 "--tokens", "60"]
    assert cli.main([*arguments, "--json"]) == 0
    assert set(json.loads(capsys.readouterr().out)["candidates"]) == {str(models["int4"])}
    assert cli.main(arguments) == 0 and "KL mean" in capsys.readouterr().out


@pytest.mark.parametrize("more,says", [
    (["--text", "nowhere.txt"], "nowhere.txt: no such file"), (["--text", "TEXT", "--window", "1"], "windows of 1"),
    (["--text", "TEXT", "--window", "9", "--stride", "10"], "steps of 10"),
    (["--text", "TEXT", "--tokens", "1"], "a text of 1 tokens"),
])
def test_mistakes_are_sentences(more: list[str], says: str, models: dict[str, Path], capsys: Any) -> None:
    more = [str(models["text.txt"]) if each == "TEXT" else each for each in more]
    assert cli.main(["eval", "perplexity", str(models["f32"]), *more]) == 2
    assert says in capsys.readouterr().err


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A public home on loopback with two benchmarks, pinned."""
    root = tmp_path / "home"
    files = {"one.jsonl": b"first", "a/x.csv": b"x", "a/y.csv": b"y"}
    for name, content in files.items():
        path = root / "some/repo/raw/abc123/data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(root)))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    monkeypatch.setattr(fetch, "HOME", f"http://127.0.0.1:{server.server_address[1]}")
    digests = [hashlib.sha256(files[name]).hexdigest() for name in ("a/x.csv", "a/y.csv")]
    many = hashlib.sha256(f"a/x.csv {digests[0]}\na/y.csv {digests[1]}\n".encode()).hexdigest()
    monkeypatch.setattr(fetch, "SOURCES", {
        "one": [fetch.Source("some/repo", "abc123", {"data/one.jsonl": "one.jsonl"},
                             hashlib.sha256(b"first").hexdigest())],
        "many": [fetch.Source("some/repo", "abc123", {f"data/a/{name}": f"a/{name}" for name in ("x.csv", "y.csv")},
                              many)]})
    yield root / "some/repo/raw/abc123/data"
    server.shutdown()
    server.server_close()
    thread.join(10)


def test_fetch_keeps_what_is_pinned_and_nothing_else(home: Path, tmp_path: Path, capsys: Any) -> None:
    data = tmp_path / "data"
    command = ["eval", "fetch", "one", "many", "--data", str(data), "--json"]
    assert cli.main(command) == 0
    assert json.loads(capsys.readouterr().out)["fetched"] == ["one.jsonl", "a/x.csv", "a/y.csv"]
    assert (data / "many/a/y.csv").read_bytes() == b"y"
    assert cli.main(command) == 0 and json.loads(capsys.readouterr().out)["fetched"] == []
    (data / "many/a/y.csv").unlink()
    (home / "a/y.csv").write_bytes(b"changed")
    assert cli.main(command) == 2
    assert "pinned is" in capsys.readouterr().err and not (data / "many/a/y.csv").exists()
    (data / "one/one.jsonl").write_bytes(b"changed")
    assert cli.main(["eval", "fetch", "one", "--data", str(data)]) == 2
    assert "remove what lies there" in capsys.readouterr().err


def test_fetch_goes_on_where_it_was_interrupted(home: Path, tmp_path: Path, capsys: Any) -> None:
    data = tmp_path / "data"
    command = ["eval", "fetch", "many", "--data", str(data), "--json"]
    (home / "a/y.csv").rename(home / "a/z.csv")
    assert cli.main(command) == 2 and "cannot be fetched" in capsys.readouterr().err
    assert not (data / "many/a/x.csv").exists()  # it is not known to be right
    (home / "a/x.csv").unlink()  # and not needed again
    (home / "a/z.csv").rename(home / "a/y.csv")
    assert cli.main(command) == 0 and json.loads(capsys.readouterr().out)["fetched"] == ["a/x.csv", "a/y.csv"]
    assert sorted(path.name for path in (data / "many/a").iterdir()) == ["x.csv", "y.csv"]


def test_fetch_begins_again_after_a_wrong_file(home: Path, tmp_path: Path, capsys: Any) -> None:
    data = tmp_path / "data"
    (home / "a/x.csv").write_bytes(b"changed")
    assert cli.main(["eval", "fetch", "many", "--data", str(data)]) == 2 and "not kept" in capsys.readouterr().err
    assert list((data / "many/a").iterdir()) == []
    (home / "a/x.csv").write_bytes(b"x")
    assert cli.main(["eval", "fetch", "many", "--data", str(data)]) == 0


def test_fetch_says_that_a_file_came_cut_or_cannot_be_written(home: Path, tmp_path: Path, capsys: Any,
                                                              monkeypatch: Any) -> None:
    command = ["eval", "fetch", "one", "--data", str(tmp_path / "data")]
    with monkeypatch.context() as cut:
        copy = SimpleHTTPRequestHandler.copyfile
        cut.setattr(SimpleHTTPRequestHandler, "copyfile", lambda self, source, out: copy(self, source.read(2) and
                                                                                        io.BytesIO(b"fi"), out))
        assert cli.main(command) == 2 and "ended early" in capsys.readouterr().err
    with monkeypatch.context() as full:
        full.setattr(os, "fsync", lambda fd: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left on device")))
        assert cli.main(command) == 2 and "cannot be written: No space left" in capsys.readouterr().err
    assert [path for path in (tmp_path / "data").rglob("*") if path.is_file()] == []
    assert cli.main(command) == 0


def test_fetch_without_a_network_and_without_a_home(tmp_path: Path, capsys: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(fetch, "HOME", "http://127.0.0.1:9")
    for names, says in ((["gsm8k"], "without a network, put the file into"), (["math"], "withdrawn"),
                        (["nothing"], "no benchmark 'nothing' to fetch; there are: mmlu")):
        assert cli.main(["eval", "fetch", *names, "--data", str(tmp_path)]) == 2
        err = capsys.readouterr().err
        assert says in err and len(err.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_what_is_pinned_is_well_formed() -> None:
    assert len(fetch.SOURCES["mmlu"][0].files) == 171 and len(fetch.SOURCES["bbh"][0].files) == 54
    for sources in fetch.SOURCES.values():
        for source in sources:
            assert len(source.sha256) == 64 and int(source.sha256, 16) and source.repository.count("/") == 1
            assert not any(here.startswith("/") or ".." in here for here in source.files.values())
