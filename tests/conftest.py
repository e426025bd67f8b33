"""Fixtures for all tests: a real Redis, an app, a seed in the report, and checks that a test leaves nothing behind."""

from __future__ import annotations

import gc
import logging
import os
import random
import resource
import signal
import threading
from collections.abc import Callable, Iterator

import pytest
from flask import Flask
from hypothesis import HealthCheck, settings

from sse import SSE
from tests.servers import RedisServer, logs, open_fds, wait_until
from tests.tokens import KEY, SECRET

MakeApp = Callable[..., Flask]
FILES = 4096

for profile, examples in (("ci", 50), ("chaos", 1000)):
    settings.register_profile(
        profile,
        max_examples=examples,
        deadline=None,
        print_blob=True,
        derandomize=False,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
    )
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    if config.option.hypothesis_seed is None:
        config.option.hypothesis_seed = str(random.SystemRandom().randrange(2**32))
    config.addinivalue_line("markers", "browsers: engines on ways to the service; BROWSERS=all: each on each")
    config.addinivalue_line("markers", "long: the long forms of some tests, with BROWSERS=all only")
    restore_signals()
    allow_files()
    for name in list(os.environ):
        if name.startswith("SSE_") or name in ("REDIS_URL", "DEMO"):
            del os.environ[name]  # a developer's own settings must not decide


def restore_signals() -> None:
    """Give all processes that the tests start the signals of a shell's foreground.

    A shell without job control has what runs in its background ignore Ctrl-C, and programs that are started inherit
    what is ignored or blocked. This process goes on without heeding it: a function that does nothing is not inherited.
    SIGHUP stays ignored under nohup, for all.
    """
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGTERM):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, lambda *_: None)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # if it is ignored, the exit status of a child is lost


def allow_files() -> None:
    """Raise this process's limit of open files as far as tests of many connections need."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < FILES <= hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (FILES, hard))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if os.environ.get("BROWSERS") == "all":
        return
    long = [item for item in items if item.get_closest_marker("long")]
    config.hook.pytest_deselected(items=long)
    items[:] = [item for item in items if item not in long]


def pytest_report_header(config: pytest.Config) -> str:
    return f"seed: --hypothesis-seed={config.option.hypothesis_seed}"


@pytest.fixture(autouse=True)
def fresh_log(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let each test log the warnings that an earlier test has logged already."""
    monkeypatch.setattr("sse.log._last_logged", {})
    monkeypatch.setattr("sse.log._once", set())


SECRETS = ("eyJ", SECRET, KEY, "k" * 22, "-key-of-the-tests", "-key-of-22-characters", "hush")
"""In each token and ticket, and the secrets and keys of all tests."""


class Leaks(logging.Handler):
    """A log handler that keeps the lines in which there is a secret."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        text = self.format(record)
        if any(secret in text for secret in SECRETS):
            self.found.append(text)


@pytest.fixture(scope="session", autouse=True)
def no_secret_in_a_log() -> Iterator[None]:
    """At the end, search the logs of all tests and their servers for tokens, keys and secrets."""
    leaks = Leaks()
    logging.getLogger().addHandler(leaks)
    yield
    logging.getLogger().removeHandler(leaks)
    for log in logs:
        # squid's own log shows the cookies that it keeps answers apart by.
        if log.exists() and not log.name.startswith("squid"):
            text = log.read_text(errors="replace")
            leaks.found += [f"{log}: {secret}" for secret in SECRETS if secret in text]
    assert not leaks.found


@pytest.fixture(scope="session")
def shared_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """One redis-server for all tests that leave it as it was."""
    with RedisServer(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def redis_url(shared_redis: RedisServer) -> Iterator[str]:
    """The URL of an empty Redis."""
    with shared_redis.client() as client:
        client.flushall()
        yield shared_redis.url
        client.flushall()


@pytest.fixture(params=["memory", "redis"])
def store_url(request: pytest.FixtureRequest) -> str | None:
    """A value for SSE_REDIS_URL. A test with this fixture runs once over memory and once over Redis."""
    return None if request.param == "memory" else str(request.getfixturevalue("redis_url"))


@pytest.fixture
def make_app() -> Iterator[MakeApp]:
    """Return a function that makes an app with SSE and the given settings. All channels are public by default."""
    made: list[Flask] = []

    def make(sse: SSE | None = None, **config: object) -> Flask:
        app = Flask("tests")
        app.config.from_mapping({"SSE_PUBLIC": "*", **config})
        (sse or SSE()).init_app(app)
        made.append(app)
        return app

    yield make
    services = [app.extensions["sse"] for app in made]
    left = [service.hub.subscribers for service in services]
    for service in services:
        service.close()
    assert not any(left), f"subscribers are still attached: {left}"


@pytest.fixture(autouse=True)
def no_leaked_threads() -> Iterator[None]:
    """Fail a test that leaves a thread of the package running: of a hub, of revocations or of a key set."""
    before = _threads_of_the_package()
    yield
    wait_until(lambda: _threads_of_the_package() <= before, 3, what="the threads that this test started have ended")


@pytest.fixture
def no_leaked_fds(shared_redis: RedisServer) -> Iterator[None]:
    """Fail a test that leaves file descriptors open. Request it before the fixtures that it should watch."""
    gc.collect()
    before = open_fds(os.getpid())
    yield
    gc.collect()
    wait_until(lambda: open_fds(os.getpid()) <= before, 3, what=f"no more than {before} file descriptors")


def _threads_of_the_package() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name.startswith("sse-")}
