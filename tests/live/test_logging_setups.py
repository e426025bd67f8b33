"""The log lines of the service go where the server's or the app's lines go, in the same format.

No line is written twice.
"""

from __future__ import annotations

import os
import re
import signal
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from tests import client
from tests.live.app_servers import FlaskRun
from tests.live.load import ENV, GREENLETS
from tests.servers import Gunicorn, wait_until
from tests.tokens import SECRET, claims, signed

NOWHERE = {"SSE_REDIS_URL": "redis://127.0.0.1:1/0"}
FORM = r"\[\d{4}-\d\d-\d\d \d\d:\d\d:\d\d [+-]\d{4}\] \[PID\] \[LEVEL\] "
CONFIG = """
[loggers]
keys=root, gunicorn.error{more}
[handlers]
keys=root, server
[formatters]
keys=root, server
[logger_root]
handlers=root
[logger_gunicorn.error]
handlers=server
qualname=gunicorn.error
propagate={propagate}
[handler_root]
class=StreamHandler
formatter=root
[handler_server]
class=FileHandler
formatter=server
args=({file!r},)
[formatter_root]
format=ROOT %(name)s: %(message)s
[formatter_server]
format=SERVER %(name)s: %(message)s
"""
OURS_NAMED = """
[logger_sse]
handlers=root
qualname=sse
propagate=0
"""


def form(pid: int, level: str) -> str:
    """Return a pattern for the beginning of gunicorn's lines."""
    return FORM.replace("PID", str(pid)).replace("LEVEL", level)


def started(
    directory: Path, app: str = "plain", *arguments: str, env: Mapping[str, str] | None = None
) -> Gunicorn:  # fmt: skip
    return Gunicorn(directory, f"tests.live.apps.logging_setups:{app}()", ENV | dict(env or {}), arguments=arguments)


def say(server: Gunicorn, text: str) -> None:
    assert client.request(server.url, "POST", "/say", body=text.encode()).body == b"said"


def lines(log: Path, text: str) -> list[str]:
    return [line for line in log.read_text().splitlines() if text in line]


@pytest.mark.parametrize("arguments", [(), GREENLETS], ids=["handed off", "greenlets"])
def test_under_gunicorn_lines_have_its_form(tmp_path: Path, arguments: Sequence[str]) -> None:
    with started(tmp_path, "plain", *arguments, env=NOWHERE) as server:
        [pid] = server.worker_pids()
        say(server, "said by a view")
        [line] = lines(server.log, "said by a view")
        assert re.fullmatch(form(pid, "WARNING") + "said by a view", line)
        wait_until(lambda: lines(server.log, "the store is away"))  # said by the hub's thread
        [line] = lines(server.log, "the store is away")
        assert re.match(form(pid, "WARNING") + "the store is away, streams stay open: ", line)


def test_the_demo_s_lines_and_a_bad_setting_have_the_same_form(tmp_path: Path) -> None:
    with Gunicorn(tmp_path, env=ENV | NOWHERE | {"DEMO": "1"}) as server:
        [pid] = server.worker_pids()
        wait_until(lambda: lines(server.log, "The demo skips samples"), 15)
        assert re.match(form(pid, "WARNING") + "The demo skips", lines(server.log, "The demo skips samples")[0])
    wrong = Gunicorn(tmp_path / "wrong", env=ENV | {"SSE_HEARTBEAT": "soon"})
    with pytest.raises(AssertionError, match="ended with 3"):
        wrong.start()
    [line] = lines(wrong.log, "does not start")
    assert re.match(FORM.replace("PID", r"\d+").replace("LEVEL", "CRITICAL") + "Throughline does not start: SSE_", line)


@pytest.mark.parametrize("arguments", [(), GREENLETS], ids=["handed off", "greenlets"])
def test_the_error_log_s_file_has_them_and_is_reopened(tmp_path: Path, arguments: Sequence[str]) -> None:
    file = tmp_path / "error.log"
    with started(tmp_path, "plain", "--error-logfile", str(file), *arguments) as server:
        say(server, "before")
        assert len(lines(file, "before")) == 1
        file.rename(tmp_path / "error.log.1")
        os.kill(server.pid, signal.SIGUSR1)
        wait_until(file.exists)

        def is_reopened() -> bool:
            say(server, "after")
            return bool(lines(file, "after"))

        wait_until(is_reopened)
        os.kill(server.pid, signal.SIGHUP)
        before = server.worker_pids()
        wait_until(lambda: server.worker_pids() and not set(before) & set(server.worker_pids()), 15)
        say(server, "by the next worker")
        assert len(lines(file, "by the next worker")) == 1
        for text in ("before", "after", "by the next worker"):
            assert lines(server.log, text) == []


def test_a_bad_setting_is_in_the_error_log_s_file(tmp_path: Path) -> None:
    file = tmp_path / "error.log"
    server = Gunicorn(tmp_path, env=ENV | {"SSE_HEARTBEAT": "soon"}, arguments=["--error-logfile", str(file)])
    with pytest.raises(AssertionError, match="ended with 3"):
        server.start()
    assert len(lines(file, "[CRITICAL] Throughline does not start: SSE_HEARTBEAT is 'soon'")) == 1


@pytest.mark.parametrize("arguments", [(), GREENLETS], ids=["handed off", "greenlets"])
@pytest.mark.parametrize("propagate", [0, 1])
def test_gunicorn_s_log_config_holds_for_them_as_for_its_own(
    tmp_path: Path, propagate: int, arguments: Sequence[str]
) -> None:
    file, config = tmp_path / "error.log", tmp_path / "log.conf"
    config.write_text(CONFIG.format(more="", propagate=propagate, file=str(file)))
    with started(tmp_path, "plain", "--log-config", str(config), *arguments) as server:
        say(server, "said by a view")
        assert lines(file, "said by a view") == ["SERVER sse: said by a view"]
        assert lines(server.log, "said by a view") == ["ROOT sse: said by a view"] * propagate


def test_gunicorn_s_log_config_may_name_them(tmp_path: Path) -> None:
    file, config = tmp_path / "error.log", tmp_path / "log.conf"
    config.write_text(CONFIG.format(more=", sse", propagate=0, file=str(file)) + OURS_NAMED)
    with started(tmp_path, "plain", "--log-config", str(config)) as server:
        say(server, "said by a view")
        assert lines(file, "said by a view") == []
        assert lines(server.log, "said by a view") == ["ROOT sse: said by a view"]


def test_syslog_has_them(tmp_path: Path) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as syslog:
        syslog.bind(("127.0.0.1", 0))
        syslog.settimeout(10)
        to = f"udp://127.0.0.1:{syslog.getsockname()[1]}"
        with started(tmp_path, "plain", "--log-syslog", "--log-syslog-to", to) as server:
            [pid] = server.worker_pids()
            say(server, "said by a view")
            while b"said by a view" not in (datagram := syslog.recv(4096)):
                pass
            assert f"[{pid}] said by a view".encode() in datagram


@pytest.mark.parametrize(
    ("logger", "pattern"), [("Derived", r"DERIVED \[PID\] \[WARNING\] said"), ("Alike", "ALIKE WARNING said")]
)
def test_a_logger_class_of_ones_own_has_them(tmp_path: Path, logger: str, pattern: str) -> None:
    with started(tmp_path, "plain", "--logger-class", f"tests.live.apps.logging_setups.{logger}") as server:
        [pid] = server.worker_pids()
        say(server, "said")
        [line] = lines(server.log, "said")
        assert re.fullmatch(pattern.replace("PID", str(pid)), line)


def test_gunicorn_s_level_holds_for_them(tmp_path: Path) -> None:
    with started(tmp_path, "plain", "--log-level", "error") as server:
        say(server, "not an error")
        assert lines(server.log, "not an error") == []


CONFIGURED = ["basic", "afterwards", "of_ours", "at_a_request"]


@pytest.mark.parametrize("arguments", [(), GREENLETS], ids=["handed off", "greenlets"])
@pytest.mark.parametrize("app", CONFIGURED)
def test_an_app_that_configures_logging_has_them_once(tmp_path: Path, app: str, arguments: Sequence[str]) -> None:
    with started(tmp_path, app, *arguments) as server:
        say(server, "said by a view")
        assert lines(server.log, "said by a view") == ["APP WARNING of sse: said by a view"]


def test_a_level_alone_configures_no_place(tmp_path: Path) -> None:
    with started(tmp_path, "level_only") as server:
        say(server, "said by a view")
        [line] = lines(server.log, "said by a view")
        assert re.match(form(server.worker_pids()[0], "WARNING"), line)


@pytest.mark.parametrize("app", ["plain", *CONFIGURED])
def test_a_secret_is_blanked_in_them_too(tmp_path: Path, app: str) -> None:
    token = signed(claims())
    with started(tmp_path, app, env={"SSE_SECRET": SECRET}) as server:
        say(server, f"is this /sse/poll?channel=a&token={token} right?")
        say(server, f"is it (here?) Bearer {token}")
        [line] = lines(server.log, "is this /sse/poll")
        assert line.endswith("is this /sse/poll[…] right?")
        [line] = lines(server.log, "is it (here?)")
        assert line.endswith("is it (here?) […]")
        assert "eyJ" not in server.log.read_text()


@pytest.mark.parametrize(
    ("app", "pattern"),
    [
        ("plain", r"\[\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}\] WARNING in logging_setups: said by a view"),
        ("own_handler", "APP WARNING of sse: said by a view"),
        *[(app, "APP WARNING of sse: said by a view") for app in CONFIGURED],
    ],
)
def test_under_flask_run_they_are_the_app_s(tmp_path: Path, app: str, pattern: str) -> None:
    with FlaskRun(tmp_path, f"tests.live.apps.logging_setups:{app}()", ENV) as server:
        say(server, "said by a view")
        [line] = lines(server.log, "said by a view")
        assert re.fullmatch(pattern, line)
