"""Publishes this machine's load, CPU, memory and traffic each second, from the kernel's counters in /proc."""

import logging
import os
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from flask import Flask

from sse import SSE, IdempotencyConflict, StoreUnavailable

CHANNEL = "demo/machine"
PROC = Path("/proc")
# The bytes of these interfaces pass a real one too, so counting both would double the traffic.
VIRTUAL_INTERFACES = ("veth", "docker", "br-", "virbr", "ifb")

log = logging.getLogger("sse")  # the service's logger, so that these lines go where its others go


class Sampler:
    """Publishes a sample each second. Every worker runs a sampler, and the first sample in each second is stored."""

    def __init__(self, app: Flask, sse: SSE) -> None:
        self._app = app
        self._sse = sse
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._store_away = False

    def start(self) -> None:
        """Start sampling, unless it has been started before."""
        with self._lock:
            if self._thread is not None:
                return
            self._thread = threading.Thread(target=self._run, name="demo-sampler", daemon=True)
        self._thread.start()  # not under the lock: it lets other greenlets run

    def stop(self) -> None:
        """End sampling. It cannot be started again."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        with self._app.app_context():
            before = read_counters()
            # Wake up in the middle of a second, so that waking a little early is still in the same second.
            while not self._stopping.wait(1 - (time.time() - 0.5) % 1):
                after = read_counters()
                self._publish(describe(before, after))
                before = after

    def _publish(self, sample: dict[str, object]) -> None:
        try:
            self._sse.publish(CHANNEL, sample, type="sample", idempotency_key=f"machine-{int(time.time())}")
        except IdempotencyConflict:
            pass  # another worker was first in this second
        except StoreUnavailable as error:
            if not self._store_away:
                log.warning("The demo skips samples until the store answers again: %s", error)
            self._store_away = True
            return
        self._store_away = False


@dataclass(frozen=True, slots=True)
class Counters:
    """The kernel's counters of this machine at one moment; CPU in ticks, memory and traffic in bytes."""

    monotonic: float
    load: tuple[float, float, float]
    cpu: tuple[int, int]
    memory: tuple[int, int]
    traffic: tuple[int, int]
    loopback: tuple[int, int]


def read_counters() -> Counters:
    network = parse_network((PROC / "net/dev").read_text())
    real = [pair for name, pair in network.items() if name != "lo" and not name.startswith(VIRTUAL_INTERFACES)]
    return Counters(
        monotonic=time.monotonic(),
        load=parse_load((PROC / "loadavg").read_text()),
        cpu=parse_cpu((PROC / "stat").read_text()),
        memory=parse_memory((PROC / "meminfo").read_text()),
        traffic=(sum(received for received, _ in real), sum(sent for _, sent in real)),
        loopback=network.get("lo", (0, 0)),
    )


def describe(before: Counters, after: Counters) -> dict[str, object]:
    """Return the sample that the page draws: percent, bytes, and bytes a second between the two readings."""
    seconds = max(after.monotonic - before.monotonic, 0.001)
    busy, total = (new - old for old, new in zip(before.cpu, after.cpu, strict=True))
    return {
        "at": round(time.time(), 3),
        "load": after.load,
        "cores": os.cpu_count() or 1,
        "cpu": round(min(max(100 * busy / total, 0), 100), 1) if total > 0 else 0,
        "memory": dict(zip(("used", "total"), after.memory, strict=True)),
        "network": rates(before.traffic, after.traffic, seconds),
        "loopback": rates(before.loopback, after.loopback, seconds),
    }


def rates(before: tuple[int, int], after: tuple[int, int], seconds: float) -> dict[str, int]:
    # Never below zero, because the count of an interface that went away is missing from the sum.
    received, sent = (max(round((new - old) / seconds), 0) for old, new in zip(before, after, strict=True))
    return {"in": received, "out": sent}


def parse_load(text: str) -> tuple[float, float, float]:
    """Return the load averages over 1, 5 and 15 minutes from /proc/loadavg."""
    one, five, fifteen = text.split()[:3]
    return float(one), float(five), float(fifteen)


def parse_cpu(text: str) -> tuple[int, int]:
    """Return busy and total ticks of all cores together from /proc/stat."""
    # The first eight fields: user nice system idle iowait irq softirq steal. Later guest times are part of user.
    ticks = [int(field) for field in text.split("\n", 1)[0].split()[1:9]]
    return sum(ticks) - sum(ticks[3:5]), sum(ticks)


def parse_memory(text: str) -> tuple[int, int]:
    """Return used and total bytes from /proc/meminfo. Memory that can be freed at need is not used."""
    kib = {name: int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in text.splitlines()) if rest}
    return (kib["MemTotal"] - kib["MemAvailable"]) * 1024, kib["MemTotal"] * 1024


def parse_network(text: str) -> dict[str, tuple[int, int]]:
    """Return bytes received and sent by each interface from /proc/net/dev."""
    interfaces = {}
    for line in text.splitlines()[2:]:  # two lines of headings
        name, _, rest = line.partition(":")
        fields = rest.split()
        interfaces[name.strip()] = int(fields[0]), int(fields[8])
    return interfaces
