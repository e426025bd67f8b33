"""Fixtures for the browser tests: Chromium with a WebDriver, and an origin that serves pages."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from selenium import webdriver

from tests.browser.driver import start_chromium
from tests.browser.origin import Origin
from tests.browser.tabbed_browser import Browser
from tests.live.conftest import pytest_runtest_makereport

__all__ = ["pytest_runtest_makereport"]


@pytest.fixture
def chromium(tmp_path: Path) -> Iterator[webdriver.Chrome]:
    options = webdriver.ChromeOptions()
    options.accept_insecure_certs = True
    driver = start_chromium(tmp_path, options=options)
    try:
        yield driver
    finally:
        driver.quit()


@pytest.fixture(scope="module")
def tabbed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """One Chromium for all tests of a module, which open tabs in it."""
    with Browser(tmp_path_factory.mktemp("chromium")) as browser:
        yield browser


@pytest.fixture
def origin() -> Iterator[Origin]:
    with Origin() as origin:
        yield origin


@pytest.fixture
def page_origin(origin: Origin) -> str:
    """The URL at which pages/ is served."""
    return origin.url
