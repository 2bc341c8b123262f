"""Files that try to do harm, or are merely wrong, for tests of the official checkpoint's reader.

shards(good) and configs() yield name -> content, folders() name -> a change of a good checkpoint. Everything is made
from opcodes by hand; nothing here is ever unpickled except by the test that shows that the canaries sing.
"""

from __future__ import annotations

import io
import json
import os
import random
import struct
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

Change = Callable[[Path], None]  # spoils a copy of a good checkpoint: folder/ckpt-0 and folder/config.json


def text(s: str) -> bytes:
    return b"\x8c" + bytes([len(s)]) + s.encode()


def stack_global(module: str, name: str) -> bytes:
    return text(module) + text(name) + b"\x93"


CALLS = {  # what an attacker would call, with the opcodes of the arguments
    "os.system": ("os", "system", text("true") + b"\x85"),
    "posix.system": ("posix", "system", text("true") + b"\x85"),
    "nt.system": ("nt", "system", text("true") + b"\x85"),
    "eval": ("builtins", "eval", text("1+1") + b"\x85"),
    "exec": ("builtins", "exec", text("x=1") + b"\x85"),
    "compile": ("builtins", "compile", text("1") + text("f") + text("eval") + b"\x87"),
    "import": ("builtins", "__import__", text("this") + b"\x85"),
    "open": ("builtins", "open", text("canary") + text("w") + b"\x86"),
    "getattr": ("builtins", "getattr", text("a") + text("__class__") + b"\x86"),
    "popen": ("subprocess", "Popen", text("true") + b"\x85"),
    "check_output": ("subprocess", "check_output", text("true") + b"\x85"),
    "socket": ("socket", "create_connection", text("localhost") + b"K\x09\x86\x85"),
    "rmtree": ("shutil", "rmtree", text("canary") + b"\x85"),
    "remove": ("os", "remove", text("canary") + b"\x85"),
    "runpy": ("runpy", "run_path", text("canary") + b"\x85"),
    "pickle": ("pickle", "loads", b"C\x02N.\x85"),
    "marshal": ("marshal", "loads", b"C\x01N\x85"),
    "ctypes": ("ctypes", "CDLL", text("libc.so.6") + b"\x85"),
    "dotted": ("numpy", "ndarray.__reduce__", b")"),
    "numpy.load": ("numpy", "load", text("canary") + b"\x85"),
    "numpy runstring": ("numpy.testing._private.utils", "runstring", text("1") + b"}\x86"),
    "numpy other": ("numpy.core.multiarray", "fromfile", text("canary") + b"\x85"),
    "torch.load": ("torch", "load", text("canary") + b"\x85"),
    "main other": ("__main__", "__builtins__", b")"),
    "codecs": ("_codecs", "encode", text("a") + b"\x85"),
    "copyreg": ("copyreg", "_reconstructor", b"NNN\x87"),
    "operator": ("operator", "attrgetter", text("a") + b"\x85"),
    "near miss": ("numpy", "ndarray ", b")"),
    "near miss case": ("Numpy", "ndarray", b")"),
    "newline": ("numpy\n", "ndarray", b")"),
    "empty": ("", "", b")"),
}


def calls() -> Iterator[tuple[str, bytes]]:
    """The same call through each opcode that can name something."""
    for name, (module, function, args) in CALLS.items():
        yield f"stack_global {name}", b"\x80\x04" + stack_global(module, function) + args + b"R."
        line = f"{module}\n{function}\n".encode()
        yield f"global {name}", b"\x80\x04c" + line + args + b"R."
        yield f"protocol 0 {name}", b"c" + line + b"(tR."
        yield f"newobj {name}", b"\x80\x04" + stack_global(module, function) + args + b"\x81."
        yield f"inst {name}", b"\x80\x04(i" + line + b"."
    system = stack_global("os", "system")
    yield "obj", b"\x80\x04(" + system + text("true") + b"o."
    yield "obj with global", b"\x80\x04(cos\nsystem\n" + text("true") + b"o."
    yield "newobj_ex", b"\x80\x04" + system + text("true") + b"\x85}\x92."
    yield "newobj_ex of a known name", b"\x80\x04" + stack_global("numpy", "ndarray") + b")}\x92."
    yield "newobj of ndarray", b"\x80\x04" + stack_global("numpy", "ndarray") + b"K\x01\x85\x81."
    yield "reduce ndarray", b"\x80\x04" + stack_global("numpy", "ndarray") + b"J\xff\xff\xff\x7f\x85R."
    yield "reduce dtype of objects", b"\x80\x04" + stack_global("numpy", "dtype") + text("O") + b"\x89\x88\x87R."
    yield "reduce bfloat16", b"\x80\x04" + stack_global("ml_dtypes", "bfloat16") + b"K\x01\x85R."
    yield "reduce jax", b"\x80\x04" + stack_global("jax._src.array", "_reconstruct_array") + b"(NNNNtR."
    inner = stack_global("numpy.core.multiarray", "_reconstruct")
    yield "jax calls dtype", b"\x80\x04" + stack_global("jax._src.array", "_reconstruct_array") + b"(" + \
        stack_global("numpy", "dtype") + b"NNNtR."
    yield "jax without arguments", b"\x80\x04" + stack_global("jax._src.array", "_reconstruct_array") + b"(" + \
        inner + b"NNNtR."
    yield "reduce a text", b"\x80\x04" + text("eval") + b")R."
    yield "build a text", b"\x80\x04" + text("eval") + b"}b."
    for code, argument in ((0x82, b"\x01"), (0x83, b"\x01\x00"), (0x84, b"\x01\x00\x00\x00")):
        yield f"ext {code:#x}", b"\x80\x04" + bytes([code]) + argument + b")R."
    yield "persid", b"\x80\x04Pcanary\n."
    yield "binpersid", b"\x80\x04" + text("canary") + b"Q."


def bombs(good: bytes) -> Iterator[tuple[str, bytes]]:
    """Small files that ask for much."""
    frame = b"\x80\x04"
    yield "memo 2^27", frame + b"Nr\x00\x00\x00\x08."
    yield "memo 2^32", frame + b"Nr\xff\xff\xff\xff."
    yield "memo put text 2^27", frame + b"Np134217728\n."
    yield "get 2^31", frame + b"j\x00\x00\x00\x80."
    yield "put on nothing", frame + b"\x94."
    yield "put on a mark", frame + b"(\x94."
    yield "memo twice", frame + b"Nq\x00q\x00."
    yield "memoize for ever", frame + b"N" + b"\x94" * 5000 + b"."
    yield "opcodes for ever", frame + b"N\x85" * 5000 + b"."
    yield "deep tuple", frame + b"N" + b"\x85" * 990 + b"."
    doubling = b"".join(b"h" + bytes([i]) + b"\x86\x94" for i in range(200))
    yield "doubling tuples", frame + b"N\x85\x94" + doubling + b"."
    yield "marks for ever", frame + b"(" * 100_000
    yield "stack for ever", frame + b"K\x01" * 100_000 + b"."
    yield "empty tuples", frame + b")" * 4000
    for size in (1 << 20, 1 << 31, (1 << 32) - 1):
        yield f"binbytes {size}", frame + b"B" + struct.pack("<I", size) + b"x"
        yield f"binunicode {size}", frame + b"X" + struct.pack("<I", size) + b"x"
    for size in (1 << 32, 1 << 47, 1 << 48, 1 << 60, (1 << 63) - 1, (1 << 64) - 1):
        yield f"binbytes8 {size}", frame + b"\x8e" + struct.pack("<Q", size) + b"x"
        yield f"binunicode8 {size}", frame + b"\x8d" + struct.pack("<Q", size) + b"x"
        yield f"bytearray8 {size}", frame + b"\x96" + struct.pack("<Q", size) + b"x"
        yield f"frame {size}", frame + b"\x95" + struct.pack("<Q", size) + good[11:]
    yield "long4 2^31", frame + b"\x8b\xff\xff\xff\x7f1."
    yield "long1", frame + b"\x8a\xff" + b"\x7f" * 255 + b"."
    yield "int text", frame + b"I" + b"9" * 5000 + b"\n."
    yield "string without end", frame + b"S'" + b"a" * 10_000
    yield "long text", frame + b"X\x00\x10\x00\x00" + b"a" * 4096 + b"."


def damaged(good: bytes) -> Iterator[tuple[str, bytes]]:
    """A good shard of one float32 array (two dimensions, at least 16 of the second) with one thing wrong."""
    frame_at = 2

    def unframed(data: bytes) -> bytes:
        return data[:frame_at] + data[frame_at + 9 :]

    plain = unframed(good)
    yield "empty", b""
    yield "one byte", b"\x80"
    yield "protocol only", b"\x80\x04"
    yield "protocol and stop", b"\x80\x04."
    for protocol in (0, 1, 2, 3, 5, 6, 255):
        yield f"protocol {protocol}", b"\x80" + bytes([protocol]) + good[2:]
    yield "no protocol", good[2:]
    yield "protocol twice", good[:2] + good
    yield "trailing byte", good + b"\x00"
    yield "trailing pickle", good + b"\x80\x04cos\nsystem\n(S'true'\ntR."
    yield "twice", good + good
    yield "frame in frame", good[:11] + b"\x95" + struct.pack("<Q", 4) + good[11:]
    yield "frame too short", good[:3] + struct.pack("<Q", 10) + good[11:]
    yield "frame ends in the bytes", good[:3] + struct.pack("<Q", 1000) + good[11:]
    yield "frame longer by one", good[:3] + struct.pack("<Q", struct.unpack("<Q", good[3:11])[0] + 1) + good[11:]
    ends = {"reconstruct": b"R\x94(", "shape": b"\x86\x94h", "dtype": b"t\x94b", "payload": b"t\x94b."}
    for name, end in ends.items():
        cut = plain.rfind(end) if name == "payload" else plain.find(end)
        if cut > 0:
            yield f"stops after {name}", plain[: cut + 1] + b"."
    i = plain.index(b"R\x94(") + 1
    yield "freed memory", plain[:i] + b"."  # the 67 bytes that make numpy show what it does not own
    yield "freed memory, memoised", plain[: i + 1] + b"."
    yield "stop before build", plain[:-2] + b"."
    yield "built twice", plain[:-1] + b"Nb."
    yield "popped", plain[:-1] + b"0."
    yield "doubled", plain[:-1] + b"2."
    yield "two arrays", plain[:-1] + plain[2:]
    yield "in a tuple", plain[:-1] + b"\x85."
    yield "in a list", b"\x80\x04](" + plain[2:-1] + b"e."
    yield "in a dictionary", b"\x80\x04}" + text("weight") + plain[2:-1] + b"s."
    for old, new in ((b"f4", b"O8"), (b"f4", b"f8"), (b"f4", b"S4"), (b"f4", b"V4"), (b"f4", b"U4"), (b"f4", b"i4"),
                     (b"f4", b"i1"), (b"f4", b"|O"), (b"f4", b"c8"), (b"f4", b"b1"), (b"f4", b"M8"),
                     (b"\x8c\x01<", b"\x8c\x01>"), (b"\x8c\x01<", b"\x8c\x01="), (b"\x8c\x01<", b"\x8c\x01|"),
                     (b"NNN", b"NN}"), (b"NNN", b"N))"), (b"J\xff\xff\xff\xffK\x00", b"J\xff\xff\xff\xffK\x3f"),
                     (b"J\xff\xff\xff\xffJ", b"J\x08\x00\x00\x00J"), (b"t\x94b\x89", b"t\x94b\x88"),
                     (b"\x89\x88\x87", b"\x88\x88\x87"), (b"\x89\x88\x87", b"\x89\x89\x87"), (b"C\x01b", b"C\x01c"),
                     (b"K\x00\x85", b"K\x01\x85"), (b"(K\x01", b"(K\x02"), (b"(K\x03", b"(K\x04"),
                     (b"ndarray", b"matrix_"), (b"_reconstruct", b"_reconstrucT"), (b"numpy.core", b"numpy/core"),
                     (b"h\x03", b"h\x02"), (b"h\x03", b"h\x7f"), (b"h\x03", b"N\x94"), (b"B\x00", b"B\x01"),
                     (b"R\x94(", b"R\x94)"), (b"\x93", b"R")):
        if old in good:
            yield f"{old!r} becomes {new!r}", good.replace(old, new, 1)
    shape_at = plain.index(b"R\x94(K\x01") + 5
    shape_end = plain.index(b"\x94", shape_at) - 1  # TUPLEn of the shape
    state, rest = plain[:shape_at], plain[shape_end + 1 :]
    for name, shape in (
        ("no dimension", b")"), ("negative", b"J\xff\xff\xff\xffJ\xff\xff\xff\xff\x86"), ("zero", b"K\x00\x85"),
        ("transposed product off", b"K\x03K\x05\x86"), ("huge", b"J\xff\xff\xff\x7fJ\xff\xff\xff\x7f\x86"),
        ("overflow to the true size", b"(" + b"J\x00\x00\x00\x40" * 3 + b"t"), ("text", text("16") + b"\x85"),
        ("true", b"\x88\x85"), ("none", b"N\x85"), ("nested", b"K\x10\x85\x85"), ("list", b"](K\x10e"),
        ("58 dimensions", b"(" + b"K\x01" * 58 + b"t"), ("9 dimensions", b"(" + b"K\x01" * 9 + b"t"),
        ("a number", b"K\x10"),
    ):
        yield f"shape {name}", state + shape + rest
    yield "zip", zipped({"data.pkl": good})
    yield "torch zip", zipped({"archive/data.pkl": good, "archive/version": b"3\n"})
    yield "npy", b"\x93NUMPY\x01\x00v\x00{'descr': '<f4', 'fortran_order': False, 'shape': (4,), }" + b" " * 60 + b"\n"
    yield "gzip", b"\x1f\x8b\x08\x00" + bytes(100)
    yield "safetensors", struct.pack("<Q", 2) + b"{}"
    yield "html", b"<!DOCTYPE html><html>404</html>"
    yield "git lfs pointer", b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 24727\n"
    yield "zeros", bytes(len(good))
    yield "ones", b"\xff" * len(good)


def zipped(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return out.getvalue()


def truncations(good: bytes, payload: range) -> Iterator[tuple[str, bytes]]:
    for n in [*range(1, payload.start + 3), *range(payload.stop - 3, len(good))]:
        yield f"cut at {n}", good[:n]


def quantised_damage(good: bytes) -> Iterator[tuple[str, bytes]]:
    """A good shard of a QuantizedWeight8bit with one thing wrong; all are as long as they were where frames matter."""
    for old, new in ((b"QuantizedWeight8bit", b"QuantizedWeight9bit"), (b"__main__", b"__mane__"),
                     (b"weight", b"weighs"), (b"scales", b"weight"), (b"scales", b"scaled"), (b"i1", b"u1"),
                     (b"i1", b"f4"), (b"bfloat16", b"float8__"), (b"ml_dtypes", b"os_dtypes"), (b"u" + b"b.", b"ub0"),
                     (b"ub.", b"bb."), (b")\x81", b"N\x81"), (b"}\x94(", b"]\x94("), (b"ub.", b"sb."),
                     (b"K\x02K\x02K\x40", b"K\x02K\x02K\x41"), (b"K\x02K\x02K\x40", b"K\x04K\x02K\x40")):
        if old in good:
            at = good.rfind(old) if old.startswith(b"u") else good.index(old)
            yield f"quantised: {old!r} becomes {new!r}", good[:at] + new + good[at + len(old) :]


def shards(good: bytes, payload: range, quantised: bytes) -> dict[str, bytes]:
    """name -> content of files that must all be refused. good: a float32 shard whose array bytes lie at payload."""
    return dict([*calls(), *bombs(good), *damaged(good), *truncations(good, payload), *quantised_damage(quantised)])


def configs(good: bytes) -> dict[str, bytes]:
    """name -> content of config.json files that must all be refused."""
    fields = json.loads(good)
    found = {"empty": b"", "list": b"[]", "null": b"null", "number": b"7", "text": b'"model"', "no JSON": b"{vocab: 1}",
             "not UTF-8": b'{"vocab_size": "\xff\xfe"}', "deep list": b"[" * 100_000, "cut": good[: len(good) // 2],
             "deep object": b'{"a":' * 50_000, "no model": b"{}", "model is a list": b'{"model": []}',
             "twice": good.replace(b'"pad_token": 0', b'"pad_token": 0, "pad_token": 1'),
             "twice inside": good.replace(b'"key_size":', b'"key_size": 8, "key_size":'),
             "digits": good.replace(b'"vocab_size": 512', b'"vocab_size": ' + b"9" * 5000),
             "unknown field\n": good.replace(b'"pad_token"', b'"pad\\n_token"'),
             "large": b" " * (2 << 20) + good}
    for where, names in (("", list(fields)), ("model", list(fields["model"]))):
        for name in names:
            if name in ("model", "embedding_init_scale", "shard_activations", "data_axis", "model_axis"):
                continue
            for label, value in (("negative", "-1"), ("huge", str(10**30)), ("2^31", str(1 << 31)), ("NaN", "NaN"),
                                 ("infinite", "Infinity"), ("1e999", "1e999"), ("text", '"8"'), ("null", "null"),
                                 ("true", "true"), ("list", "[8]"), ("object", "{}"), ("missing", None)):
                if value == str(1 << 31) and name.endswith(("scale", "multiplier", "factor")):
                    continue
                found[f"{where} {name} {label}".strip()] = replaced(fields, where, name, value)
    return found


def replaced(fields: dict, where: str, name: str, value: str | None) -> bytes:
    fields = json.loads(json.dumps(fields))
    inner = fields[where] if where else fields
    inner[name] = "@"
    if value is None:
        del inner[name]
    return json.dumps(fields).replace('"@"', value or "").encode()


def folders() -> dict[str, Change]:
    """name -> how to spoil a copy of tiny-grok1-tp8; each must be refused."""

    def ckpt(change: Callable[[Path], object]) -> Change:
        return lambda folder: (change(folder / "ckpt-0"), None)[1]

    def swap(a: int, b: int) -> Change:
        def change(ckpt: Path) -> None:
            one, other = ckpt / f"tensor{a:05}_000", ckpt / f"tensor{b:05}_000"
            first, second = one.read_bytes(), other.read_bytes()
            one.write_bytes(second)
            other.write_bytes(first)
        return ckpt(change)

    def again(name: str, make: Callable[[Path], object]) -> Change:
        def change(ckpt: Path) -> None:
            (ckpt / name).unlink()
            make(ckpt / name)
        return ckpt(change)

    last = "tensor00025_000"
    return {
        "first missing": ckpt(lambda c: (c / "tensor00000_000").unlink()),
        "last missing": ckpt(lambda c: (c / last).unlink()),
        "one in the middle missing": ckpt(lambda c: (c / "tensor00012_000").unlink()),
        "none left": ckpt(lambda c: [p.unlink() for p in c.iterdir()]),
        "one more": ckpt(lambda c: (c / "tensor00026_000").write_bytes((c / last).read_bytes())),
        "a whole layer more": ckpt(lambda c: [(c / f"tensor{i:05}_000").write_bytes(b"") for i in range(26, 38)]),
        "another shard": ckpt(lambda c: (c / "tensor00003_001").write_bytes((c / "tensor00003_000").read_bytes())),
        "half downloaded": ckpt(lambda c: (c / "tensor00003_000.incomplete").write_bytes(b"")),
        "name with newline": ckpt(lambda c: (c / "tensor00003\n_000").write_bytes(b"")),
        "name with control characters": ckpt(lambda c: (c / "tensor\x1b[2J").write_bytes(b"")),
        "short number": ckpt(lambda c: (c / "tensor00003_000").rename(c / "tensor3_000")),
        "upper case": ckpt(lambda c: (c / "tensor00003_000").rename(c / "Tensor00003_000")),
        "embedding and norm swapped": swap(0, 1), "gate and down swapped": swap(2, 3),
        "key and query swapped": swap(5, 7),
        "down and router swapped": swap(3, 13), "norm and router swapped": swap(9, 13),
        "attention output and query swapped": swap(6, 7), "key and norm swapped": swap(5, 9),
        "a folder": again("tensor00005_000", Path.mkdir), "a pipe": again("tensor00005_000", os.mkfifo),
        "a dead link": again("tensor00005_000", lambda p: p.symlink_to("nowhere")),
        "a link to itself": again("tensor00005_000", lambda p: p.symlink_to(p.name)),
        "a device": again("tensor00005_000", lambda p: p.symlink_to("/dev/zero")),
        "empty file": again("tensor00005_000", Path.touch),
        "config is a folder": lambda f: ((f / "config.json").unlink(), (f / "config.json").mkdir(), None)[2],
        "config is a pipe": lambda f: ((f / "config.json").unlink(), os.mkfifo(f / "config.json"), None)[2],
        "config is a dead link":
            lambda f: ((f / "config.json").unlink(), (f / "config.json").symlink_to("no"), None)[2],
        "config of 100 MB": lambda f: os.truncate(f / "config.json", 100 << 20),
        "no config": lambda f: (f / "config.json").unlink(),
        "more layers": config_says("num_layers", 3), "fewer layers": config_says("num_layers", 1),
        "2^31 layers": config_says("num_layers", (1 << 31) - 1), "more experts": config_says("num_experts", 9),
        "2^30 experts": config_says("num_experts", 1 << 30), "wider": config_says("widening_factor", 9),
        "more heads": config_says("num_q_heads", 24), "7 heads": config_says("num_q_heads", 7),
        "odd heads": config_says("key_size", 7), "more experts than there are": config_says("num_selected_experts", 9),
    }


def config_says(name: str, value: object) -> Change:
    def change(folder: Path) -> None:
        fields = json.loads((folder / "config.json").read_text())
        fields["model"][name] = value
        (folder / "config.json").write_text(json.dumps(fields))
    return change


def mutations(good: bytes, structure: list[int], seed: int, count: int) -> Iterator[bytes]:
    """Random changes of one to four places outside array bytes; structure: positions of bytes that are not data."""
    rng = random.Random(seed)
    opcodes = b"\x95\x8c\x8eXCBKMJN\x88\x89()}\x85\x86\x87tsu\x94qrhj\x93\x81Rb.ciPo\x92\x82\x83\x84"
    for _ in range(count):
        data = bytearray(good)
        for at in sorted(rng.sample(structure, rng.choice((1, 1, 1, 2, 3, 4))), reverse=True):
            kind = rng.randrange(6)
            if kind == 0:
                data[at] ^= 1 << rng.randrange(8)
            elif kind == 1:
                data[at] = rng.choice(opcodes)
            elif kind == 2:
                data[at] = rng.randrange(256)
            elif kind == 3:
                data.insert(at, rng.choice(opcodes))
            elif kind == 4:
                del data[at]
            else:
                source = rng.choice(structure)
                data[at : at + 4] = good[source : source + rng.randrange(1, 6)]
        yield bytes(data)
