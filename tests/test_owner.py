"""The owner thread of a service runs the calls that come from threads that gevent does not know."""

from __future__ import annotations

import subprocess
import sys
import threading

import pytest

from sse.owner import OwnerThread

BEGIN = """
from gevent import monkey; monkey.patch_all()
import os, time, gevent
from gevent.monkey import get_original
from sse.errors import StoreUnavailable
from sse.owner import OwnerThread

start, really_sleep = get_original("_thread", "start_new_thread"), get_original("time", "sleep")

def elsewhere(work):
    "What becomes of the work in a real thread; empty at first."
    outcome = []
    def run():
        try:
            outcome.append(work())
        except BaseException as error:
            outcome.append(error)
    start(run, ())
    return outcome

def come(outcome):
    with gevent.Timeout(5):
        while not outcome:
            time.sleep(0.005)
    return outcome[0]

home = OwnerThread()

def run(work, begin=1, end=2):
    return home.run(work, begin=begin, end=end)
"""

HANDED = """
here, hub = gevent.getcurrent(), gevent.get_hub()
def who():
    return home.is_other_thread, gevent.get_hub() is hub, gevent.getcurrent() is here
assert not home.is_other_thread and come(elsewhere(lambda: home.is_other_thread))
assert come(elsewhere(lambda: run(who))) == (False, True, False)
fault = ValueError("as it is")
def fail():
    raise fault
assert come(elsewhere(lambda: run(fail))) is fault
home.check()
assert isinstance(come(elsewhere(home.check)), StoreUnavailable)
"""

ENDED = """
def end():
    raise gevent.GreenletExit
refused = come(elsewhere(lambda: run(end)))
assert isinstance(refused, StoreUnavailable) and "interrupted" in str(refused)
refused = come(elsewhere(lambda: run(lambda: time.sleep(9), 0.1, 0.3)))
assert "not answered within 0.3 s" in str(refused), refused
gevent.get_hub().destroy(destroy_loop=True)
refused = elsewhere(lambda: run(time.time, 0.1))
really_sleep(0.5)
assert isinstance(refused[0], StoreUnavailable), refused
"""

FRAMELESS = """
def ask():
    try:
        raise OSError("away")
    except OSError as error:
        raise StoreUnavailable("Redis is away") from error
def frames():
    try:
        run(ask)
    except StoreUnavailable as error:
        assert error.__cause__ is error.__context__ is None
        trace, names = error.__traceback__, []
        while trace:
            names.append(trace.tb_frame.f_code.co_name)
            trace = trace.tb_next
        return names
assert come(elsewhere(frames)) == ["frames", "run", "run", "wait"]
"""

GIVEN_UP = """
done = []
outcome = elsewhere(lambda: run(lambda: done.append(1), 0.2))
really_sleep(0.6)
assert "nothing was stored" in str(outcome[0])
time.sleep(0.2)
assert not done
assert come(elsewhere(lambda: run(lambda: 7))) == 7
"""

ENDS = """
assert come(elsewhere(lambda: run(lambda: 7))) == 7
assert gevent.wait(timeout=5)  # nothing of it keeps the loop alive
before = len(os.listdir("/proc/self/fd"))
homes = [OwnerThread() for _ in range(20)]
assert [come(elsewhere(lambda one=one: one.run(lambda: 7, begin=1, end=2))) for one in homes] == [7] * 20
assert len(os.listdir("/proc/self/fd")) == before
"""

PATCHED_LATE = """
from sse.owner import OwnerThread
home = OwnerThread()
from gevent import monkey; monkey.patch_all()
import gevent
from gevent.monkey import get_original
from sse.errors import StoreUnavailable
faults = []
def check():
    try:
        home.check()
    except StoreUnavailable as fault:
        faults.append(fault)
gevent.get_hub().threadpool.apply(check)
assert len(faults) == 1
home.check()
gevent.get_hub().threadpool.apply(lambda: home.run(check, begin=1, end=2))
assert len(faults) == 1
"""

FORKED = """
from sse.service import Service
from sse.config import Config
from sse.event import Event
from sse.stores import Publication
service = Service(Config.load({}, {}))

def publish():
    return service.publish([Publication("news", Event("hello"))])[0].offset
assert come(elsewhere(publish)) == 1  # not used before

def fork():
    child = get_original("os", "fork")()
    if child:
        return child
    try:
        gevent.reinit()
        assert (come(elsewhere(publish)), publish(), service.hub.subscribers) == (1, 2, 0)
        os._exit(0)
    finally:
        os._exit(1)
for child in (fork(), come(elsewhere(fork))):
    assert get_original("os", "waitpid")(child, 0)[1] == 0
assert come(elsewhere(publish)) == 2
"""

MANY = """
from collections import defaultdict
said = defaultdict(list)
def say(number, count):
    said[number].append(count)
    time.sleep(0)
def talk(number):
    for count in range(20):
        run(lambda: say(number, count), 5, 5)
    return True
outcomes = [elsewhere(lambda number=number: talk(number)) for number in range(200)]
assert all(come(outcome) is True for outcome in outcomes)
assert dict(said) == {number: list(range(20)) for number in range(200)}
"""

PROGRAMS = {
    "handed on": BEGIN + HANDED,
    "ended": BEGIN + ENDED,
    "without its frames": BEGIN + FRAMELESS,
    "given up": BEGIN + GIVEN_UP,
    "nothing is left": BEGIN + ENDS,
    "patched late": PATCHED_LATE,
    "forked": BEGIN + FORKED,
    "many": BEGIN + MANY,
}


@pytest.mark.parametrize("case", PROGRAMS)
def test_a_call_from_another_thread_is_answered_whatever_happens(case: str) -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAMS[case]], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_without_gevent_every_thread_is_the_owner() -> None:
    home, told = OwnerThread(), []
    thread = threading.Thread(target=lambda: told.append((home.is_other_thread, home.check())))
    thread.start()
    thread.join()
    assert told == [(False, None)]
