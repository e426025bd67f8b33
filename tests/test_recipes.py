"""The steps of CONTRIBUTING.md's recipes that are easily forgotten: for a command, a setting, a route and a store."""

from __future__ import annotations

import re
from dataclasses import fields
from itertools import combinations

from sse.config import _NEAR, Config, _distance, setting_name
from sse.stores import Store
from tests.conftest import MakeApp
from tests.servers import ROOT

PAGE = (ROOT / "CONTRIBUTING.md").read_text()


def test_every_command_of_the_makefile_is_listed() -> None:
    commands = re.findall(r"echo 'make (\w+)", (ROOT / "Makefile").read_text())
    assert "test" in commands
    assert not [command for command in commands if f"| `make {command}" not in PAGE]


def test_every_test_that_is_named_is_there() -> None:
    tests = {path.relative_to(ROOT).as_posix(): path.read_text() for path in ROOT.glob("tests/**/*.py")}
    named = set(re.findall(r"tests/[\w/]+\.py", PAGE))
    assert named
    assert named <= tests.keys()
    functions = set(re.findall(r"`(test_\w+)`", PAGE))
    assert not [name for name in functions if not any(f"def {name}(" in text for text in tests.values())]


def test_every_setting_is_read_by_the_code() -> None:
    code = "".join(path.read_text() for path in ROOT.glob("sse/**/*.py") if path.name != "config.py")
    gunicorn = (ROOT / "gunicorn.conf.py").read_text()
    unread = [item for item in fields(Config) if not re.search(rf"config\.{item.name}\b", code)]
    assert not [name for name in map(setting_name, unread) if f'"{name}"' not in gunicorn]


def test_no_setting_can_be_another_one_mistyped() -> None:
    names = [setting_name(item) for item in fields(Config)]
    near = {frozenset(pair) for pair in combinations(names, 2) if _distance(*pair) <= _NEAR}
    assert near == {frozenset({"SSE_RING_TTL", "SSE_RUN_TTL"})}, "only these two are alike, two letters apart"


def test_every_route_has_a_heading_in_the_wire_contract(make_app: MakeApp) -> None:
    contract = (ROOT / "docs" / "protocol.md").read_text()
    headings = "\n".join(re.findall(r"^## (.*)$", contract, re.MULTILINE))
    rules = [rule for rule in make_app().url_map.iter_rules() if rule.endpoint.startswith("sse.")]
    paths = {rule.rule.partition("<")[0].rstrip("/.") for rule in rules if rule.endpoint != "sse.nothing_here"}
    assert "/sse/stream" in paths
    assert not [path for path in paths if not re.search(rf" {re.escape(path)}\b", headings)]


def test_every_store_goes_through_the_tests_of_the_contract() -> None:
    (params,) = re.findall(r"params=\[(.*)\]\)\ndef store_url", (ROOT / "tests" / "conftest.py").read_text())
    ours = [store for store in Store.__subclasses__() if store.__module__.startswith("sse.")]
    stores = {store.__name__.removesuffix("Store").lower() for store in ours}
    assert set(re.findall(r'"(\w+)"', params)) == stores
