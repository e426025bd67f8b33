"""The demo page in Chromium: each of its buttons breaks the connection, and the page comes back with nothing missed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By

from tests.servers import Gunicorn, wait_until

ENVIRONMENT = {"SSE_PUBLIC": "demo/*", "SSE_HEARTBEAT": "3", "SSE_RETRY": "500", "DEMO": "1"}


@pytest.fixture
def site(tmp_path: Path, redis_url: str) -> Iterator[Gunicorn]:
    with Gunicorn(tmp_path / "app", env=ENVIRONMENT | {"SSE_REDIS_URL": redis_url}, workers=2) as server:
        yield server


def text(page: webdriver.Chrome, name: str) -> str:
    return page.find_element(By.ID, name).text


def rung(page: webdriver.Chrome) -> str:
    """The transport that the page shows as the one at work."""
    return page.execute_script("return document.querySelector('.rungs [aria-current]')?.dataset.transport ?? ''")


def open_page(page: webdriver.Chrome, site: Gunicorn) -> None:
    page.get(f"{site.url}/")
    wait_until(lambda: text(page, "state") == "Live" and text(page, "count") != "0", what="the page is live")


def press(page: webdriver.Chrome, button: str, begins: str) -> None:
    """Press it; what the page says in the end begins so, and of nothing missed."""
    page.find_element(By.ID, button).click()
    outcome = f"{button}-outcome"
    wait_until(lambda: "missed" in text(page, outcome), 30, what=f"the page has said what {button} did")
    assert text(page, outcome).startswith(begins)
    assert text(page, outcome).endswith(", 0 missed.")


def test_each_button_breaks_the_connection_and_the_page_comes_back_with_nothing_missed(
    chromium: webdriver.Chrome, site: Gunicorn
) -> None:
    open_page(chromium, site)
    assert rung(chromium) == "eventsource"
    press(chromium, "cut", "Back after")
    assert (text(chromium, "state"), rung(chromium)) == ("Live", "eventsource")

    press(chromium, "buffer", "Polls after")
    assert (text(chromium, "state"), rung(chromium)) == ("Polling", "poll")
    assert chromium.find_element(By.ID, "buffer").get_attribute("aria-pressed") == "true"
    press(chromium, "buffer", "Back after")
    assert (text(chromium, "state"), rung(chromium)) == ("Live", "eventsource")
    assert chromium.find_element(By.ID, "buffer").get_attribute("aria-pressed") == "false"

    press(chromium, "sleep", "Noticed after")
    assert (text(chromium, "state"), rung(chromium)) == ("Live", "eventsource")
    for name in ("missed", "repeated", "resets"):
        assert text(chromium, name) == "0"
    assert int(text(chromium, "reconnects")) >= 3


def test_a_button_that_is_pressed_in_a_tab_without_the_connection_works_for_all_tabs(
    chromium: webdriver.Chrome, site: Gunicorn
) -> None:
    open_page(chromium, site)
    first = chromium.current_window_handle
    chromium.switch_to.new_window("window")
    open_page(chromium, site)
    second = chromium.current_window_handle
    wait_until(lambda: text(chromium, "tabs") == "2 share one connection", what="the tabs share")
    for begins, state, pressed in (("Polls after", "Polling", "true"), ("Back after", "Live", "false")):
        press(chromium, "buffer", begins)
        for handle in (first, second):
            chromium.switch_to.window(handle)
            wait_until(lambda state=state: text(chromium, "state") == state, what=f"this tab shows {state}")
            assert chromium.find_element(By.ID, "buffer").get_attribute("aria-pressed") == pressed
            assert text(chromium, "missed") == text(chromium, "repeated") == text(chromium, "resets") == "0"


def test_the_page_fits_a_narrow_phone_and_says_nothing_to_the_console(
    chromium: webdriver.Chrome, site: Gunicorn
) -> None:
    chromium.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": 360, "height": 740, "deviceScaleFactor": 2, "mobile": True}
    )
    open_page(chromium, site)
    assert chromium.execute_script("return document.documentElement.scrollWidth") == 360
    assert chromium.get_log("browser") == []
