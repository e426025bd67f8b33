"""What is measured. A scenario is given a fresh server and yields measures: a name, and the record of the run."""

from __future__ import annotations

import contextlib
import math
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.load import SERVER_CORE, Load, on_core
from bench.peers import Own, Peer, Target
from sse.stores.scripts import Script
from tests.servers import ROOT, RedisServer, children

Record = dict[str, Any]
Measures = Iterator[tuple[str, Record]]
BATCH = 50  # events that a busy site publishes in one request, at the most
GRACE = 0.5  # seconds after its end in which all that a run offered must have arrived
CLIENTS = 32
FULL_CORE = 0.95  # of its core, that a server has when it is at its limit
FLOOD = 16  # connections that publish batches as fast as they are answered
EVENT = '{"type":"message","data":"' + "x" * 128 + '"}'  # as a script is given it
BUSY = 20  # events a second, for the requests that are timed meanwhile


@dataclass(frozen=True)
class Size:
    """How much: the full form, or one that only shows that everything works."""

    streams: tuple[int, ...] = (100, 1_000, 10_000)
    seconds: float = 2.0
    turn: float = 0.25  # seconds for which one of two checkouts is loaded before the other has its turn
    turns: int = 13  # of each, the first of which is not counted
    trials: int = 2  # of a rate, once one was too high
    imports: int = 7  # of each of two checkouts, in each round
    own: int = 5_000  # streams on a channel of their own each
    patience: float = 60.0  # seconds, after which what has not come in a reconnect storm counts as lost
    repeat: bool = False  # what one round would do for, too
    busiest: float = 0.9  # of its core, that the load generator may have had where a figure counts


FULL, QUICK = Size(), Size((20, 100), 0.3, 0.2, 2, 1, imports=1, own=100, busiest=math.inf)


@dataclass
class Session:
    """One peer's fresh server, what loads it, and what earlier rounds have found."""

    peer: Peer
    target: Target
    load: Load
    size: Size
    before: Callable[[str], list[Record]]

    def prepare(self) -> None:
        """Tell the load generator how this server is asked."""
        target, load = self.target, self.load
        self.ask("stream", target.stream)
        self.ask("publish", target.publish)
        load.set("busy", target.busy or "(never)")
        load.set("item", target.item)
        for name, text in zip(("body", "between", "after"), target.around, strict=True):
            load.set(name, text)
        load("each", int(target.each))
        load("channels", target.channels)
        if target.health:
            load.set("check", target.health)

    def ask(self, name: str, request: str, check: str = "") -> None:
        """Give the load generator a request by a name. `check` names the check of its answers, if not `name`."""
        self.load.set(name, request)
        if text := self.target.checks.get(check or name):
            self.load.set(f"{name}?", text)


def requests(session: Session) -> Measures:
    """New streams, polls and publishes each second, and how long a request takes while nothing else goes on."""
    target, seconds = session.target, session.size.seconds
    if target.answers_first:
        yield "connects", per_second(session, "connect", CLIENTS, seconds)
        time.sleep(0.5)  # the last ones' ends
    if target.poll:
        session.ask("poll", target.poll())
        yield "polls", per_second(session, "ask", "poll", CLIENTS, seconds)
        yield "polls-new", per_second(session, "fresh", "poll", CLIENTS, seconds)
        session.ask("poll", unlike(target.poll()))
        yield "polls-unlike", per_second(session, "ask", "poll", CLIENTS, seconds)
    if target.publish:
        session.ask("one", one_publish(target), "publish")
        yield "publishes", per_second(session, "ask", "one", CLIENTS, seconds)
    if target.redis and target.scripts:
        yield "evalsha", evalsha(target.redis.url, seconds)
        yield "evalsha-c", evalsha_in_c(target.redis, seconds)


def held(session: Session) -> Measures:
    """Polls that wait and are answered with the same event: how many are answered each second."""
    load, target = session.load, session.target
    if not target.parked:
        return
    count = min(session.size.own, session.peer.most)
    runs = []
    for _ in range(3):  # the first on new connections, the others on these
        load.set("held", target.parked())
        load("hold", "held", count)
        time.sleep(1)  # an answer that comes now is one without the event
        cpu = cpu_seconds(target)
        run = load("release")
        cost = 1e6 * (cpu_seconds(target) - cpu) / max(run["answers"], 1)
        good = run["answers"] == count and not run["refused"] and run["cpu"] < session.size.busiest
        runs.append(run | {"value": run["answers"] / run["seconds"], "valid": good, "µs": cost})
    yield "held", sorted(runs, key=lambda run: run["seconds"])[1] | {"valid": all(run["valid"] for run in runs)}


def pages(session: Session) -> Measures:
    """Page loads: a poll that is answered at once, then a stream on the same connection."""
    load, target = session.load, session.target
    session.ask("page", target.page)
    load.set("page-stream", target.page_stream)
    assert target.poll
    target.poll()  # there are events
    yield "pages", per_second(session, "pages", CLIENTS, session.size.seconds)


def kept(session: Session) -> Measures:
    """The memory that a kept connection takes between two requests."""
    load, target = session.load, session.target
    count = min(session.size.streams[-1], session.peer.most)
    session.ask("kept", target.empty_poll or target.health, "empty_poll" if target.empty_poll else "health")
    load("ask", "kept", CLIENTS, 0.3)  # a server's first requests make it grow
    few = load("keep", "kept", count // 10, CLIENTS)
    time.sleep(0.5)
    before = memory(target)
    many = load("keep", "kept", count - count // 10, CLIENTS)
    time.sleep(0.5)
    grown = memory(target) - before
    used = load("use", "kept")  # they are still open
    good = used["answers"] == count and not any(run["refused"] or run["failed"] for run in (few, many, used))
    yield f"kept-{count}", used | {"value": grown / (count - count // 10), "valid": good}


def parked(session: Session) -> Measures:
    """What a poll that waits takes."""
    if session.target.parked:
        count = min(session.size.streams[-1], session.peer.most)
        session.load("ask", "check", CLIENTS, 0.3)  # a server's first requests make it grow
        session.load.set("stream", session.target.parked())
        yield f"parked-{count}", open_all(session, count, head=False)


def streams(session: Session) -> Measures:
    """What open streams take and are given; the most first, for their memory."""
    load, target, size = session.load, session.target, session.size
    if target.answers_first:
        load("connect", CLIENTS, 0.3)  # as above
    for count in reversed(size.streams):
        name = f"-{count}"
        if count not in size.streams[-2:] and session.before("fanout" + name) and not size.repeat:
            continue  # no goal is about it: one round will do
        count = min(count, session.peer.most)
        opened = open_all(session, count, head=target.answers_first)
        if count >= size.streams[-1] // 2:
            yield "idle" + name, opened
        single = deliveries(session, "single", size.seconds)
        yield "single" + name, single
        yield "fanout" + name, search(session, count, name, 2 * single["value"] / count)
        load("close")
        time.sleep(0.5)


def busy(session: Session) -> Measures:
    """How long requests take while nothing else goes on, and while many streams are told events."""
    load, target = session.load, session.target
    if target.answers_first:
        load("connect", CLIENTS, 0.3)  # as above
    yield from probes(session, "alone", 0, 0)
    count = min(session.size.streams[-1], session.peer.most)
    open_all(session, count, head=target.answers_first)
    yield from probes(session, "busy", BUSY, count)


def probes(session: Session, when: str, rate: int, count: int) -> Measures:
    """How long a request on a new connection takes, while `count` streams get `rate` events a second."""
    target = session.target
    first_block = target.stream if target.answers_first else ""
    for name, request, check in (
        ("health", target.health, ""),
        ("poll", target.empty_poll, "empty_poll"),
        ("stream", first_block, "stream"),
    ):
        if request:
            session.load.set("probe", request)
            session.load.set("probe?", target.checks.get(check, ""))
            run = session.load("probe", "probe", 10, rate, 2 * session.size.seconds)
            enough = run["delivered"] >= 0.8 * rate * count * run["seconds"]
            good = enough and run["answers"] == run["asked"] and not run["refused"]
            yield f"{name}-{when}", run | {"value": run["p99"], "valid": bool(good)}


def own(session: Session) -> Measures:
    """Streams on a channel of their own each: how they get in, come back, and are told."""
    load, target, size = session.load, session.target, session.size
    if target.own is None:
        return
    count = min(size.own, session.peer.most)
    load("connect", CLIENTS, 0.3)  # a server's first requests make it grow
    one = load("open", count, CLIENTS, 1)
    load("close")
    time.sleep(1)  # until the server has seen it
    yield "own-open-one", timed(one, count)
    ask_for_own(session, target.own, count)
    opened = open_all(session, count, head=True)
    yield "own-idle", opened
    yield "own-open", timed(opened, count)
    yield "own-open-ratio", ratio(opened, one)
    for name, connections, batch in (("single", CLIENTS, 1), ("batch", FLOOD, BATCH)):
        words = (min(connections, count), min(batch, count), 2 * size.seconds, GRACE + 3)
        yield f"own-{name}", flooded(session, *words)
    if not target.own.comes_back:
        return
    server = target.servers[0]
    server.stop()
    load("close")
    with on_core(SERVER_CORE):
        server.start()
    again = load("open", count, CLIENTS, 1)
    yield "own-reopen", timed(again, count)
    yield "own-reopen-ratio", ratio(again, one)


def shared(session: Session) -> Measures:
    """Measure the memory of a stream on a channel of its own and on a channel that all streams share."""
    load, target = session.load, session.target
    if target.own is None or not target.own.both:
        return
    count = min(session.size.own, session.peer.most)
    load("connect", CLIENTS, 0.3)  # as above
    ask_for_own(session, target.own._replace(stream=target.own.both), count)
    yield "shared-idle", open_all(session, count, head=True)


def ask_for_own(session: Session, own: Own, count: int) -> None:
    """Have the load generator open streams on `count` channels from now on, one each, and publish to these."""
    load = session.load
    load.set("stream", own.stream)
    if session.target.resumes:
        load.set("again", session.target.resumed(own.stream))
    load.set("publish", own.publish)
    load.set("item", own.item)
    load("own", count)


def storm(session: Session) -> Measures:
    """All streams are cut and come back at once, with their last event ids: seconds until the last is live.

    On a shared channel they have missed nothing. On channels of their own, each has missed an event, and is live when
    it has that. Afterwards each is told one more event, and none may be missing or double.
    """
    load, target = session.load, session.target
    if not (target.own and target.resumes):
        return
    count = min(session.size.own, session.peer.most)
    load("connect", CLIENTS, 0.3)  # as above
    load.set("again", target.resumed(target.stream))
    load("places", count, 1)
    yield "storm-shared", stormed(session, count, missed=False)
    load("close")
    time.sleep(1)
    ask_for_own(session, target.own, count)
    load("places", count, 0)
    yield "storm-own", stormed(session, count, missed=True)


def stormed(session: Session, count: int, *, missed: bool) -> Record:
    """Open streams, cut them, let each miss an event if it is to, and have them come back."""
    load = session.load
    opened = load("open", count, CLIENTS, 1)
    limit = session.size.patience
    told = [load("tell", BATCH, limit)]  # each has had an event, and its id
    if missed:
        load("cut")
        time.sleep(1)  # until the server has seen it
        told.append(load("tell", BATCH, limit))
    cpu = cpu_seconds(session.target)
    run = load("storm", count, limit)
    server = (cpu_seconds(session.target) - cpu) / run["seconds"]
    told.append(load("tell", BATCH, limit))
    faults = ("missing", "failed", "lost", "doubled", "refused", "ended")
    whole = not any(step.get(fault) for step in (opened, run, *told) for fault in faults)
    valid = whole and opened["open"] == run["live"] == count
    generator = run.pop("cpu")  # all of it: it opens all streams at once
    cost = 1e6 * server * run["seconds"] / count
    found = {"value": run["seconds"], "whole": whole, "valid": valid, "server": server, "generator": generator}
    return run | found | {"told": told, "µs": cost}


def greedy(session: Session) -> Measures:
    """Time requests on new connections, while publishers send the next request as soon as one is answered."""
    load, target = session.load, session.target
    session.ask("one", one_publish(target), "publish")
    load.set("probe", target.health)
    load("ask", "one", CLIENTS, 0.3)
    p50, all_valid = {}, True
    for clients in (1, CLIENTS):
        run = load("greedy", "one", clients, "probe", 20, 2 * session.size.seconds)
        valid = probed_well(session, run)
        p50[clients], all_valid = run["p50"], all_valid and valid
        yield f"greedy-health-{clients}", run | {"value": run["p50"], "valid": valid}
        yield f"greedy-publishes-{clients}", {"value": run["greedy"] / run["seconds"], "valid": valid}
    yield "greedy-ratio", {"value": p50[CLIENTS] / max(p50[1], 0.001), "valid": all_valid}
    if not target.poll:
        return
    session.ask("poll", target.poll())
    for name, request in (("health", target.health), ("poll", target.poll())):
        session.load.set("probe", request)
        session.load.set("probe?", target.checks.get(name, ""))
        run = load("greedy", "poll", CLIENTS, "probe", 20, 2 * session.size.seconds)
        yield f"greedy-{name}-beside-polls", run | {"value": run["p99"], "valid": probed_well(session, run)}


def probed_well(session: Session, run: Record) -> bool:
    """Return whether all probes were answered, and the load generator kept up."""
    return bool(run["answers"] == run["asked"] and not run["refused"] and run["cpu"] < session.size.busiest)


SCENARIOS: dict[str, Callable[[Session], Measures]] = {
    "requests": requests,
    "held": held,
    "pages": pages,
    "kept": kept,
    "parked": parked,
    "streams": streams,
    "busy": busy,
    "own": own,
    "shared": shared,
    "storm": storm,
    "greedy": greedy,
}


# How


def open_all(session: Session, count: int, *, head: bool) -> Record:
    """Open `count` streams; what nine tenths of them have added to the memory of all the server's processes."""
    load = session.load
    few = load("open", count // 10, CLIENTS, int(head))
    time.sleep(0.5)
    before = memory(session.target)
    many = load("open", count - count // 10, CLIENTS, int(head))
    time.sleep(0.5 if head else 1.5)
    failed = few["failed"] + many["failed"] + few["early"] + many["early"]  # early: a parked poll that was answered
    grown = memory(session.target) - before
    return {
        "value": grown / (count - count // 10),
        "valid": not failed,
        "failed": failed,
        "streams": count,
        "open": many["open"],
        "busy": few["busy"] + many["busy"],
        "seconds": few["seconds"] + many["seconds"],
    }


def timed(run: Record, count: int) -> Record:
    """How long it took to open so many, those included that were told `busy` and came back as they were told."""
    return {"value": run["seconds"], "valid": run["open"] == count, "busy": run["busy"]}


def ratio(run: Record, base: Record) -> Record:
    return {"value": run["seconds"] / base["seconds"], "valid": run["open"] == base["open"]}


def flooded(session: Session, *words: object) -> Record:
    """Publishing as fast as it is answered; `kept` is what was delivered in the time, of what was accepted in it."""
    cpu, began = cpu_seconds(session.target), time.monotonic()
    run = session.load("flood", *words)
    used = cpu_seconds(session.target) - cpu
    server = used / (time.monotonic() - began)
    whole = not (run["lost"] or run["doubled"] or run["refused"] or run["ended"])
    kept = run["in_time"] / max(run["accepted"], 1)
    value = run["in_time"] / run["seconds"]
    valid = whole and run["cpu"] < session.size.busiest
    cost = 1e6 * used / max(run["delivered"], 1)
    return run | {"value": value, "kept": kept, "whole": whole, "valid": valid, "server": server, "µs": cost}


def search(session: Session, count: int, name: str, guess: float) -> Record:
    """Find the highest rate at which all that was offered arrives in time.

    From below, the rate is raised by a step; once it was too high, what came through then is tried.
    """
    known = [record["rate"] for record in session.before("fanout" + name) if record["valid"]]
    rate, step, trials = (known[-1], 1.3, 1) if known else (max(guess, 1), 4.0, session.size.trials)
    best, low, high = None, 0.0, math.inf
    for _ in range(10):
        run = deliveries(session, "fanout", f"{rate:.3f}", BATCH, session.size.seconds, GRACE) | {"rate": rate}
        if run["ended"]:  # too much for the server, which has closed streams
            session.load("close")
            time.sleep(0.5)
            session.load("open", count, CLIENTS, int(session.target.answers_first))
        if run["whole"] and not run["late"]:
            low = rate
            best = run if run["valid"] else best  # many small reads may keep the generator busy; more at once do not
        else:
            high = rate
        if high < math.inf:
            trials -= 1
            if low and (trials < 0 or high < 1.08 * low):
                break
            managed = 0.95 * run["value"] / count if run["valid"] else 0  # events a second
            rate = managed if rate == high and low < managed < high else math.sqrt(low * high) if low else high / 2
        else:
            rate *= step
    return best or run | {"value": 0, "valid": False}


def deliveries(session: Session, *words: object) -> Record:
    """A run counts where nothing was lost, doubled or refused, and the load generator kept up.

    `server` is how much of its core the server had.
    """
    cpu, began = cpu_seconds(session.target), time.monotonic()
    run = session.load(*words)
    server = (cpu_seconds(session.target) - cpu) / (time.monotonic() - began)
    whole = not (run["lost"] or run["doubled"] or run["refused"] or run["ended"])
    value = run["delivered"] / max(run["seconds"], 0.001)
    valid = whole and run["cpu"] < session.size.busiest
    return run | {"value": value, "whole": whole, "valid": valid, "server": server}


def per_second(session: Session, *words: object) -> Record:
    """Have requests made as fast as they are answered.

    A run counts where either the load generator could have done more, or the server could not. `µs` is the CPU time of
    the server for one of them, which says the same on a machine that does other things too.
    """
    cpu, began = cpu_seconds(session.target), time.monotonic()
    run = session.load(*words)
    server = (cpu_seconds(session.target) - cpu) / (time.monotonic() - began)
    good = not (run["failed"] or run["refused"]) and (run["cpu"] < session.size.busiest or server > FULL_CORE)
    value = run["answers"] / run["seconds"]
    return run | {"value": value, "valid": good, "server": server, "µs": 1e6 * server / max(value, 1)}


def unlike(request: str) -> str:
    """Return a GET request whose query has a part that no other has, as sse.js sends it."""
    address = request.partition(" HTTP/")[0]
    return request.replace(address, f"{address}{'&' if '?' in address else '?'}_=%N", 1)


def one_publish(target: Target) -> str:
    """A request that publishes one event, always the same."""
    fill = {"%D": "x" * 128, "%C": "0", "%N": "1"}
    first, _, last = target.around if not target.each else ("", "", "")
    body = first + re.sub("%[DCN]", lambda found: fill[found[0]], target.item) + last
    return re.sub("%[CN]", lambda found: fill[found[0]], target.publish).replace("%L", str(len(body))) + body


def evalsha(url: str, seconds: float) -> Record:
    words = [sys.executable, "-m", "bench.evalsha", url, str(CLIENTS), str(seconds)]
    with on_core(SERVER_CORE):
        done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=seconds + 30, check=True)
    value, cost = map(float, done.stdout.split())
    return {"value": value, "valid": True, "µs": 1e6 * cost}


def evalsha_in_c(server: RedisServer, seconds: float) -> Record:
    """The publish script, called by redis-benchmark from as many connections as there are publishers."""
    with contextlib.closing(server.client()) as connection:
        sha = connection.script_load(Script("publish.lua", stores=True).text)
    call = ["evalsha", sha, 2, "sse:{bare}", "sse:{bare}:once:__rand_int__", "nonce__rand_int__", 1001, 86400, 30]
    call += ["PUBLISH", "sse:0:{bare}", EVENT]
    words = ["redis-benchmark", "-p", server.port, "-c", CLIENTS, "-n", round(20_000 * seconds), "-r", 10**9, "--csv"]
    command = list(map(str, words + call))
    with on_core(SERVER_CORE):
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return {"value": float(done.stdout.splitlines()[-1].rsplit('","', 7)[1]), "valid": True}


def processes(target: Target) -> list[int]:
    """All that the server consists of."""
    pids = [server.pid for server in target.servers]
    for pid in pids:
        pids += children(pid)
    return pids


def memory(target: Target) -> int:
    """RSS of all the server's processes, in bytes."""
    texts = (Path(f"/proc/{pid}/status").read_text() for pid in processes(target))
    return sum(int(found[1]) * 1024 for text in texts if (found := re.search(r"VmRSS:\s+(\d+)", text)))


def cpu_seconds(target: Target) -> float:
    """Return the CPU seconds of all threads of the server's processes (proc_pid_schedstat, the first field)."""
    total = 0
    for pid in processes(target):
        for path in Path(f"/proc/{pid}/task").glob("*/schedstat"):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # a thread that has ended meanwhile
                total += int(path.read_text().split()[0])
    return total / 1e9
