"""The project's own files: the name of the distribution, and the metadata."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.servers import ROOT

PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
FOLDERS = ("bench", "demo", "deploy", "docs", "requirements", "sse", "static", "tests", "tools")
OTHERS = {"node_modules", "__pycache__", "_build", "build", "vendor"}
OTHER_PROJECT = re.compile(r"\b(?:pipx? install|uv add)\s(?:[^\n`]*[\s'\"])?throughline(?![\w./-])", re.IGNORECASE)


def text_files() -> Iterator[Path]:
    """Yield the project's own text files."""
    found = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*")]
    for path in sorted([*ROOT.iterdir(), *found]):
        if path.is_file() and OTHERS.isdisjoint(path.parts) and b"\0" not in path.read_bytes():
            yield path


FILES = {str(path.relative_to(ROOT)): path for path in text_files()}


# The name


def test_the_distribution_has_a_name_of_its_own() -> None:
    assert PROJECT["name"] == "flask-throughline"


def test_nobody_is_told_to_install_the_other_project_of_that_name() -> None:
    assert not [name for name, path in FILES.items() if OTHER_PROJECT.search(path.read_text())]


@pytest.mark.parametrize(
    ("command", "is_wrong"),
    [
        ("pip {} throughline", True),
        ("pip {} --upgrade 'throughline[server]'", True),
        ("uv {} throughline==0.1.0", True),
        ("pip {} flask-throughline", False),
        ("pip {} ./throughline", False),
        ("pip {} '/opt/throughline[server]'", False),
        ("pip un{} throughline", False),
    ],
)
def test_such_a_command_is_found(command: str, is_wrong: bool) -> None:
    word = "add" if command.startswith("uv") else "install"
    assert bool(OTHER_PROJECT.search(command.format(word))) is is_wrong


# The metadata


def test_the_classifiers_name_flask_types_and_the_pythons_that_are_declared() -> None:
    classifiers = PROJECT["classifiers"]
    assert {"Framework :: Flask", "Typing :: Typed"} <= set(classifiers)
    assert classifiers == sorted(set(classifiers))
    oldest, *_ = [name for name in classifiers if re.search(r":: 3\.\d+$", name)]
    assert PROJECT["requires-python"] == f">={oldest.rpartition(' ')[2]}"
    assert not [name for name in classifiers if name.startswith("License ::")], "`license` says it (PEP 639)"


def test_a_wheel_whose_addresses_lead_nowhere_cannot_be_uploaded() -> None:
    addresses = PROJECT["urls"]
    assert addresses.keys() == {"Documentation", "Source", "Changelog", "Issues"}
    assert all(address.startswith(addresses["Source"]) for address in addresses.values())
    has_no_address = "//git.example/" in addresses["Source"]
    assert has_no_address is ("Private :: Do Not Upload" in PROJECT["classifiers"])
