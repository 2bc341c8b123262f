"""All generators by name, and the stream of documents of one: gen/<kind>/<language>.

Document n depends on (seed, kind, language, side, n) alone. Held-out documents use phrasings and words that training
never sees (draw.py).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

from libremoe.errors import LibremoeError
from libremoe.train.corpus import WordLists
from libremoe.train.draw import Draw, Lang
from libremoe.train.generate_grounded import cite
from libremoe.train.generate_stories import story, story_chat
from libremoe.train.generate_talk import forms, know, memory, small_talk
from libremoe.train.generate_tools import calculator, dates, units
from libremoe.train.generate_who import refuse, who
from libremoe.train.render import Document

KINDS: dict[str, Callable[[Draw], Document]] = {
    "story": story, "story_chat": story_chat, "calculator": calculator, "units": units, "dates": dates, "cite": cite,
    "memory": memory, "forms": forms, "who": who, "refuse": refuse, "small_talk": small_talk, "know": know,
}


def generate(kind: str, lang: Lang, lists: WordLists, seed: int, held_out: bool) -> Iterator[Document]:
    """Endless. Raises LibremoeError for an unknown kind."""
    if kind not in KINDS or lang not in ("en", "fr"):
        raise LibremoeError(f"no generator is called {kind}/{lang}; there are {', '.join(KINDS)}, each in en and fr")
    for n in itertools.count():
        yield KINDS[kind](Draw(f"{seed}/{kind}/{lang}/{held_out}/{n}", lists, lang, held_out))
