"""train.json: everything that is known of a run, beside its weights."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

from libremoe.errors import CheckpointError
from libremoe.train.loop import Run, is_balanced, step_flops

RECORD = "train.json"
_RAPL = Path("/sys/class/powercap/intel-rapl:0/energy_uj")


def record_of(run: Run, threads: int, joules: float | None) -> dict[str, Any]:
    """As JSON: recipe, data digests, seed, commit, machine, compute, energy, curves, loads of the experts."""
    recipe, history = run.recipe, run.history
    data = {name: {"meta": shard.meta, "tokens": len(shard.tokens), "documents": len(shard.docs)}
            for name, shard in {**run.shards, **run.valid}.items()}
    loads = run.final_loads()
    start = None if run.start is None else {"name": run.start.name, "sha256": run.start_sha256}
    return {
        "recipe": recipe.to_dict(), "from": start, "seed": recipe.seed, "commit": run.history.commit,
        "torch": torch.__version__,
        "parameters": recipe.model.n_params(), "active_parameters": recipe.model.n_active_params(),
        "tokens_seen": history.step * recipe.train.rows * recipe.train.context,
        "device": device_name(run.device), "threads": threads, "dtype": str(run.dtype).removeprefix("torch."),
        "steps": history.step, "sittings": history.sittings,
        "seconds": round(history.seconds, 1), "cpu_seconds": round(history.cpu_seconds, 1),
        "operations": step_flops(recipe) * history.step,
        "energy": {"joules": joules, "how": _how_counted(run.device) if joules is not None
                   else "not measured: this machine has no energy counter that can be read"},
        "data": data, "report": _report(run.data / "report.json"), "before": before_of(run.start),
        "final_loads": loads, "balanced": is_balanced(loads) if loads else None,
        "history": {"losses": [round(x, 4) for x in history.losses], "loads": history.loads,
                    "evaluations": history.evaluations},
    }


def before_of(start: Path | None) -> dict[str, Any] | None:
    """What the model that was gone on from says of its own training, but for its curves; None where it says nothing."""
    if start is None or not (start / RECORD).is_file():
        return None
    try:
        found: dict[str, Any] = json.loads((start / RECORD).read_text(encoding="utf-8"))
        return {**found, "history": {"evaluations": found["history"]["evaluations"]}}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(start / RECORD, f"is no record of a training run: {error}") from None


def energy_counter(device: str = "cpu") -> float | None:
    """Joules on the processor's counter, or the GPU's (which is all of the card and nothing else); None without one."""
    if torch.device(device).type == "cuda":
        return _gpu_joules(torch.device(device).index or 0)
    try:
        return int(_RAPL.read_text()) / 1e6
    except (OSError, ValueError):
        return None


def _gpu_joules(index: int) -> float | None:
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
        return float(pynvml.nvmlDeviceGetTotalEnergyConsumption(pynvml.nvmlDeviceGetHandleByIndex(index))) / 1e3
    except pynvml.NVMLError:
        return None


def _how_counted(device: str) -> str:
    gpu = torch.device(device).type == "cuda"
    return f"the {'GPU' if gpu else 'processor'}'s own counter ({'NVML' if gpu else 'RAPL'}), this sitting"


def joules_since(before: float | None, device: str = "cpu") -> float | None:
    """None where there is no counter, or where it has begun again from zero."""
    now = energy_counter(device)
    return now - before if before is not None and now is not None and now >= before else None


def commit() -> str | None:
    """The commit of the source tree, with + where files were changed; None outside of one."""
    folder = Path(__file__).parent
    try:
        head = subprocess.run(["git", "-C", folder, "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10)
        changed = subprocess.run(["git", "-C", folder, "status", "--porcelain", "--untracked-files=no"],
                                 capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return head.stdout.strip() + ("+" if changed.stdout.strip() else "") if head.returncode == 0 else None


def device_name(device: str) -> str:
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(torch.device(device))
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    return f"{model}, {os.cpu_count()} cores"


def _report(path: Path) -> dict[str, Any] | None:
    """What `libremoe train data` wrote of licences and dropped items; None where it is missing."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return {key: found.get(key) for key in ("mix", "licences", "sha256", "evaluation_items", "chars_per_token")}
