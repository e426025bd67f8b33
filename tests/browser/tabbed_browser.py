"""Several tabs of one Chromium, and the service that they listen to."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

from flask import Flask
from selenium import webdriver
from selenium.common.exceptions import WebDriverException

from sse import SSE
from tests import client
from tests.browser.driver import start_chromium
from tests.publishing import Publisher, publish_in_app
from tests.servers import Gunicorn, RedisServer, free_port, wait_until


class Site:
    """A worker on a Redis, both real, with its own publisher, and with pages on its own and on another origin.

    The names localhost and 127.0.0.1 are two origins, and two hosts with six connections each, on one port.
    """

    def __init__(self, directory: Path, redis: RedisServer, **settings: Any) -> None:
        port = free_port()
        self.url, self.other = f"http://127.0.0.1:{port}", f"http://localhost:{port}"
        self.environment = {
            "SSE_REDIS_URL": redis.url,
            "SSE_PUBLIC": "public/*",
            "SSE_ORIGINS": self.other,
            "SSE_RETRY": "500",
            **{name: str(value) for name, value in settings.items()},
        }
        self.gunicorn = Gunicorn(
            directory, "tests.browser.apps.own_pages:application", self.environment, bind=f"127.0.0.1:{port}"
        )
        self.port = port
        self.publisher = Flask("publisher")
        self.publisher.config.from_mapping(SSE_REDIS_URL=redis.url)
        SSE(self.publisher)

    def __enter__(self) -> Self:
        self.gunicorn.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.publisher.extensions["sse"].close()
        self.gunicorn.stop()

    def subscribers(self) -> int:
        return int(client.request(self.url, "GET", "/subscribers").json()["subscribers"])

    def publishing(self, *channels: str, every: float = 0.02) -> Publisher:
        """Return a publisher of the next number to each of the channels, all the time."""

        def publish(number: int) -> None:
            for channel in channels:
                publish_in_app(self.publisher, channel, number)

        return Publisher(publish, every)


class Tab:
    """One tab, in its own window or beside others. Each question to its page brings the tab into view."""

    def __init__(self, driver: webdriver.Chrome, address: str, kind: str = "tab") -> None:
        self._driver = driver
        driver.switch_to.new_window(kind)
        self.handle = driver.current_window_handle
        self.address = address
        driver.get(address)

    def run(self, script: str, *arguments: Any) -> Any:
        if self._driver.current_window_handle != self.handle:
            self._driver.switch_to.window(self.handle)
        return self._driver.execute_script(script, *arguments)

    def start(self, *channels: str, url: str = "/sse", name: str = "feed", **options: Any) -> Self:
        self.run("start(...arguments)", name, url, {"channels": list(channels), **options})
        return self

    def get(self, member: str, name: str = "feed") -> Any:
        """Return a member of the feed, such as `state`."""
        return self.run("return feeds[arguments[0]][arguments[1]]", name, member)

    def log(self, kind: str = "events", name: str = "feed") -> list[Any]:
        return list(self.run(f"return {kind}[arguments[0]]", name))

    def numbers(self, channel: str, name: str = "feed") -> list[Any]:
        return [number for _, told, number, _ in self.log("events", name) if told == channel]

    def count(self, name: str = "feed") -> int:
        return int(self.run("return events[arguments[0]].length", name))

    def wait(self, state: str = "live", name: str = "feed", timeout: float = 10, **members: Any) -> Self:
        """Wait until the feed is in this state, and `tabs`, `shared` and others are as given."""
        wanted = {"state": state, **members}

        def there() -> bool:
            return all(self.get(member, name) == value for member, value in wanted.items())

        try:
            wait_until(there, timeout, what=f"{wanted}")
        except AssertionError as error:
            error.add_note(f"its states: {self.log('states', name)}")
            raise
        return self

    def leads(self) -> bool:
        return bool(self.run("return leads()"))

    def renderer(self, browser: int) -> int:
        """Return the pid of the tab's renderer: the process that uses CPU when this page computes."""
        before = cpu_times(browser)
        for _ in range(100):
            self.run("burn(200)")
            burnt = sorted((spent - before.get(pid, spent), pid) for pid, spent in cpu_times(browser).items())
            if burnt[-1][0] > burnt[-2][0] + 0.15:
                return burnt[-1][1]
        raise AssertionError(f"no renderer that burns when this page does: {burnt}")

    def go(self, address: str) -> None:
        self.run("return 0")
        self._driver.get(address)

    def back(self) -> None:
        self.run("return 0")
        self._driver.back()

    @contextlib.contextmanager
    def alert(self) -> Iterator[None]:
        """Show an alert during the block. An alert blocks the page."""
        self.run("setTimeout(() => alert('wait'), 0)")
        yield
        self._driver.switch_to.window(self.handle)
        self._driver.switch_to.alert.accept()

    @contextlib.contextmanager
    def task(self, seconds: float = 6) -> Iterator[None]:
        """Have the page compute during the block."""
        ends = time.monotonic() + seconds
        self.run("setTimeout(burn, 0, arguments[0])", 1000 * seconds)
        yield
        time.sleep(max(0, ends - time.monotonic()))

    def close(self) -> None:
        self.run("return 0")
        self._driver.close()
        self._driver.switch_to.window(self._driver.window_handles[0])


class Browser:
    """Chromium with an empty profile and a renderer for each tab. The tab that was asked last is in view."""

    def __init__(self, directory: Path) -> None:
        self.driver = start_chromium(directory, "--renderer-process-limit=50")
        self.driver.set_page_load_timeout(15)
        self.pid = descendants(self.driver.service.process.pid)[1]
        self._first = self.driver.current_window_handle
        self._stopped: set[int] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.resume()
        self.driver.quit()

    def open(self, origin: str, page: str = "/pages/tabs.html", kind: str = "tab") -> Tab:
        return Tab(self.driver, origin + page, kind)

    def windows(self, count: int, origin: str) -> list[Tab]:
        """Open tabs in windows of their own, so that all are in view, and return them."""
        return [self.open(origin, kind="window") for _ in range(count)]

    def tabs(self, count: int, origin: str) -> list[Tab]:
        return [self.open(origin) for _ in range(count)]

    def clear(self) -> None:
        """Close all tabs but the empty one."""
        self.resume()
        for handle in self.driver.window_handles:
            if handle == self._first:
                continue
            with contextlib.suppress(WebDriverException):  # of one that was killed
                self.driver.switch_to.window(handle)
                self.driver.close()
        self.look_away()

    def kill(self, tab: Tab) -> None:
        """Kill the tab's renderer. The tab cannot be asked anything after that."""
        os.kill(tab.renderer(self.pid), signal.SIGKILL)
        self.look_away()

    def look_away(self) -> None:
        """Bring the empty tab into view."""
        self.driver.switch_to.window(self._first)

    def stop(self, *pids: int) -> None:
        """Stop these processes by SIGSTOP, until `resume`."""
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
            self._stopped.add(pid)

    def resume(self) -> None:
        for pid in self._stopped:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        self._stopped.clear()


def descendants(ancestor: int) -> list[int]:
    """Return the process and all processes below it, also those that other threads than the first began."""
    parents = {}
    for pid in (int(name) for name in os.listdir("/proc") if name.isdigit()):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            parents[pid] = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    found = [ancestor]
    for pid in found:  # which grows meanwhile
        found += [child for child, parent in parents.items() if parent == pid]
    return found


def cpu_times(browser: int) -> dict[int, float]:
    """Return the seconds of CPU that each renderer has used."""
    times = {}
    for pid in descendants(browser):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            if b"--type=renderer" in Path(f"/proc/{pid}/cmdline").read_bytes():
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                times[pid] = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return times


def answer(status: int, *headers: str, body: str = "") -> bytes:
    lines = [f"HTTP/1.1 {status} Answer", "Connection: close", f"Content-Length: {len(body)}", *headers]
    return ("\r\n".join(lines) + "\r\n\r\n" + body).encode()


def largest_gap(log: list[Any], since: float) -> float:
    """Return the longest time without an event, in seconds, from that moment to the newest event."""
    times = [since, *(at / 1000 for at, *_ in log if at / 1000 >= since)]
    return max(after - before for before, after in itertools.pairwise(times))
