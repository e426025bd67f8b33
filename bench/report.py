"""Writes the results of a run: tables, goals, a page of the docs and its chart."""

from __future__ import annotations

import math
import os
import platform
import re
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from html import escape
from importlib import metadata
from pathlib import Path
from typing import Any

from bench.peers import AGAINST, PEERS
from bench.scenarios import BATCH, CLIENTS, FLOOD, FULL, FULL_CORE, GRACE
from tests.servers import ROOT

PAGE = ROOT / "docs" / "benchmarks.md"
TIMES = ("alone", "busy")
PROBES = (("/healthz", "health"), ("a poll", "poll"), ("a stream's first block", "stream"))
REQUESTS = {
    "new streams": "connects",
    "polls": "polls",
    "no two alike": "polls-unlike",
    "on new connections": "polls-new",
    "held polls": "held",
    "pages": "pages",
    "publishes": "publishes",
    "bare EVALSHA": "evalsha",
    "by redis-benchmark": "evalsha-c",
}
STORMS = (("on one channel", "shared"), ("on their own, with a missed event", "own"))
KINDS = ("idle", "own", "shared", "parked", "kept")
NOT_RUN = "not run"
DETAILS = ("p50", "p99", "kept", "busy", "µs")
"""Further figures that a record may have besides its value."""


@dataclass(frozen=True)
class Outcome:
    """All records of a run, by peer and measure, with one record for each round."""

    results: Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]]
    faults: Mapping[str, str]
    labels: Mapping[str, str]
    streams: Sequence[int]

    def get(self, peer: str, measure: str, field: str = "value") -> float | None:
        """Return the median of the valid rounds, or None if there is none."""
        values = [record[field] for record in self.results.get(peer, {}).get(measure, ()) if record["valid"]]
        return statistics.median(values) if values else None

    def failed(self, peer: str, measure: str) -> bool:
        """Return whether a peer was measured, but no round is valid."""
        return bool(self.results.get(peer, {}).get(measure)) and self.get(peer, measure) is None

    def as_json(self) -> dict[str, Any]:
        return {
            "machine": machine(),
            "goals": [asdict(goal) for goal in goals(self)],
            "results": self.results,
            "faults": self.faults,
        }


@dataclass(frozen=True)
class Goal:
    """A value that a run has to reach, and the value that it measured."""

    what: str
    value: float | None
    wanted: str
    met: bool


# Numbers


def count(value: float | None) -> str:
    return "–" if value is None else f"{value:,.0f}"


def milliseconds(value: float | None) -> str:
    return "–" if value is None else f"{value:,.1f}" if value < 100 else f"{value:,.0f}"


def seconds(value: float | None) -> str:
    return "–" if value is None else f"{value:,.2f}"


def in_seconds(value: float | None) -> str:
    return seconds(None if value is None else value / 1000)


def share(value: float | None) -> str:
    return "–" if value is None else f"{value:.0%}"


def kilobytes(value: float | None) -> str:
    return "–" if value is None else f"{value / 1024:.2f}" if value < 10240 else f"{value / 1024:.1f}"


FLOODED = (("value", count), ("kept", share), ("p50", milliseconds), ("p99", milliseconds))


STORMED = (("value", seconds), ("p50", in_seconds))


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table that reads well as text too. Rows without a figure are left out."""
    rows = [row for row in rows if any(cell != "–" for cell in row[1:])]
    if not rows:
        return NOT_RUN
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]

    def line(cells: Sequence[str]) -> str:
        first, *rest = zip(cells, widths, strict=True)
        return f"| {' | '.join([first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in rest)])} |"

    rule = [("-" * w if not at else "-" * (w - 1) + ":") for at, w in enumerate(widths)]
    return "\n".join([line(head), line(rule), *map(line, rows)])


def tables(outcome: Outcome) -> str:
    """Return all tables that have a figure as Markdown, and the goals that were measured."""
    most = outcome.streams[-1]
    get, labels = outcome.get, outcome.labels
    found = list(goals(outcome))
    is_whole = any(goal.value is not None for goal in found[:1])

    def rows(*columns: tuple[str, str, Any]) -> list[list[str]]:
        return [
            [label, *("✗" if outcome.failed(peer, m) else show(get(peer, m, field)) for m, field, show in columns)]
            for peer, label in labels.items()
        ]

    def of_all(measure: str, field: str, show: Any) -> list[tuple[str, str, Any]]:
        return [(f"{measure}-{number}", field, show) for number in outcome.streams]

    sizes = [f"{number:,}" for number in outcome.streams]
    parts = [
        "## Deliveries a second, sustained, with nothing lost\n",
        table(["streams", *sizes], rows(*of_all("fanout", "value", count))),
        "\n## One event at a time: deliveries a second\n",
        table(["streams", *sizes], rows(*of_all("single", "value", count))),
        "\n## One event at a time: when the last stream has it, ms, p50 and p99\n",
        table(
            ["streams", *(f"{number} {p}" for number in sizes for p in ("p50", "p99"))],
            rows(*((f"single-{n}", p, milliseconds) for n in outcome.streams for p in ("p50", "p99"))),
        ),
        "\n## Memory, KB of RSS\n",
        table(
            ["", "an idle stream", "on its own channel", "and on a shared one", "a parked poll", "a kept connection"],
            rows(*((f"{n}-idle" if n in ("own", "shared") else f"{n}-{most}", "value", kilobytes) for n in KINDS)),
        ),
        "\n## Requests a second\n",
        table(
            ["", *REQUESTS],
            rows(*((name, "value", count) for name in REQUESTS.values())),
        ),
        "\n## Streams on a channel of their own each: seconds until all are in\n",
        table(
            ["", "on one channel", "on their own", "after a restart"],
            rows(*((f"own-{name}", "value", seconds) for name in ("open-one", "open", "reopen"))),
        ),
        "\n## Streams on a channel of their own each: publishing as fast as it is answered\n",
        table(
            ["", *(f"{name} {what}" for name in ("single", "batch") for what in ("/s", "of accepted", "p50", "p99"))],
            rows(*((f"own-{name}", field, show) for name in ("single", "batch") for field, show in FLOODED)),
        ),
        "\n## Reconnect storm: seconds until the last stream is live, and the median one\n",
        table(
            ["", *(f"{what}, {which}" for what, _ in STORMS for which in ("last", "median"))],
            rows(*((f"storm-{name}", field, show) for _, name in STORMS for field, show in STORMED)),
        ),
        "\n## Beside greedy publishers: /healthz on a new connection, ms, and publishes a second\n",
        table(
            ["", "beside 1 p50", "p99", f"beside {CLIENTS} p50", "p99", "publishes of 1", f"of {CLIENTS}"],
            rows(
                *((f"greedy-health-{n}", p, milliseconds) for n in (1, CLIENTS) for p in ("p50", "p99")),
                *((f"greedy-publishes-{n}", "value", count) for n in (1, CLIENTS)),
            ),
        ),
        f"\n## Beside {CLIENTS} greedy pollers on kept connections: a request on a new connection, ms\n",
        table(
            ["", *(f"{what} {p}" for what in ("/healthz", "a poll") for p in ("p50", "p99"))],
            rows(*((f"greedy-{n}-beside-polls", p, milliseconds) for n in ("health", "poll") for p in ("p50", "p99"))),
        ),
        f"\n## A request on a new connection, p99 in ms: alone, and while {most:,} streams get 20 events/s\n",
        table(
            ["", *(f"{what}, {when}" for what, _ in PROBES for when in TIMES)],
            rows(*((f"{name}-{when}", "p99", milliseconds) for _, name in PROBES for when in TIMES)),
        ),
        "\n## Goals\n",
        table(
            ["", "measured", "goal", "met"],
            [[g.what, f"{g.value:,.2f}", g.wanted, "yes" if g.met else "**no**"] for g in found if g.value is not None],
        ),
        "".join(f"\nNot measured: {goal.what}" for goal in found if goal.value is None and is_whole),
        *(f"\nNot run: {where}: {why}" for where, why in outcome.faults.items()),
        f"\nThe load generator's core was busy for {busiest(outcome):.0%} at the most in a run that counts. From "
        f"{FULL.busiest:.0%} on, a run counts only if the server's core was busy for {FULL_CORE:.0%}.",
    ]  # fmt: skip
    pairs = zip(parts, [*parts[1:], ""], strict=True)
    kept = [part for part, after in pairs if part and NOT_RUN not in (part, after)]  # neither a table nor its heading
    return "\n".join(kept).lstrip("\n")


def ratios(outcome: Outcome) -> str:
    """Return a table of the peers that ran from two checkouts: each measure here and there, and the ratio of both."""
    rows = []
    for peer, measures in outcome.results.items():
        for measure in measures:
            for field in ("value", *DETAILS):
                if not any(field in record for record in measures[measure]):
                    continue
                ours, theirs = (outcome.get(name, measure, field) for name in (peer, peer + AGAINST))
                if ours is not None and theirs is not None:
                    what = measure if field == "value" else f"{measure} {field}"
                    part = f"{ours / theirs:.2f}" if theirs else "–"
                    rows.append([f"{outcome.labels[peer]}: {what}", f"{ours:,.2f}", f"{theirs:,.2f}", part])
    return table(["", "here", "there", "ratio"], rows)


def busiest(outcome: Outcome) -> float:
    records = [r for measures in outcome.results.values() for rounds in measures.values() for r in rounds]
    return max((record["cpu"] for record in records if record["valid"] and "cpu" in record), default=0)


def goals(outcome: Outcome) -> Iterator[Goal]:
    """Give the goals for Throughline, most of them as ratios to other peers in the same run."""
    get, most = outcome.get, outcome.streams[-1]

    def ratio(peer: str, other: str, measure: str, field: str = "value", base: str = "") -> float | None:
        ours, theirs = get(peer, measure, field), get(other, base or measure, field)
        return None if ours is None or not theirs else ours / theirs

    def at_least(what: str, value: float | None, least: float) -> Goal:
        return Goal(what, value, f"≥ {least:g}", value is not None and value >= least)

    def at_most(what: str, value: float | None, limit: float) -> Goal:
        return Goal(what, value, f"≤ {limit:g}", value is not None and value <= limit)

    for number in outcome.streams[-2:]:
        name = f"fanout-{number}"
        yield at_least(f"fan-out to {number:,}: times nchan", ratio("throughline", "nchan", name), 4)
        yield at_least(f"fan-out to {number:,}, Redis: times nchan", ratio("throughline-redis", "nchan-redis", name), 3)
    single = f"single-{most}"
    yield at_least(f"one at a time to {most:,}: times nchan", ratio("throughline", "nchan", single), 1.2)
    yield at_least(f"one at a time to {most:,}: times the raw C loop", ratio("throughline", "raw", single), 0.8)
    yield at_most(f"one at a time to {most:,}: p99 to nchan's", ratio("throughline", "nchan", single, "p99"), 1)
    for what, name, limit in (
        ("idle stream", "idle", 0.5),
        ("parked poll", "parked", 1),
        ("kept connection", "kept", 0.5),
    ):
        value = get("throughline", f"{name}-{most}")
        yield at_most(f"KB of RSS for each {what}", None if value is None else value / 1024, limit)
    for what, name in PROBES:
        yield at_most(f"p99 of {what} while busy, ms", get("throughline", f"{name}-busy"), 10)
    for what, name, least in (
        ("polls on kept connections", "polls", 0.3),
        ("polls on new connections", "polls-new", 0.5),
        ("held polls released together", "held", 1),
        ("new streams", "connects", 0.3),
        ("publishes", "publishes", 0.14),
        ("own channels, single: delivered", "own-single", 0.25),
    ):
        yield at_least(f"{what}: times nchan", ratio("throughline", "nchan", name), least)
    yield at_least("new streams: times Mercure", ratio("throughline", "mercure", "connects"), 0.6)
    yield at_least("publishes: times Mercure", ratio("throughline", "mercure", "publishes"), 0.9)
    yield at_least("own channels, batch: times Centrifugo", ratio("throughline", "centrifugo", "own-batch"), 1)
    both = ratio("throughline-redis", "throughline-redis", "publishes", base="evalsha")
    yield at_least("publishes into Redis: times bare EVALSHA", both, 1)
    yield at_least("publishes into Redis: times nchan", ratio("throughline-redis", "nchan-redis", "publishes"), 1)
    for what, name in STORMS:
        yield at_most(f"reconnect storm {what}: time, to nchan's", ratio("throughline", "nchan", f"storm-{name}"), 3)
    for what, name in (
        ("/healthz beside {} greedy pollers", "greedy-health-beside-polls"),
        ("a poll beside {} greedy pollers", "greedy-poll-beside-polls"),
        ("/healthz beside {} greedy publishers", f"greedy-health-{CLIENTS}"),
    ):
        yield at_most(f"p99 of {what.format(CLIENTS)}, ms", get("throughline", name, "p99"), 10)
    for peer, store in (("throughline", ""), ("throughline-redis", ", Redis")):
        yield at_most(f"own channels{store}: time to open, to one channel's", get(peer, "own-open-ratio"), 1.3)
        yield at_most(f"own channels{store}: after a restart, to the same", get(peer, "own-reopen-ratio"), 1.6)
        for name in ("single", "batch"):
            kept, p50 = (get(peer, f"own-{name}", field) for field in ("kept", "p50"))
            yield at_least(f"own channels{store}, {name}: delivered of accepted", kept, 0.9)
            yield at_most(f"own channels{store}, {name}: p50, ms", p50, 100)
        yield at_most(
            f"/healthz beside {CLIENTS} publishers{store}: p50, ms", get(peer, f"greedy-health-{CLIENTS}"), 50
        )


# The page


def machine() -> dict[str, str]:
    cpu = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    nginx = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    return {
        "CPU": f"{cpu[1] if cpu else platform.processor()}, {os.cpu_count()} cores",
        "kernel": platform.release().partition("-")[0],
        "Python": platform.python_version(),
        **{name: metadata.version(name) for name in ("gevent", "gunicorn", "flask", "redis")},
        **{name: installed(name) for name in ("flask-sse", "sse-starlette", "uvicorn")},
        "nginx": first_number([nginx, "-v"]) if nginx else "none",
        "nchan": first_number(["apt-cache", "policy", "libnginx-mod-nchan"]) if shutil.which("apt-cache") else "none",
        "Redis": first_number(["redis-server", "--version"]) if shutil.which("redis-server") else "none",
        "date": time.strftime("%Y-%m-%d"),
    }


def installed(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "none"


def first_number(words: Sequence[str]) -> str:
    done = subprocess.run(words, capture_output=True, text=True, timeout=10, check=False)
    found = re.search(r"\d+\.\d+(\.\d+)?", (done.stdout + done.stderr).replace("1:", ""))
    return found[0] if found else "none"


INTRO = """# Benchmarks

`make bench` wrote this page. All servers ran one after another in one run, round by round, on one machine. The figures
are medians of the rounds, or of one round where no goal compares them. Read them as ratios to each other: another
machine has other figures.

![Deliveries a second]({chart})

{machine}

How it is measured:

- One core is for the server with all its processes. The other core is for the load generator and for Redis, if used.
- All requests are real HTTP. Throughline runs under its own gunicorn.conf.py, with public patterns, origins (each
  request has an Origin header), limits and resumable ids. "Five channels" is a native EventSource's stream on five
  channels, where each id names all of them. "Behind nginx" is the bundled nginx.conf without TLS. A stream through
  nginx takes two files, and a stream of flask-sse takes a file and a Redis connection. They are measured with
  {nginx_most:,} and {flask_sse_most:,} streams at the most, because a process may have 20,000 files here.
- Each event is 128 bytes, numbered. Each stream checks that no number is missing, double, or out of order. ✗ means
  that no round passed without one of these faults.
- Sustained: events are published at a fixed rate, with the events of 20 ms in one request ({batch} at the most; nchan
  takes one event in each request, so its requests are pipelined). The figure is the highest rate at which all events
  have arrived {grace} s after the end.
- One event at a time: the next event is published when all streams have the one before, so no events can be joined.
- Memory is the RSS that nine tenths of the streams have added to all the server's processes, after its first
  requests. The kernel's memory for each connection is not included; it is the same for all servers. "An idle
  stream" is one of {most:,} on the same channel or channels. With a channel of its own for each, there are {own:,}
  streams.
- The raw C loop ([bench/raw.c](../bench/raw.c)) does one write for each event and stream and nothing else: the limit of
  a server that joins no events. The load generator's limit is the same loop with all events of a request in one write.
- Channels of their own: {own:,} streams, each with a channel that is new to the server, such as `user/7`. A stream
  that is `busy` comes back after the time that the server gives. After a restart of the server, each comes back with
  its last event id. Events are then published from {clients} connections with one event in each request, and from
  {flood} connections with {batch} events in each; each connection publishes again as soon as it is answered. "Of
  accepted" is the share of the events accepted before the end of the run that were delivered before it. A stream "on
  its own channel and on a shared one" has both channels.
- Greedy publishers publish one event a request on kept connections, again as soon as they are answered.
- A poll is answered at once with one event, from {clients} connections that are kept, or each on a connection of its
  own. "No two alike" means that each query has a part that no other has, as in those of sse.js. A new stream is closed
  when its first block has come. "Held polls" are {own:,} polls that wait and are answered with the same event: how
  many are answered each second. "Pages" are page loads, each on a new connection: a poll as sse.js sends it first, and
  then a stream that goes on from its answer.
- Publishes are one event in each request, from {clients} connections. "Bare EVALSHA" is the same script, called from
  as many greenlets without HTTP; redis-benchmark calls it from as many connections, in C.
- A kept connection is one of {most:,} that were answered and now are idle. Afterwards all of them are used once more.
- Reconnect storm: {own:,} streams, each of which has had an event, are cut by their clients and all connect again at
  once, with their last event ids. On a channel of their own each, they miss one event meanwhile, and are live when
  they have it. One event more is published afterwards. A run counts if nothing is missing or double.
- "Lane off" is Throughline with SSE_LANE=off: each request goes through gunicorn and Flask.

"""


def write(outcome: Outcome) -> None:
    """Write docs/benchmarks.md, its chart as SVG, and the chart as PNG if a Chromium is installed."""
    most = {peer.name: peer.most for peer in PEERS}
    drawing = PAGE.with_suffix(".svg")
    drawing.write_text(chart(outcome))
    picture = paint(drawing)
    text = INTRO.format(
        chart=drawing.name,
        machine="; ".join(f"{name} {value}" for name, value in machine().items()) + ".",
        nginx_most=most["throughline-nginx"],
        flask_sse_most=most["flask-sse"],
        batch=BATCH,
        grace=GRACE,
        clients=CLIENTS,
        own=FULL.own,
        most=outcome.streams[-1],
        flood=FLOOD,
    )
    PAGE.write_text(text + tables(outcome) + "\n")
    print(f"wrote {PAGE.relative_to(ROOT)}, {drawing.name}{' and its PNG' if picture else ''}")


COLORS = ("#c7d7f5", "#7ea3e8", "#2b5fc1")
WIDTH, LEFT, BAR, GAP, TOP = 900, 210, 13, 14, 64


def chart(outcome: Outcome) -> str:
    """Return an SVG of the deliveries a second: a group of bars for each peer, a bar for each number of streams."""
    peers = [
        (label, [outcome.get(peer, f"fanout-{number}") for number in outcome.streams])
        for peer, label in outcome.labels.items()
        if peer != "raw-joined"
    ]
    peers = [(label, values) for label, values in peers if any(values)]
    top = max((value or 0 for _, values in peers for value in values), default=1)
    step = 10 ** math.floor(math.log10(max(top, 1)))
    step = step / 5 if top / step < 2 else step / 2 if top / step < 5 else step
    scale = (WIDTH - LEFT - 90) / max(top, 1)
    group = len(outcome.streams) * BAR + GAP
    height = TOP + len(peers) * group + 28
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}" '
        'font-family="system-ui, sans-serif" font-size="12" fill="#222">',
        f'<rect width="{WIDTH}" height="{height}" fill="#fff"/>',
        '<text x="16" y="24" font-size="16" font-weight="600">Deliveries a second, one core, nothing lost</text>',
    ]
    for at, (number, color) in enumerate(zip(outcome.streams, COLORS, strict=False)):
        x = LEFT + at * 130
        out.append(f'<rect x="{x}" y="37" width="11" height="11" fill="{color}"/>')
        out.append(f'<text x="{x + 17}" y="47">{number:,} streams</text>')
    for tick in range(int(top / step) + 1):
        x = LEFT + tick * step * scale
        out.append(f'<path d="M{x:.1f} {TOP - 6}V{height - 26}" stroke="#e3e3e3"/>')
        out.append(f'<text x="{x:.1f}" y="{height - 10}" text-anchor="middle" fill="#666">{tick * step:,.0f}</text>')
    for row, (label, values) in enumerate(peers):
        y = TOP + row * group
        out.append(f'<text x="{LEFT - 10}" y="{y + group / 2 - 3:.1f}" text-anchor="end">{escape(label)}</text>')
        for at, (value, color) in enumerate(zip(values, COLORS, strict=False)):
            if value:
                place = y + at * BAR
                out.append(
                    f'<rect x="{LEFT}" y="{place}" width="{value * scale:.1f}" height="{BAR - 1}" fill="{color}"/>'
                )
                out.append(
                    f'<text x="{LEFT + value * scale + 5:.1f}" y="{place + 10}" font-size="11">{value:,.0f}</text>'
                )
    return "\n".join([*out, "</svg>", ""])


def paint(drawing: Path) -> bool:
    """Make the PNG beside an SVG, and return whether a Chromium is installed to do it."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if not chromium:
        return False
    height = re.search(r'height="(\d+)"', drawing.read_text())
    assert height, "a chart has a height"
    with tempfile.TemporaryDirectory() as profile:
        quiet = ["--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync"]
        words = [chromium, "--headless=new", "--no-sandbox", "--no-first-run", f"--user-data-dir={profile}", *quiet]
        words += ["--hide-scrollbars", f"--window-size={WIDTH},{height[1]}"]
        words += [f"--screenshot={drawing.with_suffix('.png')}", drawing.as_uri()]
        subprocess.run(words, capture_output=True, timeout=60, check=True)
    return True
