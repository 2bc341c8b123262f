"""kill -9 at any moment of a conversion: the next run goes on, and the result is that of an undisturbed run.

Children are forked from a server that has loaded torch already, so that one death costs a fraction of a second.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import random
import signal
import time
from collections.abc import Iterator
from multiprocessing.context import ForkServerContext
from pathlib import Path

import pytest

from libremoe.config import preset
from libremoe.errors import CheckpointError
from libremoe.tiny import make_tiny
from libremoe.weights import open_checkpoint
from libremoe.weights.native_layout import JOURNAL, MANIFEST

# Most of a conversion is quantising and writing weights, so a death at random falls into a file more often than not.
CONFIG = dataclasses.replace(preset("tiny"), n_layers=6, dim=64, hidden_dim=96, vocab_size=300)
SMALLEST = dataclasses.replace(preset("tiny"), n_layers=1, dim=32, hidden_dim=32, n_heads=1, n_kv_heads=1, n_experts=2,
                               vocab_size=260)
FORMAT = "int4"
CHILD_LIMIT_S = 120  # a child that takes longer hangs


@pytest.fixture(scope="module")
def server() -> Iterator[ForkServerContext]:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["libremoe.convert", "libremoe.weights.grok", __name__])
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parent))
        patch.setenv("PYTHONPATH", str(Path(__file__).parent))  # where the server finds this module
        yield context


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(make_tiny(tmp_path_factory.mktemp("kill") / "m", "ckpt", CONFIG)["dst"])


def child(source: str, dst: str, started: object, dies_at: int) -> None:
    """Convert. dies_at n: kill itself at the n-th call that changes the disk; 0: live."""
    import torch

    from libremoe import convert

    torch.set_num_threads(1)  # a forked child must not wait for threads that only its parent had
    if dies_at:
        calls = iter(range(1, 1 << 30))
        for name in ("write", "fsync", "replace", "mkdir", "unlink"):
            setattr(os, name, dying(getattr(os, name), calls, dies_at))
    started.set()  # type: ignore[attr-defined]
    convert.convert(source, dst, FORMAT, shown=False)


def dying(function: object, calls: Iterator[int], n: int) -> object:
    def call(*args: object, **kwargs: object) -> object:
        if next(calls) == n:
            if function.__name__ == "write":  # half of it reaches the file
                function(args[0], args[1][: len(args[1]) // 2])  # type: ignore
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **kwargs)  # type: ignore[operator]

    return call


def run_child(server: ForkServerContext, source: Path, dst: Path, after_s: float | None = None,
              dies_at: int = 0) -> tuple[bool, float]:
    """Whether the child ended well, and its seconds; after_s: kill it that long after it has begun."""
    started = server.Event()
    process = server.Process(target=child, args=(str(source), str(dst), started, dies_at))
    process.start()
    assert started.wait(CHILD_LIMIT_S)
    began = time.monotonic()
    process.join(CHILD_LIMIT_S if after_s is None else after_s)
    if after_s is not None:
        process.kill()
        process.join(CHILD_LIMIT_S)
    assert process.exitcode in (0, -signal.SIGKILL), process.exitcode
    return process.exitcode == 0, time.monotonic() - began


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def check_half_done(dst: Path, expected: dict[str, bytes]) -> None:
    """A folder that readers accept is the finished one, be the journal still there or not."""
    if (dst / MANIFEST).exists():
        assert {name: c for name, c in contents(dst).items() if name != JOURNAL} == expected
        open_checkpoint(dst)
    elif dst.exists():
        with pytest.raises(CheckpointError):
            open_checkpoint(dst)


def campaign(server: ForkServerContext, source: Path, folder: Path, n_kills: int, seed: int) -> int:
    """Conversions killed again and again until they get through, till n_kills have died; how many got through."""
    done, seconds = run_child(server, source, folder / "undisturbed")
    assert done
    expected = contents(folder / "undisturbed")
    rng = random.Random(seed)
    kills = finished = 0
    while kills < n_kills:
        dst = folder / f"killed {finished}"
        while True:
            alive, _ = run_child(server, source, dst, after_s=rng.uniform(0, seconds))
            if alive:
                break
            kills += 1
            check_half_done(dst, expected)
            if (dst / MANIFEST).exists() and not (dst / JOURNAL).exists():
                break  # died after its last act
        assert contents(dst) == expected
        finished += 1
    return finished


def test_killed_at_random_50_times(server: ForkServerContext, source: Path, tmp_path: Path) -> None:
    assert campaign(server, source, tmp_path, 50, seed=1) > 0


@pytest.mark.soak
def test_killed_at_random_1000_times(server: ForkServerContext, source: Path, tmp_path: Path) -> None:
    assert campaign(server, source, tmp_path, 1000, seed=2) > 0


def test_killed_at_each_act_on_the_disk(server: ForkServerContext, tmp_path: Path) -> None:
    """Where chance would hardly hit: between any two system calls, and within any write."""
    source = Path(make_tiny(tmp_path / "source", "ckpt", SMALLEST)["dst"])
    assert run_child(server, source, tmp_path / "undisturbed")[0]
    expected = contents(tmp_path / "undisturbed")
    for n in range(1, 200):
        dst = tmp_path / f"killed {n}"
        survived, _ = run_child(server, source, dst, dies_at=n)
        if survived:
            assert n > 20  # mkdir, and write, sync, rename, sync for each of 5 files and each journal
            return
        check_half_done(dst, expected)
        if not (dst / MANIFEST).exists() or (dst / JOURNAL).exists():
            assert run_child(server, source, dst)[0]
        assert contents(dst) == expected, n
    pytest.fail("a conversion has more acts than expected")
