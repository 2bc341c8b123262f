"""The network, top to bottom in the order data flows. All four families differ in config fields only.

What is unusual about Grok-1: four norms a layer (before and after each sub-layer), attention scores scaled by a free
number and then capped by 30 * tanh(s / 30), experts chosen by a softmax over all eight whose two chosen values are not
renormalised, a GELU gate, multipliers on the embedding and on the logits, and one table for both.

Shape letters: N tokens in a flat batch, M rows whose logits are wanted, D dim, H query heads, G kv heads, K head_dim,
E experts, A active experts, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from types import ModuleType
from typing import Protocol

import torch
from torch import nn

from libremoe.batch import Batch, KVCache, LayerCache
from libremoe.config import ModelConfig
from libremoe.experts import Expert, Weight

ABSENT = -1e30  # the router's logit of an expert that may not be chosen: finite, and its probability is 0

Read = Callable[[str], Weight]  # a name of weights/__init__.py -> its weight


class Experts(Protocol):
    """Where feed-forward weights come from: resident or streamed."""

    def resident(self, layer: int) -> set[int]: ...

    def begin(self, h_ND: torch.Tensor) -> None: ...

    def waves(self, layer: int, ids: Sequence[int], x_ND: torch.Tensor) -> Iterable[Mapping[int, Expert]]: ...


class RMSNorm(nn.Module):
    def __init__(self, weight_D: Weight, eps: float, ops: ModuleType):
        super().__init__()
        self.weight, self.eps, self.ops = weight_D, eps, ops

    def forward(self, x_ND: torch.Tensor) -> torch.Tensor:
        return self.ops.rms_norm(x_ND, self.weight, self.eps)


class Linear(nn.Module):
    def __init__(self, weight_OI: Weight, ops: ModuleType):
        super().__init__()
        self.weight, self.ops = weight_OI, ops

    def forward(self, x_NI: torch.Tensor) -> torch.Tensor:
        return self.ops.linear(x_NI, self.weight)


class Attention(nn.Module):
    """Causal attention with grouped queries, rotary positions, and Grok-1's soft cap where configured."""

    def __init__(self, config: ModelConfig, layer: int, read: Read, ops: ModuleType):
        super().__init__()
        self.config, self.layer, self.ops = config, layer, ops
        self.q, self.k, self.v, self.o = (
            Linear(read(f"layers.{layer}.attn.{name}.weight"), ops) for name in ("q", "k", "v", "o")
        )

    def forward(self, x_ND: torch.Tensor, batch: Batch, cache: LayerCache | None,
                seen_N: torch.Tensor | None) -> torch.Tensor:
        c = self.config
        q_NHK = self.q(x_ND).view(-1, c.n_heads, c.head_dim)
        k_NGK = self.k(x_ND).view(-1, c.n_kv_heads, c.head_dim)
        v_NGK = self.v(x_ND).view(-1, c.n_kv_heads, c.head_dim)
        q_NHK = self.ops.rope(q_NHK, batch.positions, c.rope_theta)
        k_NGK = self.ops.rope(k_NGK, batch.positions, c.rope_theta)
        heads = self.ops.attention(q_NHK, k_NGK, v_NGK, batch, cache, seen_N, c.score_scale, c.attn_softcap,
                                   c.sliding_window)
        return self.o(heads)


class Router(nn.Module):
    """Which experts work on a token. Always in float32: close decisions flip in less."""

    def __init__(self, config: ModelConfig, layer: int, read: Read, ops: ModuleType):
        super().__init__()
        self.config, self.ops = config, ops
        weight = read(f"layers.{layer}.router.weight")
        self.weight = weight.float() if isinstance(weight, torch.Tensor) else weight

    def forward(self, x_ND: torch.Tensor, batch: Batch,
                among: set[int] | None = None) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """ids (N, A), gates (N, A) float32, logits (N, E) float32. A is the most that a sequence of the batch wants.

        among: as if there were only these experts, at least one.
        """
        logits_NE = self.ops.linear(x_ND.float(), self.weight)
        wanted = batch.n_active or [self.config.n_experts_per_tok] * len(batch.context_lens)
        if among is not None:
            absent = [e for e in range(self.config.n_experts) if e not in among]
            logits_NE[:, absent] = ABSENT
            wanted = [min(k, len(among)) for k in wanted]
        if len(set(wanted)) == 1:
            return *self.ops.route(logits_NE, wanted[0], self.config.renormalise_gates), logits_NE
        return *self._route_each(logits_NE, batch, wanted), logits_NE

    def _route_each(self, logits_NE: torch.Tensor, batch: Batch,
                    wanted: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Where sequences want different numbers of experts. A place that a token leaves over repeats its first expert
        with gate 0: no other expert is asked for, and adding 0 changes no bit."""
        n_active = torch.tensor(wanted).repeat_interleave(torch.tensor(batch.starts).diff())
        most = int(n_active.max())
        ids_NA = torch.empty(len(logits_NE), most, dtype=torch.int64)
        gates_NA = torch.zeros(len(logits_NE), most)
        for k in n_active.unique().tolist():
            rows = (n_active == k).nonzero()[:, 0]
            ids, gates_NA[rows, :k] = self.ops.route(logits_NE[rows], k, self.config.renormalise_gates)
            ids_NA[rows] = torch.cat([ids, ids[:, :1].expand(-1, most - k)], dim=1)
        return ids_NA, gates_NA


class MoE(nn.Module):
    """A mixture of experts, or one dense feed-forward where the configuration has no experts."""

    def __init__(self, config: ModelConfig, layer: int, read: Read, experts: Experts, ops: ModuleType):
        super().__init__()
        self.config, self.layer, self.experts, self.ops = config, layer, experts, ops
        self.router = Router(config, layer, read, ops) if config.is_moe else None

    def forward(self, x_ND: torch.Tensor, batch: Batch) -> torch.Tensor:
        if self.router is None:
            (wave,) = self.experts.waves(self.layer, [0], x_ND)
            return self.ops.feed_forward(x_ND, wave[0], self.config.activation).to(x_ND.dtype)
        among = self.experts.resident(self.layer) if batch.resident_only else None
        if among is not None and not among:
            return torch.zeros_like(x_ND)
        ids_NA, gates_NA, _ = self.router(x_ND, batch, among)
        if batch.watched_rows is not None:
            batch.chosen.append(ids_NA[batch.watched_rows])
        waves = self.experts.waves(self.layer, ids_NA.unique().tolist(), x_ND)
        return self.ops.moe(x_ND, ids_NA, gates_NA, waves, self.config.activation)


class Block(nn.Module):
    """h + post_norm(sublayer(norm(h))), for attention and then for the experts; post-norms are Grok-1's."""

    def __init__(self, config: ModelConfig, layer: int, read: Read, experts: Experts, ops: ModuleType):
        super().__init__()

        def norm(name: str) -> nn.Module:
            return RMSNorm(read(f"layers.{layer}.{name}.weight"), config.norm_eps, ops)

        self.attn_norm = norm("attn_norm")
        self.attn = Attention(config, layer, read, ops)
        self.attn_post_norm = norm("attn_post_norm") if config.post_norms else nn.Identity()
        self.ffn_norm = norm("ffn_norm")
        self.moe = MoE(config, layer, read, experts, ops)
        self.ffn_post_norm = norm("ffn_post_norm") if config.post_norms else nn.Identity()

    def forward(self, h_ND: torch.Tensor, batch: Batch, cache: LayerCache | None,
                seen_N: torch.Tensor | None) -> torch.Tensor:
        h_ND = h_ND + self.attn_post_norm(self.attn(self.attn_norm(h_ND), batch, cache, seen_N))
        return h_ND + self.ffn_post_norm(self.moe(self.ffn_norm(h_ND), batch))


class Transformer(nn.Module):
    """The whole network over weights that `read` hands out by name.

    dtype: type of activations and of products, float32 or bfloat16. ops: a backend module (libremoe.ops.choose).
    """

    def __init__(self, config: ModelConfig, read: Read, experts: Experts, ops: ModuleType,
                 dtype: torch.dtype = torch.float32):
        super().__init__()
        self.config, self.ops, self.dtype, self.experts = config, ops, dtype, experts
        self.embed = read("embed.weight")
        self.blocks = nn.ModuleList(Block(config, i, read, experts, ops) for i in range(config.n_layers))
        self.norm = RMSNorm(read("norm.weight"), config.norm_eps, ops)
        self.head = Linear(self.embed if config.tied_embeddings else read("head.weight"), ops)

    def hidden(self, tokens_N: torch.Tensor, batch: Batch, kv: KVCache | None = None) -> torch.Tensor:
        """(N, D): the residual stream after the last layer and the final norm."""
        h_ND = self.ops.embed(tokens_N, self.embed).to(self.dtype) * self.config.embed_scale
        seen_N = self._seen(tokens_N, kv)
        if not batch.resident_only:
            self.experts.begin(h_ND)
        for i, block in enumerate(self.blocks):
            h_ND = block(h_ND, batch, None if kv is None else kv.layers[i], seen_N)
        return self.norm(h_ND)

    def forward(self, tokens_N: torch.Tensor, batch: Batch, kv: KVCache | None = None) -> torch.Tensor:
        """Logits (M, V) float32 of batch.logit_rows, or of all N tokens. tokens_N: int64 in [0, V).

        kv None: plain causal attention over whole sequences, for training and scoring. With a cache, keys and values of
        this batch are written to it and each sequence attends to all of its context.
        """
        h_ND = self.hidden(tokens_N, batch, kv)
        if batch.logit_rows is not None:
            h_ND = h_ND[batch.logit_rows]
        return self.head(h_ND).float() * self.config.logit_scale

    def _seen(self, tokens_N: torch.Tensor, kv: KVCache | None) -> torch.Tensor | None:
        """Which tokens attention may see; None, the usual case, when there has never been one that it may not."""
        if self.config.pad_id is None:
            return None
        seen_N = tokens_N > self.config.pad_id
        any_unseen = not bool(seen_N.all())
        if kv is not None:
            any_unseen = kv.any_unseen = kv.any_unseen or any_unseen
        return seen_N if any_unseen else None
