"""The training loop, one for pretraining and tuning: rows -> network -> loss -> gradients -> step, and a checkpoint.

What a step does depends on the recipe and the step's number only, so a run that was killed goes on from its last
checkpoint to the same bits, on the same processor with the same number of threads.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

import numpy as np
import torch

from libremoe.errors import CheckpointError, LibremoeError
from libremoe.model import Transformer
from libremoe.tokenizer import Tokenizer, open_tokenizer
from libremoe.train import checkpoint
from libremoe.train.network import Parameters, RouterWatch, network, new_parameters, parameters_of, route_at_random
from libremoe.train.ops import cross_entropy_sum
from libremoe.train.optim import Optimizer, clip, has_fast_bfloat16
from libremoe.train.recipe import Recipe, Training
from libremoe.train.report import Ticker
from libremoe.train.shards import Rows, Shard, chosen_rows

CHECKPOINT = "checkpoint.safetensors"
LOG_EVERY = 10  # steps
LEAST_LOAD, MOST_LOAD = 0.05, 0.25  # share of a layer's choices that an expert should have at the end


@dataclass
class History:
    """What happened so far, kept in the checkpoint. losses: nats a learned token, one a step.

    loads: every LOG_EVERY steps, [step, shares (L, E)]. evaluations: [step, shard name, nats a token, nats a
    character]. counts: (L, E) choices since the last entry of loads.
    """

    step: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    commit: str | None = None  # of the source tree when the run began
    losses: list[float] = field(default_factory=list)
    loads: list[tuple[int, list[list[float]]]] = field(default_factory=list)
    evaluations: list[tuple[int, str, float, float]] = field(default_factory=list)
    counts: list[list[int]] = field(default_factory=list)
    sittings: int = 0  # how often the run was begun or continued


class Run:
    """A training run in memory: recipe, shards, parameters, optimizer, history. Made new or from out's checkpoint."""

    def __init__(self, recipe: Recipe, data: Path, out: Path, device: str = "cpu", resume: bool = False,
                 random_routing: bool = False, dtype: torch.dtype | None = None, start: Path | None = None):
        """dtype: of activations and products; None: bfloat16 where the device multiplies it faster, else float32.
        start: a model to go on from, in place of random weights."""
        self.recipe, self.data, self.out, self.device = recipe, data, out, device
        self.shards = {stage.shard: Shard(data / stage.shard) for stage in recipe.stages}
        self.valid = {p.name: Shard(p) for p in sorted(data.glob("valid-*")) if (p / "meta.json").is_file()}
        self.tokenizer = _tokenizer(data, recipe)
        self.starts = {s.name: self.shards[s.shard].row_starts(recipe.train.context, s.whole_documents)
                       for s in recipe.stages}
        self.start = start
        self.start_sha256 = None if start is None else model_digest(start)
        self.parameters = (new_parameters(recipe.model, recipe.seed, device) if start is None else
                           parameters_of(start, recipe.model, device))
        for name, parameter in self.parameters.items():
            parameter.requires_grad_(recipe.train.learn_experts or ".experts." not in name)
        self.optimizer = Optimizer(self.parameters, recipe.train.optimizer, recipe.train.weight_decay)
        self.history = History()
        self._begin(resume)
        self.dtype = dtype or (torch.bfloat16 if has_fast_bfloat16(torch.device(device)) else torch.float32)
        self.model = network(recipe.model, self.parameters, self.dtype)
        if random_routing:
            route_at_random(self.model, recipe.seed)
        self.watch = RouterWatch(self.model)
        self._maker = ThreadPoolExecutor(1, "batches")
        self._ahead: tuple[int, Future[list[Rows]]] | None = None

    def _begin(self, resume: bool) -> None:
        path = self.out / CHECKPOINT
        if not path.exists():
            self.out.mkdir(parents=True, exist_ok=True)
            return
        if not resume:
            raise LibremoeError(f"{self.out}: holds a run; continue it with --resume, or give another folder")
        tensors, record = checkpoint.load(path)
        if record.get("recipe") != self.identity():
            raise LibremoeError(f"{self.out}: the run there was begun with another recipe or other data; continue it "
                                "with the same, or give another folder")
        restore(tensors, self.parameters, self.optimizer, path)
        self.history = History(**record["history"])

    def identity(self) -> str:
        """What must be the same when a run goes on, as text."""
        shards = {name: shard.meta.get("files", shard.meta) for name, shard in sorted(self.shards.items())}
        return repr((self.recipe, shards) if self.start is None else (self.recipe, shards, self.start_sha256))

    def save(self) -> None:
        tensors = {f"parameter/{n}": p.data for n, p in self.parameters.items()} | self.optimizer.state
        checkpoint.save(self.out / CHECKPOINT, tensors, {"recipe": self.identity(), "history": vars(self.history)})

    def step(self) -> float:
        """One update of all parameters; the mean loss of its tokens."""
        step, t = self.history.step, self.recipe.train
        batches = self._next_batches(step)
        n_learned = sum(float(rows.weights.sum()) for rows in batches)
        total = torch.zeros((), device=self.device)
        counted: torch.Tensor | None = None
        for rows in batches:
            loss = token_loss(self.model, rows) / max(n_learned, 1.0)
            balance, z, counts = self.watch.take()
            (loss + (t.balance * balance + t.z * z) / len(batches)).backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
            counted = counts if counted is None else counted + counts
        clip(self.parameters, t.clip)
        self.optimizer.step(step + 1, self.recipe.lr_at(step))
        value = float(total)  # waits for the device: nothing above does so after the backward pass has begun
        self._count(counted)
        if not math.isfinite(value):
            raise LibremoeError(f"step {step}: the loss is {value}; lower lr in the recipe and continue with another "
                                "folder")
        self.history.losses.append(value)
        self.history.step += 1
        if self.history.step % LOG_EVERY == 0 and self.recipe.model.is_moe:
            self.history.loads.append((self.history.step, shares(self.history.counts)))
            self.history.counts = []
        return value

    def _next_batches(self, step: int) -> list[Rows]:
        """The step's rows. A GPU has the next ones made meanwhile; a processor has no core to spare."""
        if torch.device(self.device).type == "cpu":
            return self._batches(step)
        at, future = self._ahead or (step, None)
        batches = future.result() if future is not None and at == step else self._batches(step)
        last = step + 1 >= self.recipe.steps
        self._ahead = None if last else (step + 1, self._maker.submit(self._batches, step + 1))
        return batches

    def _batches(self, step: int) -> list[Rows]:
        stage, within = self.recipe.stage_at(step)
        t, starts = self.recipe.train, self.starts[stage.name]
        chosen = starts[chosen_rows(len(starts), self.recipe.seed, within * t.rows, t.rows)]
        shard = self.shards[stage.shard]
        return [shard.rows(chosen[i : i + t.micro_rows], t.context, stage.answers_only, self.device)
                for i in range(0, t.rows, t.micro_rows)]

    def _count(self, counts: torch.Tensor | None) -> None:
        if counts is None:
            return
        known = np.array(self.history.counts) if self.history.counts else 0
        self.history.counts = (counts.cpu().numpy() + known).tolist()

    def evaluate(self) -> dict[str, tuple[float, float]]:
        """(nats a token, nats a character) on each validation shard, noted in the history."""
        found = {}
        for name, shard in self.valid.items():
            answers = any(s.answers_only and f"valid-{s.shard}" == name for s in self.recipe.stages)
            found[name] = score(self.model, shard, self.tokenizer, self.recipe.train, answers, self.device)
            self.history.evaluations.append((self.history.step, name, *found[name]))
        self.watch.take()
        return found

    def final_loads(self) -> list[list[float]]:
        """Shares (L, E) over the last tenth of the run; empty for a dense model."""
        loads = self.history.loads
        last = loads[-max(1, len(loads) // 10) :]
        return np.mean([entry[1] for entry in last], axis=0).round(4).tolist() if last else []


def model_digest(model: Path) -> str:
    """sha256 of a model's manifest, which has those of its files; of a single file, its own. Raises CheckpointError."""
    manifest = model / "manifest.json" if model.is_dir() else model
    try:
        with manifest.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        raise CheckpointError(model, "is no model to go on from: give libremoe's own folder, or one file") from None


def restore(tensors: dict[str, torch.Tensor], parameters: Parameters, optimizer: Optimizer | None, path: Path) -> None:
    """Copy a checkpoint's tensors into their places. Raises LibremoeError where names or shapes do not fit."""
    places = {f"parameter/{n}": p.data for n, p in parameters.items()}
    places |= optimizer.state if optimizer is not None else {}
    for name, place in places.items():
        if name not in tensors or tensors[name].shape != place.shape:
            raise LibremoeError(f"{path}: has no {name} of shape {tuple(place.shape)}: it is of another run")
        place.copy_(tensors[name])


def token_loss(model: Transformer, rows: Rows) -> torch.Tensor:
    """Sum of the losses of the learned tokens, in nats; logits are made for these only, in chunks."""
    h_ND = model.hidden(rows.tokens, rows.batch)
    learned = rows.weights.nonzero()[:, 0]
    table = model.head.weight
    if not isinstance(table, torch.Tensor):
        raise LibremoeError("a quantised model cannot be trained; train the float model that it was made of")
    return cross_entropy_sum(h_ND.index_select(0, learned), table, rows.targets[learned], model.config.logit_scale)


@torch.no_grad()
def score(model: Transformer, shard: Shard, tokenizer: Tokenizer | None, t: Training, answers_only: bool = False,
          device: str = "cpu") -> tuple[float, float]:
    """(nats a token, nats a character) over eval_rows rows spread over a shard; nan a character without a tokenizer."""
    starts = shard.row_starts(t.context, answers_only)
    chosen = starts[np.unique(np.linspace(0, len(starts) - 1, min(t.eval_rows, len(starts))).astype(int))]
    lengths = None if tokenizer is None else torch.from_numpy(characters(tokenizer)).to(device)
    nats = chars = n = 0.0
    for i in range(0, len(chosen), t.micro_rows):
        rows = shard.rows(chosen[i : i + t.micro_rows], t.context, answers_only, device)
        logits = model(rows.tokens, rows.batch)
        losses = torch.nn.functional.cross_entropy(logits, rows.targets, reduction="none") * rows.weights
        nats += float(losses.double().sum())
        n += float(rows.weights.sum())
        chars += 0.0 if lengths is None else float((lengths[rows.targets] * rows.weights).sum())
    return nats / max(n, 1.0), nats / chars if chars else math.nan


def characters(tokenizer: Tokenizer) -> np.ndarray:
    """(V,) float32: how many characters a token adds to the text: its bytes that do not continue a character."""
    pieces = [tokenizer.token_bytes(i) or b"" for i in range(tokenizer.vocab_size)]
    return np.array([sum(byte & 0xC0 != 0x80 for byte in piece) for piece in pieces], dtype=np.float32)


def shares(counts: list[list[int]]) -> list[list[float]]:
    table = np.array(counts, dtype=np.float64)
    return (table / table.sum(1, keepdims=True)).round(4).tolist()


def is_balanced(loads: list[list[float]]) -> bool:
    return all(LEAST_LOAD <= share <= MOST_LOAD for layer in loads for share in layer)


def train(run: Run, shown: bool = True, checkpoint_every_s: float = 120.0) -> bool:
    """Train to the end of the recipe, saving as it goes. False where Ctrl-C or SIGTERM stopped it between two steps."""
    recipe, history = run.recipe, run.history
    history.sittings += 1
    tokens_a_step = recipe.train.rows * recipe.train.context
    ticker = Ticker(recipe.steps, tokens_a_step, step_flops(recipe), peak_flops(run.device, run.dtype), shown)
    with _stopping() as stop:
        saved = started = time.monotonic()
        cpu_started, before, cpu_before = time.process_time(), history.seconds, history.cpu_seconds
        while history.step < recipe.steps and not stop.is_set():
            stage, _ = recipe.stage_at(history.step)
            loss = run.step()
            history.seconds = before + time.monotonic() - started
            history.cpu_seconds = cpu_before + time.process_time() - cpu_started
            ticker.step(history.step, loss, stage.name, _range(history))
            last = history.step == recipe.steps
            if run.valid and (last or history.step % recipe.train.eval_every == 0):
                ticker.say(f"step {history.step}: " + ", ".join(
                    f"{name} {nats:.3f} nats a token, perplexity a character {math.exp(per_char):.3f}"
                    for name, (nats, per_char) in run.evaluate().items()))
            if last or time.monotonic() - saved >= checkpoint_every_s:
                run.save()
                saved = time.monotonic()
        if history.step < recipe.steps:
            run.save()
    ticker.close()
    return history.step == recipe.steps


def _range(history: History) -> tuple[float, float] | None:
    """Lowest and highest load of any expert at the last look."""
    if not history.loads:
        return None
    values = [share for layer in history.loads[-1][1] for share in layer]
    return min(values), max(values)


@contextlib.contextmanager
def _stopping() -> Iterator[threading.Event]:
    """An event that Ctrl-C and SIGTERM set, so that a step is never left half done. A second Ctrl-C ends at once."""
    stop = threading.Event()

    def ask(number: int, frame: FrameType | None) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def step_flops(recipe: Recipe) -> float:
    """Multiplications and additions of one step: 6 a parameter and token, and attention over half of the context
    (Chowdhery et al. 2022, appendix B, halved for the causal mask)."""
    m, t = recipe.model, recipe.train
    return t.rows * t.context * (6.0 * m.n_active_params() + 6.0 * m.n_layers * m.n_heads * m.head_dim * t.context)


def peak_flops(device: str, dtype: torch.dtype) -> float:
    """The best of a few square products: what this machine gives at most, now."""
    cuda = torch.device(device).type == "cuda"
    size = 8192 if cuda else 1024
    a = torch.randn(size, size, device=device).to(dtype)
    best = 0.0
    for _ in range(8):
        started = time.perf_counter()
        a @ a
        if cuda:
            torch.cuda.synchronize()
        best = max(best, 2.0 * size**3 / (time.perf_counter() - started))
    return best


def _tokenizer(data: Path, recipe: Recipe) -> Tokenizer | None:
    path = data / "tokenizer.model"
    if not path.is_file():
        return None
    tokenizer = open_tokenizer(path)
    if tokenizer.vocab_size != recipe.model.vocab_size:
        raise LibremoeError(f"{path} has {tokenizer.vocab_size} pieces, the recipe's vocab_size is "
                            f"{recipe.model.vocab_size}: make the data with --pieces {recipe.model.vocab_size}")
    return tokenizer


def set_threads(count: int | None) -> int:
    """Use so many threads, or as many as there are cores; the number is part of what makes a run repeatable."""
    torch.set_num_threads(count or len(os.sched_getaffinity(0)))
    return torch.get_num_threads()
