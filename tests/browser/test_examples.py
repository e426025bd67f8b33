"""The examples, each in Chromium, with Redis and two workers."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By

from tests.browser.driver import start_chromium
from tests.servers import ROOT, Gunicorn, RedisServer, wait_until

EXAMPLES = sorted(path.parent.name for path in (ROOT / "examples").glob("*/app.py"))
MODULES = ROOT / "tests" / "node_modules"


class Page:
    """The page of an example in a browser of its own."""

    def __init__(self, driver: webdriver.Chrome, url: str) -> None:
        self.driver, self.url = driver, url
        driver.get(url)

    def text(self, selector: str) -> str:
        """Return the text of the first element; its own, not as it is laid out."""
        return self.driver.find_element(By.CSS_SELECTOR, selector).get_property("textContent")

    def click(self, selector: str) -> None:
        self.driver.find_element(By.CSS_SELECTOR, selector).click()

    def fill(self, selector: str, text: str) -> None:
        field = self.driver.find_element(By.CSS_SELECTOR, selector)
        field.clear()
        field.send_keys(text)


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def service(request: pytest.FixtureRequest, tmp_path: Path, redis: RedisServer) -> Iterator[Gunicorn]:
    """The example that the test's name begins with."""
    name = request.node.name.split("_")[1]
    environment = {"SSE_REDIS_URL": redis.url, "SSE_NAMESPACE": request.node.name[:60]}
    with Gunicorn(tmp_path, f"examples.{name}.app:app", environment, workers=2) as server:
        yield server


@pytest.fixture
def drivers(tmp_path: Path) -> Iterator[list[webdriver.Chrome]]:
    """Two browsers, which share neither connections nor cookies."""
    started: list[webdriver.Chrome] = []
    try:
        for number in range(2):
            (folder := tmp_path / f"browser-{number}").mkdir()
            started.append(start_chromium(folder))
        yield started
    finally:
        for driver in started:
            driver.quit()


def test_every_example_is_short_and_has_a_page_and_a_test_here() -> None:
    assert EXAMPLES == ["auction", "chat", "progress", "scoreboard"]
    tests = Path(__file__).read_text()
    for name in EXAMPLES:
        folder = ROOT / "examples" / name
        assert len((folder / "app.py").read_text().splitlines()) <= 60, name
        assert (folder / "static" / "index.html").is_file(), name
        assert f"\ndef test_{name}_" in tests
        assert f"`{name}`" in (ROOT / "examples" / "README.md").read_text()


def test_chat_survives_reloads_in_two_browsers_and_can_be_read_after_its_end(
    service: Gunicorn, drivers: list[webdriver.Chrome]
) -> None:
    page = Page(drivers[0], service.url)
    page.fill("#question", "Is it whole?")
    page.click("#ask button")
    wait_until(lambda: page.text("#answer").count(" ") > 5, 20)
    address = page.driver.current_url
    other = Page(drivers[1], address)
    for _ in range(3):
        time.sleep(0.4)
        page.driver.refresh()
    for reader in (page, other):
        wait_until(lambda: reader.text("#state") == "Done.", 30)  # noqa: B023 - called at once
    whole = page.text("#answer")
    assert whole.startswith("You asked: Is it whole?")
    assert whole.endswith("the writing ends. ")
    assert whole.split() == other.text("#answer").split()
    assert len(whole.split()) == len(set(enumerate(whole.split()))) > 40
    page.driver.refresh()
    wait_until(lambda: page.text("#state") == "Done.")
    assert page.text("#answer") == whole


def test_chat_stops_for_everyone(service: Gunicorn, drivers: list[webdriver.Chrome]) -> None:
    page = Page(drivers[0], service.url)
    page.click("#ask button")
    wait_until(lambda: page.text("#answer").count(" ") > 5, 20)
    other = Page(drivers[1], page.driver.current_url)
    wait_until(lambda: other.text("#answer").count(" ") > 5, 20)
    page.click("#stop")
    for reader in (page, other):
        wait_until(lambda: reader.text("#state") == "Stopped.")  # noqa: B023 - called at once
    assert page.text("#answer") == other.text("#answer")
    assert "the writing ends" not in page.text("#answer")


def test_chat_works_with_the_use_chat_of_the_ai_sdk(
    service: Gunicorn, drivers: list[webdriver.Chrome], tmp_path: Path
) -> None:
    bundle = tmp_path / "use_chat.js"
    subprocess.run(
        [MODULES / ".bin" / "esbuild", ROOT / "tests" / "browser" / "pages" / "use_chat.jsx", "--bundle",
         "--define:process.env.NODE_ENV=\"production\"", f"--outfile={bundle}", "--log-level=error"],
        check=True, timeout=60, env={"PATH": "/usr/bin:/bin", "NODE_PATH": str(MODULES)},
    )  # fmt: skip
    page = Page(drivers[0], service.url)
    page.driver.execute_script(bundle.read_text())
    wait_until(lambda: page.driver.execute_script("return window.chat && chat.status === 'ready'"))
    page.driver.execute_script("chat.ask('Does the SDK read it?')")
    wait_until(lambda: page.text("#chat").startswith("You asked: Does the SDK"))
    status = wait_until(lambda: page.driver.execute_script("return chat.status === 'streaming' ? '' : chat"), 30)
    assert (status["status"], status["error"]) == ("ready", "")
    assert page.text("#chat").endswith("the writing ends. ")
    assert "has failed" not in service.logs()


def test_scoreboard_is_polled_by_one_worker_and_only_while_somebody_looks(
    service: Gunicorn, drivers: list[webdriver.Chrome]
) -> None:
    def asked() -> list[str]:
        return re.findall(r"asking for the scores of (\w+)", service.logs())

    assert asked() == []
    pages = [Page(driver, service.url) for driver in drivers]
    for page in pages:
        wait_until(lambda: len(page.driver.find_elements(By.CSS_SELECTOR, "tbody tr")) == 5)  # noqa: B023 - at once
        wait_until(lambda: page.text("#state") == "Live")  # noqa: B023 - at once
    before, began = len(asked()), time.monotonic()
    time.sleep(5)
    for league in ("north", "south"):
        calls = asked()[before:].count(league)
        assert 2 <= calls <= time.monotonic() - began + 2, "once a second, for both browsers and both workers"
    for driver in drivers:
        driver.get("about:blank")
    time.sleep(13.5)  # `linger` and 8 s
    quiet = len(asked())
    time.sleep(3)
    assert len(asked()) == quiet


def test_auction_shows_bids_and_who_is_there(service: Gunicorn, drivers: list[webdriver.Chrome]) -> None:
    pages = [Page(driver, service.url) for driver in drivers]
    for page, name in zip(pages, ("Ann", "Bob"), strict=True):
        page.fill("#name", name)
        page.click(".name button")
    for page in pages:
        wait_until(lambda: page.text("#clock .people") == "Here: Ann, Bob", 20)  # noqa: B023 - called at once
    price = max([int(number) for number in re.findall(r"(\d+) €", pages[0].text("#clock .price"))], default=0) + 10
    pages[0].fill("#clock input", str(price))
    pages[0].click("#clock form button")
    for page in pages:
        wait_until(lambda: page.text("#clock .price") == f"{price} €")  # noqa: B023 - called at once
        assert page.text("#clock .bidder") == "by Ann"


def test_progress_comes_from_another_process_and_the_page_stops_it(
    service: Gunicorn, drivers: list[webdriver.Chrome]
) -> None:
    page = Page(drivers[0], service.url)
    page.click("#start")
    wait_until(lambda: "step 3 is done" in page.text("#log"), 20)
    page.driver.refresh()
    wait_until(lambda: page.text("#state") == "The job has ended: done.", 20)
    assert page.text("#log") == "".join(f"step {step} is done\n" for step in range(1, 21))
    assert page.driver.execute_script("return document.getElementById('bar').value") == 1
    page.driver.get("about:blank")
    page = Page(drivers[0], service.url)
    page.click("#start")
    wait_until(lambda: "step 2 is done" in page.text("#log"), 20)
    page.click("#stop")
    wait_until(lambda: page.text("#state") == "The job has ended: stopped.")
    assert "step 20" not in page.text("#log")
