"""The project's own files: the name of the distribution, the metadata, the layout of files, and the lint."""

from __future__ import annotations

import re
import subprocess
import tomllib
from collections import Counter
from collections.abc import Iterator
from configparser import ConfigParser
from fnmatch import fnmatch
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.servers import ROOT

PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
FOLDERS = ("bench", "demo", "deploy", "docs", "examples", "requirements", "sse", "static", "tests", "tools")
OTHERS = {"node_modules", "__pycache__", "_build", "build", "vendor"}
OTHER_PROJECT = re.compile(r"\b(?:pipx? install|uv add)\s(?:[^\n`]*[\s'\"])?throughline(?![\w./-])", re.IGNORECASE)


def text_files() -> Iterator[Path]:
    """Yield the project's own text files."""
    found = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*")]
    for path in sorted([*ROOT.iterdir(), *found]):
        if path.name.startswith(".coverage") or not OTHERS.isdisjoint(path.relative_to(ROOT).parts):
            continue  # `make check` writes and removes files of the first kind meanwhile
        if path.is_file() and b"\0" not in path.read_bytes():
            yield path


FILES = {str(path.relative_to(ROOT)): path for path in text_files()}


# The name


def test_the_distribution_has_a_name_of_its_own() -> None:
    assert PROJECT["name"] == "flask-throughline"


def test_nobody_is_told_to_install_the_other_project_of_that_name() -> None:
    assert {"README.md", "sse/service.py", "tests/test_project.py"} <= FILES.keys()
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


# The layout of files


def layout() -> list[tuple[str, dict[str, str]]]:
    """Return the sections of .editorconfig, without the braces of their globs."""
    parser = ConfigParser(default_section="")
    parser.read_string("[root]\n" + (ROOT / ".editorconfig").read_text())
    globs = {section: re.fullmatch(r"\*\.\{(.*)\}", section) for section in parser.sections()}
    return [
        (glob, dict(parser[section]))
        for section, list in globs.items()
        for glob in ([f"*.{suffix}" for suffix in list[1].split(",")] if list else [section])
    ]


def layout_of(name: str) -> dict[str, str]:
    """Return the layout that .editorconfig asks of a file. A later section wins."""
    asked: dict[str, str] = {}
    for glob, section in layout():
        if fnmatch(name, glob):
            asked |= section
    return asked


def faults(data: bytes, asked: dict[str, str]) -> Iterator[str]:
    """Yield what a file lacks of the layout that is asked of it."""
    text = data.decode(asked["charset"])
    if asked["end_of_line"] == "lf" and "\r" in text:
        yield "a line does not end with LF alone"
    if asked["insert_final_newline"] == "true" and data and not text.endswith("\n"):
        yield "the final newline is missing"
    if asked["trim_trailing_whitespace"] == "true" and re.search(r"[ \t]$", text, re.MULTILINE):
        yield "a line ends with white space"
    if asked["indent_style"] == "space" and re.search(r"^ *\t", text, re.MULTILINE):
        yield "a line is indented by a tab"


def test_each_file_is_laid_out_as_the_editorconfig_asks() -> None:
    found = [f"{name}: {fault}" for name, path in FILES.items() for fault in faults(path.read_bytes(), layout_of(name))]
    assert not found


def test_a_fault_of_layout_is_found() -> None:
    assert not list(faults(b"if x:\n    y\n", layout_of("a.py")))
    assert len(list(faults(b"if x:\r\n\ty \nz", layout_of("a.py")))) == 4
    assert not list(faults(b"x:\n\ty\n", layout_of("Makefile")))


def test_each_kind_of_file_is_indented_as_the_editorconfig_asks() -> None:
    for suffix in {path.suffix for path in FILES.values() if path.suffix}:
        steps: Counter[int] = Counter()
        for path in FILES.values():
            if path.suffix == suffix:
                indents = [len(line) - len(line.lstrip()) for line in path.read_text().split("\n") if line.strip()]
                steps.update(after - before for before, after in pairwise(indents) if after > before)
        if steps:
            assert steps.most_common(1)[0][0] == int(layout_of(f"a{suffix}")["indent_size"]), suffix


# What is linted


def recipe(target: str) -> list[str]:
    """Return the commands that `make` would run for a target."""
    command = ["make", "--dry-run", "--no-print-directory", target]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    return done.stdout.splitlines()


def test_a_commit_is_held_to_what_make_test_lints() -> None:
    (repository,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert repository["repo"] == "local", "nothing is fetched"
    (hook,) = repository["hooks"]
    assert (hook["entry"], hook["language"]) == ("make lint", "system")
    assert (hook["pass_filenames"], hook["always_run"]) == (False, True), "mypy looks at the whole"
    lint = recipe("lint")
    assert [re.sub(r"^\S+/", "", line) for line in lint] == ["ruff check .", "ruff format --check .", "mypy"]
    assert recipe("check")[: len(lint)] == lint


@pytest.mark.parametrize("folder", ["here", "live", "browser"])
def test_make_check_runs_each_file_once(folder: str) -> None:
    (parts,) = re.findall(r"^SIDE_BY_SIDE := ((?:.*\\\n)*.*)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    patterns = [f"test_{part}*.py" for part in re.findall(rf"\b{folder}-(\S+)", parts)]
    for file in (ROOT / "tests" / folder.replace("here", ".")).glob("test_*.py"):
        assert sum(fnmatch(file.name, pattern) for pattern in patterns) == 1, file
