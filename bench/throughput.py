"""Many prompts at once against one by one, with the experts streamed under a memory budget: tokens/s, and equal tokens.

    libremoe make-tiny big-int4 --dims grok-1 --layers 8 --format int4
    python bench/throughput.py big-int4 --memory 6G --prompts 64 --prompt-tokens 32 --tokens 128 --alone 2

Each side is a process of its own, in turn. One by one is measured on --alone of the prompts, since all would take long;
its tokens/s count prompts too, as those of the batch do. Both report what they read from the disk.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import random
import statistics
import sys
import time

from side_by_side import compare

from libremoe.language_model import LanguageModel, load
from libremoe.sampling import SamplingParams
from libremoe.throughput import answers, engine_for, most_tokens

SIDES = ("one by one", "at once")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", help="libremoe's own folder")
    parser.add_argument("--memory", help="such as 6G, about a half or a quarter of the model; default: all in memory")
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--prompt-tokens", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--alone", type=int, default=2, help="of the prompts, one by one (default 2)")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--side", choices=SIDES, help="one side only, as JSON")
    args = parser.parse_args()
    if args.side is not None:
        print(json.dumps(measure(args)))
        return
    own = [sys.executable, __file__, args.path]
    for flag in ("prompts", "prompt_tokens", "tokens", "alone"):
        own += [f"--{flag.replace('_', '-')}", str(getattr(args, flag))]
    own += ["--memory", args.memory] if args.memory else []
    results = compare({side: [*own, "--side", side] for side in SIDES}, args.rounds)
    report(args, results)


def measure(args: argparse.Namespace) -> dict[str, object]:
    """One side, in this process."""
    at_once = args.side == "at once"
    tokens = most_tokens([[0] * args.prompt_tokens] * args.prompts, args.tokens, args.prompts)
    lm = load(args.path, memory=args.memory, **({"batch": args.prompts, "tokens": tokens} if at_once else {}))
    prompts = made_prompts(lm, args)
    params = SamplingParams(temperature=0, max_tokens=args.tokens, ignore_eos=True)
    began = time.perf_counter()
    if at_once:
        engine = engine_for(lm, [len(prompt) for prompt in prompts], args.tokens, args.prompts)
        asked = [(i, prompt, params) for i, prompt in enumerate(prompts)]
        said = {i: answer.tokens for step in answers(lm, engine, asked) for i, answer in step}
    else:
        said = {i: lm.generate(prompt, params).tokens for i, prompt in enumerate(prompts[: args.alone])}
    seconds = time.perf_counter() - began
    n_tokens = sum(len(tokens) for tokens in said.values())
    streamed = lm.streamed
    return {
        "tokens_per_s": n_tokens / seconds, "seconds": seconds, "tokens": n_tokens, "prompts": len(said),
        "running": engine.scheduler.max_running if at_once else 1,
        "said": [said[i] for i in sorted(said)][: args.alone],
        "experts": None if streamed is None else {**dataclasses.asdict(streamed.stats()),
                                                  "gb_per_s": streamed.stats().gb_per_s},
    }


def made_prompts(lm: LanguageModel, args: argparse.Namespace) -> list[list[int]]:
    """Random token ids, the same on both sides."""
    draw = random.Random(1)
    return [[draw.randrange(3, lm.config.vocab_size) for _ in range(args.prompt_tokens)] for _ in range(args.prompts)]


def report(args: argparse.Namespace, results: dict[str, list[dict]]) -> None:
    """Prints medians, and the ratio of each round. Exits with 1 where a prompt's tokens differ."""
    ratios = [fast["tokens_per_s"] / slow["tokens_per_s"]
              for slow, fast in zip(*(results[side] for side in SIDES), strict=True)]
    equal = all(slow["said"] == fast["said"] for slow, fast in zip(*(results[side] for side in SIDES), strict=True))
    if args.json:
        print(json.dumps({"results": results, "ratios": ratios, "equal": equal}))
    for side in () if args.json else SIDES:
        rate = statistics.median(result["tokens_per_s"] for result in results[side])
        last = results[side][-1]
        read = "" if last["experts"] is None else (
            f"; {last['experts']['bytes_read'] / 1e9 / last['tokens']:.3f} GB read a token, "
            f"{last['experts']['gb_per_s']:.2f} GB/s, {last['experts']['stall_s']:.1f} s waited")
        print(f"{side}: {rate:.3f} tokens/s ({last['prompts']} prompts, {last['running']} at once{read})")
    if not args.json:
        print(f"ratio: {statistics.median(ratios):.1f} (rounds: {', '.join(f'{ratio:.1f}' for ratio in ratios)}); "
              f"tokens {'equal' if equal else 'DIFFER'}")
    sys.exit(0 if equal else 1)


if __name__ == "__main__":
    main()
