"""Published scores, as data with their source, and the sampling error that their number of items implies."""

from __future__ import annotations

import math
from dataclasses import dataclass

GROK_NEWS = "https://x.ai/blog/grok, 3 November 2023"


@dataclass(frozen=True)
class Published:
    task: str
    model: str
    score: float  # 0 to 1
    setting: str
    n_items: int
    source: str

    @property
    def margin(self) -> float:
        """Half of the 95 % interval that n_items imply: 1.96 sqrt(p (1 - p) / n)."""
        return 1.96 * math.sqrt(self.score * (1 - self.score) / self.n_items)


_TABLE = {  # task: setting, items, scores in per cent
    "gsm8k": ("8-shot", 1319, {"Grok-1": 62.9, "GPT-3.5": 57.1, "Llama 2 70B": 56.8}),
    "mmlu": ("5-shot", 14042, {"Grok-1": 73.0, "GPT-3.5": 70.0, "Llama 2 70B": 68.9}),
    "humaneval": ("0-shot, pass@1", 164, {"Grok-1": 63.2, "GPT-3.5": 48.1, "Llama 2 70B": 29.9}),
    "math": ("4-shot", 5000, {"Grok-1": 23.9, "GPT-3.5": 23.5, "Llama 2 70B": 13.5}),
}
PUBLISHED = [Published(task, model, score / 100, setting, n, GROK_NEWS)
             for task, (setting, n, scores) in _TABLE.items() for model, score in scores.items()]


def published(task: str) -> list[Published]:
    """What was published for a task; Grok-1 first. Empty where nothing was."""
    return [one for one in PUBLISHED if one.task == task]
