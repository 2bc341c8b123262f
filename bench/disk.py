"""What bounds everything that streams: a disk's rate past the page cache, and that of a mapped file's page faults.

    python bench/disk.py big-int4

Reads by depth and block size, by io_uring and by threads; faults of a mapped file whose pages were dropped; and what
checksums cost. GB are 10^9 bytes.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import statistics
import threading
import time
from pathlib import Path

import numpy as np
import torch

from libremoe.direct_read import ALIGN, CHUNK, DEPTH, NEEDED, DirectReader
from libremoe.weights import open_checkpoint

DEPTHS = (1, 2, 4, 8, 16, 32)
BLOCKS = tuple(128 << 10 << i for i in range(8))  # 128 KiB to 16 MiB
ROUNDS = 9  # of checksums


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", help="libremoe's own folder, or the official checkpoint")
    parser.add_argument("--seconds", type=float, default=1.0, help="of each measurement")
    parser.add_argument("--checksums", action="store_true", help="only what these cost")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    found = checksums(args) if args.checksums else disk(args)
    if args.json:
        print(json.dumps(found))


def disk(args: argparse.Namespace) -> dict:
    """GB/s of everything that bounds us or a program that maps its files."""
    files = weight_files(args.path)
    rows: dict[str, dict] = {}
    for way in ways():
        rows[way] = {}
        print(f"\nO_DIRECT, {way}, GB/s\n{'depth':>8s}" + "".join(f"{size_of(block):>9s}" for block in BLOCKS))
        for depth in DEPTHS:
            rates = [direct_rate(files, depth, block, args.seconds, way) for block in BLOCKS]
            rows[way][depth] = dict(zip(map(size_of, BLOCKS), rates, strict=True))
            print(f"{depth:8d}" + "".join(f"{rate:9.2f}" for rate in rates), flush=True)
    faults = {n: fault_rate(files, n, 4 * args.seconds) for n in (1, 2)}
    print("\nfaults of a mapped file, pages dropped before: "
          + ", ".join(f"{rate:.2f} GB/s by {n} threads" for n, rate in faults.items()))
    return {"direct": rows, "faults": faults, **checksums(args)}


def checksums(args: argparse.Namespace) -> dict:
    """What checking costs, in turns, since the disk's rate wanders by more than that."""
    rounds = [[store_rate(args.path, check, args.seconds) for check in (False, True)] for _ in range(ROUNDS)]
    plain, checked = (statistics.median(rates) for rates in zip(*rounds, strict=True))
    costs = sorted(100 * (1 - with_checks / without) for without, with_checks in rounds)
    print(f"experts, as the engine reads them: {plain:.2f} GB/s unchecked, {checked:.2f} GB/s with checksums; of "
          f"{ROUNDS} rounds the median cost is {statistics.median(costs):.1f} % ({costs[0]:.0f} to {costs[-1]:.0f} %)")
    return {"experts_unchecked": plain, "experts_checked": checked, "checksum_costs_percent": costs}


def ways() -> tuple[str, ...]:
    probe = DirectReader(depth=1)
    probe.close()
    return (probe.how, "threads") if probe.how != "threads" else ("threads",)


def size_of(block: int) -> str:
    return f"{block >> 20} MiB" if block >= 1 << 20 else f"{block >> 10} KiB"


def weight_files(path: str) -> list[Path]:
    """Files that hold experts, in the order of layers."""
    reader = open_checkpoint(path)
    layers, n_experts = range(reader.config.n_layers), range(max(reader.config.n_experts, 1))
    return list(dict.fromkeys(piece.file for layer in layers for e in n_experts
                              for piece in reader.expert_pieces(layer, e)))  # type: ignore[attr-defined]


def direct_rate(files: list[Path], depth: int, block: int, seconds: float, way: str) -> float:
    """GB/s of reading blocks of the files one after the other, `depth` at a time, for some seconds."""
    places = [(file, at) for file in files for at in range(0, file.stat().st_size - block + 1, block)]
    if not places:
        raise SystemExit(f"{files[0]} and the others are shorter than {size_of(block)}: give a larger model")
    open_files = {file: os.open(file, os.O_RDONLY | os.O_DIRECT) for file in files}
    buffers = [aligned(block) for _ in range(depth)]
    start = int(time.time() * 1000) % len(places)  # another place each time: what lies below may remember
    turn = iter(places[(start + i) % len(places)] for i in range(1 << 40))
    began = time.perf_counter()
    read = ring_loop if way == "uring" else thread_loop
    n = read(turn, open_files, buffers, began + seconds)
    rate = n * block / (time.perf_counter() - began) / 1e9
    for fd in open_files.values():
        os.close(fd)
    return rate


def ring_loop(turn, open_files, buffers, until: float) -> int:  # type: ignore[no-untyped-def]
    from libremoe import _kernels

    ring = _kernels.Ring(len(buffers))
    under_way: dict[int, torch.Tensor] = {}
    free, n = list(buffers), 0
    while under_way or time.perf_counter() < until:
        while free and time.perf_counter() < until:
            (file, at), buffer = next(turn), free.pop()
            under_way[ring.read(open_files[file], buffer, at)] = buffer
        for number, got in ring.wait():
            buffer = under_way.pop(number)
            if got != len(buffer):
                raise SystemExit(f"a read of {len(buffer)} bytes gave {got}")
            free.append(buffer)
            n += 1
    return n


def thread_loop(turn, open_files, buffers, until: float) -> int:  # type: ignore[no-untyped-def]
    lock, counts = threading.Lock(), [0] * len(buffers)

    def work(i: int) -> None:
        memory = buffers[i].numpy().data
        while time.perf_counter() < until:
            with lock:
                file, at = next(turn)
            if os.preadv(open_files[file], [memory], at) == len(memory):
                counts[i] += 1

    in_threads(len(buffers), work)
    return sum(counts)


def fault_rate(files: list[Path], n_threads: int, seconds: float) -> float:
    """GB/s of touching each page of the mapped files in order, none of it in the page cache: what mmap can give."""
    drop_pages(files)
    counts = [0] * n_threads

    def work(i: int) -> None:
        until = time.perf_counter() + seconds
        for file in files[i::n_threads] if len(files) >= n_threads else files:
            with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
                pages = np.frombuffer(mapped, np.uint8)
                for at in range(0, len(pages), 1 << 20):
                    if time.perf_counter() > until:
                        break
                    int(pages[at : at + (1 << 20) : 4096].sum())
                    counts[i] += min(1 << 20, len(pages) - at)
                del pages

    began = time.perf_counter()
    in_threads(n_threads, work)
    return sum(counts) / (time.perf_counter() - began) / 1e9


def store_rate(path: str, check: bool, seconds: float) -> float:
    """GB/s of the engine's own reader bringing one expert after the other, two at a time as a layer wants them."""
    reader = open_checkpoint(path)
    reader.verify = check  # type: ignore[attr-defined]
    config, direct = reader.config, DirectReader()
    keys = [(layer, e) for layer in range(config.n_layers) for e in range(max(config.n_experts, 1))]
    room = max(sum(p.room for p in reader.expert_pieces(*key)) for key in keys)  # type: ignore[attr-defined]
    slots, under_way, began, i = [aligned(room) for _ in range(2)], [], time.perf_counter(), 0
    while time.perf_counter() - began < seconds or i < 4:
        pieces = reader.expert_pieces(*keys[i % len(keys)])  # type: ignore[attr-defined]
        rooms = [piece.room for piece in pieces]
        buffers = list(slots[i % 2][: sum(rooms)].split(rooms))
        under_way.append(direct.read(pieces, buffers, NEEDED))
        i += 1
        if len(under_way) == 2:
            request = under_way.pop(0)
            request.done.wait()
            if request.error is not None:
                raise SystemExit(str(request.error))
    for request in under_way:
        request.done.wait()
    rate = direct.bytes_read / (time.perf_counter() - began) / 1e9
    direct.close()
    return rate


def drop_pages(files: list[Path]) -> None:
    """Out of the page cache with them."""
    for file in files:
        fd = os.open(file, os.O_RDONLY)
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)


def in_threads(n: int, work) -> None:  # type: ignore[no-untyped-def]
    threads = [threading.Thread(target=work, args=(i,)) for i in range(n)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def aligned(n: int) -> torch.Tensor:
    whole = torch.zeros(n + ALIGN, dtype=torch.uint8)
    return whole[-whole.data_ptr() % ALIGN :][:n]


def disk_rate(path: str, seconds: float) -> float:
    """The most that the disk gives now, either way, with our depth and block size and with some that differ."""
    files = weight_files(path)
    largest = 1 << max(file.stat().st_size for file in files).bit_length() - 2
    return max(direct_rate(files, depth, min(block, largest), seconds, way)
               for way in ways() for depth, block in ((1, CHUNK // 4), (DEPTH, CHUNK), (2 * DEPTH, CHUNK // 4)))


if __name__ == "__main__":
    main()
