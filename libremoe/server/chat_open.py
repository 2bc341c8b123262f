"""Opens what the page works with, for `libremoe serve`."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from libremoe.chat.folder import open_belongings
from libremoe.server.chat_state import Chat
from libremoe.tiny import is_random
from libremoe.weights import open_checkpoint

if TYPE_CHECKING:
    from libremoe.language_model import LanguageModel


def open_chat(args: argparse.Namespace, lm: LanguageModel) -> Chat:
    """args: those of open_belongings, and path. Raises LibremoeError where something cannot be opened."""
    own, streamed = open_belongings(args), lm.streamed
    counters = None if streamed is None else lambda: streamed.stats().counters()
    config = lm.config
    return Chat(own.store, own.personas, own.live, None, args.live, config.n_layers, config.n_experts, config.family,
                is_random(open_checkpoint(args.path)), counters, own.folder, own)
