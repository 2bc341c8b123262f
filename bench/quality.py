"""What a quantisation costs: divergence of each candidate's next-token distribution from a reference's, on one machine.

    python bench/quality.py REFERENCE CANDIDATE [CANDIDATE ...] [--text FILE | --ids N] [--json]

What `libremoe eval quant` prints, on random token ids where there is no text. Models are anything that libremoe opens,
so a Q4_0 GGUF stands beside int4 of the same weights, and both are computed by the same network: the difference is
the weights' alone. Set LIBREMOE_OPS=reference to leave the rounding of activations out as well.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from libremoe.evals.quant import compare, table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("reference")
    parser.add_argument("candidates", nargs="+")
    parser.add_argument("--text", type=Path, help="a text to read; default: random token ids")
    parser.add_argument("--ids", type=int, default=1024, help="how many tokens (default 1024)")
    parser.add_argument("--chunk", type=int, default=256)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()

    text = args.text.read_text() if args.text else None
    found = compare([args.reference, *args.candidates], args.ids, args.chunk, text)
    print(json.dumps(found["candidates"]) if args.json else "\n".join(table(found)))


if __name__ == "__main__":
    main()
