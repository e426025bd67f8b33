"""A repeated warning is logged once in ten seconds, with the number of those left out. Each line goes to one log."""

from __future__ import annotations

import contextlib
import gc
import logging
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import click
import pytest
from flask import Flask

from sse import SSE, log
from sse.cli import cli
from sse.log import follow_app, follow_gunicorn, plain, warn


def test_a_warning_that_comes_often_is_told_once_in_ten_seconds_and_the_rest_counted(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now = 0.5  # as soon after the machine's start
    monkeypatch.setattr("sse.log._last_logged", {})
    monkeypatch.setattr("sse.log.time", SimpleNamespace(monotonic=lambda: now))
    with caplog.at_level(logging.WARNING, "sse"):
        for number in range(3):
            warn("%s happened", number)
        warn("%s else", "something")
        now += 9.9
        warn("%s happened", 3)
        now += 0.2
        warn("%s happened", 4)
        now += 10
        warn("%s happened", 5)
    assert caplog.messages == ["0 happened", "something else", "4 happened (and 3 more like it)", "5 happened"]


def test_threads_together_tell_it_once(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr("sse.log._last_logged", {})
    with caplog.at_level(logging.WARNING, "sse"), ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda number: warn("thread %d", number), range(200)))
    assert len(caplog.messages) == 1


@contextlib.contextmanager
def unconfigured() -> Iterator[None]:
    """Log as in a process whose app does not configure logging: without pytest's handlers."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(logging.root, "handlers", [])
        patch.setattr(logging.getLogger("sse"), "filters", [])
        patch.setattr(log, "_route", log._Route())
        yield
    logging.getLogger("log tests").handlers.clear()


class Kept(logging.Handler):
    """A handler that keeps its lines."""

    def __init__(self) -> None:
        super().__init__()
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


def gunicorn_s(logger: logging.Logger) -> SimpleNamespace:
    """Return a log of gunicorn with that logger."""
    return SimpleNamespace(error_log=logger)


class Made:
    """An object with a logger, as an app."""

    def __init__(self, logger: logging.Logger) -> None:
        self.logger = logger


NO_CONFIG = SimpleNamespace(logconfig=None, logconfig_dict={}, logconfig_json=None)


@unconfigured()
def test_without_a_server_lines_have_the_form_of_the_app_s(capsys: pytest.CaptureFixture[str]) -> None:
    app = Flask("log tests")
    SSE(app)
    warn("something %s", "happened")
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("[2")
    assert line.endswith("] WARNING in test_log: something happened")


@unconfigured()
def test_an_app_that_is_gone_is_not_held_and_lines_go_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    app = Flask("log tests")
    SSE(app)
    gone = weakref.ref(app)
    del app
    gc.collect()
    assert gone() is None
    warn("something happened")
    assert capsys.readouterr().err == "something happened\n"


@unconfigured()
def test_in_a_command_lines_are_plain(capsys: pytest.CaptureFixture[str]) -> None:
    app = Flask("log tests")
    with plain():
        SSE(app)
        warn("something happened")
        logging.getLogger("sse").info("nothing to know")
    assert capsys.readouterr().err == "something happened\n"
    warn("something else")
    assert "WARNING in test_log: something else" in capsys.readouterr().err


@unconfigured()
def test_the_commands_of_flask_sse_write_plain_lines() -> None:
    app = Flask("log tests")
    SSE(app)
    cli.add_command(click.Command("warn", callback=lambda: warn("something happened")))
    try:
        assert app.test_cli_runner().invoke(cli, ["warn"]).stderr == "something happened\n"
    finally:
        del cli.commands["warn"]


@unconfigured()
def test_a_server_s_log_goes_before_the_app_s_and_an_app_s_configuration_before_both() -> None:
    server, app, root = (Kept() for _ in range(3))
    loggers = [logging.getLogger("log tests of a server"), logging.getLogger("log tests of an app")]
    for logger, handler in zip(loggers, (server, app), strict=True):
        logger.handlers = [handler]
    made = Made(loggers[1])
    follow_app(weakref.ref(made))
    warn("to the app")
    follow_gunicorn(gunicorn_s(loggers[0]), NO_CONFIG)
    follow_app(weakref.ref(made))
    warn("to the server")
    loggers[0].setLevel(logging.ERROR)
    warn("to nobody")
    logging.root.addHandler(root)
    warn("to the root")
    assert (server.messages, app.messages, root.messages) == (["to the server"], ["to the app"], ["to the root"])


@unconfigured()
def test_of_several_apps_the_newest_that_is_there_has_the_lines() -> None:
    first, second = Kept(), Kept()
    apps = [Made(logging.Logger("first")), Made(logging.Logger("second"))]
    for app, handler in zip(apps, (first, second), strict=True):
        app.logger.addHandler(handler)
        follow_app(weakref.ref(app))
    del app
    warn("to the second")
    del apps[1]
    warn("to the first")
    assert (first.messages, second.messages) == (["to the first"], ["to the second"])


@unconfigured()
def test_where_gunicorn_s_master_makes_the_app_its_log_has_the_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    gunicorn, of_app = Kept(), Kept()
    monkeypatch.setattr(logging.getLogger("gunicorn.error"), "handlers", [gunicorn])
    app = Made(logging.Logger("app"))
    app.logger.addHandler(of_app)
    follow_app(weakref.ref(app))
    warn("to gunicorn")
    assert (gunicorn.messages, of_app.messages) == (["to gunicorn"], [])


@unconfigured()
def test_a_log_without_a_logger_gets_tracebacks_as_the_filter_of_secrets_left_them() -> None:
    lines: list[str] = []
    log = SimpleNamespace(log=lambda level, message, *args: lines.append(message % args))

    def blank(record: logging.LogRecord) -> bool:
        record.exc_text = "blanked"
        return True

    logger = logging.getLogger("sse")
    logger.addFilter(blank)
    try:
        follow_gunicorn(log, NO_CONFIG)
        try:
            raise ValueError("hush")
        except ValueError:
            logger.exception("it failed")
    finally:
        logger.removeFilter(blank)
    assert lines == ["it failed\nblanked"]


@unconfigured()
def test_the_root_handlers_of_gunicorn_s_own_settings_are_not_the_app_s() -> None:
    server, of_settings, of_app = (Kept() for _ in range(3))
    logger = logging.Logger("server")
    logger.addHandler(server)
    logging.root.addHandler(of_settings)
    follow_gunicorn(gunicorn_s(logger), SimpleNamespace(logconfig="log.conf", logconfig_dict={}, logconfig_json=None))
    warn("to the server")
    logging.root.addHandler(of_app)
    warn("to the root")
    assert (server.messages, of_app.messages) == (["to the server"], ["to the root"])
    assert of_settings.messages == ["to the root"]


@unconfigured()
def test_a_handler_of_our_logger_has_the_lines_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    server, ours = Kept(), Kept()
    logger = logging.Logger("server")
    logger.addHandler(server)
    follow_gunicorn(gunicorn_s(logger), NO_CONFIG)
    monkeypatch.setattr(logging.getLogger("sse"), "handlers", [ours])
    warn("to ours")
    assert (server.messages, ours.messages) == ([], ["to ours"])


def test_caplog_has_the_lines_of_an_app_s_tests(caplog: pytest.LogCaptureFixture) -> None:
    SSE(Flask("log tests"))
    warn("something happened")
    assert caplog.messages == ["something happened"]
    assert caplog.records[0].module == "test_log"
