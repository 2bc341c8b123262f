"""The command as a person types it: instant help, answers on golden files, one clear line and code 2 for a mistake."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from libremoe import cli

GOLDEN = Path(__file__).parent / "golden"
CKPT = GOLDEN / "tiny-grok1" / "ckpt-0"


def libremoe(*args: object, stdin: str = "", **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "libremoe.cli", *map(str, args)], input=stdin, capture_output=True,
                          text=True, timeout=120, env={**os.environ, **env})


def test_help_does_not_import_torch() -> None:
    code = "import sys, libremoe.cli as c; c.build_parser().format_help(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize("command", ["run", "chat", "convert", "verify", "inspect", "plan", "make-tiny"])
def test_every_command_explains_itself(command: str) -> None:
    answer = libremoe(command, "--help")
    assert answer.returncode == 0 and "usage: libremoe" in answer.stdout


def test_run_continues_ids_greedily_as_the_release_does() -> None:
    with np.load(GOLDEN / "tiny-grok1" / "golden.npz") as data:
        prompt, want = data["f32/p7/tokens"], data["f32/p7/dec_tokens"]
    ids = ",".join(map(str, prompt))
    answer = libremoe("run", CKPT, "--ids", ids, "--temperature", 0, "--max-tokens", 16, "--json")
    assert answer.returncode == 0, answer.stderr
    whole = json.loads(answer.stdout.splitlines()[-1])
    assert whole["tokens"] == want.tolist()
    assert whole["finish_reason"] == "length"


def test_run_reads_standard_input_and_counts_bytes_as_tokens() -> None:
    answer = libremoe("run", CKPT, "--tokenizer", "bytes", "--temperature", 0, "--max-tokens", 4, "--stats", stdin="Hi")
    assert answer.returncode == 0, answer.stderr
    assert "tokens/s" in answer.stderr


def test_the_same_seed_gives_the_same_text() -> None:
    args = ("run", CKPT, "--ids", "5,6,7", "--seed", 3, "--temperature", 1, "--max-tokens", 12)
    assert libremoe(*args).stdout == libremoe(*args).stdout


MISTAKES = [
    (("run", "nowhere", "x"), "nowhere: no such file or folder"),
    (("run", GOLDEN / "tokenizer", "x"), "no model found"),
    (("run", CKPT, "x"), "--tokenizer"),
    (("run", CKPT, "x", "--ids", "1"), "not both"),
    (("run", CKPT, "--ids", "one"), "--ids takes whole numbers"),
    (("run", CKPT, "--ids", "99999"), "99999"),
    (("run", CKPT, "--ids", "5", "--temperature", "-1"), "temperature"),
    (("run", CKPT, "--ids", "5", "--top-p", "nan"), "top_p"),
    (("run", CKPT, "--ids", "5", "--max-tokens", "100000"), "context"),
    (("convert", CKPT, CKPT, "--format", "int8"), "ckpt-0"),
    (("convert", CKPT, "out", "--format", "int5"), "int5"),
    (("inspect", Path(__file__)), "not a model"),
    (("inspect", "a", "b"), "unrecognized arguments"),
    (("inspect", "a" * 300), "cannot be opened: File name too long"),
    (("run", CKPT, "\udcff", "--tokenizer", "bytes"), "the prompt is not UTF-8"),
    (("make-tiny", CKPT), "ckpt-0"),
    (("make-tiny", "new", "--dims", "grok-9"), "grok-9"),
    (("make-tiny", "new", "--layers", "2147483647"), "--layers 2147483647 is more than 1000"),
    (("verify", "nowhere"), "nowhere"),
]


@pytest.mark.parametrize("args,says", MISTAKES)
def test_a_mistake_gets_a_sentence_and_code_2(args: tuple, says: str, tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    try:
        code = cli.main([str(a) for a in args])
    except SystemExit as end:  # argparse's own
        code = end.code
    out, err = capsys.readouterr()
    assert code == 2 and says in err and out == ""
    assert err.startswith("libremoe: ") and len(err.splitlines()) == 1 or err.startswith("usage: ")
    assert list(tmp_path.iterdir()) == []


def test_a_mistake_through_the_real_command() -> None:
    answer = libremoe("run", "nowhere", "x")
    assert (answer.returncode, answer.stderr) == (2, "libremoe: nowhere: no such file or folder\n")


@pytest.mark.parametrize("args,prompt", [
    (["run", "m", "--seed", "1", "hello"], "hello"), (["run", "m", "hello", "--seed", "1"], "hello"),
    (["run", "--seed", "1", "m", "hello"], "hello"), (["run", "m", "--seed", "1"], None),
])
def test_flags_may_stand_anywhere(args: list[str], prompt: str | None) -> None:
    assert cli.parse(args).prompt == prompt


@pytest.mark.parametrize("command", [("run", CKPT, "--ids", "5,6", "--json"), ("inspect", CKPT, "--tensors"),
                                     ("inspect", CKPT, "--json"), ("run", CKPT, "x", "--tokenizer", "bytes")])
def test_output_that_cannot_be_written_is_a_sentence(command: tuple) -> None:
    if command[0] == "run":
        command += ("--max-tokens", "8")
    line = [sys.executable, "-m", "libremoe.cli", *map(str, command)]
    with open("/dev/full", "w") as full:
        answer = subprocess.run(line, stdout=full, stderr=subprocess.PIPE, text=True)
    assert (answer.returncode, answer.stderr) == (2, "libremoe: No space left on device\n")
    read, write = os.pipe()
    os.close(read)  # the reader of a pipe leaves
    answer = subprocess.run(line, stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert (answer.returncode, answer.stderr) == (0, "")


def test_closed_streams_and_ascii_ones_are_no_mistake() -> None:
    run = f"{sys.executable} -m libremoe.cli run {CKPT} é --tokenizer bytes --max-tokens 30 --seed 1 --temperature 2"
    closed = subprocess.run(f"{run} >&-", shell=True, capture_output=True, text=True)
    assert (closed.returncode, closed.stderr) == (0, "")
    ascii_only = subprocess.run(run, shell=True, capture_output=True, env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert (ascii_only.returncode, ascii_only.stderr) == (0, b"") and ascii_only.stdout.isascii()
    empty = subprocess.run(f"{run.replace(' é', '')} <&-", shell=True, capture_output=True, text=True)
    assert empty.returncode == 2 and empty.stderr == "libremoe: the prompt is empty: at least one token is needed\n"


@pytest.mark.parametrize("encoding", ["utf-8:strict", "ascii", "latin-1"])
def test_standard_input_is_utf8_in_every_locale(encoding: str) -> None:
    line = [sys.executable, "-m", "libremoe.cli", "run", CKPT, "--tokenizer", "bytes", "--max-tokens", "1", "--json"]
    env = {**os.environ, "PYTHONIOENCODING": encoding}
    answer = subprocess.run(line, input="é".encode(), capture_output=True, env=env)
    assert json.loads(answer.stdout.splitlines()[-1])["stats"]["prompt_tokens"] == 2
    answer = subprocess.run(line, input=b"ab\xff", capture_output=True, env=env)
    assert (answer.returncode, answer.stderr) == (2, b"libremoe: standard input: not UTF-8 at byte 2\n")


def test_inspect_shows_a_path_that_looks_like_markup(tmp_path: Path) -> None:
    folder = tmp_path / "a[" / "b]" / "[bold]c"
    folder.mkdir(parents=True)
    for place in (folder, tmp_path / "a["):
        (place / "ckpt-0").symlink_to(CKPT)
    (folder / "config.json").write_bytes((CKPT.parent / "config.json").read_bytes())
    (folder / "tokenizer.model").write_bytes((GOLDEN / "spm" / "tokenizer.model").read_bytes())
    answer = libremoe("inspect", folder)
    assert answer.returncode == 0 and str(folder / "tokenizer.model") in answer.stdout


def test_logprobs_are_named_in_json_and_the_shells_newline_is_no_token() -> None:
    flags = ("--tokenizer", "bytes", "--temperature", 0, "--max-tokens", 1, "--logprobs", 2, "--json")
    piped = libremoe("run", CKPT, *flags, stdin="Hi\n").stdout.splitlines()
    given = libremoe("run", CKPT, "Hi", *flags).stdout.splitlines()
    assert piped[0] == given[0]
    one = json.loads(piped[0])["logprobs"][0]
    assert one["top"][0] == {"token": one["token"], "logprob": one["logprob"]} and len(one["top"]) == 2


def test_two_gguf_files_in_a_folder_are_listed(tmp_path: Path, capsys) -> None:
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).touch()
    assert cli.main(["inspect", str(tmp_path)]) == 2
    assert "2 .gguf files (a.gguf, b.gguf)" in capsys.readouterr().err


def test_an_unknown_backend_is_named() -> None:
    answer = libremoe("run", CKPT, "--ids", "5", LIBREMOE_OPS="gpu")
    assert answer.returncode == 2 and "LIBREMOE_OPS=gpu" in answer.stderr


def test_convert_then_run_int4(tmp_path: Path) -> None:
    done = libremoe("convert", CKPT, tmp_path / "int4", "--format", "int4", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)
    assert libremoe("verify", tmp_path / "int4").returncode == 0
    answer = libremoe("run", tmp_path / "int4", "--ids", "5,6,7", "--max-tokens", 5, "--temperature", 0)
    assert answer.returncode == 0 and len(answer.stdout.split()) == 5


def test_make_tiny_inspect_and_run(tmp_path: Path) -> None:
    assert libremoe("make-tiny", tmp_path / "tiny").returncode == 0
    found = json.loads(libremoe("inspect", tmp_path / "tiny", "--json").stdout)
    assert found["parameters"] > found["active_parameters"] > 0 and found["random"]
    answer = libremoe("run", tmp_path / "tiny", "Hello", "--max-tokens", 8)
    assert answer.returncode == 0, answer.stderr
