"""Small models with random weights, in memory, for tests of what stands above the network.

    model = tiny.model(tiny.GROK)         # the same numbers each time
    model = tiny.model(tiny.LLAMA, seed=1)
    stub = tiny.CountingModel(tiny.GROK)  # no arithmetic: the next token is a function of all tokens before it

Weights are large enough that greedy choices are not ties: logits of neighbouring ranks differ by far more than
float32 rounds.
"""

from __future__ import annotations

import random
from types import ModuleType

import torch

from libremoe.batch import BLOCK_SIZE, Batch, KVCache
from libremoe.config import ModelConfig
from libremoe.engine.engine import Engine
from libremoe.engine.sequence import Output
from libremoe.experts import Expert, ResidentExperts
from libremoe.model import Transformer
from libremoe.ops import choose
from libremoe.sampling import SamplingParams
from libremoe.weights import parameter_names

torch.set_num_threads(1)  # threads cost more than such small products do, most of all on a busy machine

GROK = ModelConfig(
    family="grok-1", vocab_size=256, dim=64, hidden_dim=64, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=16,
    context_len=512, n_experts=4, n_experts_per_tok=2, activation="gelu", post_norms=True, attn_scale=0.125,
    attn_softcap=30.0, embed_scale=8.0, logit_scale=0.5773502691896257, renormalise_gates=False,
    tied_embeddings=True, pad_id=0, bos_id=1, eos_id=2,
)
LLAMA = ModelConfig(
    family="llama", vocab_size=256, dim=64, hidden_dim=64, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=16,
    context_len=512, bos_id=1, eos_id=2, add_bos=True, sliding_window=None,
)
MIXTRAL = ModelConfig(
    family="mixtral", vocab_size=256, dim=64, hidden_dim=64, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=16,
    context_len=512, n_experts=4, n_experts_per_tok=2, bos_id=1, eos_id=2, add_bos=True, sliding_window=100,
)


def weights(config: ModelConfig, seed: int = 0) -> dict[str, torch.Tensor]:
    """Every parameter by its name, float32: norms near 1, matrices with deviation 1/sqrt(inputs)."""
    generator = torch.Generator().manual_seed(seed)
    made = {}
    for name, shape in parameter_names(config).items():
        noise = torch.randn(shape, generator=generator)
        made[name] = 1 + 0.2 * noise if len(shape) == 1 else noise * shape[1] ** -0.5
    return made


def model(config: ModelConfig = GROK, seed: int = 0, ops: ModuleType | None = None,
          dtype: torch.dtype = torch.float32) -> Transformer:
    """A Transformer over weights(config, seed). ops: a backend; the one of this machine by default."""
    named = weights(config, seed)
    experts = [
        [Expert(*(named[f"layers.{i}.experts.{e}.{part}.weight"] for part in ("gate", "up", "down")))
         for e in range(max(config.n_experts, 1))]
        for i in range(config.n_layers)
    ]
    return Transformer(config, named.__getitem__, ResidentExperts(experts), ops or choose(), dtype)


class CountingModel:
    """A stub whose next token is a hash of all tokens of the sequence, which it reads back from the cache.

    So a wrong block table, a block shared wrongly, or one overwritten, shows as a wrong token; and it is fast.
    `fails_on`: a token id that makes a batch with it raise.
    """

    dtype = torch.float32

    def __init__(self, config: ModelConfig = GROK, fails_on: int | None = None):
        self.config, self.fails_on = config, fails_on
        self.batch_sizes: list[int] = []  # sequences in each call
        self.computed = 0  # tokens, in all calls

    def __call__(self, tokens_N: torch.Tensor, batch: Batch, kv: KVCache | None = None) -> torch.Tensor:
        self.batch_sizes.append(len(batch.context_lens))
        self.computed += len(tokens_N)
        if self.fails_on is not None and self.fails_on in tokens_N.tolist():
            raise RuntimeError(f"token {self.fails_on} was fed")
        if kv is None or batch.block_tables is None:
            raise RuntimeError("this stub needs a cache")
        stored = kv.layers[0].k.view(-1, *kv.layers[0].k.shape[2:])[:, 0, 0]
        stored[batch.slots()] = tokens_N.float()
        logits = torch.zeros(len(tokens_N), self.config.vocab_size)
        for b, table in enumerate(batch.block_tables):
            slots = torch.cat([torch.arange(block * BLOCK_SIZE, (block + 1) * BLOCK_SIZE) for block in table])
            context = [int(token) for token in stored[slots][: batch.context_lens[b]]]
            for row in range(batch.starts[b], batch.starts[b + 1]):
                logits[row, self.next_token(context[: int(batch.positions[row]) + 1])] = 10.0
        return logits if batch.logit_rows is None else logits[batch.logit_rows]

    def hidden(self, tokens_N: torch.Tensor, batch: Batch, kv: KVCache | None = None) -> torch.Tensor:
        return tokens_N.float()[:, None].expand(-1, self.config.dim)

    def next_token(self, context: list[int]) -> int:
        """Never a pad or special id, so that sequences run to their max_tokens."""
        digest = 7
        for token in context:
            digest = (digest * 31 + token + 1) % 1_000_003
        return 3 + digest % (self.config.vocab_size - 3)

    def continuation(self, prompt: list[int], n: int) -> list[int]:
        """The n tokens that a greedy engine must give after this prompt."""
        tokens = list(prompt)
        for _ in range(n):
            tokens.append(self.next_token(tokens))
        return tokens[len(prompt) :]


def prompts(n: int, longest: int, seed: int = 0, vocab_size: int = 256) -> list[list[int]]:
    draw = random.Random(seed)
    return [[draw.randrange(3, vocab_size) for _ in range(draw.randint(1, longest))] for _ in range(n)]


def finish(engine: Engine) -> dict[int, list[Output]]:
    """Step until there is no work; all outputs by sequence id."""
    outputs: dict[int, list[Output]] = {}
    while engine.has_work():
        for output in engine.step():
            outputs.setdefault(output.seq_id, []).append(output)
    return outputs


def generate(engine: Engine, prompt: list[int], params: SamplingParams) -> list[int]:
    seq = engine.add(prompt, params)
    finish(engine)
    assert seq.error is None
    return seq.output_ids


def assert_empty(engine: Engine) -> None:
    """Nothing runs, nothing waits, and every block is free and held by nobody."""
    blocks = engine.scheduler.blocks
    state = {
        "idle": not engine.has_work() and blocks.n_used == 0,
        "held by nobody": blocks._refs == [0] * blocks.n_blocks,
        "none lost": sorted([*blocks._free, *blocks._idle]) == list(range(blocks.n_blocks)),
        "index": set(blocks._idle) == set(blocks._published) == set(blocks._by_hash.values()),
    }
    if not all(state.values()):  # no assert: this is no test module, and under -O it would say nothing
        raise AssertionError(state)
