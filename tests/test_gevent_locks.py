"""Under gevent, every wait lets other greenlets run.

No lock is held during a wait, and a greenlet that waits may be killed.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

RELOADED = """
import logging, pathlib, sys, time
from sse.access.reload import Reloaded

now = [0.0]
path = pathlib.Path(sys.argv[1])
path.write_text("good")
def parse(text):
    if text != "good":
        raise ValueError("bad")
    return text
reloaded = Reloaded("SSE_FILE", str(path), parse, clock=lambda: now[0])  # before the patch, as by gunicorn's --preload

from gevent import monkey; monkey.patch_all()
import gevent

class Slow(logging.Handler):
    def emit(self, record):
        time.sleep(0.3)
        said.append(record.getMessage())

said = []
logging.getLogger("sse").addHandler(Slow())
path.write_text("worse")
now[0] = 2.0
first = gevent.spawn(lambda: reloaded.value)
gevent.sleep(0.1)
now[0] = 4.0
assert reloaded.value == "good" and not said, "it has waited"
assert first.get(timeout=5) == "good" and len(said) == 1
"""

STARTED = """
from gevent import monkey; monkey.patch_all()
import threading, gevent
from sse.hub.hub import Hub
from sse.access.revocations import Revocations
from sse.stores import connect

store = connect(None, ring=5, ring_ttl=60)
hub, revocations = Hub(store, max_subscribers=5), Revocations(store, 60)
for begin in (hub.start, revocations.count):
    ended = gevent.spawn(begin)
    gevent.sleep(0)  # it has begun a thread, and waits until that runs
    ended.kill(block=False)
    gevent.sleep(0.05)
    begin()
names = [thread.name for thread in threading.enumerate()]
assert names.count("sse-hub") == names.count("sse-revocations") == 1, names
hub.close()
revocations.close()
"""


READ = """
from gevent import monkey; monkey.patch_all()
import time, gevent
from sse.errors import StoreUnavailable
from sse.access.revocations import Revocations
from sse.stores import MemoryStore

class Slow(MemoryStore):
    asked, away = 0, False
    def revoked(self, after=""):
        self.asked += 1
        news = super().revoked(after)
        time.sleep(0.2)
        if self.away:
            raise StoreUnavailable("away")
        return news

store = Slow(ring=5, ring_ttl=60)
revocations = Revocations(store, 60)
readers = [gevent.spawn(revocations.count) for _ in range(20)]
assert [reader.get(timeout=3) for reader in readers] == [0] * 20
assert store.asked <= 2, store.asked  # one for all, and the thread's own

store = Slow(ring=5, ring_ttl=60)
store.away = True
revocations, begun = Revocations(store, 60), time.monotonic()
readers = [gevent.spawn(revocations.count) for _ in range(20)]
gevent.joinall(readers, timeout=3)
assert all(isinstance(reader.exception, StoreUnavailable) for reader in readers) and store.asked == 1

store = Slow(ring=5, ring_ttl=60)
revocations = Revocations(store, 60)
ended = gevent.spawn(revocations.count)
gevent.sleep(0.05)
waiting = gevent.spawn(revocations.count)
revoking = [gevent.spawn(revocations.revoke, "sub", str(number)) for number in range(10)]
gevent.sleep(0.05)
ended.kill(block=False)
waiting.get(timeout=3)
gevent.joinall(revoking, timeout=3, raise_error=True)
assert all(one.successful() for one in revoking)
assert len(revocations.since) == 10 and store.asked < 10, store.asked
"""


def run(program: str, *arguments: str) -> None:
    done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, timeout=20)
    assert done.returncode == 0, done.stderr


def test_a_file_is_read_again_while_the_log_keeps_another_waiting(tmp_path: Path) -> None:
    run(RELOADED, str(tmp_path / "file"))


def test_who_is_ended_while_a_thread_starts_leaves_one_thread() -> None:
    run(STARTED)


def test_a_reading_of_revocations_is_shared_and_its_end_leaves_nobody_waiting() -> None:
    run(READ)
