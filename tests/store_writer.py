"""A process that writes conversations until it dies, and notes what was acknowledged: the victim of durability tests.

Started as a program it takes one JSON object a line: where, acks, seed, n_threads, n_acts, deletes, fault, file_limit.
For each it forks a child that opens the store and writes, answers "pid N", and when the child has ended "ended STATUS".
The child appends one JSON line to acks after each act that returned, with one system call, so that kill -9 loses none:
  {"turn", "conversation", "text", "state"}   this text is saved
  {"deleting": id} {"deleted": id}            before and after a deletion
  {"refused": sentence}                       the act raised LibremoeError
  {"crashed": repr}                           it raised anything else
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import random
import resource
import sys
import threading
import traceback
from typing import Any

from libremoe.chat.conversation import NotFound
from libremoe.chat.message import Text
from libremoe.chat.store import Store, open_store
from libremoe.errors import LibremoeError


class Writer:
    def __init__(self, task: dict[str, Any]):
        self.task = task
        self.acks = os.open(task["acks"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        self.stop = threading.Event()

    def note(self, line: dict[str, Any]) -> None:
        os.write(self.acks, b"\n" + json.dumps(line).encode() + b"\n")  # the line before may have been cut short

    def run(self) -> None:
        try:
            store = open_store(self.task["where"])
        except LibremoeError as error:
            self.note({"refused": str(error)})
            return
        if fault := self.task.get("fault"):
            ctypes.CDLL(None).faulty_arm(
                fault["part"].encode(), ctypes.c_long(fault.get("every", 0)), fault.get("errno", 0),
                ctypes.c_long(fault.get("cut", 0)), ctypes.c_ulong(self.task["seed"]))
        if limit := self.task.get("file_limit"):
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        self.note({"open": True})
        threads = [threading.Thread(target=self.write, args=(store, i)) for i in range(self.task["n_threads"])]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def write(self, store: Store, number: int) -> None:
        rnd = random.Random(f"{self.task['seed']} {number}")
        conversation = None
        for i in range(self.task.get("n_acts", 10**9)):
            try:
                if conversation is None or i % 50 == 0:
                    conversation = store.create(f"talk {number} {i}").id
                self.one_act(store, conversation, f"{self.task['seed']} {number} {i}", rnd)
            except NotFound:
                conversation = None
            except LibremoeError as error:
                self.note({"refused": str(error)})
            except BaseException as error:
                self.note({"crashed": repr(error) + traceback.format_exc()})
                raise

    def one_act(self, store: Store, conversation: str, seed: str, rnd: random.Random) -> None:
        parent = store.conversation(conversation).leaf_id if rnd.random() < 0.5 else None
        if rnd.random() < 0.02 * self.task.get("deletes", 1):
            self.note({"deleting": conversation})
            store.delete(conversation)
            return self.note({"deleted": conversation})
        text = hashlib.sha256(seed.encode()).hexdigest()[:30] + " " + "said " * rnd.randrange(200)
        if rnd.random() < 0.7:
            turn = store.add(conversation, parent, "user", (Text(text),))
            return self.note({"turn": turn.id, "conversation": conversation, "text": text, "state": "done"})
        turn = store.add(conversation, parent, "assistant", (), "writing")
        for end in range(3):
            text += f"and{end} "
            turn = store.update(turn.id, (Text(text),), "done" if end == 2 else None)
            self.note({"turn": turn.id, "conversation": conversation, "text": text, "state": turn.state})
        return None


def main() -> None:
    for line in sys.stdin:
        task = json.loads(line)
        pid = os.fork()
        if pid == 0:
            try:
                Writer(task).run()
            finally:
                os._exit(0)
        print("pid", pid, flush=True)
        print("ended", os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


if __name__ == "__main__":
    main()
