"""Malformed safetensors and GGUF files: each is refused by one line that names the file and the reason.

All run in one child process whose memory is limited to little more than it has after its imports, so that a parser
that allocates what a header claims dies there. Then valid headers are mutated at random: nothing but
CheckpointError may come out.
"""

import json
import math
import os
import struct
import subprocess
import sys

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_gguf import (
    GROK,
    LLAMA,
    array,
    config_keys,
    gguf_bytes,
    hand_made,
    info,
    key,
    packed_tensors,
    random_weights,
    string,
    text,
    u32,
)

from libremoe.errors import CheckpointError
from libremoe.weights.gguf import GGUFReader
from libremoe.weights.safetensors_header import MAX_HEADER_BYTES, parse_header, read_span

HEADROOM = 256 << 20  # bytes that the child may take beyond its imports; the lies below ask for up to 2^64
LIMIT_S = 10  # per file; a guard against endless work, the reader takes milliseconds

# safetensors


def safetensors_bytes(header, data=b"", length=None):
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw) if length is None else length) + raw + data


def tensor(start, stop, shape=None, dtype="F32"):
    return {"dtype": dtype, "shape": [(stop - start) // 4] if shape is None else shape, "data_offsets": [start, stop]}


ONE = {"a": tensor(0, 8)}
VALID_SAFETENSORS = safetensors_bytes({"__metadata__": {"k": "v"}, "a": tensor(0, 8), "b": tensor(8, 12)}, bytes(12))
ENTRY = '{"dtype":"F32","shape":[2],"data_offsets":[0,8]}'

SAFETENSORS = {
    "empty file": (b"", "0 bytes are too few"),
    "nine bytes": (bytes(9), "9 bytes are too few"),
    "length 2^63": (safetensors_bytes(ONE, bytes(8), length=1 << 63), "cut off or not safetensors"),
    "length 2^64 - 1": (safetensors_bytes(ONE, bytes(8), length=(1 << 64) - 1), "cut off or not safetensors"),
    "length one too many": (safetensors_bytes({}, length=3), "cut off or not safetensors"),
    "length zero": (safetensors_bytes(b"", bytes(8)), "does not begin with '{'"),
    "length too short": (safetensors_bytes(ONE, bytes(8), length=10), "not JSON"),
    "pickle": (b"\x80\x04" + bytes(40), "cut off or not safetensors"),
    "gguf": (gguf_bytes([], []), "cut off or not safetensors"),
    "list": (safetensors_bytes(b"[1, 2, 3]"), "does not begin with '{'"),
    "space first": (safetensors_bytes(b"  {}"), "does not begin with '{'"),
    "not UTF-8": (safetensors_bytes(b'{"\xff\xfe": 1}'), "not UTF-8"),
    "cut JSON": (safetensors_bytes(b'{"a": {"dtype"'), "not JSON"),
    "two objects": (safetensors_bytes(b"{} {}"), "not JSON"),
    "nested lists": (safetensors_bytes(b'{"a": ' + b"[" * 200_000 + b"]" * 200_000 + b"}"), "nested too deeply"),
    "nested objects": (safetensors_bytes(b'{"a":' * 100_000 + b"1" + b"}" * 100_000), "nested too deeply"),
    "duplicate tensor": (safetensors_bytes(f'{{"a":{ENTRY},"a":{ENTRY}}}'.encode(), bytes(8)), "'a' occurs twice"),
    "duplicate field": (safetensors_bytes(b'{"a":{"dtype":"F32","dtype":"U8"}}'), "'dtype' occurs twice"),
    "duplicate metadata": (safetensors_bytes(b'{"__metadata__":{"k":"1","k":"2"}}'), "'k' occurs twice"),
    "metadata list": (safetensors_bytes({"__metadata__": []}), "not an object of strings"),
    "metadata number": (safetensors_bytes({"__metadata__": {"k": 1}}), "not an object of strings"),
    "path name": (safetensors_bytes({"../../etc/passwd": tensor(0, 8)}, bytes(8)), "is not made of letters"),
    "dots name": (safetensors_bytes({"a..b": tensor(0, 8)}, bytes(8)), "is not made of letters"),
    "leading dot": (safetensors_bytes({".a": tensor(0, 8)}, bytes(8)), "is not made of letters"),
    "absolute name": (safetensors_bytes({"/a": tensor(0, 8)}, bytes(8)), "is not made of letters"),
    "empty name": (safetensors_bytes({"": tensor(0, 8)}, bytes(8)), "is not made of letters"),
    "newline name": (safetensors_bytes({"a\nb": tensor(0, 8)}, bytes(8)), "is not made of letters"),
    "NUL name": (safetensors_bytes({"a\0": tensor(0, 8)}, bytes(8)), "is not made of letters"),
    "foreign digits": (safetensors_bytes({"a\u0661": tensor(0, 8)}, bytes(8)), "is not made of letters"),
    "long name": (safetensors_bytes({"a" * 201: tensor(0, 8)}, bytes(8)), "is not made of letters"),
    "entry string": (safetensors_bytes({"a": "F32"}), "not exactly dtype, shape and data_offsets"),
    "missing field": (safetensors_bytes({"a": {"dtype": "F32", "shape": []}}), "not exactly dtype"),
    "extra field": (safetensors_bytes({"a": tensor(0, 8) | {"x": 1}}, bytes(8)), "not exactly dtype"),
    "unknown dtype": (safetensors_bytes({"a": tensor(0, 8, dtype="F31")}, bytes(8)), "dtype 'F31'"),
    "dtype list": (safetensors_bytes({"a": tensor(0, 8, dtype=["F32"])}, bytes(8)), "is not known"),
    "negative dim": (safetensors_bytes({"a": tensor(0, 8, [-2])}, bytes(8)), "positive integers"),
    "zero dim": (safetensors_bytes({"a": tensor(0, 0, [0])}), "positive integers"),
    "fraction dim": (safetensors_bytes({"a": tensor(0, 8, [2.0])}, bytes(8)), "positive integers"),
    "bool dim": (safetensors_bytes({"a": tensor(0, 4, [True])}, bytes(4)), "positive integers"),
    "huge dim": (safetensors_bytes({"a": tensor(0, 8, [1 << 48])}, bytes(8)), "not below 2^48"),
    "5000 digits": (safetensors_bytes(b'{"a":' + b"9" * 5000 + b"}"), "not below 2^48"),
    "NaN": (safetensors_bytes(b'{"a":NaN}'), "NaN is not a number"),
    "wrapping product": (safetensors_bytes({"a": tensor(0, 8, [1 << 32, 1 << 32, 2])}, bytes(8)), "its span has 8"),
    "nine dims": (safetensors_bytes({"a": tensor(0, 8, [1] * 8 + [2])}, bytes(8)), "at most 8"),
    "offsets three": (safetensors_bytes({"a": tensor(0, 8) | {"data_offsets": [0, 4, 8]}}, bytes(8)), "two integers"),
    "offsets negative": (safetensors_bytes({"a": tensor(0, 8) | {"data_offsets": [-8, 0]}}, bytes(8)), "two integers"),
    "ends before": (safetensors_bytes({"a": tensor(0, 8) | {"data_offsets": [8, 0]}}, bytes(8)), "ends before"),
    "wrong size": (safetensors_bytes({"a": tensor(0, 8, [3])}, bytes(8)), "12 bytes, but its span has 8"),
    "past the end": (safetensors_bytes({"a": tensor(0, 8)}, bytes(7)), "truncated"),
    "far past the end": (safetensors_bytes({"a": tensor(0, 1 << 46)}, bytes(8)), "truncated"),
    "overlap": (safetensors_bytes({"a": tensor(0, 8), "b": tensor(4, 12)}, bytes(12)), "b overlaps a"),
    "same span": (safetensors_bytes({"a": tensor(0, 8), "b": tensor(0, 8)}, bytes(8)), "overlaps"),
    "hole": (safetensors_bytes({"a": tensor(0, 8), "b": tensor(12, 16)}, bytes(16)), "b leaves a hole after a"),
    "hole at the start": (safetensors_bytes({"a": tensor(8, 16)}, bytes(16)), "leaves a hole after the header"),
    "trailing bytes": (safetensors_bytes(ONE, bytes(9)), "bytes that belong to no tensor follow"),
    "a million empty tensors": (
        safetensors_bytes(b"{" + b'"a":{"dtype":"F32","shape":[0],"data_offsets":[0,0]},' * 1_200_000 + b"}"),
        f"at most {MAX_HEADER_BYTES} are accepted",
    ),
    "many tensors": (safetensors_bytes(b"{" + b'"a":{"dtype"},' * 150_000 + b"}"), "more than 100000 tensors"),
}  # fmt: skip

# GGUF

LLAMA_KEYS = config_keys(LLAMA)
LLAMA_INFOS, LLAMA_DATA = packed_tensors(hand_made(LLAMA, random_weights(LLAMA)))
VALID_GGUF = gguf_bytes(LLAMA_KEYS, LLAMA_INFOS, LLAMA_DATA)
HEADER_BYTES = len(VALID_GGUF) - len(LLAMA_DATA)
U64 = struct.Struct("<Q").pack


def with_keys(*keys, **how):
    return gguf_bytes([*LLAMA_KEYS, *keys], LLAMA_INFOS, LLAMA_DATA, **how)


def with_infos(*infos, data=bytes(64), **how):
    return gguf_bytes(LLAMA_KEYS, list(infos), data, **how)


def without(name, *keys):
    kept = [k for k in LLAMA_KEYS if name.encode() not in k]
    return gguf_bytes([*kept, *keys], LLAMA_INFOS, LLAMA_DATA)


def nested(depth):
    return struct.pack("<IQ", 9, 1) * depth + struct.pack("<IQ", 4, 0)


GGUF = {
    "empty file": (b"", "not a GGUF file"),
    "magic only": (b"GGUF", "not a GGUF file"),
    "wrong magic": (gguf_bytes([], [], magic=b"GGML"), "not a GGUF file"),
    "safetensors": (VALID_SAFETENSORS, "not a GGUF file"),
    "version 1": (gguf_bytes([], [], version=1), "version 1 is not supported"),
    "version 4": (gguf_bytes([], [], version=4), "version 4 is not supported"),
    "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian files are not supported"),
    "2^63 tensors": (with_keys(n_tensors=1 << 63), "tensors: 9223372036854775808 do not fit"),
    "2^63 keys": (with_keys(n_keys=1 << 63), "keys: 9223372036854775808 do not fit"),
    "2^64 - 1 of both": (gguf_bytes([], [], bytes(32), n_tensors=(1 << 64) - 1, n_keys=(1 << 64) - 1), "do not fit"),
    "one tensor too many": (with_keys(n_tensors=len(LLAMA_INFOS) + 1), "bytes of a tensor name"),
    "one key too many": (gguf_bytes([], [], n_keys=1), "do not fit"),
    "5000 keys": (gguf_bytes([u32(f"k{i}", 0) for i in range(5000)], []), "at most 4096 are accepted"),
    "200,000 tensors": (gguf_bytes([], [], bytes(40 * 200_000), n_tensors=200_000), "at most 100000 are accepted"),
    "4 M elements in 49 bytes": (
        b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + text("k") + struct.pack("<IIQ", 9, 8, 4_000_000), "do not fit"),
    "2^63 numbers": (with_keys(array("k", 4, 1 << 63, b"")), "numbers of k: 9223372036854775808 do not fit"),
    "2^61 numbers": (with_keys(array("k", 10, 1 << 61, b"")), "do not fit"),
    "2^63 strings": (with_keys(array("k", 8, 1 << 63, b"")), "strings of k: 9223372036854775808 do not fit"),
    "long string": (with_keys(key("k", 8, U64(1 << 62))), "do not fit"),
    "string length -1": (with_keys(key("k", 8, U64((1 << 64) - 1))), "do not fit"),
    "string past the end": (gguf_bytes([key("k", 8, U64(100))], []), "do not fit"),
    "key length 2^63": (gguf_bytes([U64(1 << 63)], [], bytes(40)), "do not fit"),
    "key of 2000 bytes": (with_keys(u32("k" * 2000, 1)), "at most 1024 are accepted"),
    "empty key": (with_keys(u32("", 1)), "is not ASCII text"),
    "key not ASCII": (with_keys(u32("kä", 1)), "is not ASCII text"),
    "duplicate key": (with_keys(u32("k", 1), u32("k", 2)), "key 'k' occurs twice"),
    "value type 13": (with_keys(key("k", 13, b"")), "value type 13, which is not known"),
    "value type 2^32 - 1": (with_keys(key("k", (1 << 32) - 1, b"")), "which is not known"),
    "element type 99": (with_keys(array("k", 99, 0, b"")), "element type 99 is not supported"),
    "array in an array": (with_keys(key("k", 9, nested(1))), "arrays of arrays are not supported"),
    "nested 100 deep": (with_keys(key("k", 9, nested(100))), "arrays of arrays are not supported"),
    "nested 50,000 deep": (with_keys(key("k", 9, nested(50_000))), "arrays of arrays are not supported"),
    "alignment 0": (with_keys(u32("general.alignment", 0)), "general.alignment 0 is not a multiple of 8"),
    "alignment 3": (with_keys(u32("general.alignment", 3)), "general.alignment 3 is not"),
    "alignment 2^31": (with_keys(u32("general.alignment", 1 << 31)), "is not a multiple of 8"),
    "alignment text": (with_keys(string("general.alignment", "32")), "is not a multiple of 8"),
    "alignment list": (with_keys(array("general.alignment", 4, 1, bytes(4))), "is not a multiple of 8"),
    "no dims": (with_infos(info("token_embd.weight", [])), "0 dimensions"),
    "five dims": (with_infos(info("a", [1] * 5)), "5 dimensions"),
    "2^32 - 1 dims": (with_infos(info("a", [1], n_dims=(1 << 32) - 1)), "4294967295 dimensions"),
    "dim zero": (with_infos(info("a", [0, 4])), "impossible dimensions"),
    "dim 2^63": (with_infos(info("a", [1 << 63])), "impossible dimensions"),
    "product wraps to zero": (with_infos(info("a", [1 << 32, 1 << 32])), "impossible dimensions"),
    "product wraps to one": (with_infos(info("a", [(1 << 33) + 1, (1 << 47) + 1, 3, 1])), "impossible dimensions"),
    "offset 2^63": (with_infos(info("a", [4], offset=1 << 63)), "impossible dimensions"),
    "offset 7": (with_infos(info("a", [4], offset=7)), "no multiple of 32"),
    "half a block": (with_infos(info("a", [48, 2], kind=8)), "comes in blocks of 32"),
    "type 3": (with_infos(info("a", [32], kind=3)), "storage type 3, which is not supported; these are: f32"),
    "type 2^32 - 1": (with_infos(info("a", [32], kind=(1 << 32) - 1)), "which is not supported"),
    "path as a name": (with_infos(info("../a", [4])), "is not made of letters"),
    "name of 65 bytes": (with_infos(info("a" * 65, [4])), "at most 64 are accepted"),
    "name not ASCII": (with_infos(info("ä", [4])), "is not made of letters"),
    "duplicate tensor": (with_infos(info("a", [4]), info("a", [4], offset=32)), "tensor a occurs twice"),
    "overlap": (with_infos(info("a", [16]), info("b", [4], offset=32)), "b overlaps a"),
    "same place": (with_infos(info("a", [4]), info("b", [4])), "overlaps"),
    "hole": (with_infos(info("a", [4]), info("b", [4], offset=64), data=bytes(96)), "b leaves a hole after a"),
    "hole at the start": (with_infos(info("a", [4], offset=32)), "a leaves a hole after the header"),
    "past the end": (with_infos(info("a", [64])), "the file is truncated"),
    "4 TB in 64 bytes": (with_infos(info("a", [1 << 40])), "the file is truncated"),
    "no architecture": (without("general.architecture"), "architecture 'None' is not supported"),
    "other architecture": (without("general.architecture", string("general.architecture", "gpt2")),
                           "architecture 'gpt2' is not supported; these are: grok, llama"),
    "architecture number": (without("general.architecture", u32("general.architecture", 7)), "is not supported"),
    "no embedding": (with_infos(info("a", [4])), "tensor token_embd.weight is missing"),
    "no layers key": (without("block_count"), "key llama.block_count is missing"),
    "layers as text": (without("block_count", string("llama.block_count", "2")), "must be one small integer"),
    "layers 2^32 - 1": (without("block_count", u32("llama.block_count", (1 << 32) - 1)), "one small integer"),
    "layers 2^31 - 1": (without("block_count", u32("llama.block_count", (1 << 31) - 1)), "are too many"),
    "layers 3": (without("block_count", u32("llama.block_count", 3)), "blk.2.attn_norm.weight is missing"),
    "no heads": (without("head_count", u32("llama.attention.head_count", 0)), "n_heads must be a positive integer"),
    "kv heads by layer": (
        without("head_count_kv", array("llama.attention.head_count_kv", 4, 2, bytes(4) + b"\1" * 4)),
        "must be one small integer"),
    "experts 2^31 - 1": (without("expert_count", u32("llama.expert_count", (1 << 31) - 1)), "at most 1024"),
    "experts without tensors": (
        gguf_bytes([k for k in LLAMA_KEYS if b"expert" not in k]
                   + [u32("llama.expert_count", 8), u32("llama.expert_used_count", 2)], LLAMA_INFOS, LLAMA_DATA),
        "ffn_gate_inp.weight is missing"),
    "theta zero": (with_keys(key("llama.rope.freq_base", 6, bytes(4))), "rope_theta must be a positive number"),
    "theta NaN": (with_keys(key("llama.rope.freq_base", 6, struct.pack("<f", math.nan))), "must be a positive number"),
    "split without a name": (with_keys(key("split.count", 2, b"\2\0")), "is one of 2 split files but not named"),
    "65,535 splits": (with_keys(key("split.count", 2, b"\xff\xff")), "is one of 65535 split files"),
}  # fmt: skip

CHILD = """
import json, resource, signal, sys, time
from libremoe.errors import CheckpointError
from libremoe.weights.gguf import GGUFReader
from libremoe.weights.safetensors_header import parse_header

def too_long(signum, frame):
    raise TimeoutError("took too long")

signal.signal(signal.SIGALRM, too_long)
vm_bytes = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (vm_bytes + int(sys.argv[1]),) * 2)
seen = {}
for path in sys.stdin.read().splitlines():
    signal.setitimer(signal.ITIMER_REAL, float(sys.argv[2]))
    try:
        GGUFReader(path) if path.endswith(".gguf") else parse_header(path)
        seen[path] = ["accepted", ""]
    except BaseException as error:
        seen[path] = [type(error).__name__, str(error)]
    signal.setitimer(signal.ITIMER_REAL, 0)
print(json.dumps(seen))
"""


@pytest.fixture(scope="module")
def verdicts(tmp_path_factory):
    """name -> (path, exception, message) of every file above and of every cut of the two valid ones."""
    folder = tmp_path_factory.mktemp("hostile")
    files = {}
    kinds = (("safetensors", SAFETENSORS, VALID_SAFETENSORS), ("gguf", GGUF, VALID_GGUF))
    for kind, cases, valid in kinds:
        for i, (name, (raw, _)) in enumerate(cases.items()):
            files[kind, name] = folder / f"case{i}.{kind}", raw
        files[kind, "valid"] = folder / f"valid.{kind}", valid
        for length in cuts(valid):
            files[kind, f"cut {length}"] = folder / f"cut{length}.{kind}", valid[:length]
    for path, raw in files.values():
        path.write_bytes(raw)
    child = subprocess.run(
        [sys.executable, "-c", CHILD, str(HEADROOM), str(LIMIT_S)], input="\n".join(str(p) for p, _ in files.values()),
        capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert child.returncode == 0, child.stderr[-2000:]
    seen = json.loads(child.stdout)
    return {name: (path, *seen[str(path)]) for name, (path, _) in files.items()}


def cuts(valid):
    header = len(valid) if len(valid) < 1000 else HEADER_BYTES
    return sorted({*range(0, header, 7), header - 1, header, len(valid) - 1, (header + len(valid)) // 2} - {len(valid)})


def check_refused(verdict, reason):
    path, exception, message = verdict
    assert exception == "CheckpointError", (exception, message[:300])
    assert message.startswith(f"{path}: ") and reason in message
    assert "\n" not in message and len(message) < len(str(path)) + 400


@pytest.mark.parametrize("name", SAFETENSORS)
def test_malformed_safetensors_is_refused(verdicts, name):
    check_refused(verdicts["safetensors", name], SAFETENSORS[name][1])


@pytest.mark.parametrize("name", GGUF)
def test_malformed_gguf_is_refused(verdicts, name):
    check_refused(verdicts["gguf", name], GGUF[name][1])


def test_the_unmutated_files_are_accepted(verdicts):
    assert verdicts["safetensors", "valid"][1] == verdicts["gguf", "valid"][1] == "accepted"


@pytest.mark.parametrize("kind", ["safetensors", "gguf"])
def test_every_cut_is_refused(verdicts, kind):
    cut = [verdict for name, verdict in verdicts.items() if name[0] == kind and name[1].startswith("cut ")]
    assert len(cut) > 20
    for verdict in cut:
        check_refused(verdict, "")


def test_things_that_are_no_files(tmp_path):
    os.mkfifo(tmp_path / "fifo.gguf")
    (tmp_path / "folder.gguf").mkdir()
    reasons = {"fifo": "not a regular file", "folder": "not a regular file", "none": "cannot be opened"}
    for name, reason in reasons.items():
        for parse in (GGUFReader, parse_header):
            with pytest.raises(CheckpointError, match=reason):
                parse(tmp_path / f"{name}.gguf")
    with pytest.raises(CheckpointError, match="not a file name"):
        parse_header("a\0b")


def test_span_of_a_file_that_has_shrunk(tmp_path):
    path = tmp_path / "a.safetensors"
    path.write_bytes(VALID_SAFETENSORS)
    span = parse_header(path).tensors["b"]
    assert torch.equal(read_span(path, span), torch.zeros(1))
    path.write_bytes(VALID_SAFETENSORS[:-1])
    with pytest.raises(CheckpointError, match="1 bytes too early"):
        read_span(path, span)


INTERESTING = st.sampled_from(
    [bytes(8), b"\xff" * 8, U64(1 << 63), U64(1 << 48), U64(1), b"\x09\0\0\0\x09\0\0\0", b"{", b"]"]
)


@st.composite
def mutations(draw, header_bytes):
    """A few edits (overwrite, insert, delete) inside the header."""
    edit = st.tuples(st.sampled_from("oid"), st.integers(0, header_bytes - 1),
                     st.one_of(st.binary(min_size=1, max_size=9), INTERESTING))  # fmt: skip
    return draw(st.lists(edit, min_size=1, max_size=4))


def mutated(raw, edits):
    raw = bytearray(raw)
    for what, at, content in edits:
        raw[at : at + (0 if what == "i" else len(content))] = b"" if what == "d" else content
    return bytes(raw)


FUZZ = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@FUZZ
@given(edits=mutations(len(VALID_SAFETENSORS) - 12))
def test_mutated_safetensors_headers(tmp_path, edits):
    path = tmp_path / "a.safetensors"
    path.write_bytes(mutated(VALID_SAFETENSORS, edits))
    try:
        header = parse_header(path)
    except CheckpointError as error:
        assert "\n" not in str(error)
    else:
        assert sum(span.nbytes for span in header.tensors.values()) == header.file_size - header.data_start
        for span in header.tensors.values():
            assert tuple(read_span(path, span).shape) == span.shape


@pytest.mark.parametrize("config", [LLAMA, GROK], ids=["llama", "grok"])
@FUZZ
@given(data=st.data())
def test_mutated_gguf_headers(tmp_path, config, data):
    infos, weights = FUZZED[config.family]
    valid = gguf_bytes(config_keys(config), infos, weights)
    edits = data.draw(mutations(len(valid) - len(weights)))
    path = tmp_path / "a.gguf"
    path.write_bytes(mutated(valid, edits))
    try:
        reader = GGUFReader(path)
    except CheckpointError as error:
        assert "\n" not in str(error)
    else:
        assert all(tuple(reader.read(name).shape) == reader.entry(name).shape for name in reader.names())


FUZZED = {config.family: packed_tensors(hand_made(config, random_weights(config))) for config in (LLAMA, GROK)}
