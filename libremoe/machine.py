"""What a machine can do, as numbers: measured here in a few seconds, or read from a short TOML file.

The file (docs/machines/ has examples); sizes are numbers of bytes or text such as "64G", rates text such as "6.5G/s":

    name = "desktop"            # shown
    cores = 16
    isa = "avx512vnni"          # one of PER_CORE
    ram = "64G"                 # installed; RESERVE of it is left to the system
    read = "67G/s"              # of memory, all cores
    disk = "6.5G/s"             # of large direct reads where the model lies
    disk_free = "500G"          # optional
    watts = 150                 # optional, under load, at the wall
    gpus = ["name, 24 GB"]      # optional; shown, not used: there are no kernels for them
    layer_s = 0.0003            # optional: time of a layer in which no weight is read
    [rates.int4]                # optional, for any format: what the kernels reach with all cores
    decode = "30G/s"            # bytes of weights, one token at a time
    prefill = "1.2T/s"          # operations, two a multiply-add, 128 tokens at a time
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import shutil
import subprocess
import time
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from libremoe.errors import LibremoeError
from libremoe.memory import available_bytes, parse_bytes
from libremoe.routing import cache_folder

if TYPE_CHECKING:
    from libremoe.direct_read import Piece

RESERVE = 2e9  # bytes of installed memory that the system keeps, and 5 % of what is above 40 GB
ASSUMED_DISK = 1e9  # bytes/s where nothing could be measured
KERNEL_SHARE = 0.85  # of the memory's read rate that the kernels reach: bench/RESULTS.md, "Whole network", 87 %
LAYER_S = 3e-4  # of a layer in which no weight is read, where not measured
FORMATS = ("f32", "bf16", "int8", "int4", "int3", "int2")
_PIECE = 64 << 20  # bytes of a piece of a file that are read when the disk is measured


@dataclass(frozen=True)
class Rates:
    """What the kernels of one weight format reach. decode: bytes of weights a second for one token at a time; prefill:
    operations a second, two a multiply-add, for many."""

    decode: float
    prefill: float


# One core's, bytes/s and operations/s, from bench/RESULTS.md. AVX2: AMD Zen 3 at 2.45 GHz, and for f32, bf16 and int8
# times what was won since, measured on Zen 1; AVX-512 with VNNI: AMD Zen 4, but for prefill of int8 and int4, which
# like AMX is an Intel Xeon's at 3.4 to 3.9 GHz. Not measured: int3 and int2 with AVX-512, taken for int4's earlier
# rate in weights a second; NEON, taken for what AVX2 was; AVX-VNNI, which multiplies int8 as NEON does, and else
# taken for AVX2.
_NEON = {"f32": Rates(13e9, 0.023e12), "bf16": Rates(9.5e9, 0.018e12), "int8": Rates(9e9, 0.033e12),
         "int4": Rates(8.5e9, 0.12e12), "int3": Rates(7.5e9, 0.14e12), "int2": Rates(7.3e9, 0.15e12)}
_AVX2 = _NEON | {"f32": Rates(14e9, 0.048e12), "bf16": Rates(11e9, 0.047e12), "int8": Rates(11e9, 0.09e12)}
_AVX512 = {"f32": Rates(12e9, 0.06e12), "bf16": Rates(10e9, 0.06e12), "int8": Rates(18e9, 0.19e12),
           "int4": Rates(22e9, 0.46e12), "int3": Rates(17e9, 0.17e12), "int2": Rates(12e9, 0.17e12)}
_AMX = _AVX512 | {"bf16": Rates(11e9, 0.28e12), "int8": Rates(18e9, 0.42e12), "int4": Rates(22e9, 0.60e12)}
_PORTABLE = {name: Rates(rates.decode / 8, rates.prefill / 8) for name, rates in _NEON.items()}
PER_CORE = {"portable": _PORTABLE, "neon": _NEON, "avx2": _AVX2, "avxvnni": _AVX2 | {"int8": _NEON["int8"]},
            "avx512vnni": _AVX512, "amx": _AMX}


@dataclass(frozen=True)
class Machine:
    """ram: bytes that a run may have. read, disk: bytes/s. rates: measured ones; of others rate() has an estimate."""

    name: str
    cores: int
    isa: str
    ram: float
    read: float
    disk: float
    disk_free: float | None = None
    watts: float | None = None
    gpus: tuple[str, ...] = ()
    layer_s: float = LAYER_S
    rates: Mapping[str, Rates] = field(default_factory=dict)
    assumed: tuple[str, ...] = ()  # names of fields that nobody measured or gave

    def rate(self, format: str) -> Rates:
        """Of a weight format: measured, or cores times one core's and for decoding at most what memory gives."""
        if format in self.rates:
            return self.rates[format]
        core = PER_CORE.get(self.isa, _PORTABLE).get(format, _AVX2["f32"])
        return Rates(min(core.decode * self.cores, KERNEL_SHARE * self.read), core.prefill * self.cores)

    @property
    def power(self) -> float:
        """Watts under load: as given, else an assumption: 20 W for the machine and 6 W a core."""
        return self.watts if self.watts is not None else 20.0 + 6.0 * self.cores


def amount(text: str | float, what: str) -> float:
    """A number of bytes, or of bytes a second, from 24e9, "24G", "24GB", "22GiB" or "1.2G/s". G is 10^9, Gi 2^30.

    Raises LibremoeError naming `what`.
    """
    value = 0.0
    if isinstance(text, int | float):
        value = float(text)
    else:
        with contextlib.suppress(LibremoeError):  # said better below, with what it is for
            value = float(parse_bytes(text.removesuffix("/s")))
    if isinstance(text, bool) or not 0 < value < 1e18:
        raise LibremoeError(f"{what} must be a size such as 24G, 22GiB or, of a rate, 1.2G/s, not {text!r}")
    return value


def from_file(path: Path) -> Machine:
    """Raises LibremoeError naming the file and the field that is missing, wrong or not known."""
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise LibremoeError(f"{path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise LibremoeError(f"{path}: not TOML: {error}") from None
    known = {f.name for f in dataclasses.fields(Machine)} - {"assumed"}
    required = ("name", "cores", "isa", "ram", "read", "disk")
    lacking = [name for name in required if name not in found]
    for wrong, text in ((sorted(set(found) - known), "does not know"), (lacking, "lacks")):
        if wrong:
            raise LibremoeError(f"{path}: the description of a machine {text} {', '.join(wrong)}; it has "
                                f"{', '.join(sorted(known))}")
    if not isinstance(found["name"], str) or found["isa"] not in PER_CORE:
        raise LibremoeError(f"{path}: name must be text, and isa one of {', '.join(PER_CORE)}, not {found['isa']!r}")
    if isinstance(found["cores"], bool) or not isinstance(found["cores"], int) or not 0 < found["cores"] <= 4096:
        raise LibremoeError(f"{path}: cores must be a whole number from 1, not {found['cores']!r}")
    gpus, rates = found.get("gpus", []), found.get("rates", {})
    if not isinstance(gpus, list) or not all(isinstance(gpu, str) for gpu in gpus):
        raise LibremoeError(f"{path}: gpus must be a list of names")
    sizes = {name: amount(found[name], f"{path}: {name}") for name in ("ram", "read", "disk", "disk_free", "watts",
                                                                     "layer_s") if name in found}
    sizes["ram"] = sizes["ram"] - RESERVE - max(0.0, 0.05 * (sizes["ram"] - 40e9))
    if sizes["ram"] <= 0:
        raise LibremoeError(f"{path}: ram must be more than the {RESERVE / 1e9:.0f} GB that the system keeps")
    return Machine(found["name"], found["cores"], found["isa"], sizes["ram"], sizes["read"], sizes["disk"],
                   sizes.get("disk_free"), sizes.get("watts"), tuple(gpus), sizes.get("layer_s", LAYER_S),
                   _rates(path, rates))


def _rates(path: Path, rates: Any) -> dict[str, Rates]:
    if not isinstance(rates, dict) or set(rates) - set(FORMATS):
        raise LibremoeError(f"{path}: rates must be tables named after formats: {', '.join(FORMATS)}")
    made = {}
    for name, of_format in rates.items():
        if not isinstance(of_format, dict) or set(of_format) != {"decode", "prefill"}:
            raise LibremoeError(f"{path}: rates.{name} must have decode and prefill")
        made[name] = Rates(*(amount(of_format[kind], f"{path}: rates.{name}.{kind}") for kind in ("decode", "prefill")))
    return made


def to_toml(machine: Machine, installed: float) -> str:
    """The file that from_file reads. installed: bytes of memory in the machine."""
    lines = [f'name = "{machine.name}"', f"cores = {machine.cores}", f'isa = "{machine.isa}"', f"ram = {installed:.0f}",
             f"read = {machine.read:.0f}", f"disk = {machine.disk:.0f}", f"layer_s = {machine.layer_s:.3g}"]
    lines += [f"disk_free = {machine.disk_free:.0f}"] if machine.disk_free else []
    lines += [f"watts = {machine.watts:.0f}"] if machine.watts else []
    lines += ["gpus = [" + ", ".join(f'"{gpu}"' for gpu in machine.gpus) + "]"] if machine.gpus else []
    for name, rates in machine.rates.items():
        lines += [f"[rates.{name}]", f"decode = {rates.decode:.0f}", f"prefill = {rates.prefill:.0f}"]
    return "\n".join(lines) + "\n"


def installed_bytes() -> float:
    """Memory in the machine, or what its control group allows where that is less; RESERVE is added for from_file."""
    total = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    free = available_bytes()
    return min(total, free + RESERVE) if free < total else total


def saved_path() -> Path:
    """Where `libremoe plan` keeps what it measured, for `run --stats`."""
    return cache_folder() / "machine.toml"


def measure(pieces: list[Piece], formats: tuple[str, ...], say: Callable[[str], None] = lambda _: None) -> Machine:
    """This machine, in a few seconds. pieces: of the model's files, for the disk; formats: whose kernels to time.

    Memory it takes: about 600 MB for a moment. say: is told what is being measured.
    """
    import torch

    from libremoe.ops import choose

    say("memory")
    isa, cores = "portable", os.cpu_count() or 1
    read, assumed = 0.0, ["watts"]
    if choose().__name__.endswith("cpu"):
        from libremoe import _kernels

        isa, cores = _kernels.isa(), _kernels.threads()
        buffer = torch.ones(256 << 20, dtype=torch.uint8)
        read = max(_kernels.measure_read(buffer) for _ in range(5))
        del buffer
    else:
        buffer = torch.ones(64 << 20)
        read = buffer.nbytes / _fastest(buffer.sum, 5)
    rates = {}
    for format in formats:
        say(f"the kernels for {format}")
        rates[format] = _kernel_rates(format)
    say("the time of a layer")
    layer_s = _layer_seconds()
    say("the disk")
    disk = disk_rate(pieces)
    assumed += [] if disk else ["disk"]
    free = float(shutil.disk_usage(pieces[0].file.parent).free) if pieces else None
    return Machine("this machine", cores, isa, float(available_bytes()), read, disk or ASSUMED_DISK, free,
                   gpus=_gpus(), layer_s=layer_s, rates=rates, assumed=tuple(assumed))


def _fastest(call: Callable[[], object], repeats: int) -> float:
    """Seconds of the fastest of several calls: what the machine can do when nobody else is at it."""
    best = float("inf")
    for _ in range(repeats):
        begun = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - begun)
    return best


def prefill_rows(format: str) -> int:
    """Tokens at once with which a format's rate of computing is measured."""
    return 32 if format in ("f32", "bf16", "f16") else 128


def _kernel_rates(format: str) -> Rates:
    """Feed-forwards of 50 M weights, four of them in turn so that no cache holds them."""
    import torch

    from libremoe.experts import Expert
    from libremoe.ops import choose

    ops, dim, hidden_dim = choose(), 2048, 8192
    shapes = ((hidden_dim, dim), (hidden_dim, dim), (dim, hidden_dim))
    n_experts = 2 if format in ("f32", "bf16") else 4
    experts = [Expert(*(_some_weight(format, *shape) for shape in shapes)) for _ in range(n_experts)]
    one, many = torch.randn(1, dim), torch.randn(prefill_rows(format), dim)

    def run(x: torch.Tensor, which: list[Expert]) -> None:
        with torch.inference_mode():
            for expert in which:
                ops.feed_forward(x, expert, "silu")

    decode = sum(expert.nbytes for expert in experts) / _fastest(lambda: run(one, experts), 6)
    n_ops = 2 * len(many) * 3 * dim * hidden_dim
    return Rates(decode, n_ops / _fastest(lambda: run(many, experts[:1]), 2))


def _some_weight(format: str, n_out: int, n_in: int) -> Any:
    import torch

    from libremoe.quant import FORMATS as QUANTS
    from libremoe.quant import TILE_IN, TILE_OUT, QuantTensor

    if format not in QUANTS:  # filled, because zeros that were never written share one page of memory
        return torch.full((n_out, n_in), 0.01, dtype=torch.bfloat16 if format == "bf16" else torch.float32)
    group = QUANTS[format].groups[0]
    data = torch.full((n_out // TILE_OUT, n_in // TILE_IN, QUANTS[format].tile_bytes), 0x5A, dtype=torch.uint8)
    scales = torch.ones(n_out // TILE_OUT, n_in // group, TILE_OUT, dtype=torch.bfloat16)
    return QuantTensor(format, (n_out, n_in), group, data, scales)


def _layer_seconds() -> float:
    """Of a network so small that its weights cost nothing: what calling and small operations take."""
    import torch

    from libremoe.batch import BLOCK_SIZE, Batch, KVCache
    from libremoe.config import preset
    from libremoe.experts import ResidentExperts
    from libremoe.model import Transformer
    from libremoe.ops import choose
    from libremoe.tiny import RandomReader

    config = preset("tiny")
    reader = RandomReader(config, "int4")
    experts = [[reader.read_expert(i, e) for e in range(config.n_experts)] for i in range(config.n_layers)]
    model = Transformer(config, reader.read, ResidentExperts(experts), choose())
    kv = KVCache(config, 1, torch.float32)
    batch = Batch([0, 1], torch.tensor([BLOCK_SIZE - 1]), [BLOCK_SIZE], [[0]])

    def step() -> None:
        with torch.inference_mode():
            model(torch.tensor([5]), batch, kv)

    return _fastest(step, 30) / config.n_layers


def disk_rate(pieces: list[Piece], seconds: float = 2.0) -> float | None:
    """bytes/s of reading these pieces, two at once, as an engine that streams reads its experts: checksums, and past
    the page cache where the file system lets one (direct_read.py). None for less than 16 MiB, which say nothing. Stops
    after `seconds`. Of a long piece only the beginning is read, and pieces in an order that visits all files soon."""
    from libremoe.direct_read import NEEDED, DirectReader, Request, aligned_buffers

    parts = [dataclasses.replace(piece, length=min(piece.length, _PIECE)) for piece in pieces]
    if sum(part.length for part in parts) < 16 << 20:
        return None
    room = max(part.room for part in parts)
    buffers = [buffer.zero_() for buffer in aligned_buffers(2, room)]  # fresh memory is slow at its first touch
    reader = DirectReader()
    try:
        begun, under_way = time.perf_counter(), list[Request]()
        for turn, i in enumerate(_spread(len(parts))):
            if turn >= 2:
                under_way[turn - 2].done.wait()
                if time.perf_counter() - begun > seconds:
                    break
            under_way.append(reader.read([parts[i]], [buffers[turn % 2][: parts[i].room]], NEEDED))
        for request in under_way:
            request.done.wait()
            if request.error is not None:
                raise request.error
        return reader.bytes_read / (time.perf_counter() - begun)
    finally:
        reader.close()


def _spread(n: int) -> list[int]:
    """0 to n - 1, each far from the one before."""
    stride = next(s for s in range(max(1, round(0.618 * n)), n + 2) if math.gcd(s, n) == 1)
    return [i * stride % n for i in range(n)]


def _gpus() -> tuple[str, ...]:
    """Names and memory of NVIDIA cards, as their driver's own tool has them."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return ()
    command = [tool, "--query-gpu=name,memory.total", "--format=csv,noheader"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return ()
    return tuple(line.strip() for line in answer.stdout.splitlines() if line.strip())
