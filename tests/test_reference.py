"""The reference has each public name, and its docstrings give all parameters and errors, and an example that runs."""

from __future__ import annotations

import builtins
import doctest
import inspect
import re
import runpy
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from flask import Flask

import sse
import sse.errors
from sse import SSE
from sse.cli import cli
from sse.config import Config
from sse.worker import Worker
from tests.conftest import MakeApp
from tests.servers import ROOT

PAGE = (ROOT / "docs" / "api.md").read_text()
CLASSES = {**{f"sse.{name}": getattr(sse, name) for name in sse.__all__}, "sse.worker.Worker": Worker}
WITH_METHODS = ("sse.SSE", "sse.Publisher", "sse.SSEError")


def members(name: str) -> Iterator[tuple[str, Any]]:
    """Yield the public methods and properties that a class defines itself, and that no class it inherits from has."""
    bases = CLASSES[name].__mro__[1:]
    for member, value in vars(CLASSES[name]).items():
        if member.startswith("_") or any(member in vars(base) for base in bases):
            continue
        if callable(value) or isinstance(value, property):
            yield f"{name}.{member}", value


PUBLIC = CLASSES | {name: value for owner in WITH_METHODS for name, value in members(owner)}


def parameters(documented: Any) -> list[str]:
    """Return the names of the parameters of a function, or of the `__init__` that a class has of its own."""
    function = vars(documented).get("__init__") if inspect.isclass(documented) else documented
    if not callable(function):
        return []
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    given = inspect.signature(function).parameters.values()
    return [parameter.name for parameter in given if parameter.name != "self" and parameter.kind not in kinds]


def test_the_page_has_each_public_name_and_no_other() -> None:
    module = "sse"
    found = []
    for kind, name in re.findall(r"^\.\. (currentmodule|autoclass|autoexception):: ([\w.]+)", PAGE, re.MULTILINE):
        if kind == "currentmodule":
            module = name
        else:
            found.append(name if "." in name else f"{module}.{name}")
    assert sorted(found) == sorted(CLASSES)
    listed = re.findall(r"^\.\. auto\w+:: (\w+)\n   :members:", PAGE, re.MULTILINE)
    assert [f"sse.{name}" for name in listed] == list(WITH_METHODS)


def test_classes_without_methods_in_the_page_have_none_of_their_own() -> None:
    assert not [member for name in CLASSES.keys() - {*WITH_METHODS, "sse.worker.Worker"} for member in members(name)]


@pytest.mark.parametrize("name", PUBLIC)
def test_a_docstring_names_the_parameters_and_public_errors(name: str) -> None:
    text = inspect.cleandoc(PUBLIC[name].__doc__ or "")
    assert text
    assert re.findall(r"^:param (\w+): \S", text, re.MULTILINE) == parameters(PUBLIC[name])
    raised = re.findall(r"^:raises (\w+): \S", text, re.MULTILINE)
    assert text.count(":raises") == len(raised)
    for error in raised:
        if not hasattr(builtins, error):
            assert error in sse.__all__
            assert hasattr(sse.errors, error)


@pytest.mark.parametrize("name", PUBLIC)
def test_an_example_runs(name: str, make_app: MakeApp) -> None:
    extension = SSE()
    app = make_app(extension, SSE_PUBLIC="news", SSE_SECRET="a-secret-of-the-tests-with-32-bytes", SECRET_KEY="login")
    given = {"__name__": "example", "Flask": Flask, "app": app, "sse": extension, "client": app.test_client()}
    given |= {"Publisher": sse.Publisher, "StoreUnavailable": sse.StoreUnavailable}
    (test,) = doctest.DocTestFinder(recurse=False).find(PUBLIC[name], name, module=False, globs=given)
    assert test.examples
    told: list[str] = []
    result = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(test, out=told.append, clear_globs=False)
    for value in test.globs.values():
        if isinstance(value, SSE):
            value.close()
    assert not result.failed, "".join(told)


def test_the_settings_and_commands_of_the_page_are_those_of_the_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])
    written = runpy.run_path(str(ROOT / "docs" / "conf.py"))
    text = written["settings"]().replace("\\", "")
    entry = re.compile(r"^\.\. confval:: (.+)\n\n   (.+)\. Give .+\. (?:Default: `(.+)`|No default)\.$", re.MULTILINE)
    assert [(name, help.lower(), default or "-") for name, help, default in entry.findall(text)] == [
        (name, help.lower(), default) for name, _, default, help in Config().table()
    ]
    assert "Give a whole number of events from 1 to 100000. Default: `1000`." in text
    commands = re.findall(r"^ +Usage: flask sse (\w+) ", written["commands"](), re.MULTILINE)
    assert commands == sorted(cli.commands)
