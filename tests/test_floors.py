"""The house's floors: modules import downward only, and know what they may."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "sse"
FLOORS = [
    {"errors", "version", "log", "alone", "ring", "event", "wire", "config", "spread"},
    {"home", "stores"},
    {"hub"},
    {"access"},
    {"transports"},
    {"service"},
    {"web", "server"},
    {"extension", "cli", "worker"},
    {""},
]
"""From the ground up: modules and folders of the package; the last one is the package itself."""

EXCEPTIONS = {
    ("sse.cli.commands", "sse.extension"),
}
MODULES = {
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}
WEB = {"flask", "flask_cors", "werkzeug", "click"}
SERVER = {"gevent", "gunicorn", "greenlet"}
KNOW_THE_SERVER = (
    *("sse.server.answers", "sse.server.loop", "sse.server.mending", "sse.server.publishers", "sse.server.reading"),
    *("sse.server.sockets", "sse.server.worker", "sse.worker"),
)


def imports(tree: ast.AST) -> set[str]:
    """The modules that are imported; of `from sse import x`, x."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            assert node.module is not None
            inner = {f"{node.module}.{alias.name}" for alias in node.names} & MODULES.keys()
            found |= inner or {node.module}
    return found


def tree_of(module: str) -> ast.Module:
    return ast.parse(MODULES[module].read_text())


def part_of(module: str) -> str:
    """The folder or the module at the top of the package."""
    return module.removeprefix("sse").removeprefix(".").partition(".")[0]


def floor_of(module: str) -> int:
    (floor,) = [number for number, parts in enumerate(FLOORS) if part_of(module) in parts]
    return floor


def test_every_module_has_its_floor() -> None:
    assert {part_of(module) for module in MODULES} == set().union(*FLOORS)


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_down_or_sideways(module: str) -> None:
    for other in imports(tree_of(module)):
        if other != "sse" and not other.startswith("sse."):
            continue
        below = floor_of(other) < floor_of(module)
        beside = part_of(other) == part_of(module) or (floor_of(other) == floor_of(module) == 0)
        assert below or beside or (module, other) in EXCEPTIONS, f"{module} imports {other}"


def test_no_imports_make_a_circle() -> None:
    below = {module: {other for other in imports(tree_of(module)) if other in MODULES} for module in MODULES}
    while leaves := {module for module, others in below.items() if not others & below.keys()}:
        below = {module: others for module, others in below.items() if module not in leaves}
    assert not below


@pytest.mark.parametrize("module", [module for module in MODULES if floor_of(module) < 6])
def test_below_the_web_nobody_knows_flask(module: str) -> None:
    assert not {name.partition(".")[0] for name in imports(tree_of(module))} & WEB


@pytest.mark.parametrize("module", [module for module in MODULES if module not in KNOW_THE_SERVER])
def test_only_the_worker_s_own_modules_may_know_the_server(module: str) -> None:
    assert not {name.partition(".")[0] for name in imports(tree_of(module))} & SERVER


@pytest.mark.parametrize("module", MODULES)
def test_no_import_hides_in_a_function(module: str) -> None:
    for node in ast.walk(tree_of(module)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            hidden = [inner for inner in ast.walk(node) if isinstance(inner, ast.Import | ast.ImportFrom)]
            assert not hidden, f"{module}:{node.lineno}"


@pytest.mark.parametrize(
    "module",
    [
        "sse.errors",
        "sse.event",
        "sse.wire",
        "sse.config",
        "sse.ring",
        "sse.server.head",
        *[module for module in MODULES if part_of(module) == "hub"],
    ],
)
def test_values_and_the_hub_do_no_input_or_output(module: str) -> None:
    others = {name for name in imports(tree_of(module)) if not name.startswith("sse")}
    assert not others & {"socket", "ssl", "select", "subprocess", "os", "io", "redis", "http", "urllib.request"}
