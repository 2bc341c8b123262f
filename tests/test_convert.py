"""convert: nothing is lost on the way that the format keeps, and nothing half done looks complete."""

from __future__ import annotations

import dataclasses
import errno
import fcntl
import json
import os
import shutil
import subprocess
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from libremoe import convert as convert_module
from libremoe import inspect as inspect_module
from libremoe import verify as verify_module
from libremoe.config import preset
from libremoe.convert import convert
from libremoe.errors import CheckpointError, LibremoeError
from libremoe.experts import ResidentExperts, Weight
from libremoe.model import Transformer
from libremoe.quant import QuantTensor, quantize
from libremoe.tiny import RandomReader, make_tiny
from libremoe.verify import verify
from libremoe.weights import Reader, open_checkpoint
from libremoe.weights.native import NativeReader
from libremoe.weights.native_layout import JOURNAL, MANIFEST

GOLDEN = Path(__file__).parent / "golden"
MODELS = ("tiny-grok1", "tiny-grok1-12l", "tiny-grok1-tp8")
SMALL = dataclasses.replace(preset("tiny"), dim=40, hidden_dim=88, n_layers=3, n_heads=2, n_kv_heads=1, head_dim=12,
                            vocab_size=270)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tensors are so small here that threads would only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def floats(weight: Weight) -> torch.Tensor:
    return weight.dequantize() if isinstance(weight, QuantTensor) else weight.float()


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def quiet(src: Path, dst: Path, format: str, head: str | None = None) -> dict[str, object]:
    return convert(src, dst, format, head, shown=False)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(make_tiny(tmp_path_factory.mktemp("source") / "m", "ckpt", SMALL)["dst"])


@pytest.mark.parametrize("model", MODELS)
def test_int8_from_the_official_files_is_the_same_model(tmp_path: Path, model: str) -> None:
    """Bit for bit: every value and scale, and so every logit."""
    quiet(GOLDEN / model, tmp_path / "m", "int8")
    direct, converted = open_checkpoint(GOLDEN / model), open_checkpoint(tmp_path / "m")
    assert converted.config == direct.config
    for name in direct.names():
        a, b = direct.read(name), converted.read(name)
        if isinstance(a, QuantTensor) and isinstance(b, QuantTensor):
            assert torch.equal(a.codes(), b.codes()) and torch.equal(a.group_scales(), b.group_scales()), name
        assert torch.equal(floats(a), floats(b)), name
    assert torch.equal(logits(direct), logits(converted))


def logits(reader: Reader) -> torch.Tensor:
    from libremoe.batch import Batch
    from libremoe.ops import reference

    config = reader.config
    experts = [[reader.read_expert(i, e) for e in range(config.n_experts)] for i in range(config.n_layers)]
    tokens = torch.arange(1, 18) * 13 % config.vocab_size
    model = Transformer(config, reader.read, ResidentExperts(experts), reference)
    with torch.no_grad():
        return model(tokens, Batch.of_whole([len(tokens)]))


def test_the_group_asked_for_is_that_of_linear_weights(tmp_path: Path, source: Path) -> None:
    made = {group: tmp_path / f"g{group}" for group in (32, 64)}
    for group, dst in made.items():
        convert(source, dst, "int4", shown=False, group=group)
    before, readers = open_checkpoint(source), {group: open_checkpoint(dst) for group, dst in made.items()}
    for name in readers[64].names():
        old, new = before.read(name), readers[64].read(name)
        if isinstance(new, QuantTensor) and new.format == "int4":
            assert new.group == 64
            assert torch.equal(floats(new), floats(quantize(floats(old), "int4", 64)))
        elif isinstance(new, QuantTensor):  # a table: as without the flag
            assert torch.equal(floats(new), floats(readers[32].read(name)))
    quiet(source, tmp_path / "default", "int4")
    assert contents(tmp_path / "default") == contents(made[32])
    made_up = make_tiny(tmp_path / "t", "native", SMALL, format="int4", group=64)
    assert open_checkpoint(made_up["dst"]).read("layers.0.experts.0.gate.weight").group == 64
    for arguments, said in ((("int4", 48), "int4 has groups of 32, 64"), (("bf16", 64), "bf16 has no groups")):
        with pytest.raises(LibremoeError, match=said):
            convert(source, tmp_path / "no", arguments[0], shown=False, group=arguments[1])
    with pytest.raises(LibremoeError, match="in groups of 32 already"):
        convert(made[32], tmp_path / "again", "int4", shown=False, group=64)
    assert not (tmp_path / "again").exists() and not (tmp_path / "no").exists()


@pytest.mark.parametrize("format", ["f32", "bf16", "int4", "int3", "int2"])
def test_conversion_is_the_plain_computation(tmp_path: Path, source: Path, format: str) -> None:
    """Band by band into a run gives what whole tensors give."""
    quiet(source, tmp_path / "m", format)
    reader, result = open_checkpoint(source), NativeReader(tmp_path / "m")
    for name in reader.names():
        before, after = reader.read(name), result.read(name)
        if not isinstance(before, QuantTensor):
            if name == "embed.weight" and format.startswith("int"):
                expected = quantize(before, "int8").dequantize()
            else:
                expected = before
        elif format in ("f32", "bf16"):
            expected = before.dequantize().to(result.read(name).dtype)  # type: ignore[union-attr]
            assert result.entry(name).format == format
        else:
            expected = quantize(before.dequantize(), format).dequantize()
        assert torch.equal(floats(after), expected.float()), name


def test_bands_are_smaller_than_a_tensor_and_change_nothing(tmp_path: Path, source: Path,
                                                            monkeypatch: pytest.MonkeyPatch) -> None:
    for format in ("bf16", "int8", "int4"):
        quiet(source, tmp_path / f"whole {format}", format)
    monkeypatch.setattr(convert_module, "_CHUNK", 700)  # 16 rows of 40 inputs
    for format in ("bf16", "int8", "int4"):
        quiet(source, tmp_path / f"bands {format}", format)
        assert contents(tmp_path / f"bands {format}") == contents(tmp_path / f"whole {format}")


@pytest.mark.parametrize("head", ["f32", "bf16", "int8", "int4"])
def test_the_head_has_the_format_asked_for(tmp_path: Path, source: Path, head: str) -> None:
    quiet(source, tmp_path / "m", "int4", head)
    reader = open_checkpoint(tmp_path / "m")
    assert reader.entry("embed.weight").format == head
    assert reader.entry("layers.0.attn.q.weight").format == "int4"
    assert reader.entry("layers.0.router.weight").format == "f32"
    assert reader.entry("norm.weight").format == "f32"


@pytest.mark.parametrize("format", ["f32", "bf16", "int8", "int4", "int3", "int2"])
def test_converting_again_changes_no_weight(tmp_path: Path, source: Path, format: str) -> None:
    quiet(source, tmp_path / "a", format)
    quiet(tmp_path / "a", tmp_path / "b", format)
    a, b = contents(tmp_path / "a"), contents(tmp_path / "b")
    weights = [name for name in a if name.endswith(".safetensors")]
    assert len(weights) == 1 + SMALL.n_layers
    assert {name: a[name] for name in weights} == {name: b[name] for name in weights}


def test_gguf_to_native_keeps_float_weights_and_the_vocabulary(tmp_path: Path) -> None:
    make_tiny(tmp_path / "m.gguf", "gguf", SMALL, format="f32")
    quiet(tmp_path / "m.gguf", tmp_path / "m", "f32")
    gguf, native = open_checkpoint(tmp_path / "m.gguf"), open_checkpoint(tmp_path / "m")
    assert all(torch.equal(floats(gguf.read(n)), floats(native.read(n))) for n in gguf.names())
    assert native.tokenizer == tmp_path / "m" / "tokenizer.model"  # it was inside the file


def test_two_conversions_are_the_same_bytes_and_carry_the_tokenizer(tmp_path: Path, source: Path) -> None:
    quiet(source, tmp_path / "a", "int4")
    quiet(source, tmp_path / "b", "int4")
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert (tmp_path / "a" / "tokenizer.json").read_bytes() == (source / "tokenizer.json").read_bytes()
    assert open_checkpoint(tmp_path / "a").tokenizer == tmp_path / "a" / "tokenizer.json"
    assert JOURNAL not in contents(tmp_path / "a")


def test_what_is_in_the_way_is_refused(tmp_path: Path, source: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(LibremoeError, match="not a folder"):
        quiet(source, tmp_path / "file", "int8")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("x")
    with pytest.raises(LibremoeError, match="no conversion in progress .it holds thesis.txt"):
        quiet(source, tmp_path / "full", "int8")
    with pytest.raises(LibremoeError, match="does not exist"):
        quiet(source, tmp_path / "no" / "such", "int8")
    quiet(source, tmp_path / "done", "int8")
    with pytest.raises(LibremoeError, match="no conversion in progress"):
        quiet(source, tmp_path / "done", "int8")
    with pytest.raises(LibremoeError, match="no format 'int5'"):
        quiet(source, tmp_path / "m", "int5")
    with pytest.raises(LibremoeError, match="no format 'int2'"):
        quiet(source, tmp_path / "m", "int4", "int2")
    with pytest.raises(CheckpointError, match="no such file"):
        quiet(tmp_path / "nothing", tmp_path / "m", "int4")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["done", "file", "full"]


@pytest.fixture
def stopped(tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch,
            capsys: pytest.CaptureFixture[str]) -> Path:
    """A conversion to int4 that was interrupted after two of its four files."""
    write = convert_module.write_weights
    interrupted = fails_from(3, write, KeyboardInterrupt())
    with monkeypatch.context() as patch:
        patch.setattr(convert_module, "write_weights", interrupted)
        args = Namespace(src=source, dst=tmp_path / "m", format="int4", head=None, group=None, json=False)
        assert convert_module.run(args) == 130
    assert "run the same command again to continue" in capsys.readouterr().err
    return tmp_path / "m"


def fails_from(n: int, function: Callable[..., object], error: BaseException, flag: int = 0) -> Callable[..., object]:
    """The function, until its n-th call, which raises, as do all later ones. flag: count calls with it only."""
    calls = iter(range(1, 1 << 30))

    def call(*args: Any, **kwargs: Any) -> object:
        counts = not flag or args[1] & flag
        if counts and next(calls) >= n:
            raise error
        return function(*args, **kwargs)

    return call


def test_an_interrupted_conversion_goes_on(tmp_path: Path, source: Path, stopped: Path) -> None:
    with pytest.raises(CheckpointError, match="did not finish"):
        open_checkpoint(stopped)
    before = {p.name: p.stat().st_ino for p in stopped.glob("*.safetensors")}
    assert len(before) == 2
    quiet(source, stopped, "int4")
    assert {name: (stopped / name).stat().st_ino for name in before} == before  # not written again
    quiet(source, tmp_path / "undisturbed", "int4")
    assert contents(stopped) == contents(tmp_path / "undisturbed")


def test_what_had_been_finished_is_not_written_again(tmp_path: Path, source: Path,
                                                     monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed before its last act, the removal of the record: going on touches nothing that readers see."""
    def stop(path: Path, missing_ok: bool = False) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", stop)
        with pytest.raises(KeyboardInterrupt):
            quiet(source, tmp_path / "m", "int4")
    assert (tmp_path / "m" / JOURNAL).exists() and (tmp_path / "m" / MANIFEST).exists()
    before = {path.name: path.stat().st_ino for path in (tmp_path / "m").iterdir()}
    quiet(source, tmp_path / "m", "int4")
    assert {path.name: path.stat().st_ino for path in (tmp_path / "m").iterdir()} | {
        JOURNAL: before[JOURNAL]} == before


def test_a_finished_file_that_has_changed_is_written_again(tmp_path: Path, source: Path, stopped: Path) -> None:
    content = bytearray((stopped / "shared.safetensors").read_bytes())
    content[-1] ^= 1
    (stopped / "shared.safetensors").write_bytes(content)
    (stopped / "experts-00000.safetensors").unlink()
    quiet(source, stopped, "int4")
    quiet(source, tmp_path / "undisturbed", "int4")
    assert contents(stopped) == contents(tmp_path / "undisturbed")


def test_other_arguments_or_another_source_do_not_go_on(tmp_path: Path, source: Path, stopped: Path) -> None:
    before = contents(stopped)
    with pytest.raises(LibremoeError, match="another format was begun"):
        quiet(source, stopped, "int8")
    with pytest.raises(LibremoeError, match="another head was begun"):
        quiet(source, stopped, "int4", "bf16")
    with pytest.raises(LibremoeError, match="another source was begun"):
        quiet(GOLDEN / "tiny-grok1", stopped, "int4")
    changed = shutil.copytree(source, tmp_path / "changed")  # keeps times and sizes
    file = next((changed / "ckpt-0").iterdir())
    os.utime(file, ns=(0, file.stat().st_mtime_ns + 1))
    with pytest.raises(LibremoeError, match="another source was begun"):
        quiet(changed, stopped, "int4")
    assert contents(stopped) == before


@pytest.mark.parametrize("record", [b"{}", b"[]", b'{"arguments": 1, "files": {}}', b"{"])
def test_a_record_that_is_none_is_refused(tmp_path: Path, source: Path, record: bytes) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / JOURNAL).write_bytes(record)
    with pytest.raises(CheckpointError, match=JOURNAL):
        quiet(source, tmp_path / "m", "int4")


def test_two_at_once_are_refused(tmp_path: Path, source: Path) -> None:
    (tmp_path / "m").mkdir()
    fd = os.open(tmp_path / "m", os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_EX)
    with pytest.raises(LibremoeError, match="another conversion is writing"):
        quiet(source, tmp_path / "m", "int4")
    os.close(fd)
    quiet(source, tmp_path / "m", "int4")


def test_a_disk_that_is_too_small_is_told_before_anything_is_written(
        tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**6, 9 * 10**5, 10**5))
        with pytest.raises(LibremoeError, match=r"needs .* more, and 100.0 kB are free .* free some space"):
            quiet(source, tmp_path / "m", "int4")
    assert not list((tmp_path / "m").glob("*.safetensors"))
    quiet(source, tmp_path / "m", "int4")  # and once there is room, the same command does it


@pytest.mark.parametrize("call", ["write", "fsync", "replace", "open", "mkdir", "unlink"])
def test_when_the_nth_call_fails_nothing_looks_complete_and_all_goes_on(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    """Every n, until the conversion gets through; each failure is continued by the next run."""
    source = tmp_path / "source"
    make_tiny(source, "ckpt", dataclasses.replace(SMALL, n_layers=1, n_experts=2))
    quiet(source, tmp_path / "undisturbed", "int4")
    expected = contents(tmp_path / "undisturbed")
    failed, dst = 0, tmp_path / "m"
    for n in range(1, 200):
        full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        with monkeypatch.context() as patch:
            counted = os.O_CREAT if call == "open" else 0  # opening to read is no matter of space
            patch.setattr(os, call, fails_from(n, getattr(os, call), full, counted))
            try:
                quiet(source, dst, "int4")
                break
            except LibremoeError as error:
                assert "No space left on device" in str(error)
                failed += 1
        if (dst / MANIFEST).exists():
            assert contents(dst).keys() - expected.keys() <= {JOURNAL}
            assert {k: v for k, v in contents(dst).items() if k != JOURNAL} == expected
        elif dst.exists():
            with pytest.raises(CheckpointError):
                open_checkpoint(dst)
    assert contents(dst) == expected
    assert failed > 0


@pytest.mark.parametrize("n", [1, 3, 5, 8, 9, 11])
def test_a_write_that_takes_less_than_it_was_given_goes_on(tmp_path: Path, source: Path, n: int,
                                                           monkeypatch: pytest.MonkeyPatch) -> None:
    quiet(source, tmp_path / "undisturbed", "int8")
    write = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: write(fd, data[: max(1, len(data) // n)]))
    quiet(source, tmp_path / "m", "int8")
    assert contents(tmp_path / "m") == contents(tmp_path / "undisturbed")


# One tensor above all others: the embedding, 64 MiB in float32.
PEAK_CHILD = r"""
import re, sys
from pathlib import Path
import torch
from libremoe.convert import convert
torch.set_num_threads(1)
src, warm, dst, format = sys.argv[1:]
convert(warm, dst + "-warm", format, shown=False)  # loads what is loaded once
def peak():  # not ru_maxrss, which a child has from its parent
    return int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) << 10
before = peak()
convert(src, dst, format, shown=False)
print(peak() - before)
"""
LARGEST = 64 << 20
PEAK_FACTOR = 4  # what convert promises: peak memory <= 4 x the largest tensor


@pytest.mark.parametrize("format", ["bf16", "int8", "int4"])
def test_memory_stays_below_four_times_the_largest_tensor(tmp_path: Path, source: Path, format: str) -> None:
    config = dataclasses.replace(SMALL, n_layers=1, vocab_size=1 << 15, dim=512, hidden_dim=1024, n_experts=2)
    reader = RandomReader(config)
    assert max(reader.entry(name).nbytes for name in reader.names()) == LARGEST
    make_tiny(tmp_path / "m", "ckpt", config)
    args = [sys.executable, "-c", PEAK_CHILD, str(tmp_path / "m"), str(source), str(tmp_path / "out"), format]
    peak = int(subprocess.run(args, check=True, capture_output=True, text=True).stdout)
    assert LARGEST / 4 < peak < PEAK_FACTOR * LARGEST


def test_the_commands_print_json(tmp_path: Path, source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dst = tmp_path / "m"
    assert convert_module.run(Namespace(src=source, dst=dst, format="int4", head=None, group=None, json=True)) == 0
    assert json.loads(capsys.readouterr().out)["bytes"] == sum(len(c) for c in contents(dst).values())
    assert verify_module.run(Namespace(path=dst, json=True)) == 0
    assert json.loads(capsys.readouterr().out)["ok"]
    assert inspect_module.run(Namespace(path=dst, tensors=True, json=True)) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["parameters"] == SMALL.n_params() and found["active_parameters"] == SMALL.n_active_params()
    assert len(found["tensors"]) == len(open_checkpoint(dst).names())
    assert found["bytes"] == sum(t["bytes"] for t in found["tensors"])
    assert found["formats"]["int4"]["tensors"] == SMALL.n_layers * (4 + 3 * SMALL.n_experts)
    (dst / "tokenizer.json").write_bytes(b"{}")
    assert verify_module.run(Namespace(path=dst, json=False)) == 1
    assert "tokenizer.json" in capsys.readouterr().out


def test_the_commands_print_tables(tmp_path: Path, source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in (source, GOLDEN / "tiny-grok1"):
        assert inspect_module.run(Namespace(path=path, tensors=True, json=False)) == 0
        said = capsys.readouterr().out
        assert "8 experts of which 2 work on a token" in said and "layers.0.experts.7.down.weight" in said
        assert ("random weights" in said) == (path == source)


def test_a_folder_of_another_format_is_checked_as_far_as_it_can_be(source: Path) -> None:
    result = verify(source)
    assert result["ok"] and not result["manifest"]
    assert "no manifest" in str(result["said"])


def test_a_tokenizer_that_cannot_be_read_is_named_before_the_work(tmp_path: Path) -> None:
    reader = open_checkpoint(GOLDEN / "tiny-grok1")
    reader.tokenizer = tmp_path / "gone.json"
    with pytest.raises(LibremoeError, match="gone.json: No such file"):
        convert_module.convert_reader(reader, tmp_path / "dst", "int8", shown=False)
    assert [p.name for p in (tmp_path / "dst").iterdir()] == [JOURNAL]


def test_an_error_before_anything_is_done_promises_nothing(tmp_path: Path) -> None:
    with pytest.raises(LibremoeError, match="File name too long$"):
        quiet(GOLDEN / "tiny-grok1", tmp_path / ("x" * 300), "int8")


def test_a_chat_template_comes_along(tmp_path: Path) -> None:
    golden = Path(__file__).parent / "golden" / "tiny-grok1"
    shutil.copytree(golden / "ckpt-0", tmp_path / "src")
    shutil.copy(golden / "config.json", tmp_path / "src")
    (tmp_path / "src" / "chat_template.jinja").write_text("{{ messages }}")
    quiet(tmp_path / "src", tmp_path / "dst", "int8")
    assert (tmp_path / "dst" / "chat_template.jinja").read_text() == "{{ messages }}"
    assert not (tmp_path / "dst" / "tokenizer_config.json").exists()
    assert verify(tmp_path / "dst")["ok"]
