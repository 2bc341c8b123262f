"""From logits to the next token: SamplingParams, sample(), and StopChecker for stop strings.

Order of work, which is the release's of Grok-1 (spec section 5) with the usual additions:

    penalties, bias -> forbidden tokens -> / temperature -> top_k -> top_p (nucleus) -> min_p -> draw

All of it is on the CPU in float64: the release's bfloat16 moves the edge of the nucleus by a token or more. A
draw depends on the logits, the request's seed and the step alone, so neither the company in the batch nor a
restart changes a token.
"""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from libremoe.errors import LibremoeError

NO_COUNTS: Mapping[int, int] = {}
MAX_LOGPROBS = 1000
MAX_STOPS = 64
MAX_STOP_CHARACTERS = 4096
RANGES = {  # field: (lowest, highest), both allowed; the last three as in the OpenAI API
    "temperature": (0.0, 1e6),
    "top_p": (0.0, 1.0),
    "min_p": (0.0, 1.0),
    "repetition_penalty": (1e-3, 1e3),
    "presence_penalty": (-2.0, 2.0),
    "frequency_penalty": (-2.0, 2.0),
}
MAX_BIAS = 100.0  # as in the OpenAI API
COUNTS = {  # field: (lowest, highest, may be None)
    "top_k": (0, 1 << 48, False),
    "seed": (0, (1 << 64) - 1, True),
    "max_tokens": (0, 1 << 48, True),
    "logprobs": (0, MAX_LOGPROBS, True),
    "experts": (1, 1 << 48, True),
}


@dataclass(frozen=True)
class SamplingParams:
    """How a request wants its tokens chosen. Raises LibremoeError, naming the field, for bad values."""

    temperature: float = 1.0  # 0: greedy, the lowest id on ties
    top_k: int = 0  # keep the k most probable tokens, and ties with the last of them; 0: all
    top_p: float = 1.0  # keep the smallest set of mass >= top_p, and ties; 1: all; 0: greedy (spec section 5)
    min_p: float = 0.0  # keep tokens at least min_p times as probable as the best one
    repetition_penalty: float = 1.0  # on prompt and answer: logits > 0 are divided by it, others multiplied
    presence_penalty: float = 0.0  # subtracted from the logits of tokens in the answer
    frequency_penalty: float = 0.0  # subtracted once for each time that a token is in the answer
    seed: int | None = None  # None: with_seed() chooses one
    stop: tuple[str, ...] = ()
    max_tokens: int | None = None
    logprobs: int | None = None  # None: none; 0: of the chosen token; n: of the n best tokens as well
    logprob_token_ids: tuple[int, ...] = ()  # with logprobs: of these tokens as well, wherever they rank
    logit_bias: dict[int, float] = field(default_factory=dict)  # token id -> added to its logit
    ignore_eos: bool = False
    experts: int | None = None  # how many experts work on each token; None: the model's own number

    def __post_init__(self) -> None:
        for name, (low, high) in RANGES.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
                raise LibremoeError(f"{name} is {value!r}; it must be a number from {low:g} to {high:g}")
        for name, (least, most, optional) in COUNTS.items():
            value = getattr(self, name)
            if value is None and optional:
                continue
            if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
                raise LibremoeError(f"{name} is {value!r}; it must be a whole number from {least} to {most}")
        if not isinstance(self.ignore_eos, bool):
            raise LibremoeError(f"ignore_eos is {self.ignore_eos!r}; it must be true or false")
        if self.logprob_token_ids and self.logprobs is None:
            raise LibremoeError("logprob_token_ids needs logprobs")
        if not all(type(token) is int and 0 <= token < 1 << 48 for token in self.logprob_token_ids):
            raise LibremoeError(f"logprob_token_ids is {self.logprob_token_ids!r}; it must have token ids")
        self._check_stop()
        self._check_bias()

    def _check_stop(self) -> None:
        if not isinstance(self.stop, tuple) or not all(isinstance(text, str) for text in self.stop):
            raise LibremoeError(f"stop is {self.stop!r}; it must be a tuple of strings")
        if len(self.stop) > MAX_STOPS:
            raise LibremoeError(f"stop has {len(self.stop)} strings; at most {MAX_STOPS} are possible")
        for text in self.stop:
            if not 0 < len(text) <= MAX_STOP_CHARACTERS:
                limit = f"it must have 1 to {MAX_STOP_CHARACTERS}"
                raise LibremoeError(f"stop has a string of {len(text)} characters; {limit}")

    def _check_bias(self) -> None:
        if not isinstance(self.logit_bias, dict):
            raise LibremoeError(f"logit_bias is {self.logit_bias!r}; it must map token ids to numbers")
        for token, bias in self.logit_bias.items():
            if isinstance(token, bool) or not isinstance(token, int) or not 0 <= token < 1 << 48:
                raise LibremoeError(f"logit_bias has the key {token!r}; it must be a token id")
            if isinstance(bias, bool) or not isinstance(bias, int | float) or not abs(bias) <= MAX_BIAS:
                raise LibremoeError(f"logit_bias[{token}] is {bias!r}; it must be from -100 to 100")

    @property
    def greedy(self) -> bool:
        return self.temperature == 0 or self.top_p == 0


@dataclass(frozen=True)
class Sampled:
    """One chosen token.

    Log-probabilities are natural ones of the model's own distribution: log_softmax(logits) before penalties,
    bias, temperature and filters, as in the OpenAI API. None and [] unless params.logprobs asks for them.
    """

    token: int
    logprob: float | None
    top: list[tuple[int, float]]  # (id, logprob), the most probable first, the lower id first on ties; then those named


def with_seed(params: SamplingParams) -> SamplingParams:
    """`params` with a seed: its own, or a random one. Call it once per request, before its first token."""
    if params.seed is not None:
        return params
    return replace(params, seed=int.from_bytes(os.urandom(8), "little"))


def sample(
    logits: Tensor,
    params: SamplingParams,
    step: int,
    prompt: Collection[int] = (),
    generated: Mapping[int, int] = NO_COUNTS,
    mask: Tensor | None = None,
) -> Sampled:
    """Chooses a token.

    logits: (V,), any float type and device, unchanged. step: how many tokens the answer has so far. prompt:
    its token ids; generated: token id -> how often the answer has it; both for the penalties only. mask: (V,)
    bool, True = allowed. Raises LibremoeError for a missing seed, a bias outside the vocabulary, or when no
    token is allowed; FloatingPointError for logits that are no distribution (NaN, +inf, or all -inf).
    """
    raw = _as_array(logits)
    scaled = _adjusted(raw, params, prompt, generated, mask)
    if params.greedy:
        token = int(scaled.argmax())
    else:
        if params.seed is None:
            raise LibremoeError("seed is None; with_seed() gives a request its seed")
        weights = _weights(scaled, params.temperature)
        kept = _kept(weights, scaled, params)
        token = _draw(weights, kept, uniform(params.seed, step))
    if params.logprobs is None:
        return Sampled(token, None, [])
    logprobs = _log_softmax(raw)
    named = [(each, float(logprobs[each])) for each in params.logprob_token_ids]
    return Sampled(token, float(logprobs[token]), [*_best(raw, logprobs, params.logprobs), *named])


def keep_mask(logits: Tensor, params: SamplingParams, mask: Tensor | None = None) -> Tensor:
    """The tokens among which sample() draws, without penalties: (V,) bool. A forbidden token is not kept."""
    scaled = _adjusted(_as_array(logits), params, (), NO_COUNTS, mask)
    if params.greedy:
        return torch.from_numpy(np.arange(len(scaled)) == scaled.argmax())
    return torch.from_numpy(_kept(_weights(scaled, params.temperature), scaled, params))


def probabilities(logits: Tensor, params: SamplingParams, mask: Tensor | None = None) -> Tensor:
    """The distribution from which sample() draws, without penalties: (V,) float64, 0 where not kept."""
    scaled = _adjusted(_as_array(logits), params, (), NO_COUNTS, mask)
    if params.greedy:
        return keep_mask(logits, params, mask).double()
    weights = _weights(scaled, params.temperature)
    weights *= _kept(weights, scaled, params)
    return torch.from_numpy(weights / weights.sum())


def uniform(seed: int, step: int) -> float:
    """A number in [0, 1) that depends on (seed, step) only: Philox 4x64 with the step as its counter."""
    bits = int(np.random.Philox(key=seed, counter=step).random_raw())
    return (bits >> 11) * 2.0**-53


def _as_array(logits: Tensor) -> np.ndarray:
    """(V,) float32 on the CPU; possibly the tensor's own memory, so it is read only."""
    if logits.dim() != 1 or not logits.numel():
        raise ValueError(f"logits have the shape {tuple(logits.shape)}, not (V,)")
    array = logits.detach().to("cpu", torch.float32).numpy()
    highest = array.max()  # NaN if any is
    if not math.isfinite(highest):
        raise FloatingPointError(f"the logits are no distribution: their maximum is {highest}")
    return array


def _adjusted(
    raw: np.ndarray,
    params: SamplingParams,
    prompt: Collection[int],
    generated: Mapping[int, int],
    mask: Tensor | None,
) -> np.ndarray:
    """Penalties, bias and the mask: (V,) float64. Forbidden tokens get -inf.

    The release writes -1e10 instead, which amounts to the same except where allowed logits are lower still.
    """
    logits = raw.astype(np.float64)
    if params.repetition_penalty != 1:  # CTRL (Keskar et al. 2019) and the usual rule for signs
        seen = np.array(list(set(prompt) | generated.keys()), dtype=np.int64)
        values, penalty = logits[seen], params.repetition_penalty
        logits[seen] = np.where(values > 0, values / penalty, values * penalty)
    if generated and (params.presence_penalty or params.frequency_penalty):
        ids = np.fromiter(generated.keys(), dtype=np.int64)
        counts = np.fromiter(generated.values(), dtype=np.float64)
        logits[ids] -= params.frequency_penalty * counts + params.presence_penalty * (counts > 0)
    for token, bias in params.logit_bias.items():
        if token >= len(logits):
            raise LibremoeError(f"logit_bias has the token id {token}; the vocabulary has {len(logits)}")
        logits[token] += bias
    if mask is not None:
        if mask.shape != raw.shape or mask.dtype != torch.bool:
            raise ValueError(f"the mask is {mask.dtype} {tuple(mask.shape)}, not bool {raw.shape}")
        logits[~mask.cpu().numpy()] = -np.inf
        if logits.max() == -np.inf:
            raise LibremoeError("no token is allowed here: the constraint forbids all that the model can say")
    return logits


def _weights(logits: np.ndarray, temperature: float) -> np.ndarray:
    """exp(logits / temperature), scaled to a maximum of 1: (V,) float64."""
    shifted = logits - logits.max()  # before the division: 0 / temperature is 0 however small the temperature
    with np.errstate(over="ignore"):  # to -inf, whose exponential is 0, as it should be
        shifted /= temperature
    return np.exp(shifted, out=shifted)


def _kept(weights: np.ndarray, logits: np.ndarray, params: SamplingParams) -> np.ndarray:
    """top_k, then top_p of what is left, then min_p: (V,) bool. Ties stay or go together; -inf goes."""
    kept = logits > -np.inf
    if 0 < params.top_k < len(weights):
        kept &= logits >= np.partition(logits, -params.top_k)[-params.top_k]
    if params.top_p < 1:
        kept &= weights >= _nucleus_edge(weights[kept], params.top_p)
    if params.min_p > 0:
        kept &= weights >= params.min_p  # the best weight is 1
    return kept


def _nucleus_edge(weights: np.ndarray, top_p: float) -> float:
    """The least weight in the smallest set of largest weights with a share >= top_p of their sum.

    Weights below (1 - top_p) * sum / n have together less than the share 1 - top_p, so the set is found among
    the others; only these, few of 131,072 as a rule, are sorted.
    """
    total = weights.sum()
    candidates = weights[weights >= (1 - top_p) * total / len(weights)]
    candidates = np.sort(candidates)[::-1]
    mass = np.cumsum(candidates)
    last = np.searchsorted(mass, top_p * total)  # the first position where mass >= top_p * total
    return candidates[min(last, len(candidates) - 1)]  # the sum may miss the total by its rounding


def _draw(weights: np.ndarray, kept: np.ndarray, number: float) -> int:
    """The kept token in whose share of the mass, in order of ids, `number` in [0, 1) falls."""
    ids = np.flatnonzero(kept & (weights > 0))
    mass = np.cumsum(weights[ids])
    return int(ids[min(np.searchsorted(mass, number * mass[-1], side="right"), len(ids) - 1)])


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits.astype(np.float64)
    shifted -= shifted.max()
    return shifted - np.log(np.exp(shifted).sum())


def _best(logits: np.ndarray, logprobs: np.ndarray, count: int) -> list[tuple[int, float]]:
    """The `count` tokens of largest logits: these may differ where logprobs are rounded to be equal."""
    count = min(count, len(logits))
    if not count:
        return []
    ids = np.flatnonzero(logits >= np.partition(logits, -count)[-count])
    order = np.argsort(-logits[ids], kind="stable")[:count]  # stable: lower ids first
    return [(int(i), float(logprobs[i])) for i in ids[order]]


class StopChecker:
    """Cuts a streamed text before the first stop string, and holds back only what may be the start of one.

    The first stop string is the one that is complete first; of several complete at the same character, the
    longest. So the outcome does not depend on how the text is cut, and no further token is needed to decide.
    One automaton per string (Knuth, Morris, Pratt 1977): linear in the text, whatever it is.
    """

    def __init__(self, stops: tuple[str, ...]):
        self.stops = stops
        self.borders = [_borders(stop) for stop in stops]
        self.matched = [0] * len(stops)  # how much of each stop string the text ends with
        self.held = ""
        self.stopped = False

    def push(self, text: str) -> tuple[str, bool]:
        """-> (text that may be shown, whether a stop string was found). Afterwards all text is swallowed."""
        if self.stopped:
            return "", True
        self.held += text
        begin = len(self.held) - len(text)
        for at, character in enumerate(text, begin + 1):
            found = self._advance(character)
            if found:
                shown, self.held, self.stopped = self.held[: at - found], "", True
                return shown, True
        cut = len(self.held) - max(self.matched, default=0)
        shown, self.held = self.held[:cut], self.held[cut:]
        return shown, False

    def finish(self) -> str:
        """What was held back, at the end of a text that no stop string ended."""
        held, self.held = self.held, ""
        return held

    def _advance(self, character: str) -> int:
        """Takes one character; the length of the longest stop string that it completes, or 0."""
        found = 0
        for n, stop in enumerate(self.stops):
            matched = self.matched[n]
            while matched and stop[matched] != character:
                matched = self.borders[n][matched - 1]
            matched += stop[matched] == character
            self.matched[n] = matched
            if matched == len(stop):
                found = max(found, matched)
        return found


def _borders(stop: str) -> list[int]:
    """For each prefix, the length of its longest proper suffix that is a prefix too."""
    borders = [0] * len(stop)
    length = 0
    for i in range(1, len(stop)):
        while length and stop[i] != stop[length]:
            length = borders[length - 1]
        length += stop[i] == stop[length]
        borders[i] = length
    return borders
