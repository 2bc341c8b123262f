"""What a person sees of a training run: a line of progress, curves in the terminal, and the same as PNG."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

PLAIN_LINE_EVERY_S = 10.0
SMOOTH = 0.9  # of the loss shown
_BARS = " ▁▂▃▄▅▆▇█"


class Ticker:
    """Progress on standard error: a line that is written over on a terminal, a new one now and then elsewhere."""

    def __init__(self, steps: int, tokens_a_step: int, step_flops: float, peak_flops: float, shown: bool):
        self.steps, self.tokens_a_step, self.step_flops, self.peak_flops = steps, tokens_a_step, step_flops, peak_flops
        self._shown, self._tty = shown, sys.stderr.isatty()
        self._loss: float | None = None
        self._started = self._last = time.monotonic()
        self._first: int | None = None

    def step(self, number: int, loss: float, stage: str, loads: tuple[float, float] | None) -> None:
        """number: steps done, 1 and more. loads: lowest and highest share of an expert."""
        self._loss = loss if self._loss is None else SMOOTH * self._loss + (1 - SMOOTH) * loss
        self._first = number - 1 if self._first is None else self._first
        now = time.monotonic()
        if not self._shown or (not self._tty and now - self._last < PLAIN_LINE_EVERY_S and number < self.steps):
            return
        self._last = now
        rate = (number - self._first) / max(now - self._started, 1e-9)
        text = (f"{stage} {number}/{self.steps}: loss {self._loss:.3f}, {rate * self.tokens_a_step:,.0f} tokens/s, "
                f"{100 * rate * self.step_flops / self.peak_flops:.0f} % of peak")
        if loads is not None:
            text += f", experts {100 * loads[0]:.0f}-{100 * loads[1]:.0f} %"
        self._print(f"{text}, {duration((self.steps - number) / rate)} left", over=True)

    def say(self, text: str) -> None:
        if self._shown:
            self._print(text, over=False)

    def close(self) -> None:
        if self._shown and self._tty:
            print(file=sys.stderr)

    def _print(self, text: str, over: bool) -> None:
        begin, end = ("\r\x1b[K", "" if over else "\n") if self._tty else ("", "\n")
        print(f"{begin}{text}", end=end, file=sys.stderr, flush=True)


def duration(seconds: float) -> str:
    """For people: 42 s, 7 min, 3 h 20 min."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def chart(values: list[float], title: str, width: int = 64, height: int = 8) -> str:
    """A curve in letters, the mean of neighbours where there are more values than columns."""
    if not values:
        return f"{title}: nothing yet"
    width = min(width, len(values))
    edges = [i * len(values) // width for i in range(width + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in zip(edges, edges[1:], strict=False)]
    low, high = min(means), max(means)
    levels = [round((m - low) / ((high - low) or 1) * (height * 8 - 1)) + 1 for m in means]
    lines = ["".join(_BARS[max(0, min(8, level - 8 * row))] for level in levels) for row in reversed(range(height))]
    labels = [f"{high:8.3f} ", *[" " * 9] * (height - 2), f"{low:8.3f} "]
    return "\n".join([title, *(label + line for label, line in zip(labels, lines, strict=True))])


def loads_table(loads: list[list[float]]) -> str:
    """Shares of the experts, a line a layer."""
    return "\n".join(f"layer {i:2d}  " + "  ".join(f"{100 * share:4.1f} %" for share in layer)
                     for i, layer in enumerate(loads))


def draw(folder: Path, record: dict[str, Any]) -> list[str]:
    """loss.png and experts.png in folder from a run's record; names of the files written, none without matplotlib."""
    try:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot
    except ImportError:
        print("no curves drawn: pip install 'libremoe[train]' for matplotlib", file=sys.stderr)
        return []
    history = record["history"]
    figure, axes = pyplot.subplots(figsize=(8, 4.5))
    axes.plot(range(1, len(history["losses"]) + 1), history["losses"], lw=0.6, label="training")
    for name in sorted({entry[1] for entry in history["evaluations"]}):
        points = [(entry[0], entry[2]) for entry in history["evaluations"] if entry[1] == name]
        axes.plot(*zip(*points, strict=True), marker="o", ms=3, label=name)
    axes.set(xlabel="step", ylabel="loss (nats a token)", title=record["recipe"]["title"])
    axes.legend()
    written = [_save(figure, folder / "loss.png")]
    if history["loads"]:
        written.append(_save(_loads_figure(history["loads"]), folder / "experts.png"))
    pyplot.close("all")
    return written


def _loads_figure(loads: list[Any]) -> Any:
    from matplotlib import pyplot

    n_layers = len(loads[0][1])
    figure, rows = pyplot.subplots(n_layers, 1, figsize=(8, 1.6 * n_layers), sharex=True, squeeze=False)
    for layer in range(n_layers):
        axes = rows[layer][0]
        axes.plot([entry[0] for entry in loads], [entry[1][layer] for entry in loads], lw=0.8)
        axes.axhspan(0.05, 0.25, color="0.92")
        axes.set(ylabel=f"layer {layer}", ylim=(0, None))
    rows[-1][0].set(xlabel="step")
    figure.suptitle("share of each expert; the band is 5 to 25 %")
    return figure


def _save(figure: Any, path: Path) -> str:
    figure.tight_layout()
    figure.savefig(path, dpi=120, metadata={"Software": None})
    return path.name
