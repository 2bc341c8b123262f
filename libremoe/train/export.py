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
from libremoe.language_model import build
from libremoe.tokenizer import Tokenizer
from libremoe.train import checkpoint
from libremoe.train.loop import score
from libremoe.train.recipe import Recipe
from libremoe.train.shards import Shard
from libremoe.weights import TensorEntry, open_checkpoint, parameter_names
from libremoe.weights.native_layout import PARTS
from libremoe.weights.native_writer import write_small

TEMPLATE = Path(__file__).with_name("chat_template.jinja")
RECORD = "train.json"


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


def rounding_costs(reader: TrainedReader, recipe: Recipe, valid: dict[str, Shard],
                   tokenizer: Tokenizer | None) -> dict[str, dict[str, float]]:
    """Nats a token on each validation shard, by format, of the exported model as it will run; float32 first."""
    costs: dict[str, dict[str, float]] = {}
    for format, head in (("f32", "f32"), ("int8", recipe.export.head), ("int4", recipe.export.head)):
        with tempfile.TemporaryDirectory() as folder:
            convert_reader(reader, Path(folder) / "model", format, head, shown=False)
            model = build(open_checkpoint(Path(folder) / "model"))
            costs[format] = {name: round(score(model, shard, tokenizer, recipe)[0], 5) for name, shard in valid.items()}
    return costs
