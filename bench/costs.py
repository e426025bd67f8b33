"""The mode `--costs`: the cost of a delivery, a request and an idle stream, here and in the checkout of `--against`.

A round starts a pair of fresh servers for each group of measures, one of each checkout, on the same core. They take
turns in being loaded for a short time, so that other work of the machine slows both alike. The server that waits costs
next to nothing. A measure has one pair of figures from each round. Rounds go on until its ratio is known.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final

from bench.interval import Interval, Pair, interval_of
from bench.load import Load, LoadError
from bench.peers import Peer
from bench.report import table
from bench.scenarios import (
    BATCH,
    CLIENTS,
    FLOOD,
    GRACE,
    Record,
    Session,
    Size,
    ask_for_own,
    cpu_seconds,
    memory,
    one_publish,
    open_all,
)
from tests.servers import ROOT

PEERS: Final = ["throughline", "throughline-redis"]
MOST: Final = 40
"""Rounds after which it ends even if a ratio is not known yet."""

MORE_TURNS: Final = 8
"""Turns that follow if all turns of a server came to nothing, as on a busy machine when turns are short and few."""

FEW: Final = 8  # connections with requests: what is under way at the end of a turn is paid for, but not counted
IMPORT: Final = "import time; began = time.process_time(); from sse import SSE; print(time.process_time() - began)"

Work = Callable[[Session], float]
"""Loads a server for a short time; returns the deliveries or answers that came of it.

It raises Wrong if one of them went wrong.
"""
Figures = Iterator[tuple[str, Pair]]


class Wrong(Exception):
    """Some of the work of a turn was not done as it should be, so its cost says nothing."""


@dataclass(frozen=True)
class Couple:
    """A server of each checkout, this one first, and which of both begins."""

    here: Session
    there: Session
    swapped: bool
    wanted: Callable[[str], bool]
    """Tells whether a measure is still to be taken."""

    @property
    def both(self) -> tuple[Session, Session]:
        """Both, in the order in which they are to be used."""
        return (self.there, self.here) if self.swapped else (self.here, self.there)

    def each(self, measure: Callable[[Session], float]) -> Pair:
        """Return what is measured here and there."""
        found = {id(session): measure(session) for session in self.both}
        return found[id(self.here)], found[id(self.there)]

    def by_turns(self, work: Work) -> Pair | None:
        """Return the CPU seconds of each server for one unit of work; None if it came to nothing in all turns.

        The cheaper half of its turns counts: whatever else the machine does can only make a turn cost more. Both have
        more turns if those of one came to nothing.
        """
        costs: dict[int, list[float]] = {id(self.here): [], id(self.there): []}
        for number in range(self.here.size.turns + MORE_TURNS):
            if number >= self.here.size.turns and all(costs.values()):
                break
            for session in reversed(self.both) if number % 2 else self.both:
                used = cpu_seconds(session.target)
                units = work(session)
                used = cpu_seconds(session.target) - used
                if number and units and used > 0:
                    costs[id(session)].append(used / units)
        if not all(costs.values()):
            return None
        return cheaper_half(costs[id(self.here)]), cheaper_half(costs[id(self.there)])


def cheaper_half(costs: Sequence[float]) -> float:
    """Return the mean of the lower half, the middle one included."""
    return statistics.fmean(sorted(costs)[: (len(costs) + 1) // 2])


# Groups of measures, each with servers of its own


def requests(couple: Couple) -> Figures:
    """Start-up, and requests at a server where nobody listens."""
    yield "start-up, MB of RSS", couple.each(lambda session: memory(session.target) / 2**20)
    for session in couple.both:
        assert session.target.poll
        session.load.set("poll", session.target.poll())
        session.load.set("one", one_publish(session.target))
    yield from counted("a poll, CPU s", couple, partial(asked, name="poll"))
    yield from counted("a publish, CPU s", couple, partial(asked, name="one"))
    yield from counted("a stream, CPU s", couple, connected)


def alike(couple: Couple) -> Figures:
    """Idle streams on one channel, and what they are told."""
    yield from idle("an idle stream, KB of RSS", couple, couple.here.size.streams[-1])
    yield from counted("a delivery, alike streams, CPU s", couple, told)


def five(couple: Couple) -> Figures:
    """Idle streams on five channels, and what they are told."""
    yield from idle("an idle stream on five channels, KB of RSS", couple, couple.here.size.own)
    yield from counted("a delivery, five channels, CPU s", couple, told)


def own(couple: Couple) -> Figures:
    """Idle streams on a channel of their own each, and what they are told."""
    for session in couple.both:
        assert session.target.own
        ask_for_own(session, session.target.own, session.size.own)
    yield from idle("an idle stream on its own channel, KB of RSS", couple, couple.here.size.own)
    yield from counted("a delivery, own channels, CPU s", couple, flooded)


def shared(couple: Couple) -> Figures:
    """Idle streams on a channel of their own each and one for all, and what they are told on the latter."""
    for session in couple.both:
        assert session.target.own
        way = session.target.own._replace(stream=session.target.own.both)
        ask_for_own(session, way, session.size.own)
    yield from idle("an idle stream on its own and a shared channel, KB of RSS", couple, couple.here.size.own)
    for session in couple.both:
        session.prepare()  # events go to the shared channel
        session.load("own", 0)
    yield from counted("a delivery on the shared channel, CPU s", couple, told)


@dataclass(frozen=True)
class Group:
    """Measures that a pair of servers gives together."""

    run: Callable[[Couple], Figures]
    options: Mapping[str, bool] = field(default_factory=dict)


GROUPS: Final = {
    "requests": Group(requests),
    "alike": Group(alike),
    "five": Group(five, {"five": True}),
    "own": Group(own),
    "shared": Group(shared),
}


# The work that each turn does, and its figures


def counted(name: str, couple: Couple, work: Work) -> Figures:
    """Give the cost of a unit of work, unless it is known, or some of the work went wrong."""
    if not couple.wanted(name):
        return
    try:
        pair = couple.by_turns(work)
    except Wrong as error:
        print(f"  {name}, which does not count in this round: {error}", flush=True)
        return
    if pair:
        yield name, pair
    else:
        print(f"  {name}, which does not count in this round: all turns came to nothing", flush=True)


def idle(name: str, couple: Couple, count: int) -> Figures:
    """Open all streams, and give the kilobytes that one of them has added."""

    def opened(session: Session) -> float:
        session.load("connect", CLIENTS, 0.3)  # a server's first requests make it grow
        time.sleep(0.5)
        record = open_all(session, count, head=True)
        if not record["valid"]:
            raise LoadError(f"{record['failed']} streams of {count} have not been opened")
        return float(max(record["value"], 1)) / 1024

    yield name, couple.each(opened)


def asked(session: Session, name: str) -> float:
    return answered(session.load("ask", name, FEW, session.size.turn))


def connected(session: Session) -> float:
    run = session.load("connect", FEW, session.size.turn)
    time.sleep(0.3)  # the last ones' ends
    return answered(run)


def answered(run: Record) -> float:
    """Return the answers of a run."""
    if run["failed"] or run["refused"]:
        raise Wrong(f"some requests were not answered well: {run}")
    return float(run["answers"])


def told(session: Session) -> float:
    run = session.load("single", session.size.turn)
    # Before it counts, the load generator has each stream told an event of each channel.
    return whole(run) + float(run["streams"] * session.target.channels)


def flooded(session: Session) -> float:
    batch = min(BATCH, session.size.own)
    return whole(session.load("flood", FLOOD, batch, session.size.turn, GRACE + 3))


def whole(run: Record) -> float:
    """Return the deliveries of a run."""
    if run["lost"] or run["doubled"] or run["refused"] or run["ended"]:
        raise Wrong(f"not all was delivered, once: {run}")
    return float(run["delivered"])


def imports(here: Path, there: Path, times: int) -> Figures:
    """Give the CPU seconds of importing the package."""

    def once(root: Path) -> float:
        words = [sys.executable, "-c", IMPORT]
        return float(subprocess.run(words, cwd=root, capture_output=True, text=True, timeout=60, check=True).stdout)

    pairs = [(once(here), once(there)) if number % 2 else (once(there), once(here))[::-1] for number in range(times)]
    yield "from sse import SSE, CPU s", (statistics.median(a for a, _ in pairs), statistics.median(b for _, b in pairs))


# Rounds


class Costs:
    """The pairs of all rounds by measure. `groups` tells which group gives a measure."""

    def __init__(self) -> None:
        self.pairs: defaultdict[str, list[Pair]] = defaultdict(list)
        self.groups: dict[str, str] = {}

    def add(self, group: str, measure: str, pair: Pair) -> None:
        """Take the pair of one round."""
        self.groups[measure] = group
        self.pairs[measure].append(pair)

    def intervals(self) -> dict[str, Interval]:
        """The interval of each measure that has one."""
        return {measure: found for measure, pairs in self.pairs.items() if (found := interval_of(pairs))}

    def wants(self, measure: str) -> bool:
        """Tell whether a measure is not known yet."""
        interval = interval_of(self.pairs.get(measure, ()))
        return interval is None or not interval.is_known

    def is_known(self, group: str) -> bool:
        """Tell whether each measure of a group is known."""
        names = [measure for measure, its in self.groups.items() if its == group]
        return bool(names) and not any(map(self.wants, names))

    @property
    def has_loss(self) -> bool:
        """True if a cost here is higher beyond doubt."""
        return any(interval.is_loss for interval in self.intervals().values())

    def as_json(self) -> dict[str, object]:
        """All pairs, and what follows from them."""
        told = {name: interval._asdict() | {"verdict": interval.verdict} for name, interval in self.intervals().items()}
        return {"intervals": told, "pairs": self.pairs}

    def table(self) -> str:
        """Each measure, its medians here and there, and the ratio with its interval."""
        rows = []
        for measure, interval in self.intervals().items():
            here, there = (statistics.median(costs) for costs in zip(*self.pairs[measure], strict=True))
            bounds = f"{interval.low:.3f} to {interval.high:.3f}"
            figures = [f"{here:.4g}", f"{there:.4g}", f"{interval.ratio:.3f}", bounds, str(interval.pairs)]
            rows.append([measure, *figures, interval.verdict])
        return table(["", "here", "there", "ratio", "95 %", "rounds", ""], rows)


def compare(peers: Sequence[Peer], other: Path, size: Size, most: int, groups: Sequence[str]) -> Costs:
    """Run rounds of some groups until each ratio is known, `most` at the most."""
    with compiled(peers[0], other, size):
        return _compare(peers, other, size, most, groups)


@contextlib.contextmanager
def compiled(peer: Peer, other: Path, size: Size) -> Iterator[None]:
    """Have both checkouts started from compiled files within, whichever of them has some of its own.

    The servers take the environment of this process.
    """
    before = dict(os.environ)
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        try:
            os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
            os.environ["PYTHONPYCACHEPREFIX"] = folder
            for _ in imports(ROOT, other, 1):
                pass
            for _ in run_group(peer, other, Group(lambda _: iter(())), size, lambda _: False, swapped=False):
                pass
            yield
        finally:
            os.environ.clear()
            os.environ.update(before)


def _compare(peers: Sequence[Peer], other: Path, size: Size, most: int, groups: Sequence[str]) -> Costs:
    costs = Costs()
    for number in range(most):
        began = time.monotonic()
        left = 0
        for measure, pair in () if costs.is_known("import") else imports(ROOT, other, size.imports):
            left += 1
            costs.add("import", measure, pair)
        for peer in peers:
            for name, group in GROUPS.items():
                key = f"{peer.label}: {name}"
                if name not in groups or costs.is_known(key):
                    continue
                left += 1

                for measure, pair in run_group(peer, other, group, size, costs.wants, swapped=bool(number % 2)):
                    costs.add(key, measure, pair)
        print(f"round {number + 1}, {time.monotonic() - began:.0f} s\n{costs.table()}\n", flush=True)
        if not left:
            break
    return costs


def run_group(
    peer: Peer, other: Path, group: Group, size: Size, wanted: Callable[[str], bool], *, swapped: bool
) -> Figures:
    """Give the pair of each measure of a group, from two fresh servers. A fault of a server ends the group's round.

    :param wanted: tells of a measure's name whether it is still to be taken.
    """
    with ExitStack() as stack:
        try:
            sessions = {}
            for root in (other, ROOT) if swapped else (ROOT, other):
                folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
                target = peer.start(stack, folder, root=root, **group.options)  # type: ignore[call-arg]
                load = stack.enter_context(Load("127.0.0.1", target.port))
                sessions[root] = Session(peer, target, load, size, lambda _: [])
                sessions[root].prepare()
            couple = Couple(sessions[ROOT], sessions[other], swapped, lambda name: wanted(f"{peer.label}: {name}"))
            yield from ((f"{peer.label}: {name}", pair) for name, pair in group.run(couple))
        except (LoadError, AssertionError, OSError, subprocess.SubprocessError) as error:
            print(f"  a round of {peer.label} ended early: {error}", flush=True)
