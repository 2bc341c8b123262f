"""Which block of the cache belongs to whom. The keys and values themselves lie in batch.KVCache.

A block that is full and computed is published under a hash of its tokens, of everything before them, and of how many
experts worked on them; another sequence that begins with the same tokens, and wants as many, shares it. Shared blocks
are never written to. A block that nobody holds stays published until its place is needed, the least recently used
first.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from dataclasses import dataclass
from hashlib import blake2b

from libremoe.batch import BLOCK_SIZE
from libremoe.engine.sequence import Sequence


def chain_hash(parent: bytes, tokens: list[int]) -> bytes:
    """32 bytes that name a block by its tokens and, through the parent's hash, by all tokens before them.

    A cryptographic hash, because prompts come from strangers: whoever could make two prompts collide would be given
    another's keys and values.
    """
    return blake2b(parent + array("q", tokens).tobytes(), digest_size=32).digest()


def hash_blocks(seq: Sequence) -> None:
    """Extend seq.block_hashes over every full block of its tokens."""
    for i in range(len(seq.block_hashes), seq.num_tokens // BLOCK_SIZE):
        parent = _parent(seq, i)
        seq.block_hashes.append(chain_hash(parent, seq.tokens(i * BLOCK_SIZE, (i + 1) * BLOCK_SIZE)))


def _parent(seq: Sequence, i: int) -> bytes:
    """The hash before block i; before the first, the number of experts, since another number gives other keys."""
    if i:
        return seq.block_hashes[i - 1]
    return b"" if seq.n_active is None else b"experts %d" % seq.n_active


def num_blocks(num_tokens: int) -> int:
    return -(-num_tokens // BLOCK_SIZE)


@dataclass(frozen=True)
class _Published:
    """What a published block holds, kept in full so that a match is verified and not believed."""

    hash: bytes
    parent: bytes
    tokens: tuple[int, ...]


class BlockAllocator:
    """Hands out n_blocks block numbers, counts who holds them, and finds those that can be shared."""

    def __init__(self, n_blocks: int, share_prefixes: bool = True):
        self.n_blocks = n_blocks
        self.share_prefixes = share_prefixes
        self.lookup_tokens = 0  # prompt tokens looked up, and those found
        self.hit_tokens = 0
        self.clear()

    def clear(self) -> None:
        """Every block free and none published, whoever held them."""
        self._refs = [0] * self.n_blocks
        self._free = list(range(self.n_blocks - 1, -1, -1))  # held by none, not published; taken from the end
        self._idle: OrderedDict[int, None] = OrderedDict()  # held by none, published; least recently used first
        self._published: dict[int, _Published] = {}
        self._by_hash: dict[bytes, int] = {}

    @property
    def n_used(self) -> int:
        return self.n_blocks - len(self._free) - len(self._idle)

    @property
    def n_idle(self) -> int:
        return len(self._idle)

    def shared_prefix(self, seq: Sequence) -> list[int]:
        """The published blocks that hold the beginning of seq; at least one of its tokens is left to compute."""
        blocks: list[int] = []
        for i in range(self._shareable(seq) // BLOCK_SIZE):
            block = self._by_hash.get(seq.block_hashes[i])
            if block is None:
                break
            parent = _parent(seq, i)
            tokens = tuple(seq.tokens(i * BLOCK_SIZE, (i + 1) * BLOCK_SIZE))
            held = self._published[block]
            if held.parent != parent or held.tokens != tokens:
                break
            blocks.append(block)
        return blocks

    def next_missing(self, seq: Sequence, shared: list[int]) -> bytes | None:
        """Hash of the first block after `shared` that seq could share if it were published; None if there is none."""
        if len(shared) >= self._shareable(seq) // BLOCK_SIZE:
            return None
        return seq.block_hashes[len(shared)]

    def can_allocate(self, seq: Sequence, shared: list[int]) -> bool:
        """Whether there is room for all present tokens of a sequence that holds nothing and would share these."""
        n_revived = sum(self._refs[block] == 0 for block in shared)
        return num_blocks(seq.num_tokens) - len(shared) <= len(self._free) + len(self._idle) - n_revived

    def allocate(self, seq: Sequence, shared: list[int]) -> None:
        """Give seq the shared blocks and new ones for the rest of its tokens; can_allocate must hold."""
        if seq.block_table:
            raise AssertionError(f"sequence {seq.id} holds blocks {seq.block_table} already")
        for block in shared:
            self._refs[block] += 1
            self._idle.pop(block, None)
        seq.block_table = list(shared)
        seq.num_cached = len(shared) * BLOCK_SIZE
        while len(seq.block_table) < num_blocks(seq.num_tokens):
            seq.block_table.append(self._take())
        if not seq.began and self._shareable(seq):
            self.lookup_tokens += seq.num_tokens
            self.hit_tokens += seq.num_cached
            seq.num_shared = seq.num_cached

    def can_grow(self, seq: Sequence, n_more: int = 0) -> bool:
        """Whether all tokens of seq, and n_more that may follow, have a place, or could be given one."""
        return num_blocks(seq.num_tokens + n_more) - len(seq.block_table) <= len(self._free) + len(self._idle)

    def grow(self, seq: Sequence, n_more: int = 0) -> None:
        """Give seq the blocks that its tokens, and n_more that may follow, lack; can_grow must hold."""
        while len(seq.block_table) < num_blocks(seq.num_tokens + n_more):
            seq.block_table.append(self._take())

    def publish(self, seq: Sequence, start: int, stop: int) -> None:
        """Tokens start:stop of seq have been computed: let others share the blocks that this made full."""
        if not self.share_prefixes:
            return
        hash_blocks(seq)
        for i in range(start // BLOCK_SIZE, stop // BLOCK_SIZE):
            block, hash = seq.block_table[i], seq.block_hashes[i]
            if hash in self._by_hash or block in self._published:
                continue
            tokens = tuple(seq.tokens(i * BLOCK_SIZE, (i + 1) * BLOCK_SIZE))
            self._published[block] = _Published(hash, _parent(seq, i), tokens)
            self._by_hash[hash] = block

    def release(self, seq: Sequence) -> None:
        """Take all blocks from seq. Its last ones are forgotten first, since the first are of use without them."""
        for block in reversed(seq.block_table):
            self._refs[block] -= 1
            if self._refs[block] < 0:
                raise AssertionError(f"block {block} of sequence {seq.id} was given back twice")
            if self._refs[block] == 0:
                if block in self._published:
                    self._idle[block] = None
                else:
                    self._free.append(block)
        seq.block_table = []
        seq.num_cached = 0

    def _shareable(self, seq: Sequence) -> int:
        """How many first tokens of seq others may have computed: not the last, and none whose row is still wanted for
        the log-probability of the next prompt token."""
        if not self.share_prefixes:
            return 0
        wanted = seq.n_prompt_logprobs is not None and len(seq.prompt_logprobs) < len(seq.prompt_ids)
        return min(seq.num_tokens, len(seq.prompt_logprobs) if wanted else seq.num_tokens) - 1

    def _take(self) -> int:
        if self._free:
            block = self._free.pop()
        else:
            block, _ = self._idle.popitem(last=False)
            del self._by_hash[self._published.pop(block).hash]
        self._refs[block] += 1
        return block
