"""An arithmetic expression to its value: exact where it can be, bounded in size and time, and never Python's eval."""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable
from fractions import Fraction

from libremoe.errors import LibremoeError

MAX_CHARS = 500
MAX_BITS = 20_000  # of a whole number: about 6,000 digits
MAX_SHOWN = 4000  # digits
MAX_FACTORIAL = 1500
MAX_DEPTH = 60
Number = Fraction | float

_BINARY: dict[type[ast.operator], Callable[[Number, Number], Number]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
    ast.FloorDiv: lambda a, b: Fraction(a // b) if isinstance(a // b, int) else a // b, ast.Mod: operator.mod,
}
_FLOAT = {name: getattr(math, name) for name in (
    "sin", "cos", "tan", "asin", "acos", "atan", "sinh", "cosh", "tanh", "exp", "log", "log2", "log10", "degrees",
    "radians", "hypot", "atan2", "cbrt")} | {"ln": math.log}
_CONSTANTS = {"pi": math.pi, "π": math.pi, "e": math.e, "tau": math.tau}
_SPELLINGS = str.maketrans({"×": "*", "·": "*", "÷": "/", "−": "-", "–": "-", "^": "**", "\u00a0": " ", "\u202f": " "})


def calculate(expression: str) -> str:
    """The value as decimal text. + - * / // % ** and parentheses, sqrt, log and the like, factorial, gcd, min, max,
    round, pi, e. Also × ÷ ^. Sums, products and quotients are exact; what is no fraction is a double.

    Raises LibremoeError: no expression, undefined (1/0), or too large.
    """
    text = expression.translate(_SPELLINGS).strip().removesuffix("=").strip()
    if not text or len(text) > MAX_CHARS:
        raise LibremoeError(f"expression must have 1 to {MAX_CHARS} characters")
    try:
        tree = ast.parse(text, mode="eval")
        return shown(_value(tree.body, 0))
    except (SyntaxError, RecursionError, MemoryError):
        raise LibremoeError(f"{expression[:80]!r} is no arithmetic expression") from None
    except ZeroDivisionError:
        raise LibremoeError("division by zero has no value") from None
    except (ValueError, OverflowError, TypeError) as error:
        raise LibremoeError(f"{expression[:80]!r} has no value here: {error}") from None


def shown(value: Number) -> str:
    """Whole numbers in full, others with at most 12 significant digits."""
    if isinstance(value, float):
        if math.isnan(value) or math.isinf(value):
            raise LibremoeError("the value is not a finite number")
        return f"{value:.12g}"
    if value.denominator == 1:
        if value.numerator.bit_length() > MAX_SHOWN * 3.32:
            raise LibremoeError(f"the value has more than {MAX_SHOWN} digits")
        return str(value.numerator)
    return f"{_as_float(value):.12g}"


def _value(node: ast.expr, depth: int) -> Number:
    if depth > MAX_DEPTH:
        raise LibremoeError("the expression is nested too deeply")
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        return _bounded(Fraction(node.value) if isinstance(node.value, int) else _decimal(node))
    if isinstance(node, ast.Name) and node.id in _CONSTANTS:
        return _CONSTANTS[node.id]
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd):
        value = _value(node.operand, depth + 1)
        return -value if isinstance(node.op, ast.USub) else value
    if isinstance(node, ast.BinOp):
        left, right = _value(node.left, depth + 1), _value(node.right, depth + 1)
        if isinstance(node.op, ast.Pow):
            return _power(left, right)
        if type(node.op) in _BINARY:
            if isinstance(left, float) or isinstance(right, float):
                left, right = _as_float(left), _as_float(right)
            return _bounded(_BINARY[type(node.op)](left, right))
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.keywords and len(node.args) <= 20:
        return _bounded(_call(node.func.id, [_value(arg, depth + 1) for arg in node.args]))
    raise LibremoeError("an expression has numbers, + - * / // % **, parentheses and functions such as sqrt(2)")


def _decimal(node: ast.Constant) -> Fraction:
    """0.1 is one tenth, not the double next to it."""
    text = repr(node.value)
    if "inf" in text or "e" in text and abs(int(text.partition("e")[2])) > 400:
        raise LibremoeError("a number is too large")
    return Fraction(text)


def _power(base: Number, exponent: Number) -> Number:
    if isinstance(base, float) or isinstance(exponent, float) or exponent.denominator != 1:
        return math.pow(_as_float(base), _as_float(exponent))  # refuses what is complex
    base, exponent = Fraction(base), Fraction(exponent)
    size = max(base.numerator.bit_length(), base.denominator.bit_length())
    if size > 1 and size * abs(exponent.numerator) > MAX_BITS:
        raise LibremoeError("the power is too large")
    return Fraction(base**exponent.numerator)


def _call(name: str, values: list[Number]) -> Number:
    if name in _FLOAT:
        return float(_FLOAT[name](*map(_as_float, values)))
    if name == "sqrt" and len(values) == 1:
        return _square_root(values[0])
    if name in ("min", "max") and values:
        exact = [Fraction(value) for value in values]
        return values[exact.index(min(exact) if name == "min" else max(exact))]
    if name == "abs" and len(values) == 1:
        return -values[0] if values[0] < 0 else values[0]
    if name in ("floor", "ceil") and len(values) == 1:
        return Fraction(math.floor(values[0]) if name == "floor" else math.ceil(values[0]))
    if name == "round" and len(values) in (1, 2):
        return Fraction(round(Fraction(values[0]), _whole(values[1], 1000) if len(values) == 2 else 0))
    if name in ("factorial", "fact") and len(values) == 1:
        return Fraction(math.factorial(_whole(values[0], MAX_FACTORIAL)))
    if name in ("gcd", "lcm") and values:
        return Fraction((math.gcd if name == "gcd" else math.lcm)(*(_whole(v, None) for v in values)))
    raise LibremoeError(f"there is no function {name[:40]!r} for {len(values)} values")


def _square_root(value: Number) -> Number:
    """Exact where it is."""
    if isinstance(value, Fraction) and value >= 0:
        top, bottom = math.isqrt(value.numerator), math.isqrt(value.denominator)
        if top * top == value.numerator and bottom * bottom == value.denominator:
            return Fraction(top, bottom)
    return math.sqrt(_as_float(value))


def _whole(value: Number, most: int | None) -> int:
    if value != math.floor(value) or (most is not None and abs(Fraction(value)) > most):
        raise LibremoeError("a whole number is needed" + (f", at most {most}" if most is not None else ""))
    return int(value)


def _as_float(value: Number) -> float:
    return float(value) if isinstance(value, float) else value.numerator / value.denominator


def _bounded(value: Number) -> Number:
    if isinstance(value, Fraction) and max(value.numerator.bit_length(), value.denominator.bit_length()) > MAX_BITS:
        raise LibremoeError("a number became too large")
    return value
