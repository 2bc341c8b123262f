"""What one token adds to an answer: text that is certain, and not what may be half a character or a stop string."""

from __future__ import annotations

from dataclasses import dataclass

from libremoe.engine.sequence import Experts, FinishReason, Logprob, Output
from libremoe.sampling import StopChecker
from libremoe.tokenizer import Tokenizer


@dataclass(frozen=True)
class Piece:
    """What one token added. text may be empty: half a character, or what may be the start of a stop string.

    tokens: the ids that were drawn, an end-of-text id included. logprobs: one for each token, where asked for.
    experts: where asked for, which worked on the pass that the token was drawn from.
    """

    text: str
    tokens: list[int]
    logprobs: list[Logprob]
    finish_reason: FinishReason | None = None  # in the last piece: "stop" or "length"
    experts: Experts | None = None


class PieceDecoder:
    """Outputs of one sequence, in order, become pieces of text that are certain. Without a tokenizer text is empty."""

    def __init__(self, tokenizer: Tokenizer | None, eos_ids: frozenset[int], stop: tuple[str, ...]):
        self._decoder = None if tokenizer is None else tokenizer.stream_decoder()
        self._n_decodable = 0 if tokenizer is None else tokenizer.vocab_size
        self._eos_ids = eos_ids
        self._checker = StopChecker(stop)

    @property
    def stopped(self) -> bool:
        """Whether a stop string was found: the engine does not know of it, and must be told to end the sequence."""
        return self._checker.stopped

    def push(self, output: Output) -> Piece:
        text = ""
        is_end = output.token in self._eos_ids and output.finish_reason == "stop"
        if self._decoder is not None:
            if output.token is not None and output.token < self._n_decodable and not is_end:
                text = self._decoder.push(output.token)
            if output.finish_reason is not None:
                text += self._decoder.finish()
        shown, stopped = self._checker.push(text)
        if output.finish_reason is not None and not stopped:
            shown += self._checker.finish()
        tokens = [] if output.token is None else [output.token]
        logprobs = [] if output.logprob is None else [Logprob(tokens[0], output.logprob, output.top)]
        return Piece(shown, tokens, logprobs, "stop" if stopped else output.finish_reason, output.experts)
