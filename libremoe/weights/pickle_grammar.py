"""Where the arrays lie in one shard of the official Grok-1 checkpoint, found without running the pickle.

A shard is a pickle, and unpickling runs code. So nothing here imports `pickle`: the file is parsed by a
grammar of our own that admits what protocol 4 writes for a numpy array, or for a
`__main__.QuantizedWeight8bit` holding two of them, and has no fallback. A pickle is postfix, so the grammar
is parsed bottom up: an opcode pushes a leaf (number, name, bytes) or reduces the top of the stack by one rule
(`call`, `build`); what no rule admits is refused where it stands. Array bytes are stepped over, never read:
memory stays at one window and at most 1,000 small terms.

Format: docs/grok-1.md, "Checkpoint format"; opcodes: PEP 3154, and CPython's Lib/pickletools.py.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from libremoe.errors import CheckpointError
from libremoe.weights.byte_window import MAX_NUMBER, Window, open_regular

MAX_OPCODES = 1000  # an official shard has about 150; bounds stack, memo and time
MAX_MEMO = 256  # an official shard has about 45
MAX_NAME_BYTES = 64
MAX_DIMS = 8

RECONSTRUCT = ("numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct")  # numpy 1 and 2
NDARRAY = "numpy.ndarray"
DTYPE = "numpy.dtype"
BFLOAT16 = "ml_dtypes.bfloat16"
WEIGHT_8BIT = "__main__.QuantizedWeight8bit"
JAX_ARRAY = "jax._src.array._reconstruct_array"  # what jax 0.4 wraps around a pickled numpy array
NAMES = frozenset((*RECONSTRUCT, NDARRAY, DTYPE, BFLOAT16, WEIGHT_8BIT, JAX_ARRAY))

ITEM_BYTES = {"int8": 1, "bfloat16": 2, "float32": 4}

# The states that numpy gives to the dtypes of a shard: (version, byte order, subtype, names, fields, size,
# alignment, flags), numpy/core/src/multiarray/descriptor.c, arraydescr_reduce. ml_dtypes sets flag 64,
# NPY_USE_SETITEM.
DTYPE_STATES: dict[str, tuple[Any, ...]] = {
    "int8": (3, "|", None, None, None, -1, -1, 0),
    "float32": (3, "<", None, None, None, -1, -1, 0),
    "bfloat16": (3, "<", None, None, None, 2, 2, 64),
}


@dataclass(frozen=True)
class StoredArray:
    """A C-ordered array inside a file: nbytes bytes from offset on, little-endian."""

    dtype: str  # "int8", "bfloat16" or "float32"
    shape: tuple[int, ...]
    offset: int
    nbytes: int


@dataclass(frozen=True)
class Shard:
    """One file; scales is None for a plain array. size and mtime_ns betray a later change of the file."""

    path: Path
    weight: StoredArray
    scales: StoredArray | None
    size: int
    mtime_ns: int


def parse_shard(path: Path) -> Shard:
    """Shapes, types and offsets of the arrays in a shard.

    Reads a few KiB whatever the file's size. Every length is checked against the bytes left in the file.
    Raises CheckpointError with the byte at which the file leaves the grammar.
    """
    with open_regular(path) as file:
        status = os.fstat(file.fileno())
        weight, scales = _Parser(Window(path, file, status.st_size)).parse()
    return Shard(path, weight, scales, status.st_size, status.st_mtime_ns)


# Terms of the grammar. Beside these the stack holds int, bool, None, str, tuple and dict.


class _Mark:
    """MARK: where the items of a tuple or dict begin."""


@dataclass(frozen=True)
class _Name:
    """A global that was named, not imported."""

    name: str


@dataclass(frozen=True)
class _Payload:
    """Bytes in the file; `value` is kept only for a single byte."""

    offset: int
    nbytes: int
    value: bytes | None


@dataclass(eq=False)
class _DType:
    name: str
    built: bool = False


@dataclass(eq=False)
class _Array:
    stored: StoredArray | None = None


@dataclass(eq=False)
class _Weight8bit:
    weight: StoredArray | None = None
    scales: StoredArray | None = None


class _Parser:
    """One pass over one file."""

    def __init__(self, window: Window):
        self.bytes = window
        self.opcode = 0  # the one at work, for messages
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def parse(self) -> tuple[StoredArray, StoredArray | None]:
        head = self.bytes.peek(4)
        if head[:2] != b"\x80\x04":
            found = f"begins with {head!r}" if head else "is empty"
            raise self.bytes.refused(f"not a protocol 4 pickle: the file {found}")
        self.bytes.take(2)
        for _ in range(MAX_OPCODES):
            self.opcode = self.bytes.next_opcode()
            if self.opcode == ord("."):
                return self.stop()
            if self.opcode not in _RULES:
                raise self.unknown()
            _RULES[self.opcode][1](self)
        raise self.bytes.refused(f"more than {MAX_OPCODES} opcodes; an official shard has about 150")

    def stop(self) -> tuple[StoredArray, StoredArray | None]:
        if len(self.stack) != 1:
            raise self.misplaced(f"{len(self.stack)} terms on the stack instead of one")
        if self.bytes.left:
            raise self.misplaced(f"{self.bytes.left:,} bytes follow the end of the pickle")
        match self.stack[0]:
            case _Array(stored=StoredArray() as stored):
                return stored, None
            case _Weight8bit(weight=StoredArray() as weight, scales=StoredArray() as scales):
                return weight, scales
        raise self.misplaced("no array is complete")

    def misplaced(self, rule: str) -> CheckpointError:
        return self.bytes.refused(f"opcode {self.opcode_name()} at byte {self.bytes.start}: {rule}")

    def opcode_name(self) -> str:
        if self.opcode == ord("."):
            return "STOP"
        if self.opcode in _RULES:
            return _RULES[self.opcode][0]
        return _FOREIGN.get(self.opcode, hex(self.opcode))

    def unknown(self) -> CheckpointError:
        name, start = self.opcode_name(), self.bytes.start
        if name in ("GLOBAL", "INST"):  # say what it wanted to import
            lines = self.bytes.peek(2 * MAX_NAME_BYTES).split(b"\n")
            name += " " + ascii(b".".join(lines[:2]).decode("latin-1"))
        return self.bytes.refused(f"opcode {name} at byte {start}: an official shard has none")

    # Stack.

    def pop(self) -> Any:
        if not self.stack or isinstance(self.stack[-1], _Mark):
            raise self.misplaced("nothing is left on the stack for it")
        return self.stack.pop()

    def pop_to_mark(self) -> list[Any]:
        items: list[Any] = []
        while self.stack and not isinstance(self.stack[-1], _Mark):
            items.append(self.stack.pop())
        if not self.stack:
            raise self.misplaced("there is no MARK before it")
        self.stack.pop()
        return items[::-1]

    # One method for each opcode with more than a line to do; _RULES below is the whole list.

    def text(self, length_bytes: int) -> None:
        n = self.bytes.number(length_bytes)
        if n > MAX_NAME_BYTES:
            raise self.misplaced(f"a text of {n:,} bytes; names in an official shard are short")
        raw = self.bytes.take(n)
        if not raw.isascii():
            raise self.misplaced("a text that is not ASCII")
        self.stack.append(raw.decode("ascii"))

    def payload(self, length_bytes: int) -> None:
        n = self.bytes.number(length_bytes)
        offset = self.bytes.pos
        value = self.bytes.peek(1) if n == 1 else None
        self.bytes.skip(n)
        self.stack.append(_Payload(offset, n, value))

    def tuple_of(self, n: int) -> None:
        self.stack.append(tuple([self.pop() for _ in range(n)][::-1]))

    def marked_tuple(self) -> None:
        self.stack.append(tuple(self.pop_to_mark()))

    def put(self, index: int) -> None:
        if index >= MAX_MEMO or index in self.memo:
            raise self.misplaced(f"memo number {index:,}; numbers are used once and stay below {MAX_MEMO}")
        term = self.pop()
        self.stack.append(term)
        self.memo[index] = term

    def get(self, index: int) -> None:
        if index not in self.memo:
            raise self.misplaced(f"memo number {index:,} was never filled")
        self.stack.append(self.memo[index])

    def stack_global(self) -> None:
        name, module = self.pop(), self.pop()
        if not (isinstance(module, str) and isinstance(name, str)):
            raise self.misplaced("a module and a name must come before it")
        full = f"{module}.{name}"
        if full not in NAMES:
            known = ", ".join(sorted(NAMES))
            raise self.misplaced(f"it names {ascii(full)}; an official shard names only {known}")
        self.stack.append(_Name(full))

    def set_items(self, items: list[Any]) -> None:
        target = self.pop()
        if not isinstance(target, dict) or len(items) % 2:
            raise self.misplaced("it must fill a dictionary with keys and values")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if not isinstance(key, str) or key in target:
                raise self.misplaced("a key that is no text, or comes twice")
            target[key] = value
        self.stack.append(target)

    def set_item(self) -> None:
        value, key = self.pop(), self.pop()
        self.set_items([key, value])

    def new_object(self) -> None:
        args, name = self.pop(), self.pop()
        if not (isinstance(name, _Name) and name.name == WEIGHT_8BIT and _same(args, ())):
            raise self.misplaced(f"only {WEIGHT_8BIT} is made so, with no arguments")
        self.stack.append(_Weight8bit())

    def reduce(self) -> None:
        args, function = self.pop(), self.pop()
        if not isinstance(function, _Name) or not isinstance(args, tuple):
            raise self.misplaced("a name and a tuple must come before it")
        self.stack.append(self.call(function.name, args))

    def call(self, name: str, args: tuple[Any, ...]) -> Any:
        """The value of one of the few admitted calls."""
        if name in RECONSTRUCT and _is_empty_array(args):
            return _Array()
        if name == DTYPE and len(args) == 3 and args[1] is False and args[2] is True:
            codes = {"f4": "float32", "i1": "int8"}
            if isinstance(args[0], _Name) and args[0].name == BFLOAT16:
                return _DType("bfloat16")
            if isinstance(args[0], str) and args[0] in codes:
                return _DType(codes[args[0]])
            what = ascii(args[0]) if isinstance(args[0], str) else "something else"
            raise self.misplaced(f"an array of type {what}; a shard has 'i1', 'f4' and bfloat16 only")
        if name == WEIGHT_8BIT and args == ():
            return _Weight8bit()
        if name == JAX_ARRAY and len(args) == 4:
            match args:
                case (_Name(name=make), empty, state,
                      {"weak_type": bool(), "named_shape": {} as axes, **rest}):
                    if make in RECONSTRUCT and _is_empty_array(empty) and not axes and not rest:
                        return _Array(self.array(state))
        raise self.misplaced(f"{name} is called with other arguments than an official shard gives it")

    def build(self) -> None:
        state, target = self.pop(), self.pop()
        match target:
            case _DType(built=False):
                if not _same(state, DTYPE_STATES[target.name]):
                    raise self.misplaced(f"a {target.name} type of another byte order or layout")
                target.built = True
            case _Array(stored=None):
                target.stored = self.array(state)
            case _Weight8bit(weight=None):
                if not isinstance(state, dict) or state.keys() != {"weight", "scales"}:
                    raise self.misplaced("a QuantizedWeight8bit holds exactly `weight` and `scales`")
                match state["weight"], state["scales"]:
                    case _Array(stored=StoredArray() as weight), _Array(stored=StoredArray() as scales):
                        target.weight, target.scales = weight, scales
                    case _:
                        raise self.misplaced("`weight` and `scales` must be arrays that are complete")
                if weight.dtype != "int8" or scales.dtype == "int8":
                    raise self.misplaced(f"`weight` is {weight.dtype}, `scales` is {scales.dtype}")
            case _:
                raise self.misplaced("there is nothing to complete, or it was completed before")
        self.stack.append(target)

    def array(self, state: Any) -> StoredArray:
        """numpy's array state: (1, shape, dtype, is Fortran order, bytes)."""
        match state:
            case (1, tuple() as shape, _DType(built=True) as dtype, bool() as fortran, _Payload() as payload):
                pass
            case _:
                raise self.misplaced("an array must be (1, shape, a complete type, order, bytes)")
        if fortran:
            raise self.misplaced("an array in Fortran order; save it again with numpy.ascontiguousarray")
        if not 1 <= len(shape) <= MAX_DIMS or not all(type(n) is int and 0 < n < MAX_NUMBER for n in shape):
            raise self.misplaced(f"a shape must be 1 to {MAX_DIMS} positive integers")
        nbytes = math.prod(shape) * ITEM_BYTES[dtype.name]
        if nbytes != payload.nbytes:
            raise self.misplaced(f"{dtype.name} {shape} is {nbytes:,} bytes, not {payload.nbytes:,}")
        return StoredArray(dtype.name, shape, payload.offset, nbytes)


def _same(term: Any, expected: tuple[Any, ...]) -> bool:
    """Equal in value and type, leaf by leaf (in Python, True == 1)."""
    return isinstance(term, tuple) and len(term) == len(expected) and all(
        type(a) is type(b) and a == b for a, b in zip(term, expected, strict=True))


def _is_empty_array(args: Any) -> bool:
    """Whether args are those of numpy's _reconstruct: (ndarray, (0,), b"b")."""
    match args:
        case (_Name(name=name), tuple() as shape, _Payload(value=b"b")):
            return name == NDARRAY and _same(shape, (0,))
    return False


# Every opcode that is admitted, with its name for messages.
_RULES: dict[int, tuple[str, Callable[[_Parser], None]]] = {
    0x95: ("FRAME", lambda p: p.bytes.open_frame()),
    0x8C: ("SHORT_BINUNICODE", lambda p: p.text(1)),
    ord("X"): ("BINUNICODE", lambda p: p.text(4)),
    ord("C"): ("SHORT_BINBYTES", lambda p: p.payload(1)),
    ord("B"): ("BINBYTES", lambda p: p.payload(4)),
    0x8E: ("BINBYTES8", lambda p: p.payload(8)),
    ord("K"): ("BININT1", lambda p: p.stack.append(p.bytes.number(1))),
    ord("M"): ("BININT2", lambda p: p.stack.append(p.bytes.number(2))),
    ord("J"): ("BININT", lambda p: p.stack.append(p.bytes.number(4, signed=True))),
    ord("N"): ("NONE", lambda p: p.stack.append(None)),
    0x88: ("NEWTRUE", lambda p: p.stack.append(True)),
    0x89: ("NEWFALSE", lambda p: p.stack.append(False)),
    ord("("): ("MARK", lambda p: p.stack.append(_Mark())),
    ord(")"): ("EMPTY_TUPLE", lambda p: p.stack.append(())),
    ord("}"): ("EMPTY_DICT", lambda p: p.stack.append({})),
    0x85: ("TUPLE1", lambda p: p.tuple_of(1)),
    0x86: ("TUPLE2", lambda p: p.tuple_of(2)),
    0x87: ("TUPLE3", lambda p: p.tuple_of(3)),
    ord("t"): ("TUPLE", _Parser.marked_tuple),
    ord("s"): ("SETITEM", _Parser.set_item),
    ord("u"): ("SETITEMS", lambda p: p.set_items(p.pop_to_mark())),
    0x94: ("MEMOIZE", lambda p: p.put(len(p.memo))),
    ord("q"): ("BINPUT", lambda p: p.put(p.bytes.number(1))),
    ord("r"): ("LONG_BINPUT", lambda p: p.put(p.bytes.number(4))),
    ord("h"): ("BINGET", lambda p: p.get(p.bytes.number(1))),
    ord("j"): ("LONG_BINGET", lambda p: p.get(p.bytes.number(4))),
    0x93: ("STACK_GLOBAL", _Parser.stack_global),
    0x81: ("NEWOBJ", _Parser.new_object),
    ord("R"): ("REDUCE", _Parser.reduce),
    ord("b"): ("BUILD", _Parser.build),
}

_FOREIGN = {  # opcodes of other pickles, for messages
    ord("c"): "GLOBAL", ord("i"): "INST", ord("o"): "OBJ", 0x92: "NEWOBJ_EX", 0x82: "EXT1", 0x83: "EXT2",
    0x84: "EXT4", ord("P"): "PERSID", ord("Q"): "BINPERSID", 0x80: "PROTO", ord("0"): "POP",
    ord("1"): "POP_MARK", ord("2"): "DUP", ord("]"): "EMPTY_LIST", ord("l"): "LIST", ord("d"): "DICT",
    ord("a"): "APPEND", ord("e"): "APPENDS", 0x8F: "EMPTY_SET", 0x90: "ADDITEMS", 0x91: "FROZENSET",
    ord("I"): "INT", ord("L"): "LONG", 0x8A: "LONG1", 0x8B: "LONG4", ord("F"): "FLOAT", ord("G"): "BINFLOAT",
    ord("S"): "STRING", ord("T"): "BINSTRING", ord("U"): "SHORT_BINSTRING", ord("V"): "UNICODE",
    0x8D: "BINUNICODE8", ord("p"): "PUT", ord("g"): "GET", 0x96: "BYTEARRAY8", 0x97: "NEXT_BUFFER",
    0x98: "READONLY_BUFFER",
}
