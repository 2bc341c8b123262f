"""Prompt processing of the whole network at true layer sizes, beside llama.cpp on a GGUF of the same weights.

    libremoe make-tiny big-int4 --dims grok-1 --layers 2 --format int4
    python bench/make_gguf.py big-int4 big-q4_0.gguf --type q4_0
    python bench/prefill.py big-int4 --llama-python PYTHON --gguf big-q4_0.gguf --tokens 512
"""

from __future__ import annotations

import json

from side_by_side import arguments, compare, report, sides


def main() -> None:
    args = arguments(__doc__, tokens=512).parse_args()
    results = compare(sides(args, "--work", "prefill", "--tokens", args.tokens), args.rounds)
    rows = report(f"prompt of {args.tokens} tokens", results)
    if args.json:
        print(json.dumps(rows))


if __name__ == "__main__":
    main()
