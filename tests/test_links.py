"""Links of the pages lead to existing pages, and paths in settings and comments to existing files."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.servers import ROOT

FOLDERS = ("docs/*.md", "deploy/*/README.md", "examples/README.md", "tests/README.md")
PAGES = sorted([*ROOT.glob("*.md"), *(page for folder in FOLDERS for page in ROOT.glob(folder))])
SETTINGS = ["nginx.conf", "gunicorn.conf.py", "Makefile", "pyproject.toml", "deploy/nginx/throughline.conf"]
SOURCES = sorted({ROOT / name for name in SETTINGS} | {*ROOT.glob("sse/**/*.py"), *ROOT.glob("demo/*.py"), *PAGES})
LINK = re.compile(r"\]\(([^)\s]+)\)")
PATH = re.compile(r"(?<![\w/.-])((?:sse|demo|bench|requirements)/[\w/.-]*\.(?:py|lua|in|txt|html|css|js))\b")


def headings(page: Path) -> set[str]:
    """Return the anchors that a page's headings have, as GitHub makes them, and those that the page sets itself."""
    text = page.read_text()
    found = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    own = set(re.findall(r'^<a id="(\w+)"></a>$', text, re.MULTILINE))
    return own | {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in found}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_to_a_file_and_to_a_heading_of_it(page: Path) -> None:
    for link in LINK.findall(page.read_text()):
        if "://" in link:
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), link
        assert not anchor or anchor in headings(target), link


@pytest.mark.parametrize("file", SOURCES, ids=lambda file: str(file.relative_to(ROOT)))
def test_every_path_that_is_named_is_that_of_a_file(file: Path) -> None:
    for path in PATH.findall(file.read_text()):
        assert (ROOT / path).exists(), path
