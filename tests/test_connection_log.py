"""The log's lines about streams and held polls: their words, their fields, their bound, and what each kind counts."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from sse import connection_log, log

ID = "8f3a-1"


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 5000.0
        monkeypatch.setattr("sse.connection_log.time.monotonic", lambda: self.now)


@pytest.fixture(autouse=True)
def fresh_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_log, "_rate", connection_log._Rate())


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Iterator[Lines]:
    """The lines at info and above, as they come."""
    with caplog.at_level(logging.INFO, "sse"):
        yield Lines(caplog)


class Lines:
    def __init__(self, caplog: pytest.LogCaptureFixture) -> None:
        self._caplog = caplog

    def take(self) -> list[str]:
        found = [record.getMessage() for record in self._caplog.records if hasattr(record, "connection")]
        self._caplog.clear()
        return found

    def fields(self) -> list[dict[str, Any]]:
        return [record.connection for record in self._caplog.records if hasattr(record, "connection")]


def end(reason: str = "left", transport: connection_log.Transport = "stream", request_id: str = "") -> None:
    connection_log.ended(transport, reason, 903.25, 42, 9120, request_id)


# The lines


def test_a_line_says_all_that_is_known_and_programs_get_it_as_fields(lines: Lines) -> None:
    end("lifetime", request_id=ID)
    [fields] = lines.fields()
    assert lines.take() == ["stream ended: lifetime after 903.2 s, 42 events, 9120 bytes, request 8f3a-1"]
    known = {"transport": "stream", "reason": "lifetime", "seconds": 903.25, "events": 42, "bytes": 9120}
    assert fields == known | {"request_id": ID}
    end()
    assert lines.take() == ["stream ended: left after 903.2 s, 42 events, 9120 bytes"]


def test_an_opening_is_told_at_debug_alone(lines: Lines, caplog: pytest.LogCaptureFixture) -> None:
    connection_log.opened("poll", ID)
    assert lines.take() == []
    caplog.set_level(logging.DEBUG, "sse")
    connection_log.opened("poll", ID)
    connection_log.opened("stream")
    assert lines.take() == ["poll opened, request 8f3a-1", "stream opened"]


def test_where_info_is_not_logged_nothing_is_made(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "sse"):
        for _ in range(100):
            end()
    assert caplog.records == []
    assert connection_log._rate._held.total() == 0


def test_a_second_has_so_many_lines_and_a_sum_of_the_others(lines: Lines, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    connection_log.set_rate(3)
    for _ in range(5):
        end("drain")
    end("left", "poll")
    assert len(lines.take()) == 3
    connection_log.flush()
    assert lines.take() == []  # the second is not over
    end("drain")
    connection_log.flush(is_last=True)
    assert lines.take() == ["4 more ended within 0.0 s: 3 streams drain, 1 polls left"]
    for _ in range(5):
        end("drain")
    end("left", "poll")
    assert len(lines.take()) == 3
    clock.now += 1.5
    connection_log.flush()
    assert lines.fields() == [{"ended": {"stream drain": 2, "poll left": 1}}]
    assert lines.take() == ["3 more ended within 1.5 s: 2 streams drain, 1 polls left"]
    connection_log.flush()
    assert lines.take() == []
    end("drain")
    assert len(lines.take()) == 1


def test_the_next_end_tells_the_sum_first(lines: Lines, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    connection_log.set_rate(1)
    end()
    end()
    clock.now += 60
    end()
    assert [line.partition(":")[0] for line in lines.take()] == [
        "stream ended",
        "1 more ended within 60.0 s",
        "stream ended",
    ]


def test_with_a_rate_of_0_there_are_no_lines(lines: Lines, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    connection_log.set_rate(0)
    end()
    clock.now += 5
    connection_log.flush()
    assert lines.take() == []


def test_threads_share_the_bound(lines: Lines, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    with ThreadPoolExecutor(8) as threads:
        for each in [threads.submit(end) for _ in range(400)]:
            each.result()
    assert len(lines.take()) == 50
    clock.now += 1
    connection_log.flush()
    assert lines.take() == ["350 more ended within 1.0 s: 350 streams left"]


# The form


class Kept(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(self.format(record))


@pytest.fixture
def gunicorn(monkeypatch: pytest.MonkeyPatch) -> Kept:
    """The handler of a gunicorn's error log, where the lines go."""
    handler, error_log = Kept(), logging.Logger("gunicorn.error", logging.INFO)
    handler.setFormatter(logging.Formatter("[%(levelname)s] %(message)s"))
    error_log.addHandler(handler)
    monkeypatch.setattr(log._route, "server", log._ToLogger(error_log, error_log.handlers))
    monkeypatch.setattr(log._route, "known", [*logging.root.handlers])
    monkeypatch.setattr(log._route, "is_json", False)
    logging.getLogger("sse").addFilter(log._route)
    return handler


def test_the_server_s_level_counts_and_not_that_of_the_root_logger(gunicorn: Kept) -> None:
    connection_log.opened("stream")
    end()
    assert gunicorn.texts == ["[INFO] stream ended: left after 903.2 s, 42 events, 9120 bytes"]


def test_json_is_one_object_on_each_line_of_ours_and_of_gunicorn_s_worker(gunicorn: Kept) -> None:
    log.use_json(is_json=True)
    end("drain", request_id=ID)
    logging.getLogger("sse").warning("two\nlines \u2028 and %s", "more")
    try:
        raise ValueError("at fault")
    except ValueError:
        log.warn("a fault", exc_info=True)
    gunicorn.handle(logging.makeLogRecord({"name": "gunicorn.error", "levelname": "INFO", "msg": "Booting"}))
    gunicorn.handle(logging.makeLogRecord({"name": "other", "levelname": "INFO", "msg": "text"}))
    *ours, other = gunicorn.texts
    assert other == "[INFO] text"
    assert all(len(text.splitlines()) == 1 and text.isascii() for text in ours)
    ended, warning, fault, booting = map(json.loads, ours)
    assert list(ended)[:5] == ["time", "severity", "message", "logger", "pid"]
    assert (ended["severity"], ended["reason"], ended["request_id"], ended["events"]) == ("INFO", "drain", ID, 42)
    assert ended["message"].startswith("stream ended: drain")
    assert ended["time"].endswith("Z")
    assert warning["message"] == "two\nlines \u2028 and more"
    assert fault["severity"] == "ERROR"
    assert fault["exception"].endswith("ValueError: at fault")
    assert booting["logger"] == "gunicorn.error"
    log.use_json(is_json=False)
    end()
    assert gunicorn.texts[-1].startswith("[INFO] stream ended")
