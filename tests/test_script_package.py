"""The embed script as an ES module and as an npm package. Its types know every name in the docs."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

import sse
from tests.conftest import MakeApp
from tests.servers import ROOT

USE = ROOT / "tests" / "clients" / "every_name.ts"
TSC = ROOT / "tests" / "node_modules" / ".bin" / "tsc"
EMBEDDING = (ROOT / "docs" / "embedding.md").read_text()
STRICT = "--noEmit --strict --target es2022 --module nodenext --noUnusedLocals".split()


def run(command: Sequence[str | Path], directory: Path) -> str:
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with the package installed, as npm packs it."""
    package, project = tmp_path_factory.mktemp("package"), tmp_path_factory.mktemp("project")
    for name in ("package.json", "sse.js", "sse.d.ts"):
        package.joinpath(name).write_bytes((ROOT / "static" / name).read_bytes())
    run(["npm", "pack", "--offline", "--pack-destination", project], package)
    (tarball,) = project.glob("*.tgz")
    project.joinpath("package.json").write_text('{"type": "module"}')
    run(["npm", "install", "--offline", "--no-audit", "--no-fund", tarball], project)
    return project


def node(project: Path, code: str) -> str:
    return run(["node", "--input-type=module", "-e", f'import SSE from "throughline";\n{code}'], project)


def test_the_package_has_the_service_s_version_and_nothing_else_than_it_needs(project: Path) -> None:
    installed = project / "node_modules" / "throughline"
    package = json.loads((installed / "package.json").read_text())
    assert (package["name"], package["version"], package["private"]) == ("throughline", sse.__version__, True)
    assert {file.name for file in installed.iterdir()} == {"package.json", "sse.js", "sse.mjs", "sse.d.ts"}


def test_its_module_is_the_script_itself(project: Path) -> None:
    installed = project / "node_modules" / "throughline"
    assert (installed / "sse.mjs").read_text() == "export default " + (ROOT / "static" / "sse.js").read_text()


def test_the_service_s_module_is_its_script(make_app: MakeApp) -> None:
    client = make_app().test_client()
    first, script = client.get("/sse/sse.js").text.split("\n", 1)
    assert client.get("/sse/sse.mjs").text == f"{first}\nexport default {script}"


def test_node_imports_it_without_a_window(project: Path) -> None:
    printed = node(
        project,
        """
        console.log(SSE.version, Object.keys(globalThis).includes("SSE"));
        new SSE.Parser((block) => console.log(block.type, block.data)).feed("event: paid\\ndata: 1\\n\\n");
        for (const make of [() => SSE("/sse", {channels: "a"}), () => new SSE.EventSource("/sse/stream?channel=a")]) {
          try { make(); } catch (error) { console.log(error.message); }
        }
        """,
    )
    refused = "SSE: there is no page here: make feeds in a browser"
    assert printed.splitlines() == [f"{sse.__version__} false", "paid 1", refused, refused]


def test_the_types_know_every_name_of_the_docs(project: Path) -> None:
    use = USE.read_text()
    project.joinpath("use.ts").write_text(use)
    run([TSC, *STRICT, "use.ts"], project)
    for name in names():
        assert re.search(rf"(?<![\w.-]){re.escape(name)}(?![\w-])|\.{re.escape(name)}\b", use), name


def test_a_name_that_the_types_lack_is_found(project: Path) -> None:
    project.joinpath("wrong.ts").write_text(USE.read_text().replace("feed.close()", "feed.end()"))
    with pytest.raises(AssertionError, match="Property 'end' does not exist on type 'Feed'"):
        run([TSC, *STRICT, "wrong.ts"], project)


def names() -> set[str]:
    """Return the names in the page's code: options, members, states, events and members of SSE."""
    by_hand = EMBEDDING[EMBEDDING.index("## By hand") : EMBEDDING.index("## Pinned")]
    options = re.search(r"Options: (.*?)\.", by_hand, re.DOTALL)
    told = re.search(r"The feed tells (.*?),\s+which", by_hand, re.DOTALL)
    assert options
    assert told
    found = {name for text in (options[1], told[1]) for name in re.findall(r"`(\w+)`", text)}
    found |= set(re.findall(r"^\| `(connecting|\w+ing|live|closed)` \|", by_hand, re.MULTILINE))
    found |= set(re.findall(r"`(sse\.(?!m?js)\w+)`", by_hand[: by_hand.index("## What it does")]))
    found |= set(re.findall(r"`(sse-\w+)`", EMBEDDING))
    found |= {f"SSE.{name}" for name in re.findall(r"\bSSE\.(\w+)", EMBEDDING)}
    assert len(found) > 25, found
    return found
