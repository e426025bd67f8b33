"""The layers of the package. A module imports from lower layers or from its own folder.

Each third-party library is imported by few modules.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "sse"
MODULES = {
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}

GROUND = {
    "errors",
    "version",
    "log",
    "unheard",
    "ring",
    "event",
    "wire",
    "config",
    "spread",
    "small_set",
    "owner",
    "connection_log",
}
"""Modules at the top of the package that everybody may import. Together they count as one folder."""

ORDER = (
    ("ground", "static"),
    ("stores",),
    ("hub",),
    ("access",),
    ("transports",),
    ("work",),
    ("service", "doctor"),
    ("web", "server"),
    ("extension", "publisher", "cli"),
    ("compat",),
    ("worker", "sse"),
)
"""The folders from the ground up, with the other modules at the top. Those on one floor do not know each other."""

EXCEPTIONS: dict[tuple[str, str], str] = {}
"""Imports that go up, each with its reason: three at most."""

KNOWN_TO = {
    "gevent": {"server"},
    "gunicorn": {"server", "worker"},
    # `hooks` changes the responses that hooks of the app have made, and finds Flask among the callers of a stream.
    "flask": {"web.views", "web.own_views", "web.hooks", "web.lane_rule", "extension", "cli", "compat"},
    "flask_cors": {"web.answers"},
    "werkzeug": {"web"},
    "click": {"cli"},
    "redis": {"stores", "access.limits"},
    "hiredis": {"stores.pool"},
    "limits": {"access.limits"},
    "jwt": {"access.token", "access.jwks"},
}
"""Libraries, and the folders and modules that may import each. No other library is imported."""

PURE = {
    "sse.errors",
    "sse.event",
    "sse.wire",
    "sse.config",
    "sse.ring",
    "sse.spread",
    *(module for module in MODULES if module.startswith("sse.hub.")),
    "sse.transports.dialect",
    "sse.transports.life",
    "sse.server.agenda",
    "sse.server.framing",
    "sse.server.head",
    "sse.server.effects",
    "sse.server.publishes",
    "sse.server.quiet",
    "sse.server.rounds",
    "sse.server.row",
    "sse.server.rows",
    "sse.server.handed_off",
    "sse.server.tally",
    "sse.server.wheel",
    "sse.web.request",
    *(f"sse.doctor.{name}" for name in ("arrivals", "findings", "judge", "proxies", "remedies", "report", "shape")),
}
LIGHT = {"sse.doctor", "sse.doctor.proxies"}
"""The modules of the doctor that each app imports."""

OUTSIDE = {"socket", "ssl", "select", "selectors", "subprocess", "os", "io", "redis", "http", "urllib.request"}
OUTSIDE |= {"gevent", "gunicorn", "flask"}
RE_EXPORTING = {"sse", "sse.stores", "sse.cli"}
IMPORTING_BY_NAME = {"sse", "sse.worker", "sse.cli.commands", "sse.web.doctor"}  # each has its reason in a docstring


def imports(tree: ast.AST) -> set[str]:
    """Return the modules that are imported. For `from sse.hub import hub`, that is `sse.hub.hub`."""
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


@cache
def tree_of(module: str) -> ast.Module:
    return ast.parse(MODULES[module].read_text())


def room_of(module: str) -> str:
    """Return the folder of a module, `ground`, or its own name if it is alone at the top."""
    name = module.split(".")[1] if "." in module else module
    return "ground" if name in GROUND else name


def floor_of(module: str) -> int:
    (floor,) = [number for number, rooms in enumerate(ORDER) if room_of(module) in rooms]
    return floor


def is_allowed(module: str, other: str) -> bool:
    return floor_of(other) < floor_of(module) or room_of(other) == room_of(module)


def in_circles(graph: Mapping[str, set[str]]) -> set[str]:
    """Return the modules from which imports lead into a circle."""
    left = {module: others & graph.keys() for module, others in graph.items()}
    while leaves := {module for module, others in left.items() if not others & left.keys()}:
        left = {module: others for module, others in left.items() if module not in leaves}
    return set(left)


def roots_of(module: str) -> set[str]:
    """Return the packages that a module imports from."""
    return {name.partition(".")[0] for name in imports(tree_of(module))}


def places_of(module: str) -> set[str]:
    return {room_of(module), module.removeprefix("sse.")}


def may_know(module: str, library: str) -> bool:
    return not places_of(module).isdisjoint(KNOWN_TO.get(library, ()))


def test_every_module_has_its_floor() -> None:
    rooms = {room for floor in ORDER for room in floor}
    assert {room_of(module) for module in MODULES} == rooms
    assert {f"sse.{name}" for name in GROUND} <= MODULES.keys()


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_down_or_sideways(module: str) -> None:
    for other in imports(tree_of(module)) & MODULES.keys():
        assert is_allowed(module, other) or (module, other) in EXCEPTIONS, f"{module} imports {other}"


@pytest.mark.parametrize(
    ("module", "other", "allowed"),
    [
        ("sse.web.views", "sse.event", True),
        ("sse.event", "sse.errors", True),
        ("sse.hub.hub", "sse.hub.subscriber", True),
        ("sse.hub.hub", "sse.access.token", False),
        ("sse.event", "sse.stores.base", False),
        ("sse.web.views", "sse.server.loop", False),
        ("sse.extension", "sse.cli.commands", False),
        ("sse.service", "sse", False),
    ],
)
def test_an_import_that_goes_up_or_to_another_folder_beside_is_found(module: str, other: str, allowed: bool) -> None:
    assert is_allowed(module, other) is allowed


def test_no_imports_make_a_circle() -> None:
    assert not in_circles({module: imports(tree_of(module)) for module in MODULES})


def test_a_circle_is_found() -> None:
    assert in_circles({"a": {"b", "json"}, "b": {"c"}, "c": set()}) == set()
    assert in_circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": set()}) == {"a", "b", "c"}


def test_exceptions_are_few_and_each_is_needed() -> None:
    assert len(EXCEPTIONS) <= 3
    for (module, other), reason in EXCEPTIONS.items():
        assert other in imports(tree_of(module))
        assert not is_allowed(module, other)
        assert reason


@pytest.mark.parametrize("module", MODULES)
def test_libraries_are_known_where_they_may_be(module: str) -> None:
    libraries = roots_of(module) - sys.stdlib_module_names - {"sse", "_typeshed"}
    assert not {library for library in libraries if not may_know(module, library)}


def test_who_may_know_a_library_does() -> None:
    known = {library: [name for name in MODULES if library in roots_of(name)] for library in KNOWN_TO}
    used = {(library, place) for library, names in known.items() for name in names for place in places_of(name)}
    allowed = {(library, place) for library, places in KNOWN_TO.items() for place in places}
    assert allowed <= used


def test_a_library_in_another_place_is_found() -> None:
    assert may_know("sse.server.loop", "gevent")
    assert may_know("sse.web.views", "flask")
    assert not may_know("sse.web.script", "flask")
    assert not may_know("sse.hub.hub", "gevent")
    assert not may_know("sse.hub.hub", "requests")


@pytest.mark.parametrize("module", MODULES)
def test_no_import_hides_in_a_function(module: str) -> None:
    for node in ast.walk(tree_of(module)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            hidden = [inner for inner in ast.walk(node) if isinstance(inner, ast.Import | ast.ImportFrom)]
            assert not hidden, f"{module}:{node.lineno}"


def test_modules_are_imported_by_their_name_in_few_places() -> None:
    found = {module for module in MODULES for node in ast.walk(tree_of(module)) if is_import_by_name(node)}
    assert found == IMPORTING_BY_NAME


def is_import_by_name(node: ast.AST) -> bool:
    name = getattr(node, "attr", getattr(node, "id", ""))
    return name in ("import_module", "__import__")


@pytest.mark.parametrize("module", sorted(PURE))
def test_values_the_hub_and_the_rows_do_no_input_or_output(module: str) -> None:
    assert not (imports(tree_of(module)) | roots_of(module)) & OUTSIDE


@pytest.mark.parametrize("module", [name for name, path in MODULES.items() if path.name == "__init__.py"])
def test_a_folder_says_what_lives_there_and_only_public_ones_re_export(module: str) -> None:
    tree = tree_of(module)
    assert len(ast.get_docstring(tree) or "") > 20
    assert module in RE_EXPORTING or not imports(tree)


def test_the_doctor_is_imported_only_when_it_is_asked() -> None:
    code = "import wsgi, sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=PACKAGE.parent, capture_output=True, text=True, check=True)
    imported = set(done.stdout.split())
    assert "sse.web.doctor" in imported
    assert {name for name in imported if name.startswith(("sse.doctor", "sse.cli.doctor"))} <= LIGHT


def test_the_worker_s_modules_leave_the_library_to_be_patched_first() -> None:
    """The worker is imported before gevent patches the standard library, which has to be unused until then."""
    code = "import sse.server.worker, sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=PACKAGE.parent, capture_output=True, text=True, check=True)
    imported = set(done.stdout.split())
    assert "sse.server.rows" in imported
    assert not {name for name in imported if name.startswith(("redis", "sse.stores", "sse.hub", "sse.service"))}
