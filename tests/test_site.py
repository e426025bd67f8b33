"""The site has a row for each setting and each error, a section for each fault, and shows files as they are."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest

import sse.errors
from sse.config import Config
from sse.doctor.findings import CODES
from sse.event import EndReason, ResetReason
from sse.transports.life import CloseReason
from tests.docs import section
from tests.servers import ROOT

SETTINGS = (ROOT / "docs" / "settings.md").read_text()
ERRORS = (ROOT / "docs" / "errors.md").read_text()
TROUBLE = (ROOT / "docs" / "troubleshooting.md").read_text()
ROW = re.compile(r"^\| `(\w+)` \|", re.MULTILINE)
INCLUDED = re.compile(r"^```\{literalinclude\} (\S+)$", re.MULTILINE)


def test_the_table_of_settings_is_that_of_the_code() -> None:
    rows = re.findall(r"^\| `(SSE_\w+)` \| (.*?) \| (.+) \|$", SETTINGS, re.MULTILINE)
    assert rows == [(name, "" if default == "-" else default, text) for name, _, default, text in Config().table()]


def codes() -> Iterator[str]:
    """Yield each code that the source gives to an error."""
    for path in ROOT.glob("sse/**/*.py"):
        text = re.sub(r'"""(.*?)"""', "", path.read_text(), flags=re.DOTALL)
        if "doctor" not in path.parts:
            yield from re.findall(r'\b(?:default_)?code(?:: ClassVar\[str\])? ?= ?"(\w+)"', text)


def test_each_error_of_the_source_has_a_row_and_no_other() -> None:
    rows = ROW.findall(section(ERRORS, "Codes"))
    assert len(rows) == len(set(rows))
    assert set(rows) | {"bad_settings", "slow", "error"} == set(codes())


def test_the_status_of_a_row_is_that_of_the_class() -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| ([\d, ]+) \|", section(ERRORS, "Codes"), re.MULTILINE))
    for error in vars(sse.errors).values():
        if isinstance(error, type) and issubclass(error, sse.errors.SSEError) and error.default_code in rows:
            assert str(error.status) in rows[error.default_code].split(", "), error


@pytest.mark.parametrize(
    ("heading", "reasons"),
    [
        ("A stream that ends", CloseReason),
        ("A channel that ends", EndReason),
        ("A position that cannot be continued", ResetReason),
    ],
)
def test_each_reason_has_a_row(heading: str, reasons: object) -> None:
    assert sorted(ROW.findall(section(ERRORS, heading))) == sorted(get_args(reasons))


def test_each_fault_that_the_doctor_names_has_a_section_with_the_words_that_people_type() -> None:
    found = re.findall(r'((?:<a id="\w+"></a>\n)+)\n## (.*)\n\n\*\*You may see:\*\* ((?:.+\n)+)', TROUBLE)
    assert len(found) == TROUBLE.count("\n## ")
    anchors = [anchor for anchors, _, _ in found for anchor in re.findall(r'"(\w+)"', anchors)]
    assert len(anchors) == len(set(anchors))
    assert set(anchors) - {"gateway", "works_locally"} == set(CODES)
    for _, heading, seen in found:
        assert len(" ".join(seen.split()).split("; ")) >= 3, heading


def pages() -> list[Path]:
    return sorted([*ROOT.glob("docs/*.md"), *ROOT.glob("deploy/*/README.md")])


@pytest.mark.parametrize("page", sorted(ROOT.glob("deploy/*/README.md")), ids=lambda page: page.parent.name)
def test_a_recipe_shows_or_names_each_of_its_files(page: Path) -> None:
    text = page.read_text()
    named = {*INCLUDED.findall(text), *re.findall(r"\]\(([^)#:]+)\)", text)}
    files = {str(path.relative_to(page.parent)) for path in page.parent.rglob("*") if path.is_file() and path != page}
    assert files <= named, "a reader of the page does not learn of these files"


def test_files_that_are_shown_exist() -> None:
    for page in pages():
        for name in INCLUDED.findall(page.read_text()):
            assert (page.parent / name).is_file(), (page, name)


def test_the_first_page_leads_to_each_page() -> None:
    first = (ROOT / "docs" / "index.md").read_text()
    links = {(ROOT / "docs" / link).resolve() for link in re.findall(r"\]\(([^)#:]+)", first)}
    assert {*pages(), ROOT / "examples" / "README.md"} - {ROOT / "docs" / "index.md"} <= links
