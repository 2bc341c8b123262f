"""`libremoe plan PATH`: look at the machine and the model, say what fits where and how fast it will be, and why.

PATH may also be the name of a preset (grok-1, mixtral-8x7b, ...) for a model that is not here, and --machine a file for
a machine that is not here. machine.py has the machine, forecast.py the arithmetic; this file chooses and shows.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from libremoe.config import PRESETS, ModelConfig
from libremoe.convert import target_format
from libremoe.direct_read import Piece
from libremoe.engine.sequence import Experts
from libremoe.errors import LibremoeError
from libremoe.forecast import Forecast, Sizes, forecast, total
from libremoe.language_model import RunStats
from libremoe.loading import KEPT_FORMATS, STREAMABLE, resident_bytes
from libremoe.machine import FORMATS as RATED
from libremoe.machine import Machine, amount, from_file, installed_bytes, measure, saved_path, to_toml
from libremoe.progress import size_text
from libremoe.quant import FORMATS
from libremoe.routing import Routing, record, recorded
from libremoe.tiny import RandomReader
from libremoe.weights import Reader, TensorEntry, open_checkpoint, parameter_names
from libremoe.weights.native_layout import ALIGN, PARTS, PLAIN, WeightLayout, up
from libremoe.weights.native_writer import write_small

CHOICES = ("bf16", "int8", "int4", "int3", "int2")  # what convert can make, the best first
DEFAULT_TOKENS = 512  # of context and of the prompt, or the model's context where that is shorter
_PART = 64 << 20  # bytes of a file that is read as a whole
_GOOD = ("f32", "f16", "bf16", "int8", "int4")  # formats that are chosen without being asked for


def run(args: argparse.Namespace) -> int:
    """The command. args: path, ram, disk, format, machine, context, batch, prompt, kv, save_machine, json.

    Exit status 0, or 1 where the model does not fit in any way.
    """
    model, config, entry_of, reader = find_model(args.path)
    offered = offered_sizes(config, entry_of, reader, args.format)
    memory = amount(args.ram, "--ram") if args.ram else None
    disk = amount(args.disk, "--disk") if args.disk else None
    machine = _machine(args, offered, reader)
    if disk is not None:
        machine = dataclasses.replace(machine, disk=disk,
                                      assumed=tuple(name for name in machine.assumed if name != "disk"))
    context, prompt = (min(DEFAULT_TOKENS, config.context_len) if n is None else n for n in (args.context, args.prompt))
    routing = routing_of(args.path, config) if reader is not None else None
    made = {name: forecast(sizes, machine, memory, context, args.batch, prompt, kv_dtype=getattr(torch, args.kv),
                           routing=routing)
            for name, sizes in offered.items()}
    best = choose(made)
    verdict = verdict_line(model, made, best, reader)
    if args.json:
        print(json.dumps(plain(model, machine, made, best, verdict)))
    else:
        _show(model, machine, made, best, verdict, (context, args.batch, prompt))
    return 0 if made[best].placement != "does not fit" else 1


def find_model(path: Path) -> tuple[str, ModelConfig, Callable[[str], TensorEntry], Reader | None]:
    """A model on disk, or by a preset's name where there is no such file: what it is called, its configuration, its
    tensors' entries, and its reader."""
    if not path.exists() and str(path) in PRESETS:
        config = PRESETS[str(path)]
        return str(path), config, published_entry(config), None
    if not path.exists():
        raise LibremoeError(f"{path}: no such file or folder, and no preset; there are: {', '.join(sorted(PRESETS))}")
    reader = open_checkpoint(path)
    return str(path), reader.config, reader.entry, reader


def published_entry(config: ModelConfig) -> Callable[[str], TensorEntry]:
    """The tensors of a preset as its makers published it: Grok-1 in int8 with float32 tables, others in bfloat16."""
    if config.family == "grok-1":
        return RandomReader(config, "int8").entry
    shapes, nowhere = parameter_names(config), Path("not here")

    def entry(name: str) -> TensorEntry:
        return TensorEntry(name, shapes[name], "bf16", WeightLayout("bf16", shapes[name]).nbytes, nowhere)

    return entry


def offered_sizes(config: ModelConfig, entry_of: Callable[[str], TensorEntry], reader: Reader | None,
                  format: str | None = None) -> dict[str, Sizes]:
    """The model as it is and in each narrower format, or in `format` only. Keys are formats; as it is: the stored one.

    Raises LibremoeError where `format` would need more bits than are stored.
    """
    stored = entry_of("layers.0.experts.0.gate.weight").format
    bits = {"f32": 32, "f16": 16, "bf16": 16, **{name: fmt.bits for name, fmt in FORMATS.items()}}
    names = [name for name in CHOICES if bits[name] < bits.get(stored, 16) or stored not in bits]
    if format is not None and format != stored:
        if format not in names:
            raise LibremoeError(f"--format {format} is not narrower than the {stored} that is stored; there are: "
                                f"{', '.join([stored, *names])}")
        return {format: sizes_of(config, entry_of, format)}
    as_it_is = sizes_of(config, entry_of, None, streams=reader is None or reader.kind in STREAMABLE)
    return {stored: as_it_is} if format else {stored: as_it_is, **{n: sizes_of(config, entry_of, n) for n in names}}


def sizes_of(config: ModelConfig, entry_of: Callable[[str], TensorEntry], format: str | None,
             streams: bool = True) -> Sizes:
    """As stored (format None: foreign quantised formats become float32 in memory), or as `convert --format` would
    write it."""
    disk = 0

    def memory(name: str) -> tuple[str, int]:
        nonlocal disk
        entry = entry_of(name)
        if format is None:
            disk += entry.nbytes
            return entry.format if entry.format in KEPT_FORMATS else "f32", resident_bytes(entry)
        target = target_format(name, entry.format, format, None)
        n_bytes = _nbytes(entry, target)
        disk += n_bytes
        return target, n_bytes

    shapes = parameter_names(config)
    shared, touched, params = 0, dict[str, int](), dict[str, int]()
    for name in shapes:
        if ".experts." in name:
            continue
        stored, n_bytes = memory(name)
        shared += n_bytes
        if name == "embed.weight" and not config.tied_embeddings:
            continue  # a token looks up one row
        rated = "f32" if stored == "f16" else stored
        touched[rated] = touched.get(rated, 0) + n_bytes
        params[rated] = params.get(rated, 0) + (shapes[name][0] * shapes[name][1] if len(shapes[name]) == 2 else 0)
    before = disk
    parts = [memory(f"layers.0.experts.0.{part}.weight") for part in PARTS]
    expert = up(sum(n_bytes for _, n_bytes in parts), ALIGN if streams else 1)
    n_experts = config.n_layers * max(config.n_experts, 1)
    return Sizes(config, "f32" if parts[0][0] == "f16" else parts[0][0], shared, touched, params, expert,
                 before + n_experts * (disk - before), streams)


def _nbytes(entry: TensorEntry, target: str) -> int:
    if target == entry.format:
        return entry.nbytes
    if target in PLAIN:
        return WeightLayout(target, entry.shape).nbytes
    return WeightLayout(target, entry.shape, FORMATS[target].groups[0], "bf16").nbytes


def _machine(args: argparse.Namespace, offered: dict[str, Sizes], reader: Reader | None) -> Machine:
    """From the file, or measured and kept for `run --stats`."""
    if args.machine:
        return from_file(args.machine)

    def say(what: str) -> None:
        if sys.stderr.isatty():
            print(f"\r\x1b[Kmeasuring {what} ...", end="", file=sys.stderr, flush=True)

    needed = {name for sizes in offered.values() for name in (sizes.format, *sizes.touched)}
    machine = measure(pieces_of(reader), tuple(name for name in RATED if name in needed), say)
    if sys.stderr.isatty():
        print("\r\x1b[K", end="", file=sys.stderr, flush=True)
    load = os.getloadavg()[0]
    if load > 0.5 * machine.cores:
        print(f"note: other programs use the processor (load {load:.1f} on {machine.cores} cores), so what was "
              "measured is too low: plan again when it is quiet", file=sys.stderr)
    text = to_toml(machine, installed_bytes()).encode()
    target = args.save_machine or saved_path()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        write_small(target, text)
    except OSError as error:
        if args.save_machine:
            raise LibremoeError(f"{target}: {error.strerror}") from None
    return machine


def pieces_of(reader: Reader | None) -> list[Piece]:
    """What of the model's files tells how fast the disk is: its experts as they are streamed, or else whole files."""
    if reader is None:
        return []
    config = reader.config
    if reader.kind in STREAMABLE:
        return [piece for layer in range(config.n_layers) for e in range(max(config.n_experts, 1))
                for piece in reader.expert_pieces(layer, e)]  # type: ignore[attr-defined]
    files = sorted({reader.entry(name).file for name in reader.names()})
    return [Piece(file, at, min(_PART, size - at)) for file in files if file.is_file()
            for size in (file.stat().st_size,) for at in range(0, size, _PART)]


def choose(made: dict[str, Forecast]) -> str:
    """The format to take: the best that stays in memory, of those whose quality is known; else int4, or what is as near
    to it as there is, streamed; else whatever fits."""
    for name, one in made.items():
        if one.placement == "resident" and name in _GOOD:
            return name
    streamed = [name for name, one in made.items() if one.placement == "streamed" and name in _GOOD]
    if streamed:
        return streamed[-1]
    fitting = [name for name, one in made.items() if one.placement != "does not fit"]
    return fitting[0] if fitting else min(made, key=lambda name: made[name].least)


def verdict_line(model: str, made: dict[str, Forecast], best: str, reader: Reader | None) -> str:
    """One sentence: fits, streams or does not fit, and what to do."""
    one = made[best]
    here = reader is not None and reader.entry("layers.0.experts.0.gate.weight").format == best
    first = "" if here or reader is None else f"libremoe convert {model} NEW --format {best}, then "
    path = (model if here else "NEW") if reader is not None else "PATH"
    if one.placement == "resident":
        return (f"fits: {best}, all {size_text(one.shared_bytes + one.cache_bytes)} of it in memory, about "
                f"{speed_text(one.tokens_per_s)}; do: {first}libremoe run {path}")
    if one.placement == "streamed":
        smaller = [name for name, other in made.items() if other.placement == "resident"]
        hint = f" ({smaller[0]} would stay in memory: {speed_text(made[smaller[0]].tokens_per_s)})" if smaller else ""
        return (f"streams: {best}, with {one.slots} of {one.n_experts} experts in memory and the others read from disk "
                f"as they are needed, about {speed_text(one.tokens_per_s)}{hint}; do: {first}libremoe run {path} "
                f"--memory {one.memory / 1e9:.3g}G")
    return (f"does not fit: {best} needs at least {size_text(int(one.least))} of memory, and "
            f"{size_text(int(one.memory))} are there; do: give it more memory, a shorter --context, or a smaller model")


def speed_text(tokens_per_s: float) -> str:
    if tokens_per_s >= 0.5:
        return f"{tokens_per_s:.1f} tokens/s"
    return f"a token every {1 / tokens_per_s:.2g} s" if tokens_per_s else "no tokens"


def plain(model: str, machine: Machine, made: dict[str, Forecast], best: str, verdict: str) -> dict[str, Any]:
    """What --json prints. Forecasts have null where a number is infinite; JSON has no infinity."""
    forecasts = []
    for one in made.values():
        fields = dataclasses.asdict(one)
        forecasts.append({key: None if value == float("inf") else value for key, value in fields.items()})
    about = dataclasses.asdict(machine) | {"power": machine.power}
    return {"model": model, "machine": about, "format": best, "verdict": verdict, "forecasts": forecasts}


def _show(model: str, machine: Machine, made: dict[str, Forecast], best: str, verdict: str,
          asked: tuple[int, int, int]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(width=None if sys.stdout.isatty() else 1 << 14)
    formats = Table(box=None, padding=(0, 2, 0, 0))
    for head in ("format", "on disk", "where", "in memory", "tokens/s", "cold cache", "first token", "energy a token"):
        formats.add_column(head, justify="left" if head in ("format", "where") else "right")
    for name, one in made.items():
        formats.add_row(*_row(name, one), style="bold" if name == best else "")
    terms = Table(box=None, padding=(0, 2, 0, 0))
    for head in ("why", "seconds", "= "):
        terms.add_column(head, justify="right" if head == "seconds" else "left")
    one = made[best]
    for title, some in ((f"a step of {asked[1]}, {asked[0]} tokens of context", one.terms),
                        (f"first token of a prompt of {asked[2]}", one.first_terms)):
        if some:
            terms.add_row(Text(title, style="bold"), f"{total(some):.3g}", "")
        for term in some:
            terms.add_row(f"  {term.name}", f"{term.seconds:.3g}", term.formula)
    with console.capture() as capture:
        for line in _machine_lines(model, machine):
            console.print(Text(line))
        console.print()
        console.print(formats)
        console.print()
        for line in _part_lines(one):
            console.print(Text(line))
        console.print()
        console.print(terms)
        console.print()
        console.print(Text(verdict, style="bold"))
    print(capture.get(), end="")  # not by rich, which ends the process with 1 when the reader of a pipe leaves


def _machine_lines(model: str, machine: Machine) -> list[str]:
    def given(name: str) -> str:
        return " (assumed: give it)" if name in machine.assumed else ""

    watts = "as given" if machine.watts is not None else "assumed: 20 W and 6 W a core"
    lines = [f"{model} on {machine.name}: {machine.cores} cores with {machine.isa}, {size_text(int(machine.ram))} of "
             f"memory to use read at {machine.read / 1e9:.1f} GB/s, disk {machine.disk / 1e9:.2f} GB/s{given('disk')}"
             + (f" with {size_text(int(machine.disk_free))} free" if machine.disk_free else "")
             + f", {machine.power:.0f} W ({watts})"]
    if machine.gpus:
        lines.append(f"GPU: {'; '.join(machine.gpus)}: not used, as libremoe has no kernels for GPUs yet")
    return lines


def _part_lines(one: Forecast) -> list[str]:
    cache = "all experts" if one.placement == "resident" else f"{one.slots} of {one.n_experts} experts"
    if one.placement == "does not fit":
        return [f"{one.format}: the smallest memory that works is {size_text(int(one.least))}"]
    return [
        f"{one.format} in memory: {size_text(one.shared_bytes)} shared weights, {size_text(one.cache_bytes)} for "
        f"{cache}, {size_text(one.kv_bytes)} keys and values, {size_text(one.process_bytes)} program",
        f"least memory {size_text(int(one.least))}; on disk {size_text(one.disk_bytes)}; begins after about "
        f"{one.load_s:.1f} s of reading" + ("" if one.placement == "resident" else
                                            f"; {one.hit_rate:.0%} of experts expected in memory when needed, "
                                            + ("by replay of what earlier runs chose" if one.measured_routing else
                                               "if all are equally likely (run it once with --stats to know)")),
    ]


def _row(name: str, one: Forecast) -> tuple[str, ...]:
    if one.placement == "does not fit":
        return name, size_text(one.disk_bytes), one.placement, f"> {size_text(int(one.least))}", "-", "-", "-", "-"
    where = "memory" if one.placement == "resident" else f"{one.slots / one.n_experts:.0%} memory, rest disk"
    used = one.shared_bytes + one.cache_bytes + one.kv_bytes + one.process_bytes
    return (name, size_text(one.disk_bytes), where, size_text(used), f"{one.tokens_per_s:.3g}",
            f"{one.cold_tokens_per_s:.3g}", f"{one.first_token_s:.3g} s", f"{one.joules_per_token:.3g} J")


def after_run(path: Path, stats: RunStats, kv_dtype: torch.dtype = torch.float32,
              chosen: Sequence[Experts] = ()) -> tuple[str, Forecast | None]:
    """For `run --stats`: one line with the forecast beside what happened, and the forecast, None without a machine as
    `plan` last measured it. It knows nothing of this run but its lengths and slots: what earlier runs chose says how
    often experts are found. Then what this one chose (`chosen`, for each decoding step) is added to that."""
    _, config, entry_of, reader = find_model(path)
    routing = routing_of(path, config)
    if chosen and config.is_moe:
        record(path, routing_sizes(config), chosen)
    saved = saved_path()
    if not saved.is_file():
        return "no forecast to compare with: run `libremoe plan PATH` once, which measures this machine", None
    sizes = next(iter(offered_sizes(config, entry_of, reader).values()))
    one = of_run(sizes, from_file(saved), stats, kv_dtype=kv_dtype, routing=routing)
    return comparison(one, stats), one


def routing_sizes(config: ModelConfig) -> tuple[int, int, int]:
    return config.n_layers, config.n_experts, config.n_experts_per_tok


def routing_of(path: Path, config: ModelConfig) -> Routing | None:
    """What earlier runs of a model chose."""
    return recorded(path, routing_sizes(config)) if config.is_moe else None


def of_run(sizes: Sizes, machine: Machine, stats: RunStats, hit_rate: float | None = None,
           kv_dtype: torch.dtype = torch.float32, routing: Routing | None = None) -> Forecast:
    """The forecast for a run's own prompt, length and slots, which begin empty. What it hits is forecast as well, where
    it is not given."""
    most = sizes.config.context_len
    slots = stats.experts.n_slots if stats.experts is not None else sizes.n_experts
    return forecast(sizes, machine, float("inf"), min(most, stats.prompt_tokens + stats.tokens // 2), 1,
                    min(most, stats.prompt_tokens), slots=slots, hit_rate=hit_rate, kv_dtype=kv_dtype,
                    routing=routing, run_steps=max(1, stats.tokens - 1))


def comparison(one: Forecast, stats: RunStats) -> str:
    """Forecast against actual. A run of one token has no rate."""
    text = (f"forecast: first token after {one.first_token_s:.2f} s (actual {stats.first_token_s:.2f}), "
            f"{one.tokens_per_s:.2f} tokens/s")
    if not stats.tokens_per_s:
        return text
    return f"{text} (actual {stats.tokens_per_s:.2f}: {stats.tokens_per_s / one.tokens_per_s:.2f} of it)"
