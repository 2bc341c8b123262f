"""Compares two answers to a MATH problem, in a process with little memory; competition_math.py starts and kills it.

One JSON list [wanted, said] a line in; "right" or "wrong" out. Formulas come from a model: 9^9^9^9 would compute for
ever. Imports nothing of ours.
"""

import json
import resource
import sys

MEMORY_BYTES = 2 << 30


def main() -> None:
    from math_verify import parse, verify

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    print("ready", flush=True)
    for line in sys.stdin:
        wanted, said = (f"${text}$" for text in json.loads(line))
        try:
            equal = bool(verify(parse(wanted), parse(said)))
        except (ArithmeticError, AttributeError, LookupError, MemoryError, NotImplementedError, RecursionError,
                TypeError, ValueError):  # whatever a formula does to the parser, it is not the right answer
            equal = False
        print("right" if equal else "wrong", flush=True)


if __name__ == "__main__":
    main()
