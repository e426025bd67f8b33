"""The doctor's page in Chromium and in an old browser: what it finds, what it never does, and its looks."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver import ActionChains, Keys
from selenium.webdriver.common.by import By

from sse.doctor.measure import get_pass
from tests.browser.driver import start_chromium
from tests.browser.engines import PhantomJS
from tests.browser.test_demo_page import AUDIT, faults, look
from tests.proxy_servers import BufferingNginx, PlainNginx
from tests.servers import Gunicorn, HttpServer, free_port, wait_until
from tests.tokens import KEY

EVIL = "<img src=x onerror='document.title=666'>"


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gunicorn]:
    """A service whose probes need a pass, and which allows no other origin."""
    with Gunicorn(tmp_path_factory.mktemp("service"), env={"SSE_PUBLISH_KEYS": KEY}) as server:
        yield server


@pytest.fixture(scope="module")
def given(service: Gunicorn) -> str:
    """A pass of the service."""
    return get_pass(f"{service.url}/sse", KEY)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    driver = start_chromium(tmp_path_factory.mktemp("browser"), "--hide-scrollbars")
    driver.set_script_timeout(60)
    try:
        yield driver
    finally:
        driver.quit()


def open_page(browser: webdriver.Chrome, service: str, **fragment: str) -> None:
    browser.get("about:blank")  # else only the fragment would change
    look(browser, "light", 1280)
    browser.get(f"{service}/sse/doctor#{'&'.join(f'{name}={text}' for name, text in fragment.items())}")


def start(browser: webdriver.Chrome) -> None:
    browser.find_element(By.CSS_SELECTOR, "input[name=long][value='0']").click()
    browser.find_element(By.ID, "start").click()


def verdict(browser: webdriver.Chrome, timeout: float = 40) -> str:
    """Wait for the end of the measuring, and return what the page says of it."""
    end = browser.find_element(By.ID, "verdict")
    wait_until(end.is_displayed, timeout, 0.1, "the page has a verdict")
    return end.text


def found(browser: webdriver.Chrome) -> dict[str, str]:
    """Return the evidence of each finding by its code."""
    articles = browser.find_elements(By.TAG_NAME, "article")
    links = [article.find_element(By.TAG_NAME, "a").get_attribute("href") or "" for article in articles]
    evidence = [article.find_element(By.CLASS_NAME, "evidence").text for article in articles]
    return dict(zip([link.partition("#")[2] for link in links], evidence, strict=True))


def measured(browser: webdriver.Chrome) -> dict[str, Any]:
    told: dict[str, Any] = json.loads(browser.execute_script("return document.getElementById('measured').textContent"))
    return told


def test_a_good_way_is_called_good_and_the_keyboard_is_enough(
    browser: webdriver.Chrome, service: Gunicorn, given: str
) -> None:
    open_page(browser, service.url, **{"pass": given})
    loaded = browser.execute_script("return performance.getEntriesByType('resource').map((each) => each.name)")
    assert {name.rpartition("/")[2] for name in loaded} <= {"doctor.css", "doctor.js", "favicon.ico"}, (
        "a link begins nothing"
    )
    keys = ActionChains(browser)
    keys.send_keys(Keys.TAB, Keys.TAB, Keys.TAB, Keys.ARROW_RIGHT, Keys.TAB, Keys.ENTER).perform()
    assert browser.find_element(By.ID, "progress").is_displayed()
    assert browser.switch_to.active_element.get_attribute("id") == "stop"
    assert verdict(browser) == "No fault found"
    assert browser.switch_to.active_element.get_attribute("id") == "verdict"
    assert set(found(browser)) == {"http1", "unsure"}
    told = measured(browser)
    assert given not in json.dumps(told)
    assert (told["same_nonce"], told["shared"], told["while_streaming"]["answered"]) == (False, False, True)
    assert (told["left"]["noticed"], told["http"]) == (True, "1.1")
    assert {int(status): answer for status, answer in told["statuses"].items()} == {
        status: status for status in (204, 400, 401, 403, 404, 409, 410, 413, 429, 503)
    }
    for name, ticks in (("fast", 40), ("small", 5)):
        assert len(told["streams"][name]["blocks"]) == ticks + 1
        assert told["streams"][name]["finished"]


def test_a_proxy_that_buffers_is_named_and_the_page_can_be_read_in_every_mode(
    browser: webdriver.Chrome, service: Gunicorn, given: str, tmp_path: Path
) -> None:
    with BufferingNginx(tmp_path, int(service.url.rpartition(":")[2])) as proxy:
        open_page(browser, f"http://127.0.0.1:{proxy.port}", **{"pass": given})
        start(browser)
        assert verdict(browser).endswith("found")
        assert "buffered" in found(browser)
        assert browser.find_element(By.CSS_SELECTOR, "article:first-child").get_attribute("data-level") == "fault"
    browser.find_element(By.TAG_NAME, "summary").click()
    browser.execute_script("document.getElementById('measured').textContent = '…'")  # it scrolls, which is no fault
    browser.execute_script(AUDIT)
    for mode, width in itertools.product(("light", "dark", "forced"), (320, 1280)):
        look(browser, mode, width)
        assert faults(browser) == [], f"{mode}, {width} pixels"
        assert browser.execute_script("return document.documentElement.scrollWidth") == width


def test_a_measuring_can_be_stopped(browser: webdriver.Chrome, service: Gunicorn, given: str) -> None:
    open_page(browser, service.url, **{"pass": given})
    start(browser)
    browser.find_element(By.ID, "stop").click()
    assert not browser.find_element(By.ID, "progress").is_displayed()
    assert browser.switch_to.active_element.get_attribute("id") == "start"


@pytest.mark.parametrize("text", ["", "1795869702.00"])
def test_without_a_pass_the_page_says_that_one_is_needed(
    browser: webdriver.Chrome, service: Gunicorn, text: str
) -> None:
    open_page(browser, service.url, **({"pass": text} if text else {}))
    start(browser)
    # Its own judge wants a pass, too.
    assert verdict(browser) == "Measured, but not judged"
    assert "pass" in browser.find_element(By.ID, "summary").text
    assert measured(browser)["closed"]["code"] == ("pass_invalid" if text else "pass_missing")


def test_a_service_that_allows_no_other_origin_is_told_from_one_that_is_not_there(
    browser: webdriver.Chrome, service: Gunicorn, given: str, tmp_path: Path
) -> None:
    with Gunicorn(tmp_path, env={"SSE_DOCTOR": "1"}) as other:
        open_page(browser, service.url, url=f"{other.url}/sse", **{"pass": given})
        assert "another site" in browser.find_element(By.ID, "where").text
        start(browser)
        verdict(browser)
        assert measured(browser)["cors"] == {"blocked": True}
        assert measured(browser)["origin"] == service.url
    start(browser)
    verdict(browser)
    assert set(found(browser)) == {"unreachable"}


def test_another_origin_that_allows_the_page_is_measured_as_the_own_one(
    browser: webdriver.Chrome, service: Gunicorn, given: str, tmp_path: Path
) -> None:
    with Gunicorn(tmp_path, env={"SSE_DOCTOR": "1", "SSE_ORIGINS": service.url}) as other:
        open_page(browser, service.url, url=f"{other.url}/sse", **{"pass": given})
        start(browser)
        assert verdict(browser) == "No fault found"
        assert measured(browser)["echo"]["headers"]["last-event-id"] == "doctor=58-2893"


class LoginNginx(PlainNginx):
    """nginx that sends those who are not logged in to another site."""

    name = "nginx-login"
    EXTRA = "location = /sse/doctor/echo { return 302 https://login.example/; }"


def test_a_redirection_to_a_login_is_told_from_a_service_that_is_not_there(
    browser: webdriver.Chrome, service: Gunicorn, given: str, tmp_path: Path
) -> None:
    with LoginNginx(tmp_path, int(service.url.rpartition(":")[2])) as proxy:
        open_page(browser, f"http://127.0.0.1:{proxy.port}", **{"pass": given})
        start(browser)
        assert verdict(browser) == "1 fault found"
    assert "another site" in found(browser)["not_ours"]


class Hostile(BaseHTTPRequestHandler):
    """A target that answers everything to everybody, and keeps what it got."""

    got: list[tuple[str, str, dict[str, str]]] = []

    def do_GET(self) -> None:
        self.got.append((self.command, self.path, dict(self.headers)))
        self.send_response(200)
        self.send_header("Access-Control-Allow-Origin", self.headers.get("Origin", "*"))
        self.send_header("Access-Control-Allow-Headers", "*, Last-Event-ID")
        self.send_header("Access-Control-Allow-Credentials", "true")
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(f"<title>javascript:alert(1) {EVIL.replace('<', '&lt;')} <b>".encode())

    def do_OPTIONS(self) -> None:
        self.do_GET()

    def do_POST(self) -> None:
        self.do_GET()

    def log_message(self, *_: object) -> None:
        pass


def test_a_hostile_target_learns_no_cookie_and_puts_no_markup_into_the_page(
    browser: webdriver.Chrome, service: Gunicorn, given: str
) -> None:
    Hostile.got.clear()
    with HttpServer(("127.0.0.1", free_port()), Hostile) as server:
        target = f"http://127.0.0.1:{server.server_port}/sse"
        open_page(browser, service.url, url=target, **{"pass": given})
        browser.add_cookie({"name": "session", "value": "hush"})  # cookies know no ports (RFC 6265, 8.5)
        start(browser)
        assert verdict(browser) == "1 fault found"
    assert "javascript:alert(1)" in found(browser)["not_ours"]
    assert browser.title == "Throughline doctor"
    assert not browser.find_elements(By.CSS_SELECTOR, "article img, article b, a[href^=javascript]")
    assert Hostile.got
    assert not [path for _, path, headers in Hostile.got if "Cookie" in headers or "judge" in path]


class Old(PhantomJS):
    """An old browser, which presses the button and prints the page's words."""

    HOST = """\
var page = require("webpage").create(), url = require("system").args[1];
page.onError = function (text) { console.log("ERROR " + text); };
page.open(url, function () {
  page.evaluate(function () {
    document.querySelector("input[name=long][value='0']").click();
    document.getElementById("start").click();
  });
  setInterval(function () {
    console.log("TOLD " + page.evaluate(function () {
      return document.getElementById("verdict").textContent + document.getElementById("measured").textContent;
    }).replace(/\\s+/g, " "));
  }, 500);
});
"""


def test_a_browser_without_fetch_measures_too(service: Gunicorn, given: str, tmp_path: Path) -> None:
    with Old(tmp_path, f"{service.url}/sse/doctor#pass={given}") as old:
        wait_until(lambda: "client_gap" in old.logs(), 40, what="the old browser has a verdict")
        told = old.logs().rpartition("TOLD ")[2].splitlines()[0]
        assert "ERROR" not in old.logs()
    assert told.startswith("No fault found{")
    seen = json.loads(told.removeprefix("No fault found"))
    assert len(seen["streams"]["fast"]["blocks"]) == 41
    assert len(seen["streams"]["small"]["blocks"]) == 6
