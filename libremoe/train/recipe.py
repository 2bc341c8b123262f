"""Recipes: everything that decides a training run, read from a short TOML file (recipes/*.toml).

    title, seed
    [model]   fields of ModelConfig; what is left out is as in Grok-1. n_experts = 0 makes a dense model
    [train]   fields of Training
    [[stage]] fields of Stage, in order; the shares add up to 1
    [export]  fields of Export
"""

from __future__ import annotations

import dataclasses
import math
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from libremoe.config import PRESETS, ModelConfig
from libremoe.errors import LibremoeError

FOLDER = Path(__file__).with_name("recipes")
OPTIMIZERS = ("adamw", "muon")
T = TypeVar("T")


@dataclass(frozen=True)
class Stage:
    """A part of a run that reads one folder of shards.

    share: of all tokens. answers_only: learn only what the shard's mask marks. whole_documents: rows begin where a
    document begins, so that no conversation is cut in two.
    """

    name: str
    shard: str
    share: float
    answers_only: bool = False
    whole_documents: bool = False


@dataclass(frozen=True)
class Training:
    """tokens: seen in all, repetitions counted. rows: of context tokens, a step; micro_rows: of these, at once.

    warmup and decay: shares of all steps; the rate falls in a line to final_lr * lr. balance, z: weights of the two
    router losses. eval_every: steps; eval_rows: rows of each validation shard. learn_experts: False keeps them as they
    are, for tuning what a model that is given has around them.
    """

    tokens: int
    context: int = 512
    rows: int = 16
    micro_rows: int = 8
    optimizer: str = "muon"
    lr: float = 3e-3
    warmup: float = 0.02
    decay: float = 0.25
    final_lr: float = 0.05
    weight_decay: float = 0.1
    clip: float = 1.0
    balance: float = 0.01
    z: float = 1e-3
    eval_every: int = 200
    eval_rows: int = 32
    learn_experts: bool = True


@dataclass(frozen=True)
class Export:
    format: str = "int8"
    head: str = "bf16"
    licence: str = "Apache-2.0"


@dataclass(frozen=True)
class Recipe:
    title: str
    seed: int
    model: ModelConfig
    train: Training
    stages: tuple[Stage, ...]
    export: Export

    @property
    def steps(self) -> int:
        return max(1, math.ceil(self.train.tokens / (self.train.rows * self.train.context)))

    def stage_at(self, step: int) -> tuple[Stage, int]:
        """The stage of a step, and the step's number within it."""
        first = 0
        for stage, end in zip(self.stages, self._ends(), strict=True):
            if step < end:
                return stage, step - first
            first = end
        raise ValueError(f"step {step} of {self.steps}")

    def _ends(self) -> list[int]:
        done, ends = 0.0, []
        for stage in self.stages:
            done += stage.share
            ends.append(round(done * self.steps))
        ends[-1] = self.steps
        return ends

    def lr_at(self, step: int) -> float:
        """Warm-up, a plateau, and a line down (warmup-stable-decay: Hu et al. 2024, MiniCPM)."""
        t = self.train
        warmup, decay = max(1, round(t.warmup * self.steps)), max(1, round(t.decay * self.steps))
        left = (self.steps - step) / decay
        return t.lr * min(1.0, (step + 1) / warmup, t.final_lr + (1 - t.final_lr) * left)

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def find_recipe(name: str) -> Path:
    """A path, or the name of a recipe that comes with the package. Raises LibremoeError listing these."""
    path = Path(name)
    if path.is_file():
        return path
    own = FOLDER / f"{name}.toml"
    if own.is_file():
        return own
    known = ", ".join(sorted(p.stem for p in FOLDER.glob("*.toml")))
    raise LibremoeError(f"{name}: no such recipe; give the path of a .toml file, or one of: {known}")


def read_recipe(path: Path) -> Recipe:
    """Raises LibremoeError naming the file and the field that is wrong."""
    try:
        fields = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise LibremoeError(f"{path}: is no readable recipe: {error}") from None
    try:
        return _recipe(fields)
    except LibremoeError as error:
        raise LibremoeError(f"{path}: {error}") from None


def _recipe(fields: dict[str, Any]) -> Recipe:
    unknown = sorted(set(fields) - {"title", "seed", "model", "train", "stage", "export"})
    if unknown:
        raise LibremoeError(f"unknown fields: {', '.join(unknown)}")
    stages = fields.get("stage")
    if not isinstance(stages, list) or not stages:
        raise LibremoeError("needs at least one [[stage]]")
    recipe = Recipe(str(fields.get("title", "")), int(fields.get("seed", 0)), _model(fields.get("model", {})),
                    _fields(Training, fields.get("train", {}), "[train]"),
                    tuple(_fields(Stage, stage, "[[stage]]") for stage in stages),
                    _fields(Export, fields.get("export", {}), "[export]"))
    _check(recipe)
    return recipe


def _model(fields: dict[str, Any]) -> ModelConfig:
    """As Grok-1 in all that is not given; the embedding's multiplier follows from dim."""
    if not isinstance(fields.get("dim"), int) or fields["dim"] <= 0:
        raise LibremoeError("[model] dim must be a positive integer")
    merged = {**PRESETS["tiny"].to_dict(), "embed_scale": math.sqrt(fields["dim"]), **fields}
    if merged["n_experts"] == 0:
        merged["n_experts_per_tok"] = 0
    return ModelConfig.from_dict(merged)


def _fields(kind: type[T], given: Any, where: str) -> T:
    known = {f.name: f for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
    if not isinstance(given, dict):
        raise LibremoeError(f"{where} must be a table")
    unknown = sorted(set(given) - set(known))
    missing = sorted(n for n, f in known.items() if f.default is dataclasses.MISSING and n not in given)
    if unknown or missing:
        what = f"unknown: {', '.join(unknown)}" if unknown else f"missing: {', '.join(missing)}"
        raise LibremoeError(f"{where} {what}; there are: {', '.join(known)}")
    types: dict[str, Any] = {"int": int, "float": (int, float), "bool": bool, "str": str}
    for name, value in given.items():
        wanted = types[str(known[name].type)]
        if not isinstance(value, wanted) or (isinstance(value, bool) and wanted is not bool):
            raise LibremoeError(f"{where} {name} must be of type {known[name].type}, not {value!r}")
    return kind(**given)


def _check(recipe: Recipe) -> None:
    t = recipe.train
    for name in ("tokens", "context", "rows", "micro_rows", "lr", "clip", "eval_every", "eval_rows"):
        if not (math.isfinite(getattr(t, name)) and getattr(t, name) > 0):
            raise LibremoeError(f"[train] {name} must be positive, not {getattr(t, name)}")
    for name in ("warmup", "decay", "final_lr"):
        if not 0 <= getattr(t, name) <= 1:
            raise LibremoeError(f"[train] {name} is a share from 0 to 1, not {getattr(t, name)}")
    if t.rows % t.micro_rows:
        raise LibremoeError(f"[train] rows {t.rows} must be a multiple of micro_rows {t.micro_rows}")
    if t.context > recipe.model.context_len:
        raise LibremoeError(f"[train] context {t.context} is more than the model's context_len "
                            f"{recipe.model.context_len}")
    if t.optimizer not in OPTIMIZERS:
        raise LibremoeError(f"[train] optimizer must be one of {', '.join(OPTIMIZERS)}, not {t.optimizer!r}")
    if abs(sum(stage.share for stage in recipe.stages) - 1) > 1e-6 or any(s.share <= 0 for s in recipe.stages):
        raise LibremoeError("the shares of the stages must be positive and add up to 1")


def dense(recipe: Recipe) -> Recipe:
    """The same run for a model without experts, of the same active size: one feed-forward as wide as those chosen."""
    m = recipe.model
    width = m.hidden_dim * max(m.n_experts_per_tok, 1)
    model = dataclasses.replace(m, n_experts=0, n_experts_per_tok=0, hidden_dim=width)
    return dataclasses.replace(recipe, title=f"{recipe.title} (dense)", model=model)
