"""Starts Chromium with a WebDriver, with the same options for all tests."""

from __future__ import annotations

from pathlib import Path

from selenium import webdriver
from selenium.webdriver.chrome.service import Service

FLAGS = (
    "--headless=new --no-sandbox --disable-gpu --disable-dev-shm-usage --disable-background-networking "
    "--disable-component-update --disable-sync --no-first-run"
)


def start_chromium(folder: Path, *flags: str, options: webdriver.ChromeOptions | None = None) -> webdriver.Chrome:
    """Start Chromium with an empty profile and its driver's log in `folder`. The caller ends it by `quit`."""
    options = options or webdriver.ChromeOptions()
    options.binary_location = "/usr/bin/chromium"
    for flag in [*FLAGS.split(), f"--user-data-dir={folder}/chromium", *flags]:
        options.add_argument(flag)
    driver = webdriver.Chrome(options, Service("/usr/bin/chromedriver", log_output=str(folder / "chromedriver.log")))
    driver.set_script_timeout(10)
    return driver
