"""The demo page in Chromium: its buttons, its layout in every mode, and its words for screen readers."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver import ActionChains, Keys
from selenium.webdriver.common.by import By

from tests.browser.driver import start_chromium
from tests.browser.engines import PhantomJS
from tests.publishing import publish
from tests.servers import ROOT, Gunicorn, wait_until
from tests.tokens import KEY

ENVIRONMENT = {"SSE_PUBLIC": "demo/*", "SSE_HEARTBEAT": "3", "SSE_RETRY": "500", "DEMO": "1"}


@pytest.fixture
def site(tmp_path: Path, redis_url: str) -> Iterator[Gunicorn]:
    with Gunicorn(tmp_path / "app", env=ENVIRONMENT | {"SSE_REDIS_URL": redis_url}, workers=2) as server:
        yield server


def text(page: webdriver.Chrome, name: str) -> str:
    return page.find_element(By.ID, name).text


def way(page: webdriver.Chrome) -> str:
    """Return the transport that the page shows as active."""
    return page.execute_script("return document.querySelector('.ways [aria-current]')?.dataset.transport ?? ''")


def open_page(page: webdriver.Chrome, site: Gunicorn) -> None:
    page.get(f"{site.url}/")
    wait_until(lambda: text(page, "state") == "Live" and text(page, "count") != "0", what="the page is live")


def press(page: webdriver.Chrome, button: str, begins: str) -> None:
    """Press the button, and wait until the page's message begins with `begins` and reports no missed message."""
    page.find_element(By.ID, button).click()
    outcome = f"{button}-outcome"
    wait_until(lambda: "missed" in text(page, outcome), 30, what=f"the page has said what {button} did")
    assert text(page, outcome).startswith(begins)
    assert text(page, outcome).endswith(", 0 missed.")


def test_each_button_breaks_the_connection_and_the_page_comes_back_with_nothing_missed(
    chromium: webdriver.Chrome, site: Gunicorn
) -> None:
    open_page(chromium, site)
    assert way(chromium) == "eventsource"
    press(chromium, "cut", "Back after")
    assert (text(chromium, "state"), way(chromium)) == ("Live", "eventsource")

    press(chromium, "buffer", "Polls after")
    assert (text(chromium, "state"), way(chromium)) == ("Polling", "poll")
    assert chromium.find_element(By.ID, "buffer").get_attribute("aria-pressed") == "true"
    press(chromium, "buffer", "Back after")
    assert (text(chromium, "state"), way(chromium)) == ("Live", "eventsource")
    assert chromium.find_element(By.ID, "buffer").get_attribute("aria-pressed") == "false"

    press(chromium, "sleep", "Noticed after")
    assert (text(chromium, "state"), way(chromium)) == ("Live", "eventsource")
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


# Its looks, and what it says: one browser and one server for all tests

AXE = (ROOT / "tests/node_modules/axe-core/axe.min.js").read_text()
PAGES = ROOT / "tests/browser/pages"
AUDIT = (PAGES / "audit.js").read_text()
HEAR = (PAGES / "hear.js").read_text()
MODES = {
    "light": {"prefers-color-scheme": "light", "forced-colors": "none"},
    "dark": {"prefers-color-scheme": "dark", "forced-colors": "none"},
    "forced": {"prefers-color-scheme": "dark", "forced-colors": "active"},
    "forced, light": {"prefers-color-scheme": "light", "forced-colors": "active"},
}
STATES = ("connecting", "live", "polling", "waiting", "closed")


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gunicorn]:
    environment = ENVIRONMENT | {"SSE_PUBLISH_KEYS": KEY}
    with Gunicorn(tmp_path_factory.mktemp("demo"), env=environment) as server:
        yield server


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    """A browser that records the text that its pages give to a screen reader."""
    driver = start_chromium(tmp_path_factory.mktemp("reader"), "--hide-scrollbars")
    try:
        driver.set_script_timeout(60)  # axe looks at much
        driver.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": HEAR})
        yield driver
    finally:
        driver.quit()


@pytest.fixture
def page(reader: webdriver.Chrome, demo: Gunicorn) -> webdriver.Chrome:
    """The page in a browser that has never seen it, with one message."""
    everything = {"origin": demo.url, "storageTypes": "all"}
    reader.get("about:blank")
    reader.execute_cdp_cmd("Storage.clearDataForOrigin", everything)
    look(reader, "light", 1280)
    publish(demo, "demo/hello", "good morning")
    open_page(reader, demo)
    reader.execute_script(AUDIT)
    return reader


def look(page: webdriver.Chrome, mode: str, width: int, **features: str) -> None:
    wanted = MODES[mode] | {name.replace("_", "-"): value for name, value in features.items()}
    media = {"features": [{"name": name, "value": value} for name, value in wanted.items()]}
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    metrics = {"width": width, "height": 844, "deviceScaleFactor": 2, "mobile": False}
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    drawn = "requestAnimationFrame(() => requestAnimationFrame(arguments[arguments.length - 1]))"
    page.execute_async_script(drawn)


def samples(page: webdriver.Chrome) -> int:
    return int(text(page, "count")) - len(page.find_elements(By.CSS_SELECTOR, "#events li"))


def heard(page: webdriver.Chrome) -> list[str]:
    return page.execute_script("return heard")


def faults(page: webdriver.Chrome) -> list[Any]:
    """Return the faults that axe finds, those that it cannot see (canvases), and texts that are cut off."""
    if not page.execute_script("return 'axe' in window"):
        page.execute_script(AXE)
    found = page.execute_async_script(
        "axe.run(document, {resultTypes: ['violations']}).then((told) => arguments[0](told.violations.map("
        "(each) => [each.id, each.nodes.map((node) => node.html.slice(0, 120))])))"
    )
    return found + page.execute_script("return audit.faint().concat(audit.cutOff())")


@pytest.mark.parametrize("state", ["live", "polling", "broken"])
def test_nothing_is_inaccessible_faint_or_cut_off_in_any_mode(
    page: webdriver.Chrome, demo: Gunicorn, state: str
) -> None:
    wait_until(lambda: samples(page) > 3, what="the charts have lines")
    page.find_element(By.CSS_SELECTOR, "#figures summary").click()
    wait_until(lambda: page.find_elements(By.CSS_SELECTOR, "#rows tr"), what="the table is filled")
    try:
        if state == "polling":
            press(page, "buffer", "Polls after")
        elif state == "broken":
            demo.stop()
            wait_until(
                lambda: [line for line in heard(page) if line.startswith("Connection lost: ")], 20, what="it is told"
            )
        for mode, width in itertools.product(("light", "dark", "forced"), (390, 1280)):
            look(page, mode, width)
            assert faults(page) == [], f"{mode}, {width} pixels"
            assert page.execute_script("return document.documentElement.scrollWidth") == width
        assert (text(page, "state") in {"Waiting", "Connecting"}) == (state == "broken")
        if state == "polling":
            assert heard(page) == [f"Buffer: {text(page, 'buffer-outcome')}"]
    finally:
        if state == "broken":
            demo.start()
    if state == "broken":
        page.execute_script("dispatchEvent(new Event('online'))")
        wait_until(lambda: "Live again." in heard(page), 20, what="the page is live, and says so")
        assert len([line for line in heard(page) if not line.startswith("Reset of ")]) == 2


@pytest.mark.parametrize("mode", MODES)
def test_shapes_tell_states_and_transports_apart(page: webdriver.Chrome, mode: str) -> None:
    look(page, mode, 1280)
    pill = page.find_element(By.CSS_SELECTOR, "#pill .shape")
    shapes = {}
    for state in STATES:
        page.execute_script(
            "const pill = document.getElementById('pill'); pill.dataset.state = arguments[0];"
            "pill.querySelector('use').setAttribute('href', '#shape-' + arguments[0])",
            state,
        )
        shapes[state] = mask(page, pill)
    apart(shapes)
    # A transport that works looks unlike the same transport that does not.
    ways = {}
    for current in (True, False):
        page.execute_script(
            "document.querySelectorAll('.ways li').forEach((way) => way.toggleAttribute('aria-current', arguments[0]))",
            current,
        )
        box = page.execute_script(
            "const {x, y} = document.querySelector('.ways li').getBoundingClientRect(); return {x: x, y: y + scrollY}"
        )
        ways["at work" if current else "idle"] = mask(page, box | {"width": 20, "height": 20})
    apart(ways)
    for dot in page.find_elements(By.CSS_SELECTOR, "#log .shape"):
        assert mask(page, dot).count("#") > 20


def mask(page: webdriver.Chrome, place: Any) -> str:
    """Return the pixels there whose contrast with the first pixel is at least 3:1."""
    if not isinstance(place, dict):
        place = place.rect
    clip = {**place, "scale": 1}
    picture = page.execute_cdp_cmd("Page.captureScreenshot", {"clip": clip, "captureBeyondViewport": True})["data"]
    return page.execute_async_script("audit.mask(arguments[0], arguments[1])", picture)


def apart(shapes: dict[str, str]) -> None:
    for one, other in itertools.combinations(shapes, 2):
        differing = sum(left != right for left, right in zip(shapes[one], shapes[other], strict=True))
        assert differing > 40, f"{one} looks like {other}"
    for name, shape in shapes.items():
        assert shape.count("#") > 40, f"{name} is not to be seen"


def test_on_a_phone_the_buttons_and_the_log_are_in_sight_together(page: webdriver.Chrome) -> None:
    for width in (390, 360, 320):
        look(page, "light", width)
        assert page.execute_script("return document.documentElement.scrollWidth") == width
        held = "document.getElementById('buffer').setAttribute('aria-pressed', true); return audit.cutOff()"
        assert page.execute_script(held) == []
    look(page, "light", 390)
    place = "return document.getElementById(arguments[0]).getBoundingClientRect()"
    log = page.execute_script(place, "log")
    for button in ("cut", "buffer", "sleep"):
        assert 0 < log["top"] - page.execute_script(place, button)["bottom"] < 200
    press(page, "cut", "Back after")
    assert 0 < log["top"] - page.execute_script(place, "cut-outcome")["bottom"] < 100


def test_on_a_desk_no_card_is_half_empty(page: webdriver.Chrome) -> None:
    told = page.execute_script("return audit.empty()")
    assert len(told) == 5
    for name, (down, across) in told.items():
        assert down < 0.4, f"{name} is empty over {down:.0%} of its height"
        assert across < 0.4, f"{name} is empty over {across:.0%} of its width"


def test_a_break_is_told_once_and_messages_are_gathered(page: webdriver.Chrome, demo: Gunicorn) -> None:
    assert heard(page) == []  # neither the replay nor the state of a page that starts well
    press(page, "cut", "Back after")
    publish(demo, "demo/hello", "one")
    wait_until(lambda: "Message: one" in heard(page), what="the first message is told")
    publish(demo, "demo/hello", "two", "three", "four")
    wait_until(lambda: len(heard(page)) > 2, 15, what="the others are told")  # after any state would have been
    assert heard(page) == [f"Cut: {text(page, 'cut-outcome')}", "Message: one", "3 messages, the newest: four"]
    listed = [item.text for item in page.find_elements(By.CSS_SELECTOR, "#events span")]
    assert listed[:4] == ["four", "three", "two", "one"]


def test_the_command_is_copied_whole_and_works(page: webdriver.Chrome, demo: Gunicorn) -> None:
    permit(page, demo, "granted")
    page.find_element(By.ID, "copy").click()
    wait_until(lambda: heard(page) == ["Command copied."], what="it is told")
    assert text(page, "copy") == "Copied"
    command = page.execute_async_script("navigator.clipboard.readText().then(arguments[0])")
    assert command == page.execute_script("return document.getElementById('command').textContent")
    done = subprocess.run(
        ["bash", "-c", command],
        env=os.environ | {"THROUGHLINE_KEY": KEY}, check=True, capture_output=True, text=True, timeout=20,
    )  # fmt: skip
    assert json.loads(done.stdout)["ids"]
    wait_until(lambda: page.find_element(By.CSS_SELECTOR, "#events span").text == "hello", what="it is on the page")
    wait_until(lambda: text(page, "copy") == "Copy", what="it can be copied again")


def test_where_copying_is_forbidden_the_command_is_selected(page: webdriver.Chrome, demo: Gunicorn) -> None:
    permit(page, demo, "denied")
    page.find_element(By.ID, "copy").click()
    wait_until(lambda: heard(page) == ["The command is selected. Copy it with the keyboard."], what="it is told")
    selected = page.execute_script("return getSelection().toString()")
    assert selected == page.execute_script("return document.getElementById('command').textContent")


def permit(page: webdriver.Chrome, demo: Gunicorn, setting: str) -> None:
    for name in ("clipboard-read", "clipboard-write"):
        wanted = {"permission": {"name": name}, "setting": setting, "origin": demo.url}
        page.execute_cdp_cmd("Browser.setPermission", wanted)


def slider(page: webdriver.Chrome, chart: str, attribute: str) -> str:
    return page.find_element(By.CSS_SELECTOR, f"#{chart} .plot").get_attribute(attribute)


def readout(page: webdriver.Chrome, chart: str) -> str:
    now, at = (page.find_element(By.CSS_SELECTOR, f"#{chart} .{part}").text for part in ("now", "at"))
    return f"{now.replace(chr(10), ' ')} @ {at}"


def keys(page: webdriver.Chrome, *pressed: str) -> None:
    ActionChains(page).send_keys(*pressed).perform()


def test_each_chart_is_read_by_the_keyboard(page: webdriver.Chrome) -> None:
    wait_until(lambda: samples(page) > 3, what="there is a little to read")
    page.execute_script("document.getElementById('log').focus()")
    for chart, name in (("cpu", "CPU"), ("load", "Load"), ("memory", "Memory"), ("network", "Network")):
        keys(page, Keys.TAB)
        assert page.switch_to.active_element.get_attribute("role") == "slider"
        assert page.switch_to.active_element.get_attribute("aria-label").startswith(name)
        keys(page, Keys.END)
        newest = int(slider(page, chart, "aria-valuenow"))
        keys(page, Keys.ARROW_LEFT, Keys.ARROW_DOWN)
        assert int(slider(page, chart, "aria-valuenow")) == newest - 2
        value, _, at = slider(page, chart, "aria-valuetext").rpartition(", ")
        shown, _, when = readout(page, chart).partition(" @ ")
        assert when.startswith(f"{at} · ")
        assert shown.split(" ")[:2] == value.split(" ")[:2] or shown.split(" ")[0] == value.split(" ")[0]
        keys(page, Keys.ARROW_RIGHT)
        assert int(slider(page, chart, "aria-valuenow")) == newest - 1
        keys(page, Keys.HOME)
        oldest = int(slider(page, chart, "aria-valuenow"))
        assert int(slider(page, chart, "aria-valuemin")) <= oldest <= newest - 3
        description = slider(page, chart, "aria-describedby")
        told = page.execute_script("return document.getElementById(arguments[0]).textContent", description)
        assert told.startswith("In the last two minutes ")
    said, count = slider(page, "network", "aria-valuetext"), samples(page)
    wait_until(lambda: samples(page) > count + 1, what="further samples are drawn")
    assert slider(page, "network", "aria-valuetext") == said  # or it would be read each second
    assert readout(page, "cpu").split(" @ ")[1].split(" ")[0] == said.rpartition(", ")[2]  # the cursors move together
    keys(page, Keys.ESCAPE)
    assert readout(page, "network").endswith("@ now")
    assert readout(page, "cpu").endswith("@ now")


def test_each_chart_is_read_by_the_pointer(page: webdriver.Chrome) -> None:
    wait_until(lambda: samples(page) > 3, what="there is a little to read")
    ActionChains(page).move_to_element(page.find_element(By.CSS_SELECTOR, "#memory .u-over")).perform()
    wait_until(lambda: " s ago" in readout(page, "memory"), what="the sample under the pointer is read")
    ActionChains(page).move_to_element(page.find_element(By.ID, "pill")).perform()
    wait_until(lambda: readout(page, "memory").endswith("@ now"), what="the newest is read again")


def test_the_axes_tell_both_ends_and_the_time(page: webdriver.Chrome) -> None:
    for times in page.find_elements(By.CSS_SELECTOR, ".times"):
        assert times.text.split("\n") == ["2 min ago", "1 min ago", "now"]
    page.execute_script(
        "window.drawn = {}; const write = CanvasRenderingContext2D.prototype.fillText;"
        "CanvasRenderingContext2D.prototype.fillText = function (text) {"
        "const {id} = this.canvas.closest('[id]'); (drawn[id] = drawn[id] || []).push(text);"
        "write.apply(this, arguments); }"
    )
    wait_until(lambda: len(page.execute_script("return drawn")) == 4, what="the charts are drawn again")
    for chart, unit in (("cpu", "%"), ("load", ""), ("memory", "iB"), ("network", "B/s")):
        low, middle, high = page.execute_script("return drawn[arguments[0]]", chart)[:3]
        assert high.endswith(unit)
        assert float(high.split()[0]) > 0
        if chart == "network":  # out is drawn downwards
            assert (low, middle) == (high, "0 B/s")
        else:
            assert low.split()[0] == "0"


@pytest.mark.parametrize(("wanted", "animation"), [("no-preference", "arrive"), ("reduce", "none")])
def test_nothing_moves_where_less_motion_is_preferred(page: webdriver.Chrome, wanted: str, animation: str) -> None:
    look(page, "light", 1280, prefers_reduced_motion=wanted)
    names = page.execute_script(
        "return Array.from(document.querySelectorAll('body *')).map((each) => getComputedStyle(each))"
        ".map((style) => style.transitionDuration === '0s' ? style.animationName : 'transition')"
    )
    assert set(names) == {"none", animation}


class Old(PhantomJS):
    """An old browser, which reports how it shows a page, and takes a picture of it."""

    HOST = """\
var page = require("webpage").create(), url = require("system").args[1];
page.viewportSize = {width: 390, height: 844};
page.onError = function (text) { console.log("ERROR " + text); };
page.open(url, function () {
  setInterval(function () {
    console.log("TOLD " + JSON.stringify(page.evaluate(function () {
      function visible(id) { return document.getElementById(id).offsetHeight > 0; }
      return {
        state: document.getElementById("state").textContent, width: document.documentElement.scrollWidth,
        messages: document.getElementById("events").textContent, old: visible("old"), breaks: visible("breaks"),
        machine: visible("machine"), color: getComputedStyle(document.body).color
      };
    })));
    page.render(url.replace(/.*#/, ""));
  }, 500);
});
"""

    def told(self) -> dict[str, Any]:
        lines = [line for line in self.logs().split("\n") if line.startswith("TOLD ")]
        return json.loads(lines[-1].removeprefix("TOLD ")) if lines else {"messages": ""}


def test_an_old_browser_shows_the_state_and_the_messages_and_says_why_no_more(demo: Gunicorn, tmp_path: Path) -> None:
    publish(demo, "demo/hello", "good evening")
    with Old(tmp_path, f"{demo.url}/#{tmp_path}/page.png") as browser:
        wait_until(lambda: "good evening" in browser.told()["messages"], 20, what="the messages are on the page")
        told = browser.told()
        assert "ERROR" not in browser.logs()
    assert (told["old"], told["breaks"], told["machine"]) == (True, False, False)
    assert told["state"] in {"Live", "Polling"}
    assert told["width"] <= 390
