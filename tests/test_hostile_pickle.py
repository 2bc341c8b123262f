"""Hostile and damaged checkpoints: refused in one line, nothing runs, nothing is written, little memory is used.

Whether anything runs is told by Python's own audit events (sys.addaudithook), not by the reader's word; the first test
shows that they do tell, by unpickling a canary.
"""

from __future__ import annotations

import io
import os
import pickle
import shutil
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from hostile import configs, folders, mutations, shards

from libremoe.errors import CheckpointError, LibremoeError
from libremoe.quant import QuantTensor
from libremoe.weights.byte_window import Window
from libremoe.weights.grok import GrokReader
from libremoe.weights.grok_layout import read_config
from libremoe.weights.pickle_grammar import StoredArray, _Parser, parse_shard

GOLDEN = Path(__file__).parent / "golden" / "tiny-grok1-tp8"
FLOATS = GOLDEN / "ckpt-0" / "tensor00013_000"  # a router: float32 (64, 8)
QUANTISED = GOLDEN / "ckpt-0" / "tensor00005_000"  # a key projection: int8 with bfloat16 scales
MAX_PEAK = 256 << 10  # bytes of Python objects while one file is judged: a window of 4 KiB, 64 terms, one message
MAX_GROWTH = 64 << 20  # bytes by which a process may grow while it judges all of them
MAX_MESSAGE = 600  # characters; a message is for a terminal

# What a parser has no business to do. `open` is looked at by mode, `import` and `exec` are events of their own.
FORBIDDEN = ("exec", "compile", "import", "os.", "subprocess.", "socket.", "pickle.", "marshal.", "ctypes.", "shutil.",
             "code.", "function.", "object.__", "pty.", "tempfile.", "urllib.", "http.", "mmap.", "builtins.")
HARMLESS = ("os.listdir", "os.scandir")

_watching: list[str] | None = None


def _hook(event: str, args: tuple) -> None:
    if _watching is None:
        return
    writes = event == "open" and (set(str(args[1] or "")) & set("wax+") or
                                  (args[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC))
    if writes or (event.startswith(FORBIDDEN) and event not in HARMLESS):
        _watching.append(f"{event} {args!r}"[:200])


sys.addaudithook(_hook)  # cannot be removed; does nothing outside watched()


@contextmanager
def watched() -> Iterator[list[str]]:
    global _watching
    _watching = events = []
    try:
        yield events
    finally:
        _watching = None


@pytest.fixture(scope="module")
def hostile_shards() -> dict[str, bytes]:
    array = parse_shard(FLOATS).weight
    return shards(FLOATS.read_bytes(), range(array.offset, array.offset + array.nbytes), QUANTISED.read_bytes())


def refusal(judge: object, *args: object) -> str:
    """The message with which judge(*args) refuses; the test fails when it accepts or raises anything else."""
    try:
        judge(*args)  # type: ignore[operator]
    except LibremoeError as e:
        message = str(e)
        if "\n" in message or not message.isprintable() or len(message) > MAX_MESSAGE:
            pytest.fail(f"not one short line: {message!r}")
        return message
    pytest.fail(f"accepted: {args}")


def test_the_watch_can_fail(hostile_shards: dict[str, bytes], tmp_path: Path) -> None:
    with watched() as events:
        pickle.loads(hostile_shards["stack_global os.system"])
    assert any(event.startswith("os.system") for event in events)
    with watched() as events:
        (tmp_path / "new").touch()
        eval("1 + 1")  # noqa: PGH001, S307
    assert any(event.startswith("open") for event in events) and any(event.startswith("exec") for event in events)


def test_hostile_shards(hostile_shards: dict[str, bytes], tmp_path: Path) -> None:
    path = tmp_path / "tensor00000_000"
    assert len(hostile_shards) >= 400 and len(set(hostile_shards.values())) > 0.95 * len(hostile_shards)
    reasons = set()
    for name, content in hostile_shards.items():
        path.write_bytes(content)
        tracemalloc.start()
        with watched() as events:
            message = refusal(parse_shard, path)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert events == [], name
        assert message.startswith(f"{path}: "), name
        assert peak < MAX_PEAK, (name, peak)
        reasons.add(message)
    assert len(reasons) > 300  # specific: nearly every file has a sentence of its own
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_messages_name_the_reason(hostile_shards: dict[str, bytes], tmp_path: Path) -> None:
    wanted = {
        "global os.system": "opcode GLOBAL 'os.system' at byte 2",
        "stack_global eval": "it names 'builtins.eval'; an official shard names only",
        "memo 2^27": "memo number 134,217,728",
        "freed memory": "no array is complete",
        "binbytes8 1152921504606846976": "says 1,152,921,504,606,846,976",
        "b't\\x94b\\x89' becomes b't\\x94b\\x88'": "Fortran order",
        "b'f4' becomes b'O8'": "an array of type 'O8'",
        "trailing byte": "1 bytes follow the end",
        "zip": "not a protocol 4 pickle: the file begins with b'PK",
        "empty": "the file is empty",
        "html": "begins with b'<!DO'",
        "frame in frame": "a frame inside a frame",
        "cut at 100": "the file is cut short or damaged",
        "shape transposed product off": "float32 (3, 5) is 60 bytes, not 2,048",
    }
    for name, reason in wanted.items():
        (tmp_path / "shard").write_bytes(hostile_shards[name])
        assert reason in refusal(parse_shard, tmp_path / "shard"), name


def test_memory_of_a_process_that_judges_them_all(hostile_shards: dict[str, bytes], tmp_path: Path) -> None:
    pytest.importorskip("resource")
    for i, content in enumerate(hostile_shards.values()):
        (tmp_path / f"{i:04}").write_bytes(content)
    os.truncate(tmp_path / "0000", 1 << 40)  # a terabyte of hole behind the first
    program = (
        "import resource, sys\n"
        "from pathlib import Path\n"
        "from libremoe.errors import CheckpointError\n"
        "from libremoe.weights.pickle_grammar import parse_shard\n"
        "def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "before, refused = peak(), 0\n"
        "for path in sorted(Path(sys.argv[1]).iterdir()):\n"
        "    try: parse_shard(path)\n"
        "    except CheckpointError: refused += 1\n"
        "print(refused, peak() - before)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, timeout=120,
                          cwd=Path(__file__).parent.parent)
    assert done.returncode == 0, done.stderr
    refused, growth = map(int, done.stdout.split())
    unit = 1 if sys.platform == "darwin" else 1024
    assert refused == len(hostile_shards)
    assert growth * unit <= MAX_GROWTH


def test_hostile_configs(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    found = configs((GOLDEN / "config.json").read_bytes())
    assert len(found) > 150
    for name, content in found.items():
        path.write_bytes(content)
        with watched() as events:
            message = refusal(read_config, path)
        assert events == [], name
        assert message.startswith(f"{path}: "), name
        words = name.split()
        if len(words) > 1 and words[-1] in ("negative", "huge", "text", "true", "missing"):
            assert f"field {words[-2]} is missing" in message or f"{words[-2]} must be " in message, (name, message)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    shutil.copytree(GOLDEN / "ckpt-0", tmp_path / "model" / "ckpt-0")
    shutil.copy(GOLDEN / "config.json", tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize("name", folders())
def test_hostile_folders(name: str, checkpoint: Path) -> None:
    GrokReader(checkpoint / "ckpt-0")  # good before it is spoilt
    folders()[name](checkpoint)
    before = sorted(checkpoint.rglob("*"))
    with watched() as events:
        message = refusal(GrokReader, checkpoint / "ckpt-0")
    assert events == []
    assert message.startswith(str(checkpoint))
    assert sorted(checkpoint.rglob("*")) == before


def test_messages_name_the_file(checkpoint: Path) -> None:
    folder = checkpoint / "ckpt-0"
    (folder / "tensor00012_000").rename(checkpoint / "kept")
    assert "missing: tensor00012_000 (2 layers are 26 files" in refusal(GrokReader, folder)
    (checkpoint / "kept").rename(folder / "tensor00012_000")
    (folder / "tensor00003_001").touch()
    assert "does not belong here: tensor00003_001" in refusal(GrokReader, folder)
    (folder / "tensor00003_001").unlink()
    shutil.copy(folder / "tensor00007_000", folder / "tensor00005_000")
    message = refusal(GrokReader, folder)
    assert "tensor00005_000: holds int8 (64, 128)" in message
    assert "decoder_layer_0/multi_head_attention/key, int8 (64, 64)" in message


def test_folders_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "file").touch()
    for name in ("loop", "file", "absent"):
        assert "is no folder" in refusal(GrokReader, tmp_path / name)
    (tmp_path / "folder").mkdir()
    assert "missing: tensor00000_000" in refusal(GrokReader, tmp_path / "folder")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root reads every file")
def test_a_file_that_may_not_be_read(checkpoint: Path) -> None:
    (checkpoint / "ckpt-0" / "tensor00005_000").chmod(0)
    assert "tensor00005_000: cannot be opened: Permission denied" in refusal(GrokReader, checkpoint / "ckpt-0")


def judge(data: bytes) -> list[StoredArray] | None:
    """What the grammar makes of bytes in memory; None where it refuses them."""
    try:
        weight, scales = _Parser(Window(Path("shard"), io.BytesIO(data), len(data))).parse()  # type: ignore[arg-type]
    except CheckpointError as e:
        if "\n" in str(e):
            pytest.fail(f"not one line: {e}")
        return None
    return [weight] if scales is None else [weight, scales]


class Unpickler(pickle.Unpickler):
    """What CPython makes of a mutant that the grammar accepts; it admits the names that shards have."""

    class Weight8bit:
        weight: np.ndarray
        scales: np.ndarray

    def find_class(self, module: str, name: str) -> object:
        known = {"numpy.core.multiarray._reconstruct": np.zeros(1).__reduce__()[0], "numpy.ndarray": np.ndarray,
                 "numpy.dtype": np.dtype, "ml_dtypes.bfloat16": np.uint16,
                 "__main__.QuantizedWeight8bit": self.Weight8bit}
        return known[f"{module}.{name}"]


def fuzz(path: Path, seed: int, count: int) -> int:
    """Mutants are refused, or hold what CPython finds in them, where the grammar says; returns how many were accepted.

    A mutant may be another good pickle: one opcode less and one byte of data more, for instance.
    """
    good = path.read_bytes()
    arrays = judge(good)
    assert arrays is not None
    data = [range(a.offset, a.offset + a.nbytes) for a in arrays]
    structure = [i for i in range(len(good)) if not any(i in piece for piece in data)]
    accepted = 0
    for mutant in [good, *mutations(good, structure, seed, count)]:
        found = judge(mutant)
        if found is None:
            continue
        accepted += 1
        term = Unpickler(io.BytesIO(mutant)).load()
        wanted = [term] if len(found) == 1 else [term.weight, term.scales]
        for stored, array in zip(found, wanted, strict=True):
            assert stored.shape == array.shape and stored.nbytes == array.nbytes, mutant
            assert {"float32": "f", "int8": "i", "bfloat16": "u"}[stored.dtype] == array.dtype.kind, mutant
            assert mutant[stored.offset : stored.offset + stored.nbytes] == array.tobytes(), mutant
    return accepted


@pytest.mark.parametrize("path", [FLOATS, QUANTISED])
def test_mutants(path: Path) -> None:
    assert 0 < fuzz(path, seed=1, count=3000) < 300  # few: a memo number that is never asked for changes nothing


@pytest.mark.soak
@pytest.mark.parametrize("path", [FLOATS, QUANTISED])
def test_a_million_mutants(path: Path) -> None:
    fuzz(path, seed=2, count=1_000_000)


def test_mutants_in_a_folder(checkpoint: Path) -> None:
    """Behind the grammar stands the configuration: what the reader accepts has the shape of the original."""
    good = GrokReader(GOLDEN / "ckpt-0").read("layers.0.attn.k.weight")
    assert isinstance(good, QuantTensor)
    path = checkpoint / "ckpt-0" / QUANTISED.name
    original, arrays = path.read_bytes(), judge(path.read_bytes())
    assert arrays is not None
    structure = [i for i in range(len(original))
                 if not any(a.offset <= i < a.offset + a.nbytes for a in arrays)]
    for mutant in mutations(original, structure, seed=3, count=300):
        path.write_bytes(mutant)
        try:
            found = GrokReader(checkpoint / "ckpt-0").read("layers.0.attn.k.weight")
        except CheckpointError as e:
            assert e.path == path
            continue
        assert isinstance(found, QuantTensor)
        assert (found.shape, found.group, found.scales.shape) == (good.shape, good.group, good.scales.shape)
