"""The house's floors: modules import downward only, and know what they may."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "sse"
FLOORS = {
    "sse.errors": 1,
    "sse.event": 1,
    "sse.wire": 1,
    "sse.log": 1,
    "sse.alone": 1,
    "sse.version": 1,
    "sse.config": 1,
    "sse.ring": 1,
    "sse.head": 1,
    "sse.host": 2,
    "sse.home": 2,
    "sse.stores": 2,
    "sse.stores.base": 2,
    "sse.stores.faults": 2,
    "sse.stores.fitness": 2,
    "sse.stores.memory": 2,
    "sse.stores.peers": 2,
    "sse.stores.pool": 2,
    "sse.stores.redis": 2,
    "sse.reload": 2,
    "sse.jwks": 2,
    "sse.token": 2,
    "sse.keys": 2,
    "sse.permit": 3,
    "sse.subscriber": 3,
    "sse.hub": 3,
    "sse.stream": 4,
    "sse.poll": 4,
    "sse.service": 4,
    "sse.script": 4,
    "sse.limits": 5,
    "sse.access": 5,
    "sse.hooks": 5,
    "sse.blueprint": 5,
    "sse.extension": 6,
    "sse.cli": 6,
    "sse.fanout": 5,
    "sse.server": 6,
    "sse.server.worker": 6,
    "sse.worker": 7,
    "sse": 7,
}
FOR_SIBLINGS = {"sse.errors": {"sse.event", "sse.wire", "sse.config", "sse.ring"}}
FOR_SIBLINGS["sse.event"] = {"sse.wire", "sse.config", "sse.ring"}
FOR_SIBLINGS["sse.subscriber"] = {"sse.hub"}
FOR_SIBLINGS["sse.reload"] = {"sse.jwks", "sse.keys"}
FOR_SIBLINGS["sse.jwks"] = {"sse.token"}
FOR_SIBLINGS["sse.limits"] = {"sse.blueprint"}
FOR_SIBLINGS["sse.hooks"] = {"sse.blueprint"}
FOR_SIBLINGS["sse.access"] = {"sse.blueprint"}
FOR_SIBLINGS["sse.cli"] = {"sse.extension"}  # which may register the commands
MODULES = {
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}
WEB = {"flask", "flask_cors", "werkzeug", "click"}
SERVER = {"gevent", "gunicorn", "greenlet"}
KNOW_THE_SERVER = ("sse.fanout", "sse.server.worker", "sse.worker")


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


def test_every_module_has_its_floor() -> None:
    assert MODULES.keys() == FLOORS.keys()


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_downward(module: str) -> None:
    for other in imports(tree_of(module)):
        if other != "sse" and not other.startswith("sse."):
            continue
        allowed = (
            FLOORS[other] < FLOORS[module]
            or module in FOR_SIBLINGS.get(other, ())
            or (module.startswith("sse.stores") and other.startswith("sse.stores."))
        )
        assert allowed, f"{module} (floor {FLOORS[module]}) imports {other} (floor {FLOORS[other]})"


@pytest.mark.parametrize("module", [module for module, floor in FLOORS.items() if floor <= 4 and module in MODULES])
def test_below_the_fifth_floor_nobody_knows_flask(module: str) -> None:
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
    "module", ["sse.errors", "sse.event", "sse.wire", "sse.config", "sse.ring", "sse.head", "sse.subscriber", "sse.hub"]
)
def test_values_and_the_hub_do_no_input_or_output(module: str) -> None:
    others = {name for name in imports(tree_of(module)) if not name.startswith("sse")}
    assert not others & {"socket", "ssl", "select", "subprocess", "os", "io", "redis", "http", "urllib.request"}
