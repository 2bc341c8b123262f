"""The official checkpoint: what the reader returns is what the release's code computed, and what the writer writes is
what the release's pickles are, byte for byte.
"""

from __future__ import annotations

import base64
import dataclasses
import io
import json
import os
import pickle
import shutil
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch

from libremoe.config import GROK_1
from libremoe.errors import CheckpointError, LibremoeError
from libremoe.quant import QuantTensor
from libremoe.weights import check_names, open_checkpoint
from libremoe.weights.grok import GrokReader
from libremoe.weights.grok_layout import RELEASE_BYTES, config_json, parameters, read_config
from libremoe.weights.grok_writer import _ArrayPlan, _Pickler, write_checkpoint
from libremoe.weights.pickle_grammar import parse_shard

GOLDEN = Path(__file__).parent / "golden"
MODELS = ("tiny-grok1", "tiny-grok1-12l", "tiny-grok1-tp8")
SUM_TOLERANCE = 1e-9  # float64 sums of at most 400,000 values, added in another order; relative to their L1 norm

ROLES = {"moe/linear": "experts.gate", "moe/linear_1": "experts.down", "moe/linear_v": "experts.up",
         "multi_head_attention/key": "attn.k", "multi_head_attention/linear": "attn.o",
         "multi_head_attention/query": "attn.q", "multi_head_attention/value": "attn.v", "rms_norm": "attn_norm",
         "rms_norm_1": "attn_post_norm", "rms_norm_2": "ffn_norm", "rms_norm_3": "ffn_post_norm", "router": "router"}


def in_file_order(reader: GrokReader, module: str) -> np.ndarray:
    """A parameter dequantised as the release has it: (in, out), experts stacked. Its name is mapped here anew."""
    if module == "language_model/in_out_embed":
        return reader.read("embed.weight").numpy()
    if module == "language_model/rms_norm":
        return reader.read("norm.weight").numpy()
    layer, role = module.removeprefix("transformer/decoder_layer_").split("/", 1)
    prefix = f"layers.{layer}."
    if role.startswith("moe/"):
        part = ROLES[role].split(".")[1]
        names = [f"{prefix}experts.{e}.{part}.weight" for e in range(reader.config.n_experts)]
        return np.stack([reader.read(name).dequantize().t().numpy() for name in names])
    weight = reader.read(f"{prefix}{ROLES[role]}.weight")
    if isinstance(weight, QuantTensor):
        return weight.dequantize().t().numpy()
    return weight.t().numpy() if role == "router" else weight.numpy()


@pytest.mark.parametrize("model", MODELS)
def test_every_value_is_the_release_s(model: str) -> None:
    reader = open_checkpoint(GOLDEN / model)
    check_names(reader)
    for record in json.loads((GOLDEN / model / "manifest.json").read_text()):
        found = in_file_order(reader, record["module"])
        assert found.shape == tuple(record.get("weight_shape") or record["shape"])
        compare(record["value"], found)
        if "value_bf16_rounded" in record:
            compare(record["value_bf16_rounded"], torch.from_numpy(found.copy()).bfloat16().float().numpy())


def compare(wanted: dict[str, float], values: np.ndarray) -> None:
    flat = values.astype(np.float64).ravel()
    weights = (np.arange(flat.size) % 997 - 498).astype(np.float64)
    assert flat[0] == wanted["first"] and flat[-1] == wanted["last"]
    assert abs(flat.sum() - wanted["sum"]) <= SUM_TOLERANCE * np.abs(flat).sum()
    assert abs((flat * weights).sum() - wanted["weighted"]) <= SUM_TOLERANCE * np.abs(flat * weights).sum()
    assert abs(np.sqrt((flat**2).sum()) - wanted["l2"]) <= SUM_TOLERANCE * wanted["l2"]


@pytest.mark.parametrize("model", MODELS)
def test_matrices_in_full(model: str) -> None:
    reader = open_checkpoint(GOLDEN / model)
    with np.load(GOLDEN / model / "dequant.npz") as matrices:
        for key in matrices.files:
            module, _, piece = key.partition(":w")
            values = in_file_order(reader, module)
            if piece:  # "[3,:,:8]"
                values = values[int(piece[1])][:, :8]
            np.testing.assert_array_equal(values, matrices[key])


def test_layer_order_is_that_of_text() -> None:
    reader = open_checkpoint(GOLDEN / "tiny-grok1-12l")
    assert reader.entry("layers.1.router.weight").file.name == "tensor00025_000"
    assert reader.entry("layers.10.router.weight").file.name == "tensor00037_000"
    assert reader.entry("layers.2.router.weight").file.name == "tensor00061_000"


def same(a: object, b: object) -> bool:
    if isinstance(a, QuantTensor):
        return isinstance(b, QuantTensor) and (a.shape, a.group, a.layout) == (b.shape, b.group, b.layout) and \
            torch.equal(a.data, b.data) and torch.equal(a.scales, b.scales)
    return torch.equal(a, b) and a.dtype == b.dtype  # type: ignore[arg-type, attr-defined]


def test_expert_is_the_slice_and_mapping_changes_nothing() -> None:
    folder = GOLDEN / "tiny-grok1" / "ckpt-0"
    reader, mapped = GrokReader(folder), GrokReader(folder, mmap=True)
    for name in reader.names():
        weight, entry = reader.read(name), reader.entry(name)
        assert same(weight, mapped.read(name)) and tuple(weight.shape) == entry.shape
        assert weight.nbytes == entry.nbytes
        if not isinstance(weight, QuantTensor):
            assert weight.is_contiguous()
    for e in range(8):
        expert = reader.read_expert(2, e)
        for part, weight in (("gate", expert.gate), ("up", expert.up), ("down", expert.down)):
            assert same(weight, reader.read(f"layers.2.experts.{e}.{part}.weight"))
    first, file = reader.read("layers.0.experts.5.down.weight"), folder / "tensor00003_000"
    shard, raw = parse_shard(file), file.read_bytes()
    stack = np.frombuffer(raw, np.int8, shard.weight.nbytes, shard.weight.offset).reshape(shard.weight.shape)
    np.testing.assert_array_equal(first.data.numpy(), stack[5])
    with pytest.raises(CheckpointError, match="no tensor layers.9"):
        reader.read_expert(9, 0)


def copy_of(model: str, folder: Path) -> Path:
    shutil.copytree(GOLDEN / model / "ckpt-0", folder / "ckpt-0")
    shutil.copy(GOLDEN / model / "config.json", folder)
    return folder / "ckpt-0"


def test_config_in_the_folder_goes_before_the_one_above(tmp_path: Path) -> None:
    folder = copy_of("tiny-grok1-tp8", tmp_path)
    fields = json.loads((tmp_path / "config.json").read_text())
    fields |= {"pad_token": 3, "eos_token": 7, "sequence_len": 99}
    (folder / "config.json").write_text(json.dumps(fields))
    config = GrokReader(folder).config
    assert (config.pad_id, config.eos_id, config.context_len, config.hidden_dim) == (3, 7, 99, 344)
    assert GrokReader(folder).licence is None


@pytest.mark.parametrize("model", MODELS)
def test_writing_what_was_read_gives_the_same_bytes(model: str, tmp_path: Path) -> None:
    reader = open_checkpoint(GOLDEN / model)
    write_checkpoint(tmp_path / "new", reader.config, reader.read)
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == ["ckpt-0", "config.json"]
    assert read_config(tmp_path / "new" / "config.json") == reader.config
    for path in sorted((GOLDEN / model / "ckpt-0").iterdir()):
        assert (tmp_path / "new" / "ckpt-0" / path.name).read_bytes() == path.read_bytes()


def test_tiles_are_written_as_columns(tmp_path: Path) -> None:
    reader = open_checkpoint(GOLDEN / "tiny-grok1-tp8")
    quantised = (weight.to_tiles() if isinstance(weight, QuantTensor) else weight
                 for weight in map(reader.read, reader.names()))
    tiles = dict(zip(reader.names(), quantised, strict=True))
    write_checkpoint(tmp_path, reader.config, tiles.__getitem__)
    again = open_checkpoint(tmp_path)
    assert all(same(again.read(name), reader.read(name)) for name in reader.names())


def test_writer_refuses_and_leaves_nothing(tmp_path: Path) -> None:
    reader = open_checkpoint(GOLDEN / "tiny-grok1-tp8")

    def floats_only(name: str) -> torch.Tensor:
        weight = reader.read(name)
        return weight.dequantize() if isinstance(weight, QuantTensor) else weight

    with pytest.raises(LibremoeError, match="int8 weights only"):
        write_checkpoint(tmp_path / "a", reader.config, floats_only)
    assert list((tmp_path / "a").iterdir()) == []
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(LibremoeError, match="exists already"):
        write_checkpoint(tmp_path, reader.config, reader.read)
    assert [p.name for p in tmp_path.iterdir() if p.name != "a"] == ["config.json"]


class OldNumpy:
    """Reduces as an array of numpy 1 does, so that CPython's own pickler can be asked for its bytes."""

    def __init__(self, function: object, dtype: type, n: int) -> None:
        self.function, self.values = function, np.zeros(n, dtype)

    def __reduce__(self) -> tuple:
        _, args, state = self.values.__reduce__()
        return self.function, args, state


@pytest.mark.parametrize("n_scales", [1, 63, 64, 16_000, 16_383, 16_384, 20_000])
@pytest.mark.parametrize("n_codes", [1, 255, 256, 65_200, 65_300, 65_340, 65_380, 65_535, 65_536, 70_000])
def test_frames_are_those_of_cpython(n_codes: int, n_scales: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """CPython cuts frames near 64 KiB, at objects; around that size every byte of a header matters."""
    module = types.ModuleType("numpy.core.multiarray")

    def _reconstruct() -> None: ...

    _reconstruct.__module__, _reconstruct.__qualname__ = module.__name__, "_reconstruct"
    module._reconstruct = _reconstruct  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    holder = type("QuantizedWeight8bit", (), {"__module__": "__main__"})
    monkeypatch.setattr(sys.modules["__main__"], "QuantizedWeight8bit", holder, raising=False)
    weight = holder()
    weight.weight = OldNumpy(_reconstruct, np.int8, n_codes)
    weight.scales = OldNumpy(_reconstruct, np.float32, n_scales)
    wanted = io.BytesIO()
    pickle.Pickler(wanted, 4).dump(weight)

    file = io.BytesIO()
    codes = _ArrayPlan("int8", (n_codes,), [torch.zeros(n_codes, dtype=torch.int8)])
    scales = _ArrayPlan("float32", (n_scales,), [torch.zeros(n_scales)])
    _Pickler(file).quantised(codes, lambda: scales)
    assert file.getvalue() == wanted.getvalue()


def test_the_release_s_sizes(tmp_path: Path) -> None:
    """All 770 files of Grok-1, sparse: eight kinds are written, the rest are links. Sizes are those published."""
    kinds: dict[tuple, Path] = {}
    folder = tmp_path / "ckpt-0"
    folder.mkdir()
    for parameter in parameters(GROK_1):
        role = parameter.name.split(".")[-2]
        rows = 8 if role in ("o", "down") else 1
        kind = (parameter.shape, rows, parameter.quantised)
        if kind not in kinds:
            kinds[kind] = tmp_path / f"kind{len(kinds)}"
            with open(kinds[kind], "wb") as file:
                write_sparse(Sparse(file), parameter.shape, parameter.quantised, rows)
                file.truncate()
        assert kinds[kind].stat().st_size == RELEASE_BYTES[role]
        (folder / parameter.file).symlink_to(kinds[kind])
    reader = GrokReader(folder)
    check_names(reader)
    assert (reader.config, reader.licence) == (GROK_1, "Apache-2.0")
    assert sum(p.stat().st_size for p in folder.iterdir()) == 318_239_886_140
    key = reader.read("layers.63.attn.k.weight")
    assert key.shape == (1024, 6144) and not key.data.any()
    os.truncate(kinds[((6144,), 1, False)], 24_726)
    with pytest.raises(CheckpointError, match="has 24,726 bytes, the release's file has 24,727: download it again"):
        GrokReader(folder)


class Sparse:
    """A file in which long runs of zeros are holes."""

    def __init__(self, file: io.BufferedWriter):
        self.file = file

    def write(self, piece: bytes) -> None:
        if len(piece) < 1 << 16:
            self.file.write(piece)
        else:
            self.file.seek(len(piece), os.SEEK_CUR)


def write_sparse(file: Sparse, shape: tuple[int, ...], quantised: bool, rows: int) -> None:
    def zeros(dtype: str, shape: tuple[int, ...]) -> _ArrayPlan:
        left = torch.Size(shape).numel() * {"int8": 1, "bfloat16": 2, "float32": 4}[dtype]
        piece = torch.zeros(1 << 20, dtype=torch.uint8)
        parts = [piece] * (left >> 20) + [torch.zeros(left % (1 << 20), dtype=torch.uint8)]
        return _ArrayPlan(dtype, shape, parts)

    pickler = _Pickler(file)  # type: ignore[arg-type]
    if quantised:
        scales = (*shape[:-2], rows, shape[-1])
        pickler.quantised(zeros("int8", shape), lambda: zeros("bfloat16", scales))
    else:
        pickler.plain_array(zeros("float32", shape))


# What jax 0.4.25 with numpy 1.26 writes for a QuantizedWeight8bit of jax arrays: int8 [[-3, -2, -1], [0, 1, 2]] and
# bfloat16 [[0.5, 1, 2]].
OF_JAX = (
    "fCQC)0RR910001t2wz`qVQFq(UzCg!QFUQ%bZL5JWLITrXJ~XdVrg`glawielzo&aj0SgQX=iA3l#C8)VR$ZIb8=%YVRCX|d6bM2Uvgz*Z*FsR"
    "a&=>LUtw}`VR@93lqif9Zgp*Nc`jpba%C=Ub!>ELVRCX|d6bL{Uvgz*Z*FsRa&=>Ll#`T<1#We1aCwxB2X16xa&lpLl#`T80ELu80b-PglqgF9"
    "O9D#+hLmUwj0I$Ld2nTvla!1CX)%<Eh=-I?lqgFBi~)R<PEJlr|NsC0O8@`=|4RULlwyfP2L1m3009D&bd-IRD2xerWnpVyba`-Pl!=TBZeeX@"
    "WM6Y=VQ^)XeUx={lv0$826JO!Y-MwlXb3213uq2Y0ELuj5Qmf~O94v(O9O_KXcUYIZERm;ba`-PbCiq-VrFb_VRSJzl#`T+h=-I?lqgFBi~&59"
    "PEJls0!so*Ky;L1i9-eeKY%{~K$LWpeUvC@9f@cjeUx={lv0#+VlD"
)


def test_arrays_of_jax(tmp_path: Path) -> None:
    raw = base64.b85decode(OF_JAX)
    (tmp_path / "shard").write_bytes(raw)
    shard = parse_shard(tmp_path / "shard")
    assert shard.scales is not None
    assert (shard.weight.dtype, shard.weight.shape) == ("int8", (2, 3))
    assert (shard.scales.dtype, shard.scales.shape) == ("bfloat16", (1, 3))
    codes = np.frombuffer(raw, np.int8, 6, shard.weight.offset)
    scales = torch.frombuffer(bytearray(raw), dtype=torch.bfloat16, count=3, offset=shard.scales.offset)
    assert codes.tolist() == [-3, -2, -1, 0, 1, 2] and scales.tolist() == [0.5, 1, 2]


@pytest.mark.parametrize("shape", [(1,), (255,), (3, 70_001), (2, 3, 4)])
def test_arrays_of_this_numpy(shape: tuple[int, ...], tmp_path: Path) -> None:
    """numpy 2 names its module otherwise; the offset must be where the bytes are."""
    values = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    raw = pickle.dumps(values, 4)
    (tmp_path / "shard").write_bytes(raw)
    stored = parse_shard(tmp_path / "shard").weight
    assert (stored.dtype, stored.shape) == ("float32", shape)
    assert raw[stored.offset : stored.offset + stored.nbytes] == values.tobytes()


def test_a_file_that_changes_is_an_error_of_one_read(tmp_path: Path) -> None:
    folder = copy_of("tiny-grok1-tp8", tmp_path)
    reader = GrokReader(folder)
    file = reader.entry("layers.0.attn.q.weight").file
    os.truncate(file, 500)
    with pytest.raises(CheckpointError, match="changed since it was opened"):
        reader.read("layers.0.attn.q.weight")
    file.unlink()
    with pytest.raises(CheckpointError, match="cannot be opened: No such file"):
        reader.read("layers.0.attn.q.weight")
    assert reader.read("layers.0.attn.k.weight").shape == (64, 64)


def test_config_round_trip_and_its_limits(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(config_json(GROK_1))
    assert read_config(tmp_path / "config.json") == GROK_1
    for change in ({"norm_eps": 1e-6}, {"sliding_window": 9}, {"pad_id": None}, {"hidden_dim": 33_001}):
        with pytest.raises(LibremoeError):
            config_json(dataclasses.replace(GROK_1, **change))


def test_files_beside_a_symbolic_link_come_before_those_where_it_points(tmp_path: Path) -> None:
    far, near = tmp_path / "far", tmp_path / "near"
    shutil.copytree(GOLDEN / "tiny-grok1" / "ckpt-0", far / "ckpt-0")
    near.mkdir()
    (near / "ckpt-0").symlink_to(far / "ckpt-0")
    config = (GOLDEN / "tiny-grok1" / "config.json").read_text()
    (far / "config.json").write_text(config)
    (far / "tokenizer.json").write_text("{}")
    assert GrokReader(near / "ckpt-0").tokenizer == far / "tokenizer.json"
    (near / "config.json").write_text(config.replace('"sequence_len": 64', '"sequence_len": 32'))
    (near / "tokenizer.json").write_text("{}")
    reader = GrokReader(near / "ckpt-0")
    assert (reader.config.context_len, reader.tokenizer) == (32, near / "tokenizer.json")
    assert GrokReader(far / "ckpt-0").config.context_len == 64
