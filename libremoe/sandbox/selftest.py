"""`libremoe sandbox --self-test`: runs every probe and says of each how it was stopped."""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

from libremoe.sandbox import probes, run

N_STARTS = 15


def command(args: argparse.Namespace) -> int:
    """args: self_test, json. Exit status 0: everything is stopped, 1: something is not."""
    if not args.self_test:
        probes.check()
        said = "the sandbox works here; --self-test tries everything"
        print(json.dumps({"ok": True, "said": said}) if args.json else said)
        return 0
    started = time.monotonic()
    found: list[probes.Found] = []
    for each in probes.try_all():
        found.append(each)
        if not args.json:
            print(f"{'stopped' if each.stopped else 'OPEN   '}  {each.group}: {each.name} ({each.said})", flush=True)
    added_ms = 1000 * start_cost()
    n_open = sum(not f.stopped for f in found)
    summary = {"ok": n_open == 0, "tried": len(found), "open": n_open, "start_ms": round(added_ms, 1),
               "seconds": round(time.monotonic() - started, 1)}
    if args.json:
        print(json.dumps({**summary, "probes": [vars(f) for f in found]}))
    else:
        n_stopped = len(found) - n_open
        print(f"\n{n_stopped} of {len(found)} stopped; a start costs {added_ms:.0f} ms more than Python alone")
    return 1 if n_open else 0


def start_cost() -> float:
    """Seconds that the sandbox adds to the start of Python, as the difference of two medians."""
    plain = [sys.executable, "-I", "-S", "-c", ""]
    return _median_s(lambda: run("")) - _median_s(lambda: subprocess.run(plain, check=True))


def _median_s(function: Callable[[], object]) -> float:
    times = []
    for _ in range(N_STARTS):
        begun = time.perf_counter()
        function()
        times.append(time.perf_counter() - begun)
    return statistics.median(times)
