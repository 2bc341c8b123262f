"""Experts in few slots: the tokens are those of the model in memory, bit for bit, and what the disk does wrong ends
only the requests that needed it.
"""

from __future__ import annotations

import dataclasses
import errno
import itertools
import os
import random
import shutil
import subprocess
import sys
import threading
import zlib
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import libremoe
import libremoe.direct_read
from libremoe.batch import BLOCK_SIZE, KVCache
from libremoe.config import preset
from libremoe.direct_read import ALIGN, CHUNK, GUESSED, NEEDED, DirectReader, Piece
from libremoe.engine.engine import Engine
from libremoe.errors import LibremoeError
from libremoe.language_model import LanguageModel
from libremoe.loading import Budget, build, build_streamed, plan_budget, working_bytes
from libremoe.memory import parse_bytes
from libremoe.model import Transformer
from libremoe.ops import cpu as cpu_ops
from libremoe.ops import reference
from libremoe.routing import Trace
from libremoe.sampling import SamplingParams
from libremoe.streaming import StreamedExperts, router_for, slot_size
from libremoe.tiny import make_tiny
from libremoe.weights import Reader, open_checkpoint

GOLDEN = Path(__file__).parent / "golden"
SMALL = dataclasses.replace(preset("tiny"), dim=64, hidden_dim=192, n_layers=5, n_heads=4, n_kv_heads=2, head_dim=16,
                            vocab_size=270)
GREEDY = SamplingParams(temperature=0, max_tokens=10, ignore_eos=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(make_tiny(tmp_path_factory.mktemp("streamed") / "m", dims=SMALL, format="int4", seed=3)["dst"])


def streamed(reader: Reader, n_slots: int) -> Transformer:
    one = slot_size(reader.expert_pieces(layer, e)  # type: ignore[attr-defined]
                    for layer in range(reader.config.n_layers) for e in range(8))
    return build_streamed(reader, Budget(0, 0, 0, 0, 0, n_slots * one))


def store_of(model: Transformer) -> StreamedExperts:
    store = model.blocks[0].moe.experts
    assert isinstance(store, StreamedExperts)
    return store


# Tokens.


@pytest.mark.parametrize(("path", "n_slots"), [("native", 1), ("native", 3), ("native", 9), ("native", 40),
                                               ("tiny-grok1", 1), ("tiny-grok1", 7), ("tiny-grok1-12l", 2)])
def test_streamed_equals_resident_bit_for_bit(folder: Path, path: str, n_slots: int) -> None:
    where = folder if path == "native" else GOLDEN / path / "ckpt-0"
    resident, few = build(open_checkpoint(where)), streamed(open_checkpoint(where), n_slots)
    rng = random.Random(n_slots)
    prompts = [[rng.randrange(3, 250) for _ in range(n)] for n in (1, 5, 33)]
    for model in (resident, few):
        engine = Engine(model, n_blocks=8, max_running=3)
        sequences = [engine.add(prompt, dataclasses.replace(GREEDY, logprobs=1)) for prompt in prompts]
        tiny.finish(engine)
        if model is resident:
            wanted = [(seq.output_ids, seq.logprobs) for seq in sequences]
        assert [(seq.output_ids, seq.logprobs) for seq in sequences] == wanted
    stats = store_of(few).stats()
    assert stats.n_slots == min(n_slots, resident.config.n_layers * 8)
    assert stats.hits + stats.misses >= 10 * 2 * resident.config.n_layers
    assert 0 <= stats.foreseen <= stats.hits and 0 <= stats.wasted <= stats.guesses
    smallest = sum(piece.length for piece in open_checkpoint(where).expert_pieces(0, 0))  # type: ignore[attr-defined]
    assert stats.bytes_read >= stats.misses * smallest
    store_of(few).close()


def test_both_ways_to_multiply_agree_on_waves(folder: Path) -> None:
    """Plain torch adds up waves as it adds up everything; so do the kernels."""
    reader = open_checkpoint(folder)
    for ops in (reference, cpu_ops):
        outputs = []
        for in_one in (True, False):
            torch.manual_seed(0)
            x, gates = torch.randn(9, SMALL.dim), torch.rand(9, 2)
            ids = torch.stack([torch.randperm(8)[:2] for _ in range(9)])
            experts = {e: reader.read_expert(1, e) for e in ids.unique().tolist()}
            waves = [experts] if in_one else [{e: experts[e]} for e in sorted(experts, reverse=True)]
            outputs.append(ops.moe(x, ids, gates, waves, "gelu"))
        assert torch.equal(*outputs)


def test_a_prompt_reads_each_expert_once(folder: Path) -> None:
    """Eight slots, forty experts, a prompt that touches nearly all: no expert is brought twice."""
    model = streamed(open_checkpoint(folder), 8)
    rng = random.Random(1)
    LanguageModel(model).generate([rng.randrange(3, 250) for _ in range(500)], GREEDY, max_tokens=1)
    stats = store_of(model).stats()
    assert stats.bytes_read <= SMALL.n_layers * 8 * stats.slot_bytes
    store_of(model).close()


def test_a_router_seen_through_another_norm_gives_the_scores_of_its_own() -> None:
    torch.manual_seed(0)
    h, first, second = torch.randn(5, 32), torch.rand(32) + 0.5, torch.rand(32) + 0.5
    router = torch.randn(8, 32)
    rms = h / h.pow(2).mean(-1, keepdim=True).sqrt()
    torch.testing.assert_close(rms * first @ router_for(second, router, first).T, rms * second @ router.T,
                               atol=1e-5, rtol=1e-5)


def test_what_is_guessed_is_mostly_what_comes(folder: Path) -> None:
    """With room for what was guessed, some of it is used; and the counters add up."""
    model = streamed(open_checkpoint(folder), 12)
    tiny.generate(Engine(model, n_blocks=4), [5, 9, 30], dataclasses.replace(GREEDY, max_tokens=60))
    stats = store_of(model).stats()
    assert stats.foreseen > 0
    assert stats.guesses >= stats.foreseen
    store_of(model).close()


@pytest.mark.parametrize(("right", "most_reads"), [(True, 10), (False, 45)])
def test_guesses_that_are_wrong_are_soon_left_out(folder: Path, right: bool, most_reads: int) -> None:
    """100 passes in which each layer uses experts 0 and 1, with slots for these ten and four more. Routers that say so
    cost no read; routers that say 6 and 7 are asked seldom, and their guesses hold one slot at a time."""
    model = streamed(open_checkpoint(folder), 14)
    store, x = store_of(model), torch.ones(1, SMALL.dim)
    says = torch.zeros(8, SMALL.dim)
    says[[0, 1] if right else [6, 7]] = 1
    store.foresee_with([None] + [says] * (SMALL.n_layers - 1))
    for _ in range(100):
        for layer in range(SMALL.n_layers):
            assert {e for wave in store.waves(layer, [0, 1], x) for e in wave} == {0, 1}
            assert sum(slot.guessed for slot in store._slots) <= 1
    stats = store.stats()
    assert stats.misses + stats.guesses <= most_reads and stats.hits + stats.misses == 1000
    assert stats.wasted == 0 if right else stats.foreseen == 0
    store.close()


def test_few_slots_keep_something_when_all_experts_are_wanted(folder: Path) -> None:
    """Forty experts in turn, again and again, in four slots: one computes, one comes, what the others hold is used."""
    model = streamed(open_checkpoint(folder), 4)
    store, x = store_of(model), torch.ones(64, SMALL.dim)
    for _ in range(12):
        for layer in range(SMALL.n_layers):
            for _ in store.waves(layer, range(8), x):
                assert sum(slot.request is not None and not slot.guessed for slot in store._slots) <= 1
    assert store.stats().hits - store.stats().foreseen >= 10
    store.close()


def test_the_trace_has_what_was_chosen(folder: Path, tmp_path: Path) -> None:
    import json

    model = streamed(open_checkpoint(folder), 6)
    store_of(model).trace = Trace(tmp_path / "t.jsonl", SMALL.n_layers, 8, 2)
    tiny.generate(Engine(model, n_blocks=4), [5, 9, 30], GREEDY)
    first, *steps = [json.loads(line) for line in (tmp_path / "t.jsonl").read_text().splitlines()]
    assert first == {"n_layers": 5, "n_experts": 8, "n_active": 2}
    assert [step["n_tokens"] for step in steps] == [3] + [1] * 9
    assert all(len(step["layers"]) == 5 and all(len(ids) == 2 for ids in step["layers"]) for step in steps[1:])
    stats = store_of(model).stats()
    assert stats.hits + stats.misses == sum(len(ids) for step in steps for ids in step["layers"])
    store_of(model).close()


# What the disk does wrong.


def expert_file(folder: Path, layer: int, e: int) -> tuple[Path, int, int]:
    (piece,) = open_checkpoint(folder).expert_pieces(layer, e)  # type: ignore[attr-defined]
    return piece.file, piece.offset, piece.length


def flip(path: Path, at: int) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 0x10]))


def users_of(folder: Path, prompts: list[list[int]], layer: int) -> list[set[int]]:
    """Experts of a layer that each prompt's tokens choose, answers included."""
    model = streamed(open_checkpoint(folder), 40)
    found = []
    for prompt in prompts:
        chosen: set[int] = set()
        store = store_of(model)

        def noting(layer_: int, ids: Any, x: torch.Tensor, store: Any = store, chosen: set[int] = chosen) -> Any:
            if layer_ == layer:
                chosen.update(ids)
            return StreamedExperts.waves(store, layer_, ids, x)

        store.waves = noting  # type: ignore[method-assign]
        tiny.generate(Engine(model, n_blocks=4), prompt, GREEDY)
        found.append(chosen)
    store_of(model).close()
    return found


@pytest.mark.parametrize("damage", ["flip", "cut"])
def test_damage_ends_the_requests_that_need_it_and_no_other(folder: Path, tmp_path: Path, damage: str) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    layer, rng = SMALL.n_layers - 1, random.Random(7)
    prompts = [[rng.randrange(3, 250) for _ in range(2)] for _ in range(12)]
    used = users_of(folder, prompts, layer)
    bad = max(range(8), key=lambda e: (0 < sum(e in u for u in used) < 12, sum(e not in u for u in used)))
    alone = [tiny.generate(Engine(build(open_checkpoint(folder)), n_blocks=4), p, GREEDY) for p in prompts]
    model = streamed(open_checkpoint(copy), 4)
    file, offset, length = expert_file(copy, layer, bad)
    if damage == "flip":
        flip(file, offset + length // 3)
    else:
        os.truncate(file, offset + 100)
    engine = Engine(model, n_blocks=32, max_running=12)
    sequences = [engine.add(prompt, GREEDY) for prompt in prompts]
    tiny.finish(engine)
    ended = 0
    for seq, wanted, chosen in zip(sequences, alone, used, strict=True):
        if seq.finish_reason == "error":
            ended += 1
            assert file.name in str(seq.error) and f"of layer {layer}" in str(seq.error), seq.error
            assert bad in chosen or damage == "cut"
        else:
            assert seq.output_ids == wanted
            assert bad not in chosen
    assert 0 < ended < 12 or damage == "cut"
    if damage == "flip":
        flip(file, offset + length // 3)  # mended under the running engine
        assert tiny.generate(engine, prompts[0], GREEDY) == alone[0]
    store_of(model).close()


def flips(folder: Path, tmp_path: Path, n: int) -> None:
    """Single bits anywhere in any expert: each is found before its bytes are used."""
    copy = Path(shutil.copytree(folder, tmp_path / "flipped"))
    rng = random.Random(n)
    reader, direct = open_checkpoint(copy), DirectReader()
    for _ in range(n):
        layer, e = rng.randrange(SMALL.n_layers), rng.randrange(8)
        (piece,) = reader.expert_pieces(layer, e)  # type: ignore[attr-defined]
        at = piece.offset + rng.randrange(piece.length)
        flip(piece.file, at)
        buffer = aligned(piece.room)
        request = direct.read([piece], [buffer], NEEDED)
        request.done.wait()
        assert request.error is not None and "checksum" in str(request.error)
        flip(piece.file, at)
    direct.close()


def test_flipped_bits_are_found(folder: Path, tmp_path: Path) -> None:
    flips(folder, tmp_path, 60)


@pytest.mark.soak
def test_flipped_bits_are_found_at_length(folder: Path, tmp_path: Path) -> None:
    flips(folder, tmp_path, 10_000)


def test_a_deleted_file_is_still_read_and_a_missing_one_is_named(folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    model = streamed(open_checkpoint(copy), 3)
    engine = Engine(model, n_blocks=4)
    before = tiny.generate(engine, [5, 6, 7], GREEDY)
    file, _, _ = expert_file(copy, 2, 0)
    file.unlink()
    assert tiny.generate(engine, [5, 6, 7], GREEDY) == before  # it was open
    store_of(model).close()
    fresh = DirectReader()
    request = fresh.read([Piece(file, 0, 10)], [aligned(ALIGN)], NEEDED)
    request.done.wait()
    assert "cannot be opened" in str(request.error)
    fresh.close()


# Reading.


def aligned(n: int) -> torch.Tensor:
    whole = torch.zeros(n + ALIGN, dtype=torch.uint8)
    return whole[-whole.data_ptr() % ALIGN :][:n]


@pytest.fixture(scope="module")
def noise(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("noise") / "noise.bin"
    path.write_bytes(random.Random(0).randbytes(CHUNK * 2 + 12_345))
    return path


@pytest.fixture(params=["threads", "uring"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways to have many reads under way."""
    if request.param == "uring":
        _ring_or_skip()
    monkeypatch.setenv("LIBREMOE_IO", request.param)
    return str(request.param)


def _ring_or_skip() -> None:
    try:
        pytest.importorskip("libremoe._kernels").Ring(1)
    except OSError as error:
        pytest.skip(f"no io_uring here: {error.strerror}")


@pytest.fixture(params=["direct", "refused when opened", "refused when read", "in small parts"])
def how(request: pytest.FixtureRequest, way: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """File systems that take O_DIRECT, refuse it at once, refuse it when it is used, and give less than was asked."""
    opened, read, direct = os.open, os.preadv, set()

    def open_(path: Any, flags: int, *rest: Any, **more: Any) -> int:
        if flags & os.O_DIRECT and request.param == "refused when opened":
            raise OSError(errno.EINVAL, "no O_DIRECT here")
        fd = opened(path, flags, *rest, **more)
        if flags & os.O_DIRECT:
            direct.add(fd)
        return fd

    def preadv(fd: int, buffers: list[Any], offset: int) -> int:
        if fd in direct and request.param == "refused when read":
            raise OSError(errno.EINVAL, "not aligned")
        most = 3 * ALIGN if request.param == "in small parts" else len(buffers[0])
        return read(fd, [buffers[0][:most]], offset)

    class OddRing:
        """A ring whose file system behaves like preadv above."""

        def __init__(self, depth: int):
            self.ring, self.refused = Ring(depth), set()

        def read(self, fd: int, to: torch.Tensor, offset: int) -> int:
            number = self.ring.read(fd, to[: 3 * ALIGN] if request.param == "in small parts" else to, offset)
            if fd in direct and request.param == "refused when read":
                self.refused.add(number)
            return int(number)

        def wait(self) -> list[tuple[int, int]]:
            return [(number, -errno.EINVAL if number in self.refused else n) for number, n in self.ring.wait()]

    monkeypatch.setattr(os, "open", open_)
    monkeypatch.setattr(os, "preadv", preadv)
    if way == "uring":
        Ring = libremoe.direct_read._kernels.Ring
        monkeypatch.setattr(libremoe.direct_read._kernels, "Ring", OddRing)
    return str(request.param)


@pytest.mark.parametrize(("offset", "length"), [(0, 1), (0, ALIGN), (1, 1), (4095, 2), (5000, CHUNK),
                                                (ALIGN, CHUNK + 1), (77, 2 * CHUNK), (2 * CHUNK + 12_000, 345),
                                                (2 * CHUNK, 12_345)])
def test_pieces_are_the_bytes_of_the_file(noise: Path, how: str, offset: int, length: int) -> None:
    piece, reader = Piece(noise, offset, length), DirectReader(depth=3)
    seen: list[tuple[int, bytes]] = []
    piece = dataclasses.replace(piece, check=lambda buffer, at: seen.append((at, bytes(buffer.numpy()))))
    buffer = aligned(piece.room)
    request = reader.read([piece], [buffer], GUESSED)
    reader.hurry(request)
    assert request.done.wait(30) and request.error is None
    content = noise.read_bytes()
    assert bytes(buffer.numpy())[piece.lead :][:length] == content[offset : offset + length]
    assert b"".join(part for _, part in sorted(seen)) == content[offset - piece.lead : offset + length]
    reader.close()


def test_a_piece_beyond_the_end_is_an_error_and_others_go_on(noise: Path, how: str) -> None:
    reader, size = DirectReader(depth=2), noise.stat().st_size
    pieces = [Piece(noise, size - 10, 11), Piece(noise, size - 10, 10), Piece(noise, size + CHUNK, 5)]
    requests = [reader.read([piece], [aligned(piece.room)], NEEDED) for piece in pieces]
    for request in requests:
        assert request.done.wait(30)
    assert [request.error is None for request in requests] == [False, True, False]
    assert "too early" in str(requests[0].error)
    reader.close()


class BrokenRing:
    """Gives an input/output error for all that is longer than the eight bytes that wake its thread."""

    def __init__(self, ring: Any):
        self.ring, self.broken = ring, set()

    def read(self, fd: int, to: torch.Tensor, offset: int) -> int:
        number = self.ring.read(fd, to, offset)
        if len(to) > 8:
            self.broken.add(number)
        return int(number)

    def wait(self) -> list[tuple[int, int]]:
        return [(number, -errno.EIO if number in self.broken else n) for number, n in self.ring.wait()]


def test_an_input_output_error_names_file_and_byte(noise: Path, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "preadv", broken)
    if way == "uring":
        Ring = libremoe.direct_read._kernels.Ring
        monkeypatch.setattr(libremoe.direct_read._kernels, "Ring", lambda depth: BrokenRing(Ring(depth)))
    reader = DirectReader(depth=1)
    request = reader.read([Piece(noise, 8192, 10)], [aligned(ALIGN)], NEEDED)
    assert request.done.wait(30)
    assert str(request.error) == f"{noise}: cannot be read at byte 8192: Input/output error"
    reader.close()


def test_needed_reads_overtake_guesses_and_what_is_cancelled_never_begins(noise: Path, way: str) -> None:
    order: list[str] = []
    reader = DirectReader(depth=1)

    def request(name: str, priority: int) -> Any:
        piece = Piece(noise, 0, 10, lambda buffer, at: order.append(name))
        return reader.read([piece], [aligned(ALIGN)], priority)

    with reader._wake:  # so that all are there before the first begins; the lock is reentrant
        made = [request(name, priority) for name, priority in
                (("guess 1", GUESSED), ("guess 2", GUESSED), ("needed", NEEDED), ("guess 3", GUESSED))]
        reader.hurry(made[3])
        reader.cancel(made[1])
    for each in made:
        assert each.done.wait(30)
    assert order == ["needed", "guess 3", "guess 1"] or order == ["guess 3", "needed", "guess 1"]
    reader.close()


def test_many_reads_at_once_are_the_bytes_of_the_file(noise: Path, way: str) -> None:
    """More requests than fit under way, needed ones and guesses, some cancelled: each is whole or was never wanted."""
    content, rng, reader = noise.read_bytes(), random.Random(5), DirectReader(depth=3)
    assert reader.how == way
    made = []
    for _ in range(200):
        offset = rng.randrange(len(content))
        piece = Piece(noise, offset, rng.randrange(1, min(300_000, len(content) - offset + 1)))
        buffer = aligned(piece.room)
        made.append((piece, buffer, reader.read([piece], [buffer], rng.choice([NEEDED, GUESSED]))))
        if rng.random() < 0.2:
            reader.cancel(rng.choice(made)[2])
        if rng.random() < 0.2:
            reader.hurry(rng.choice(made)[2])
    for piece, buffer, request in made:
        assert request.done.wait(30) and request.error is None
        if not request.cancelled:
            assert bytes(buffer.numpy())[piece.lead :][: piece.length] == content[piece.offset :][: piece.length]
    assert reader.bytes_read > 0 and reader.busy_s() > 0
    reader.close()


def test_what_waits_when_the_reader_ends_is_told(noise: Path, way: str) -> None:
    reader = DirectReader(depth=1)
    with reader._wake:
        requests = [reader.read([Piece(noise, 0, CHUNK)], [aligned(CHUNK)], NEEDED) for _ in range(20)]
        closing = threading.Thread(target=reader.close)
        closing.start()
    closing.join(30)
    assert not closing.is_alive() and all(request.done.is_set() for request in requests)


def test_a_way_to_read_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIBREMOE_IO", "tape")
    with pytest.raises(LibremoeError, match="LIBREMOE_IO=tape is no way to read; there are: uring, threads"):
        DirectReader()
    monkeypatch.setenv("LIBREMOE_IO", "uring")
    monkeypatch.setattr(libremoe.direct_read, "_kernels", None)
    with pytest.raises(LibremoeError, match="cannot be used here: there are no compiled kernels"):
        DirectReader()
    monkeypatch.setenv("LIBREMOE_IO", "")
    reader = DirectReader()
    assert reader.how == "threads"
    reader.close()


def test_a_ring_checks_what_it_is_given(noise: Path) -> None:
    _ring_or_skip()
    ring, (fd, buffer) = libremoe.direct_read._kernels.Ring(2), (os.open(noise, os.O_RDONLY), aligned(ALIGN))
    assert ring.wait() == []
    odd_ones = (buffer[:0], "to must have from 1"), (buffer.float(), "to must be uint8"), (buffer[::2], "contiguous")
    for odd, text in odd_ones:
        with pytest.raises(ValueError, match=text):
            ring.read(fd, odd, 0)
    with pytest.raises(ValueError, match="offset"):
        ring.read(fd, buffer, -1)
    numbers = [ring.read(fd, buffer, 0), ring.read(9999, buffer, 0)]
    with pytest.raises(OSError, match="busy"):
        ring.read(fd, buffer, 0)
    found: dict[int, int] = {}
    while len(found) < 2:
        found |= dict(ring.wait())
    assert found == {numbers[0]: ALIGN, numbers[1]: -errno.EBADF}
    ring.read(fd, aligned(ALIGN), 0)  # the ring holds on to the buffer and waits for it
    del ring
    os.close(fd)
    with pytest.raises(ValueError, match="depth"):
        libremoe.direct_read._kernels.Ring(0)


@given(st.binary(max_size=700), st.integers(1, 300))
@settings(max_examples=200, deadline=None)
def test_checksums_are_those_of_zlib(content: bytes, block: int) -> None:
    kernels = pytest.importorskip("libremoe._kernels")
    found = kernels.block_crc32(torch.frombuffer(bytearray(content + b"\0"), dtype=torch.uint8)[: len(content)], block)
    assert found == [zlib.crc32(content[i : i + block]) for i in range(0, len(content), block)]


# Budgets.


@pytest.mark.parametrize(("text", "wanted"), [("12G", 12_000_000_000), ("800M", 800_000_000), ("1.5GiB", 3 << 29),
                                              ("4096", 4096), ("2 gb", 2_000_000_000), ("64k", 64_000)])
def test_amounts(text: str, wanted: int) -> None:
    assert parse_bytes(text) == wanted


@pytest.mark.parametrize("text", ["", "G", "12X", "-1G", "1e9", "12 GG", "1,5G", "٣G", "i"])
def test_odd_amounts_are_refused(text: str) -> None:
    with pytest.raises(LibremoeError, match="amount of bytes"):
        parse_bytes(text)


def test_too_little_memory_says_what_is_least(folder: Path) -> None:
    with pytest.raises(LibremoeError, match=r"at least \d+\.\d GB here \(program .* \+ experts"):
        plan_budget(open_checkpoint(folder), 1000, torch.float32)
    with pytest.raises(LibremoeError, match="choose one"):
        libremoe.load(folder, mmap=True, memory="1G")


@pytest.mark.parametrize("batch", [1, 16])
def test_the_least_that_is_named_is_enough(folder: Path, monkeypatch: pytest.MonkeyPatch, batch: int) -> None:
    monkeypatch.setattr("libremoe.loading.process_bytes", lambda: 400 << 20)
    reader = open_checkpoint(folder)
    plenty = plan_budget(reader, 1 << 32, torch.float32, 16)
    block = KVCache.bytes_per_token(reader.config, torch.float32) * BLOCK_SIZE
    one = slot_size(reader.expert_pieces(0, e) for e in range(reader.config.n_experts))  # type: ignore[attr-defined]
    least = plenty.process + plenty.shared + working_bytes(reader.config) + block + one
    with pytest.raises(LibremoeError, match="at least"):
        plan_budget(reader, least - 1, torch.float32, batch)
    budget = plan_budget(reader, least, torch.float32, batch)
    assert (budget.kv_bytes, budget.expert_bytes) == (block, one)


def test_enough_memory_keeps_everything(folder: Path) -> None:
    lm = libremoe.load(folder, memory="20G")
    assert lm.streamed is None
    assert lm.generate([5, 6], GREEDY).tokens == libremoe.load(folder).generate([5, 6], GREEDY).tokens


WATCHED = r"""
import pathlib, re, sys, libremoe
lm = libremoe.load(sys.argv[1], memory=int(sys.argv[2]))
assert lm.streamed is not None, "it all fits: this tests nothing"
lm.generate(list(range(3, 200)), temperature=0, max_tokens=20, ignore_eos=True)
status = pathlib.Path("/proc/self/status").read_text()  # getrusage would tell the parent's peak, if that is higher
print(int(re.search(r"VmHWM:\s+(\d+)", status).group(1)) * 1024)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="resident sets are told by Linux")
def test_the_budget_holds(tmp_path: Path) -> None:
    """A model of 270 MB; the process never occupies more than it was given, though it computes with all of it."""
    dims = dataclasses.replace(SMALL, dim=512, hidden_dim=2048, n_layers=12, head_dim=64, n_heads=8)
    made = make_tiny(tmp_path / "wide", dims=dims, format="int8")["dst"]
    child = {**os.environ, "PYTHONPATH": str(Path(libremoe.__file__).parent.parent)}
    probe = "import libremoe.language_model, libremoe.memory as m; print(m.process_bytes())"
    said = subprocess.run([sys.executable, "-c", probe], env=child, capture_output=True, text=True, check=True).stdout
    empty = int(said)
    given_bytes = empty + 250_000_000
    done = subprocess.run([sys.executable, "-c", WATCHED, str(made), str(given_bytes)], env=child, capture_output=True,
                          text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) <= given_bytes


def test_slots_hold_any_expert() -> None:
    sizes = [[Piece(Path("a"), offset, n)] for offset, n in itertools.product((0, 1, 4095), (1, ALIGN, ALIGN + 1))]
    assert slot_size(sizes) == 2 * ALIGN
    assert slot_size([[sizes[0][0], sizes[-1][0]]]) == 3 * ALIGN
