"""Decode speed of the whole network at true layer sizes, beside llama.cpp on a GGUF of the same weights.

    libremoe make-tiny big-int4 --dims grok-1 --layers 2 --format int4
    python bench/make_gguf.py big-int4 big-q4_0.gguf --type q4_0
    python bench/decode.py big-int4 --llama-python PYTHON --gguf big-q4_0.gguf [--batch 8] [--context 8192]
"""

from __future__ import annotations

import json

from side_by_side import arguments, compare, read_limit, report, sides


def main() -> None:
    parser = arguments(__doc__, tokens=16)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--context", type=int, default=16)
    args = parser.parse_args()
    flags = ("--work", "decode", "--tokens", args.tokens, "--batch", args.batch, "--context", args.context)
    before = read_limit()
    results = compare(sides(args, *flags), args.rounds)
    limit = max(before, read_limit()) if args.batch == 1 else None
    rows = report(f"decode, {args.batch} sequences, context {args.context}", results, limit)
    if args.json:
        print(json.dumps(rows))


if __name__ == "__main__":
    main()
