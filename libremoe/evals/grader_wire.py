"""How values cross between a test and the code that it tests: JSON lines, with a tag where JSON lacks a type.

Both ends live in sandboxes of their own, and the end that takes answers does not trust the one that gives them: reading
makes values of exact built-in types and nothing else. What has no such value stays where it is and crosses as a number;
the other side can hand it back and ask whether it is true; it can neither look into it nor find it equal to anything.

    null true false "text" 12 1.5      None, bool, str, int below 2^53, float (Infinity and NaN too)
    {"i": "-1f"}                       int, hexadecimal
    {"l": [..]} {"t": [..]} {"s": [..]} {"z": [..]} {"d": [[k, v], ..]}    list, tuple, set, frozenset, dict
    {"b": "00ff"} {"y": "00ff"} {"c": [re, im]} {"r": [start, stop, step]} {"n": [..]}   bytes, bytearray, complex,
                                                                                         range, iterator
    {"k": "int"}                       a built-in type itself
    {"o": [7, true]}                   something that stayed on the other side, and whether it counts as true
"""

from __future__ import annotations

import builtins
import itertools
import json
import sys
from collections.abc import Callable
from types import GeneratorType
from typing import Any, BinaryIO

MAX_ITEMS = 100_000  # of an iterator that is read for its items
_ITERATORS: tuple[type, ...] = (
    GeneratorType, map, filter, zip, enumerate, reversed, itertools.chain, type(iter([])), type(iter(())),
    type(iter({})), type(iter(set())), type(iter(range(0))), type(iter("")), type({}.keys()), type({}.values()),
    type({}.items()),
)


class Opaque:
    """A value that stayed on the other side, under a number."""

    def __init__(self, number: int, truth: bool):
        self._number, self._truth = number, truth

    def __eq__(self, other: object) -> bool:
        return False

    def __ne__(self, other: object) -> bool:
        return True

    __hash__ = object.__hash__  # type: ignore[assignment]

    def __bool__(self) -> bool:
        return self._truth


def pack(value: Any, stay: Callable[[Any], int]) -> Any:
    """value as what json.dumps takes. stay(value) -> number, for what has no plain value."""
    if value is None or isinstance(value, (bool, str)):
        return value if type(value) in (bool, type(None)) else str.__str__(value)
    if isinstance(value, int):
        value = int(value)
        return value if -(1 << 53) < value < 1 << 53 else {"i": format(value, "x")}
    if isinstance(value, float):
        return float(value)
    if isinstance(value, Opaque):
        return {"o": [value._number, value._truth]}
    for tag, kind in (("l", list), ("t", tuple), ("s", set), ("z", frozenset)):
        if isinstance(value, kind):
            return {tag: [pack(item, stay) for item in value]}
    if isinstance(value, dict):
        return {"d": [[pack(k, stay), pack(v, stay)] for k, v in value.items()]}
    return _pack_rare(value, stay)


def _pack_rare(value: Any, stay: Callable[[Any], int]) -> Any:
    if isinstance(value, bytes):
        return {"b": value.hex()}
    if isinstance(value, bytearray):
        return {"y": value.hex()}
    if type(value) is type:
        name = str(getattr(value, "__name__", ""))
        if vars(builtins).get(name) is value:
            return {"k": name}
    if isinstance(value, complex):
        return {"c": [value.real, value.imag]}
    if isinstance(value, range):
        return {"r": [pack(part, stay) for part in (value.start, value.stop, value.step)]}
    if isinstance(value, _ITERATORS):
        items: list[Any] = list(itertools.islice(value, MAX_ITEMS + 1))  # type: ignore[call-overload]
        if len(items) <= MAX_ITEMS:
            return {"n": [pack(item, stay) for item in items]}
    numpy = sys.modules.get("numpy")
    if numpy is not None and isinstance(value, numpy.generic):
        return pack(value.item(), stay)
    try:
        truth = bool(value)
    except Exception:  # an array of several numbers, say
        truth = False
    return {"o": [stay(value), truth]}


def unpack(plain: Any, stayed: Callable[[int, bool], Any]) -> Any:
    """The value of what json.loads gave. stayed(number, truth) -> value. Raises ValueError or the like for others."""
    if not isinstance(plain, dict):
        if isinstance(plain, list):
            raise ValueError("a list without its tag")
        return plain
    if len(plain) != 1:
        raise ValueError("not one tag")
    ((tag, content),) = plain.items()
    if tag in _SEQUENCES:
        return _SEQUENCES[tag](unpack(item, stayed) for item in content)
    if tag == "d":
        return {unpack(k, stayed): unpack(v, stayed) for k, v in content}
    if tag == "i":
        return int(content, 16)
    if tag == "b":
        return bytes.fromhex(content)
    if tag == "y":
        return bytearray.fromhex(content)
    if tag == "c":
        return complex(*content)
    if tag == "r":
        return range(*(unpack(part, stayed) for part in content))
    if tag == "k" and isinstance(vars(builtins).get(content), type):
        return vars(builtins)[content]
    if tag == "n":
        return iter([unpack(item, stayed) for item in content])
    if tag == "o":
        number, truth = content
        return stayed(int(number), truth is True)
    raise ValueError(f"no such tag: {tag}")


_SEQUENCES: dict[str, Any] = {"l": list, "t": tuple, "s": set, "z": frozenset}


def send(file: BinaryIO, message: Any) -> None:
    file.write(json.dumps(message).encode() + b"\n")
    file.flush()
