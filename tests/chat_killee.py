"""Starts servers over a store for test_chat_kill.py, forked from one process that has everything imported.

A line of standard input with the store's place starts one; its process id and URL come on standard output.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time

from serving import chatting, served, stub

if __name__ == "__main__":
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    for line in sys.stdin:
        if os.fork() == 0:
            with served(stub(tokens_per_s=100), chat=chatting(line.strip())) as running:
                print(json.dumps({"pid": os.getpid(), "url": running.url}), flush=True)
                time.sleep(600)
