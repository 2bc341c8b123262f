"""A trained model in libremoe's own folder, with tokenizer, chat template and train.json; and what rounding costs."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import torch

from libremoe.config import ModelConfig
from libremoe.convert import convert_reader
from libremoe.errors import LibremoeError
from libremoe.experts import Expert, Weight
from libremoe.train import checkpoint
from libremoe.train.loop import Run, score
from libremoe.train.network import Parameters, network, parameters_of
from libremoe.train.record import RECORD
from libremoe.weights import TensorEntry, parameter_names
from libremoe.weights.native_layout import PARTS
from libremoe.weights.native_writer import write_small

TEMPLATE = Path(__file__).with_name("chat_template.jinja")


class TrainedReader:
    """A reader (weights/__init__.py) over a run's checkpoint. Raises CheckpointError where it is damaged."""

    kind = "libremoe training run"

    def __init__(self, path: Path, config: ModelConfig, licence: str | None, tokenizer: Path | None):
        self.path, self.config, self.licence, self.tokenizer = path.parent, config, licence, tokenizer
        self._file = path
        self._shapes = parameter_names(config)
        tensors, _ = checkpoint.load(path)
        missing = [n for n, shape in self._shapes.items() if tensors.get(f"parameter/{n}", _NOTHING).shape != shape]
        if missing:
            raise LibremoeError(f"{path}: has no {missing[0]} of the recipe's shape: it is of another run")
        self._tensors = tensors

    def names(self) -> list[str]:
        return list(self._shapes)

    def entry(self, name: str) -> TensorEntry:
        shape = self._shapes[name]
        return TensorEntry(name, shape, "f32", 4 * torch.Size(shape).numel(), self._file)

    def read(self, name: str) -> Weight:
        return self._tensors[f"parameter/{name}"]

    def read_expert(self, layer: int, e: int) -> Expert:
        return Expert(*(self.read(f"layers.{layer}.experts.{e}.{part}.weight") for part in PARTS))


_NOTHING = torch.empty(0)


def prepare(run_folder: Path, data: Path, record: dict[str, Any]) -> Path | None:
    """Put the files that go with the weights into the run's folder; the tokenizer's path, or None without one."""
    write_small(run_folder / RECORD, json.dumps(record, indent=1, ensure_ascii=False).encode())
    tokenizer = data / "tokenizer.model"
    if not tokenizer.is_file():
        return None
    write_small(run_folder / tokenizer.name, tokenizer.read_bytes())
    if TEMPLATE.is_file():
        write_small(run_folder / TEMPLATE.name, TEMPLATE.read_bytes())
    return run_folder / tokenizer.name


def rounding_costs(run: Run, reader: TrainedReader) -> dict[str, dict[str, float]]:
    """Nats a token on each validation shard, by format, of the run's network over weights rounded as in the export;
    float32 weights first."""
    recipe, head = run.recipe, run.recipe.export.head
    costs = {"f32": _scores(run, run.parameters)}
    for format in ("int8", "int4"):
        with tempfile.TemporaryDirectory() as folder:
            convert_reader(reader, Path(folder) / "model", format, head, shown=False)
            costs[format] = _scores(run, parameters_of(Path(folder) / "model", recipe.model, run.device))
    return costs


def _scores(run: Run, parameters: Parameters) -> dict[str, float]:
    model = network(run.recipe.model, parameters, run.dtype)
    return {name: round(score(model, shard, run.tokenizer, run.recipe.train, device=run.device)[0], 5)
            for name, shard in run.valid.items()}
