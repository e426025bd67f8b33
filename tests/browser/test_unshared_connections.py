"""Feeds that cannot share a connection, in every engine.

Each feed gets its events, and the browser still has connections to the host for other requests.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from selenium import webdriver

from tests.browser.driver import start_chromium
from tests.browser.engines import Chromium, Engine, Firefox, PhantomJS, WebKit
from tests.browser.origin import Origin, Report
from tests.publishing import publish
from tests.servers import Gunicorn, wait_until
from tests.tokens import KEY


@contextlib.contextmanager
def forgetful_chromium(directory: Path, *urls: str) -> Iterator[None]:
    """Start Chromium without storage for pages, and so without locks."""
    options = webdriver.ChromeOptions()
    options.add_experimental_option("prefs", {"profile.default_content_setting_values.cookies": 2})
    driver = start_chromium(directory, options=options)
    try:
        for url in urls:
            driver.switch_to.new_window("tab")
            driver.get(url)
        yield
    finally:
        driver.quit()


class ForgetfulFirefox(Firefox):
    """Firefox without storage for pages, and so without locks."""

    PREFERENCES = Firefox.PREFERENCES | {"network.cookie.cookieBehavior": 2}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gunicorn]:
    settings = {"SSE_PUBLIC": "*", "SSE_ORIGINS": "*", "SSE_PUBLISH_KEYS": KEY}
    with Gunicorn(tmp_path_factory.mktemp("service"), env=settings) as service:
        yield service


@pytest.fixture
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a short name: the path of Chromium's socket in it may have 108 characters."""
    return tmp_path_factory.mktemp("browser")


def page(origin: Origin, service: Gunicorn, name: str, count: int, sandbox: str = "") -> str:
    """Return the address of a page with so many frames, which all begin with event 0."""
    publish(service, "frames", 0)
    script, url = f"{origin.url}/sse.js", f"{service.url}/sse"
    return origin.page("frames.html", name, count=count, sandbox=sandbox, script=script, url=url)


def assert_each_is_served(origin: Origin, service: Gunicorn, frames: list[tuple[Report, str]]) -> None:
    """Check that each frame gets two events by short polls, while its page makes other requests to the host."""

    def all_have(*events: int) -> bool:
        return all(report.logs.get(f"{number} events") == list(events) for report, number in frames)

    wait_until(lambda: all_have(0), 40, what="the first event")
    wait_until(
        lambda: all(report.state[number].get("state") == "polling" for report, number in frames), what="all poll"
    )
    origin.command("page", "request", f"{service.url}/healthz")
    publish(service, "frames", 1)
    wait_until(lambda: all_have(0, 1), 15, what="the second event")
    wait_until(lambda: origin.reports["page"].state.get("answered"), what="a connection for something else")
    for report, number in frames:
        assert {told["state"] for told in report.logs[f"{number} states"]} <= {"connecting", "polling"}
        assert report.state[number]["reason"] == "other tabs cannot be counted here"
        assert report.state[number]["shared"] is False
        assert report.logs["errors"] == []


@pytest.mark.parametrize("engine", [Chromium, Firefox, WebKit, PhantomJS], ids=lambda engine: engine.name)
def test_seven_frames_without_an_origin_of_their_own_take_turns(
    engine: type[Engine], service: Gunicorn, origin: Origin, directory: Path
) -> None:
    with engine(directory, page(origin, service, "page", 7, "allow-scripts")):
        report = origin.reports["page"]
        assert_each_is_served(origin, service, [(report, str(number)) for number in range(7)])


@pytest.mark.parametrize("browser", [forgetful_chromium, ForgetfulFirefox], ids=["chromium", "firefox"])
def test_eight_tabs_that_may_store_nothing_take_turns(
    browser: Callable[..., AbstractContextManager[object]], service: Gunicorn, origin: Origin, directory: Path
) -> None:
    names = ["page", *(f"page {number}" for number in range(1, 8))]
    with browser(directory, *(page(origin, service, name, 1) for name in names)):
        assert_each_is_served(origin, service, [(origin.reports[name], "0") for name in names])
