"""libremoe's own format: what is written is read back, and what is damaged or lies is refused."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from libremoe.config import preset
from libremoe.errors import CheckpointError
from libremoe.experts import Weight
from libremoe.quant import FORMATS, QuantTensor, quantize
from libremoe.tiny import make_tiny
from libremoe.verify import verify
from libremoe.weights import Reader, open_checkpoint
from libremoe.weights.native import NativeReader
from libremoe.weights.native_layout import (
    ALIGN,
    BLOCK,
    DESCRIPTION,
    MANIFEST,
    PART_ALIGN,
    PLAIN,
    WeightLayout,
    place,
    view,
)
from libremoe.weights.native_writer import write_weights

SMALL = dataclasses.replace(preset("tiny"), dim=40, hidden_dim=88, n_layers=2, n_heads=2, n_kv_heads=1, head_dim=12,
                            vocab_size=270)
N_FLIPS = 150


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(make_tiny(tmp_path_factory.mktemp("native") / "m", dims=SMALL, format="int4")["dst"])


@pytest.fixture
def copy(model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(model, tmp_path / "copy"))


def same(a: Weight, b: Weight) -> bool:
    if isinstance(a, QuantTensor) and isinstance(b, QuantTensor):
        kinds = (a.format, a.shape, a.group, a.layout) == (b.format, b.shape, b.group, b.layout)
        return kinds and torch.equal(a.data, b.data) and torch.equal(a.scales, b.scales)
    return isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)


def read_all(reader: Reader) -> dict[str, Weight]:
    return {name: reader.read(name) for name in reader.names()}


layouts = st.builds(
    lambda format, n_out, n_in, scales: (WeightLayout(format, (n_out, n_in)) if format in PLAIN else
                                         WeightLayout(format, (n_out, n_in), FORMATS[format].groups[0], scales)),
    st.sampled_from([*PLAIN, *FORMATS]), st.integers(1, 70), st.integers(1, 200), st.sampled_from(["bf16", "f32"]))


@given(st.lists(layouts, min_size=1, max_size=5))
@settings(max_examples=60, deadline=None)
def test_weights_of_a_run_are_aligned_and_apart(members: list[WeightLayout]) -> None:
    places, length = place(members)
    assert length % ALIGN == 0
    buffer = torch.zeros(length, dtype=torch.uint8)
    for i, (layout, where) in enumerate(zip(members, places, strict=True)):
        assert where.data_at % PART_ALIGN == where.scales_at % PART_ALIGN == 0
        for part in parts(view(layout, where, buffer)):
            assert not part.any()  # no earlier weight has written here
            part.fill_(i + 1)
    assert int((buffer != 0).sum()) == sum(layout.nbytes for layout in members)


def parts(weight: Weight) -> list[torch.Tensor]:
    tensors = [weight.data, weight.scales] if isinstance(weight, QuantTensor) else [weight]
    return [tensor.view(-1).view(torch.uint8) for tensor in tensors]


@pytest.mark.parametrize("format", [*PLAIN, *FORMATS])
@pytest.mark.parametrize("shape", [(16, 64), (33, 70), (1, 1)])
def test_a_written_weight_is_read_back(tmp_path: Path, format: str, shape: tuple[int, int]) -> None:
    values = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    weight = values.to(PLAIN[format]) if format in PLAIN else quantize(values, format)
    layout = WeightLayout.of(weight)
    (where,), length = place([layout])
    buffer = torch.zeros(length, dtype=torch.uint8)
    for part, source in zip(parts(view(layout, where, buffer)), parts(weight), strict=True):
        part.copy_(source)
    record = write_weights(tmp_path / "w.safetensors", {"w": layout}, [buffer], lambda n: None)
    raw = (tmp_path / "w.safetensors").read_bytes()
    assert record["sha256"] == hashlib.sha256(raw).hexdigest()
    run = record["runs"]["w"]
    stored = torch.frombuffer(bytearray(raw[run["offset"] : run["offset"] + run["length"]]), dtype=torch.uint8)
    assert same(view(layout, where, stored), weight)


@pytest.mark.parametrize("format", ["bf16", *FORMATS])
def test_all_ways_to_read_give_the_same(tmp_path: Path, format: str) -> None:
    make_tiny(tmp_path / "m", dims=SMALL, format=format)
    reader, mapped = NativeReader(tmp_path / "m"), NativeReader(tmp_path / "m", mmap=True)
    for name in reader.names():
        assert same(reader.read(name), mapped.read(name)), name
    for layer in range(SMALL.n_layers):
        for e in range(SMALL.n_experts):
            run = reader.run(f"layers.{layer}.experts.{e}")
            assert run.offset % ALIGN == run.length % ALIGN == 0
            bytes_of_run = run.file.read_bytes()[run.offset : run.offset + run.length]
            buffer = torch.frombuffer(bytearray(bytes_of_run), dtype=torch.uint8)
            run.check(buffer)
            for expert in (reader.read_expert(layer, e), mapped.read_expert(layer, e),
                           reader.expert_view(layer, e, buffer)):
                for part in ("gate", "up", "down"):
                    one = reader.read(f"layers.{layer}.experts.{e}.{part}.weight")
                    assert same(getattr(expert, part), one)


def test_an_expert_of_several_blocks_is_read_in_part(tmp_path: Path) -> None:
    """Reads of one weight of a run that is longer than a block take only its blocks, and check them."""
    config = dataclasses.replace(SMALL, dim=1024, hidden_dim=1024, n_layers=1, n_experts=1, n_experts_per_tok=1)
    make_tiny(tmp_path / "m", dims=config)
    reader = NativeReader(tmp_path / "m")
    assert reader.run("layers.0.experts.0").length > 3 * BLOCK
    expert = reader.read_expert(0, 0)
    for part in ("gate", "up", "down"):
        assert same(reader.read(f"layers.0.experts.0.{part}.weight"), getattr(expert, part))
    run = reader.run("layers.0.experts.0")
    flip(run.file, run.offset + run.length - ALIGN, 3)  # in the last weight
    assert same(reader.read("layers.0.experts.0.gate.weight"), expert.gate)
    with pytest.raises(CheckpointError, match="damaged"):
        reader.read("layers.0.experts.0.down.weight")


def test_files_load_in_the_official_library(model: Path) -> None:
    from safetensors.torch import load_file

    reader = NativeReader(model)
    for file in sorted(model.glob("*.safetensors")):
        for name, run in load_file(file).items():
            assert run.dtype == torch.uint8
            reader.run(name).check(run.contiguous())


def flip(file: Path, offset: int, bit: int) -> None:
    content = bytearray(file.read_bytes())
    content[offset] ^= 1 << bit
    file.write_bytes(content)


def test_every_bit_flip_is_found(copy: Path) -> None:
    """verify finds all; a reader refuses, or what it gives is what was written (the flip hit padding or a digest)."""
    written = read_all(NativeReader(copy))
    files = sorted(copy.iterdir())
    rng = random.Random(7)
    refused = 0
    for i in range(N_FLIPS):
        file = files[i % len(files)]
        before = file.read_bytes()
        flip(file, rng.randrange(len(before)), rng.randrange(8))
        try:
            assert not verify(copy)["ok"], file
        except CheckpointError:
            assert file.name == MANIFEST
        try:
            found = read_all(NativeReader(copy))
            assert all(same(found[name], written[name]) for name in written), file
        except CheckpointError:
            refused += 1
        file.write_bytes(before)
    assert verify(copy)["ok"]
    assert refused > N_FLIPS // 2


def test_every_truncation_deletion_and_swap_is_found(copy: Path) -> None:
    files = sorted(copy.iterdir())
    for file in files:
        content = file.read_bytes()
        for damaged in (None, b"", content[: len(content) // 2], content[:-1], content + b"\0"):
            file.unlink() if damaged is None else file.write_bytes(damaged)
            with pytest.raises(CheckpointError):
                NativeReader(copy)
            if file.name not in (MANIFEST, DESCRIPTION):
                result = verify(copy)
                assert any(str(file) in problem for problem in result["problems"]), file
            file.write_bytes(content)
    a, b = copy / "experts-00000.safetensors", copy / "experts-00001.safetensors"
    a.rename(copy / "x"), b.rename(a), (copy / "x").rename(b)
    assert [str(a) in p or str(b) in p for p in verify(copy)["problems"]] == [True, True]
    with pytest.raises(CheckpointError, match="experts-0000"):
        NativeReader(copy)


def test_files_that_the_manifest_does_not_know_are_named(copy: Path) -> None:
    (copy / "tokenizer.model").write_bytes(b"?")
    result = verify(copy)
    assert not result["ok"]
    assert result["problems"] == [f"{copy / 'tokenizer.model'}: not in {MANIFEST}"]


def test_a_folder_without_a_manifest_is_not_a_model(copy: Path) -> None:
    (copy / MANIFEST).unlink()
    with pytest.raises(CheckpointError, match="did not finish"):
        open_checkpoint(copy)
    (copy / DESCRIPTION).unlink()
    (copy / "convert.json").write_text("{}")
    with pytest.raises(CheckpointError, match="did not finish"):
        open_checkpoint(copy)


EXPERT = "layers.0.experts.3"
GATE = EXPERT + ".gate.weight"
FIRST = "experts-00000.safetensors"
LIES: list[tuple[str, Callable[[dict[str, Any]], object], str]] = [
    ("no version", lambda d: d.pop("version"), "version"),
    ("a later version", lambda d: d.update(version=2), "version 2"),
    ("no config", lambda d: d.pop("config"), "config is not an object"),
    ("an unknown field", lambda d: d["config"].update(colour=1), "colour"),
    ("layers as text", lambda d: d["config"].update(n_layers="2"), "n_layers"),
    ("layers as true", lambda d: d["config"].update(n_layers=True), "n_layers"),
    ("a fraction of an expert", lambda d: d["config"].update(n_experts=8.0), "n_experts"),
    ("a billion layers", lambda d: d["config"].update(n_layers=10**9), "experts, but"),
    ("another width", lambda d: d["config"].update(dim=48), "shape"),
    ("a huge pad id", lambda d: d["config"].update(pad_id=2**60), "2\\^48"),
    ("files as a list", lambda d: d.update(files=[]), "files is not"),
    ("a file outside", lambda d: d["files"].update({"../x": {}}), "not in manifest"),
    ("a run too many", lambda d: d["files"][FIRST].update(x=d["files"][FIRST][EXPERT]), "does not hold the runs"),
    ("a run missing", lambda d: d["files"][FIRST].pop(EXPERT), "does not hold the runs"),
    ("an offset elsewhere", lambda d: d["files"][FIRST][EXPERT].update(offset=ALIGN), "says U8"),
    ("an offset unaligned", lambda d: d["files"][FIRST][EXPERT].update(offset=1), "not aligned"),
    ("an offset below 0", lambda d: d["files"][FIRST][EXPERT].update(offset=-ALIGN), "not a count"),
    ("a length beyond", lambda d: d["files"][FIRST][EXPERT].update(length=2**40, crc32=""), "crc32"),
    ("a length of 2^48", lambda d: d["files"][FIRST][EXPERT].update(length=2**48), "2\\^48"),
    ("no checksums", lambda d: d["files"][FIRST][EXPERT].update(crc32=""), "crc32"),
    ("checksums in other letters", lambda d: d["files"][FIRST][EXPERT].update(crc32="é" * 8), "crc32"),
    ("a tensor missing", lambda d: d["tensors"].pop(GATE), "weights need"),
    ("a tensor without a run", lambda d: d["tensors"].update(x=d["tensors"][GATE]), "there is no run"),
    ("an unknown format", lambda d: d["tensors"][GATE].update(format="int5"), "int5"),
    ("a format that is a list", lambda d: d["tensors"][GATE].update(format=["int4"]), "format"),
    ("another format", lambda d: d["tensors"][GATE].update(format="int8"), "weights need|not where"),
    ("another group", lambda d: d["tensors"][GATE].update(group=1), "weights need|not where"),
    ("a group of 0", lambda d: d["tensors"][GATE].update(group=0), "group"),
    ("an endless group", lambda d: d["tensors"][GATE].update(group=2**40), "group"),
    ("scales of another type", lambda d: d["tensors"][GATE].update(scales="f64"), "scales"),
    ("a shape of one", lambda d: d["tensors"][GATE].update(shape=[88]), "two sizes"),
    ("a shape of none", lambda d: d["tensors"][GATE].update(shape=[]), "one or two"),
    ("an empty shape", lambda d: d["tensors"][GATE].update(shape=[0, 40]), "empty"),
    ("an endless shape", lambda d: d["tensors"][GATE].update(shape=[2**30, 2**30]), "2\\^48"),
    ("codes elsewhere", lambda d: d["tensors"][GATE].update(data_at=64), "not where"),
    ("scales on the codes", lambda d: d["tensors"][GATE].update(scales_at=0), "not where"),
    ("a field too many", lambda d: d["tensors"][GATE].update(x=1), "has not exactly"),
    ("swapped shapes", lambda d: d["tensors"][GATE].update(shape=[40, 88]), "weights need|not where|shape"),
    ("a tokenizer outside", lambda d: d.update(tokenizer="../../etc/passwd"), "tokenizer"),
    ("a licence that is a list", lambda d: d.update(licence=[]), "licence"),
]


@pytest.mark.parametrize(("lie", "said"), [lie[1:] for lie in LIES], ids=[lie[0] for lie in LIES])
def test_a_description_that_lies_is_refused(copy: Path, lie: Callable[[dict[str, Any]], object], said: str) -> None:
    """The manifest agrees with the lie, so only the description's own checks can find it."""
    about = json.loads((copy / DESCRIPTION).read_text())
    lie(about)
    install(copy, json.dumps(about).encode())
    with pytest.raises(CheckpointError, match=said) as caught:
        NativeReader(copy)
    assert caught.value.path.parent == copy
    assert "\n" not in str(caught.value)
    assert not verify(copy)["ok"]


def install(folder: Path, description: bytes) -> None:
    (folder / DESCRIPTION).write_bytes(description)
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["files"][DESCRIPTION] = {"size": len(description), "sha256": hashlib.sha256(description).hexdigest()}
    (folder / MANIFEST).write_text(json.dumps(manifest))


@pytest.mark.parametrize("text", [
    b"", b"[]", b"{", b'{"version": NaN}', b'{"version": 1, "version": 1}', b'{"a":' * 100_000, b"\xff{}",
    b'{"version": ' + b"9" * 5000 + b"}",
], ids=["empty", "a list", "cut", "NaN", "a key twice", "deep", "not UTF-8", "a long number"])
def test_what_is_not_json_is_refused(copy: Path, text: bytes) -> None:
    install(copy, text)
    with pytest.raises(CheckpointError, match=DESCRIPTION):
        NativeReader(copy)
    (copy / MANIFEST).write_bytes(text)
    with pytest.raises(CheckpointError, match=MANIFEST):
        NativeReader(copy)


@pytest.mark.parametrize(("lie", "said"), [
    (lambda m: m["files"].update({"../../x": {"size": 0, "sha256": "0" * 64}}), "plain file name"),
    (lambda m: m["files"].update({".hidden": {"size": 0, "sha256": "0" * 64}}), "plain file name"),
    (lambda m: m["files"][FIRST].update(size=-1), "not a count"),
    (lambda m: m["files"][FIRST].update(size="1"), "not a count"),
    (lambda m: m["files"][FIRST].update(sha256="0" * 63), "64 hexadecimal"),
    (lambda m: m["files"].pop(DESCRIPTION), "does not list"),
    (lambda m: m["files"].pop(FIRST), "not in manifest"),
    (lambda m: m.update(files=None), "not a manifest"),
], ids=["a path", "a hidden file", "below 0", "text", "short", "no description", "no experts", "nothing"])
def test_a_manifest_that_lies_is_refused(copy: Path, lie: Callable[[dict[str, Any]], object], said: str) -> None:
    manifest = json.loads((copy / MANIFEST).read_text())
    lie(manifest)
    (copy / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match=said):
        NativeReader(copy)


def test_a_file_cut_after_opening_is_an_error_of_that_read(copy: Path) -> None:
    reader = NativeReader(copy)
    with (copy / FIRST).open("r+b") as file:
        file.truncate(ALIGN)
    with pytest.raises(CheckpointError, match=FIRST):
        reader.read_expert(0, 0)
    reader.read_expert(1, 0)  # the other files go on
