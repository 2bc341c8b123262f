"""ModelConfig: everything in which Grok-1, Llama 2, Mistral 7B and Mixtral differ, as numbers and switches.

The network (model.py) reads these fields and nothing else; no code asks which family a model is of.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from libremoe.errors import LibremoeError


@dataclass(frozen=True)
class ModelConfig:
    """Sizes and switches of one decoder-only transformer.

    Raises LibremoeError from `__post_init__` where fields contradict each other, naming the field.
    """

    family: str  # "grok-1", "llama", "mistral", "mixtral": for display and for writers, never for the network
    vocab_size: int
    dim: int
    hidden_dim: int  # width of one feed-forward, per expert
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    context_len: int
    n_experts: int = 0  # 0: one dense feed-forward a layer, no router
    n_experts_per_tok: int = 0
    activation: str = "silu"  # gate activation: "silu", or "gelu" (the tanh form)
    post_norms: bool = False  # a norm after each sub-layer too, before it joins the residual stream
    norm_eps: float = 1e-5
    rope_theta: float = 10_000.0
    attn_scale: float | None = None  # multiplies q.k; None: 1/sqrt(head_dim)
    attn_softcap: float | None = None  # c * tanh(s / c) on scaled scores, before the mask
    embed_scale: float = 1.0  # multiplies the input embedding only
    logit_scale: float = 1.0
    renormalise_gates: bool = True  # chosen experts' probabilities made to add up to 1
    tied_embeddings: bool = False
    sliding_window: int | None = None  # keys at distance >= this are not seen
    pad_id: int | None = None  # keys of tokens with id <= pad_id are not seen (Grok-1); None: all are
    bos_id: int | None = None
    eos_id: int | None = None
    add_bos: bool = False  # the release of Grok-1 does not prepend BOS, Llama does

    def __post_init__(self) -> None:
        positive = ("vocab_size", "dim", "hidden_dim", "n_layers", "n_heads", "n_kv_heads", "head_dim", "context_len")
        for name in positive:
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 2**31:
                raise LibremoeError(f"configuration field {name} must be a positive integer, not {value!r}")
        if self.n_heads % self.n_kv_heads:
            raise LibremoeError(f"n_heads {self.n_heads} must be a multiple of n_kv_heads {self.n_kv_heads}")
        if self.head_dim % 2:
            raise LibremoeError(f"head_dim {self.head_dim} must be even for rotary embedding")
        if self.activation not in ("silu", "gelu"):
            raise LibremoeError(f"activation must be 'silu' or 'gelu', not {self.activation!r}")
        if not 0 <= self.n_experts_per_tok <= self.n_experts <= 1024:
            raise LibremoeError(
                f"n_experts_per_tok {self.n_experts_per_tok} must be at most n_experts {self.n_experts} (at most 1024)"
            )
        if self.n_experts and not self.n_experts_per_tok:
            raise LibremoeError("n_experts_per_tok must be at least 1 where there are experts")
        for name in ("norm_eps", "rope_theta", "embed_scale", "logit_scale", "attn_scale", "attn_softcap"):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, (int, float)) and math.isfinite(value) and value > 0):
                raise LibremoeError(f"configuration field {name} must be a positive number, not {value!r}")

    @property
    def is_moe(self) -> bool:
        return self.n_experts > 0

    @property
    def score_scale(self) -> float:
        """The number that multiplies q.k."""
        return self.attn_scale if self.attn_scale is not None else 1.0 / math.sqrt(self.head_dim)

    def n_params(self) -> int:
        """All parameters, quantisation scales not counted, a tied table counted once."""
        return self._count(max(self.n_experts, 1))

    def n_active_params(self) -> int:
        """Parameters that take part in one token."""
        return self._count(self.n_experts_per_tok if self.is_moe else 1)

    def _count(self, n_feed_forwards: int) -> int:
        attention = self.dim * self.head_dim * (2 * self.n_heads + 2 * self.n_kv_heads)
        feed_forward = 3 * self.dim * self.hidden_dim
        norms = self.dim * (4 if self.post_norms else 2)
        layer = attention + n_feed_forwards * feed_forward + norms + self.dim * self.n_experts
        tables = self.vocab_size * self.dim * (1 if self.tied_embeddings else 2)
        return self.n_layers * layer + tables + self.dim

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> ModelConfig:
        """The reverse of to_dict. Raises LibremoeError naming unknown or missing fields."""
        known = {f.name: f for f in dataclasses.fields(cls)}
        unknown = sorted(set(fields) - set(known))
        if unknown:
            raise LibremoeError(f"unknown configuration fields: {', '.join(unknown)}")
        required = {name for name, f in known.items() if f.default is dataclasses.MISSING}
        missing = sorted(required - set(fields))
        if missing:
            raise LibremoeError(f"missing configuration fields: {', '.join(missing)}")
        return cls(**fields)


def grok_hidden_dim(dim: int, widening_factor: float) -> int:
    """Feed-forward width of the release: 2/3 of dim * widening_factor, rounded up to a multiple of 8.

    Source: docs/grok-1.md, "Feed-forward width"; (6144, 8) gives 32,768.
    """
    width = int(widening_factor * dim)
    width = 2 * width // 3
    return width + (8 - width % 8) % 8


def _grok(dim: int, n_layers: int, n_heads: int, n_kv_heads: int, head_dim: int, vocab_size: int,
          context_len: int) -> ModelConfig:
    return ModelConfig(
        family="grok-1", vocab_size=vocab_size, dim=dim, hidden_dim=grok_hidden_dim(dim, 8), n_layers=n_layers,
        n_heads=n_heads, n_kv_heads=n_kv_heads, head_dim=head_dim, context_len=context_len, n_experts=8,
        n_experts_per_tok=2, activation="gelu", post_norms=True, attn_scale=0.08838834764831845, attn_softcap=30.0,
        embed_scale=math.sqrt(dim), logit_scale=0.5773502691896257, renormalise_gates=False, tied_embeddings=True,
        pad_id=0, bos_id=1, eos_id=2,
    )


GROK_1 = dataclasses.replace(
    _grok(6144, 64, 48, 8, 128, 131_072, 8192), embed_scale=78.38367176906169  # as printed in the release
)

_LLAMA_2_7B = ModelConfig(
    family="llama", vocab_size=32_000, dim=4096, hidden_dim=11_008, n_layers=32, n_heads=32, n_kv_heads=32,
    head_dim=128, context_len=4096, bos_id=1, eos_id=2, add_bos=True,
)

PRESETS: dict[str, ModelConfig] = {
    "grok-1": GROK_1,
    "tiny": _grok(96, 3, 6, 2, 16, 512, 8192),
    "llama-2-7b": _LLAMA_2_7B,
    "mistral-7b": dataclasses.replace(
        _LLAMA_2_7B, family="mistral", hidden_dim=14_336, n_kv_heads=8, context_len=32_768, sliding_window=4096
    ),
    "mixtral-8x7b": dataclasses.replace(
        _LLAMA_2_7B, family="mixtral", hidden_dim=14_336, n_kv_heads=8, context_len=32_768, rope_theta=1e6,
        n_experts=8, n_experts_per_tok=2,
    ),
}


def preset(name: str) -> ModelConfig:
    """A configuration by name. Raises LibremoeError listing the names that exist."""
    if name not in PRESETS:
        raise LibremoeError(f"no preset {name!r}; there are: {', '.join(sorted(PRESETS))}")
    return PRESETS[name]
