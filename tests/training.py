"""What the tests of the trainer share: a text whose words follow each other by a rule that each document picks."""

from pathlib import Path

import numpy as np

from libremoe.train.shards import write_shard

N_RULES, VOCAB = 8, 512


def rules_shards(folder: Path, n_docs: int, n_valid: int) -> None:
    """folder/pretrain and folder/valid-pretrain. A document's first token names one of 8 rules; under a rule each token
    has one follower, which stands there nine times in ten: 8 x 480 facts, more than two experts of a few units hold."""
    table = np.stack([np.random.default_rng(k).permutation(np.arange(16, 496)) for k in range(N_RULES)])
    for name, seed, count in (("pretrain", 100, n_docs), ("valid-pretrain", 101, n_valid)):
        rng = np.random.default_rng(seed)
        documents = [_document(rng, table) for _ in range(count)]
        write_shard(folder / name, documents, {"seed": seed})


def _document(rng: np.random.Generator, table: np.ndarray) -> tuple[list[int], list[bool]]:
    rule, token = int(rng.integers(N_RULES)), int(rng.integers(16, 496))
    ids = [4 + rule]
    for _ in range(int(rng.integers(40, 127))):
        ids.append(token)
        token = int(table[rule, token - 16]) if rng.random() < 0.9 else int(rng.integers(16, 496))
    return [*ids, 2], [i > len(ids) // 2 for i in range(len(ids) + 1)]
