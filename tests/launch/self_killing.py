"""`normact` that kills itself: `self_killing.py MODE COUNT NORMACT-ARGUMENTS`, with signal 9 at the COUNT-th time.

MODE `transaction`: after events were written, before their COMMIT. MODE `dispatch`: after jobs were handed to the
workers, before anything of them is appended. What is watched is SQLite and the pool, from outside.
"""

import os
import signal
import sqlite3
import sys

from normact.launch.main import main
from normact.launch.ray_pool import RayPool
from normact.search.ledger import Ledger


class Countdown:
    """Kills this process when it was called so many times."""

    def __init__(self, count):
        self.left = count

    def __call__(self):
        self.left -= 1
        if self.left <= 0:
            os.kill(os.getpid(), signal.SIGKILL)


def in_transaction(tick):
    """Tick at each COMMIT of a transaction that holds events."""
    connect = sqlite3.connect

    def traced(*arguments, **options):
        db = connect(*arguments, **options)
        holds = []

        def watch(statement):
            words = statement.upper().split()
            if words[:1] == ["INSERT"] and "META" not in words:
                holds.append(statement)
            elif words[:1] == ["COMMIT"] and holds:
                holds.clear()
                tick()

        db.set_trace_callback(watch)
        return db

    sqlite3.connect = traced


def between_dispatch_and_append(tick):
    """Tick at each append before which jobs were submitted."""
    submit, append, submitted = RayPool.submit, Ledger.append, []

    def submit_and_note(self, job):
        submit(self, job)
        submitted.append(job)

    def append_and_tick(self, *events_and_facts):
        if submitted:
            submitted.clear()
            tick()
        append(self, *events_and_facts)

    RayPool.submit, Ledger.append = submit_and_note, append_and_tick


if __name__ == "__main__":
    {"transaction": in_transaction, "dispatch": between_dispatch_and_append}[sys.argv[1]](Countdown(int(sys.argv[2])))
    sys.exit(main(sys.argv[3:]))
