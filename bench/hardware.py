"""The tables "your machine -> what you get" of docs/hardware.md and README.md, from the planner and docs/machines/.

    python bench/hardware.py            # write them; --check: say whether they are up to date, exit status 1 if not

Forecasts come from libremoe.forecast for the machines of docs/machines/*.toml; what was measured is listed in
docs/machines/measured.json and stands in a table of its own.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from libremoe import plan
from libremoe.forecast import Forecast, forecast
from libremoe.machine import Machine, from_file

ROOT = Path(__file__).parent.parent
MACHINES = ROOT / "docs" / "machines"
BEGIN, END = "<!-- bench/hardware.py begins -->\n", "<!-- bench/hardware.py ends -->\n"
MODELS = {"grok-1": "Grok-1 (314 B)", "mixtral-8x7b": "Mixtral 8x7B (47 B)", "llama-2-7b": "Llama 2 7B"}
NOTE = """\
These are **forecasts** by `libremoe plan NAME --machine FILE`, with the files in `docs/machines/`; nobody has run these
machines. They take every expert for equally likely; trained routers have favourites, so a cache hits more often.
libremoe has no kernels for GPUs yet, so **a GPU changes nothing today**: those rows are what the processor does.
"""


def rows(preset: str) -> list[tuple[Machine, Forecast]]:
    """Each machine, the least memory first, with the forecast for the format that plan chooses."""
    _, config, entry_of, reader = plan.find_model(Path(preset))
    offered = plan.offered_sizes(config, entry_of, reader)
    found = []
    for path in MACHINES.glob("*.toml"):
        machine = from_file(path)
        made = {name: forecast(sizes, machine) for name, sizes in offered.items()}
        found.append((machine, made[plan.choose(made)]))
    return sorted(found, key=lambda pair: (pair[0].ram, len(pair[0].gpus), pair[0].name))


def table(preset: str) -> str:
    heads = ("machine", "format, on disk", "experts in memory", "writing", "first token of a prompt of 512",
             "a token costs")
    lines = [f"| {' | '.join(heads)} |", "|---|---|---|---|---|---|"]
    for machine, one in rows(preset):
        if one.placement == "does not fit":
            lines.append(f"| {machine.name} | - | needs {one.least / 1e9:.0f} GB of memory | - | - | - |")
            continue
        where = "all" if one.placement == "resident" else f"{one.slots} of {one.n_experts}, the others from disk"
        lines.append(f"| {machine.name} | {one.format}, {one.disk_bytes / 1e9:.0f} GB | {where} | "
                     f"{plan.speed_text(one.tokens_per_s)} | {duration(one.first_token_s)} | "
                     f"{one.joules_per_token:,.0f} J |")
    return "\n".join(lines) + "\n"


def duration(seconds: float) -> str:
    if seconds < 10:
        return f"{seconds:.1f} s"
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def measured() -> str:
    lines = ["| measured | machine | model | writing | reading | source |", "|---|---|---|---|---|---|"]
    for one in json.loads((MACHINES / "measured.json").read_text(encoding="utf-8")):
        cells = (one[key] for key in ("date", "machine", "model", "decode", "prefill", "source"))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def texts() -> dict[Path, str]:
    """Both files as they ought to be."""
    page = NOTE + "".join(f"\n### {title}\n\n{table(name)}" for name, title in MODELS.items())
    page += "\n### Measured\n\n" + measured()
    short = f"{table('grok-1')}\n{NOTE}\nMeasured so far:\n\n{measured()}"
    made = {}
    for path, text in ((ROOT / "docs" / "hardware.md", page), (ROOT / "README.md", short)):
        before, _, rest = path.read_text(encoding="utf-8").partition(BEGIN)
        _, _, after = rest.partition(END)
        made[path] = before + BEGIN + "\n" + text + "\n" + END + after
    return made


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing; exit status 1 where one is out of date")
    args = parser.parse_args()
    stale = {path: text for path, text in texts().items() if path.read_text(encoding="utf-8") != text}
    for path, text in stale.items():
        if args.check:
            print(f"{path.name} is out of date: run python bench/hardware.py", file=sys.stderr)
        else:
            path.write_text(text, encoding="utf-8")
    return int(args.check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
