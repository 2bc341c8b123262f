"""libremoe: run the open Grok-1, Llama 2, Mistral and Mixtral on the machine that you have.

    import libremoe
    lm = libremoe.load(path)
    for text in lm.stream("The answer is", temperature=0.7, max_tokens=100):
        print(text, end="", flush=True)

The names are imported when they are first used, because torch takes seconds to load.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from libremoe.config import ModelConfig
    from libremoe.engine.engine import Engine
    from libremoe.errors import LibremoeError
    from libremoe.language_model import LanguageModel, load
    from libremoe.sampling import SamplingParams

__all__ = ["Engine", "LanguageModel", "LibremoeError", "ModelConfig", "SamplingParams", "load"]

_PLACES = {
    "load": "libremoe.language_model",
    "LanguageModel": "libremoe.language_model",
    "Engine": "libremoe.engine.engine",
    "ModelConfig": "libremoe.config",
    "SamplingParams": "libremoe.sampling",
    "LibremoeError": "libremoe.errors",
}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'libremoe' has no attribute {name!r}")
    return getattr(import_module(_PLACES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
