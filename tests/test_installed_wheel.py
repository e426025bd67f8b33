"""The wheel, installed alone, has every module of the package, and each module can be imported first."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from sse.version import __version__
from tests.servers import ROOT

FOLDERS = ("sse", "static", "demo", "bench", "tests")
FILES = ("pyproject.toml", "README.md", "LICENSE", "app.py", "wsgi.py", "gunicorn.conf.py")
IMPORT_EACH = """
import json, sys
from importlib import import_module, metadata

told = {}
for name in sys.argv[1:]:
    for known in [known for known in sys.modules if known.partition(".")[0] == "sse"]:
        del sys.modules[known]
    told[name] = import_module(name).__file__
told["script"] = import_module("sse.web.script").load().plain.body.decode()
(command,) = metadata.distribution("flask-throughline").entry_points.select(group="flask.commands", name="sse")
told["command"] = command.load().name
print(json.dumps(told))
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with nothing but the installed wheel."""
    tree, folder = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("installed")
    for name in FOLDERS:
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__", "node_modules", "build"))
    for name in FILES:
        shutil.copy(ROOT / name, tree)
    run([sys.executable, "-m", "build", "--wheel", "--no-isolation"], tree)
    (wheel,) = (tree / "dist").iterdir()
    run([sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--target", folder, wheel], tree)
    yield folder
    shutil.rmtree(tree)


def run(command: Sequence[str | Path], directory: Path, **environment: str) -> str:
    done = subprocess.run(
        command, cwd=directory, env=os.environ | environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def files(folder: Path, suffix: str) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob(f"*{suffix}")}


def test_it_has_the_package_and_nothing_else(installed: Path) -> None:
    assert {path.name for path in installed.iterdir()} == {"sse", f"flask_throughline-{__version__}.dist-info"}


def test_it_has_every_module(installed: Path) -> None:
    source = files(ROOT / "sse", ".py") - {"static/__init__.py"}
    assert "hub/hub.py" in source
    assert files(installed / "sse", ".py") == source


def test_it_has_the_files_that_are_no_modules(installed: Path) -> None:
    scripts = files(ROOT / "sse", ".lua")
    assert "stores/publish.lua" in scripts
    assert files(installed / "sse", ".lua") == scripts
    assert (installed / "sse" / "py.typed").exists()
    served = {"sse.js", "doctor.html", "doctor.css", "doctor.js"}
    assert {path.name for path in (installed / "sse" / "static").iterdir()} == served
    for name in served:
        assert (installed / "sse" / "static" / name).read_bytes() == (ROOT / "static" / name).read_bytes()


def test_each_module_can_be_the_first_that_is_imported(installed: Path, tmp_path: Path) -> None:
    modules = {
        name.removesuffix(".py").removesuffix("/__init__").replace("/", "."): name for name in files(installed, ".py")
    }
    command = [sys.executable, "-P", "-c", IMPORT_EACH, *sorted(modules)]
    told: dict[str, Any] = json.loads(run(command, tmp_path, PYTHONPATH=str(installed)))
    assert told.pop("script").startswith(f"/* Throughline {__version__}")
    assert told.pop("command") == "sse"
    assert told == {module: str(installed / file) for module, file in modules.items()}


def test_a_copy_of_the_app_runs_beside_it_without_the_demo(installed: Path, tmp_path: Path) -> None:
    shutil.copy(ROOT / "app.py", tmp_path)
    code = """
import app
client = app.create_app().test_client()
print([client.get(path).status_code for path in ("/", "/healthz", "/sse/sse.js", "/nothing")])
"""
    told = run([sys.executable, "-P", "-c", code], tmp_path, PYTHONPATH=f"{installed}:{tmp_path}")
    assert told.strip() == "[200, 200, 200, 404]"
