"""Durable messages per second of the conversation store, and what a deletion costs.

    python bench/store.py [--database URL] [--folder DIR] [--threads 1 8 32] [--seconds 5] [--sizes 1000 10000 100000]

Each message is on disk when it counts. Beside it stands what the disk does: 4 KiB written and synced, over and over.
A deletion is measured in stores of --sizes messages: it rewrites the database, so it grows with what stays.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import threading
import time
from pathlib import Path

from libremoe.chat.conversation import Conversation, Turn, new_id
from libremoe.chat.message import Text
from libremoe.chat.store import Store, open_store

MESSAGE = "Why are there two tides a day, when the Moon passes over us only once, and who found out first? " * 3


def syncs_per_s(folder: Path, seconds: float) -> float:
    with (folder / "probe").open("wb") as file:
        n, end = 0, time.monotonic() + seconds
        while time.monotonic() < end:
            file.write(b"x" * 4096)
            file.flush()
            os.fdatasync(file.fileno())
            n += 1
    (folder / "probe").unlink()
    return n / seconds


def messages_per_s(store: Store, n_threads: int, seconds: float) -> float:
    counts = [0] * n_threads
    begin = time.monotonic()
    end = begin + seconds

    def write(number: int) -> None:
        conversation, parent = store.create(f"talk {number}").id, None
        while time.monotonic() < end:
            parent = store.add(conversation, parent, "user", (Text(f"{MESSAGE}{number} {counts[number]}"),)).id
            counts[number] += 1

    threads = [threading.Thread(target=write, args=(i,)) for i in range(n_threads)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts) / (time.monotonic() - begin)


def fill(store: Store, n_messages: int) -> None:
    """In conversations of 20."""
    for first in range(0, n_messages, 20):
        its_id = new_id()
        turns = [Turn(new_id(), its_id, None, "user", (Text(f"{MESSAGE}{first + i}"),)) for i in range(20)]
        store.insert(Conversation(its_id, f"talk {first}"), turns)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--database", help="postgresql://... (an empty database); default: a SQLite file in --folder")
    parser.add_argument("--folder", type=Path, help="on the disk to measure; default: a temporary one")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        folder = Path(name)
        print(f"the disk: {syncs_per_s(folder, args.seconds):,.0f} syncs of 4 KiB a second")
        with open_store(args.database or folder / "chat.db") as store:
            for n_threads in args.threads:
                rate = messages_per_s(store, n_threads, args.seconds)
                print(f"{n_threads:3} writers: {rate:,.0f} durable messages a second")
            store.delete_all()
            held = 0
            for size in args.sizes:
                fill(store, size - held)
                held = size
                victim = store.conversations(1)[0].id
                begin = time.monotonic()
                store.delete(victim)
                took = time.monotonic() - begin
                on_disk = "" if args.database else f", {(folder / 'chat.db').stat().st_size / 1e6:.1f} MB"
                print(f"one conversation erased among {size:,} messages{on_disk}: {took * 1000:,.0f} ms")
                begin = time.monotonic()
                store.search("who found tides 77")
                print(f"  a search: {(time.monotonic() - begin) * 1000:,.1f} ms")
            store.delete_all()


if __name__ == "__main__":
    main()
