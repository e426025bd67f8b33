"""Sphinx builds the site of these pages, and the reference of the API from the package itself: `make docs`."""

from __future__ import annotations

import dataclasses
import re
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import click
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective
from sphinx.util.rst import escape

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import sse  # noqa: E402
from sse.cli import cli  # noqa: E402
from sse.config import Config  # noqa: E402

project = "Throughline"
release = sse.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"{project} {release}"
html_copy_source = html_show_copyright = False
nitpicky = True  # a docstring that names an error or a class which is not in the reference is refused
nitpick_ignore_regex = [
    ("py:.*", r"(flask|collections|contextlib|gunicorn)\..*|[A-Z][A-Za-z]*Error|Exception|object"),
    ("py:class", r"sse\.extension\.F|sse\.work\.writer\.Writer"),  # a type variable; `SSE.writing` describes the writer
]
myst_heading_anchors = 4
highlight_language = "none"
suppress_warnings = ["misc.highlighting_failure"]  # Pygments does not know HTML attributes that have a dot
default_role = "code"
autodoc_member_order = "bysource"


def settings() -> str:
    """Return an entry for each setting. A check's own message says which values the check takes."""
    entries = []
    for item, (name, _, default, help) in zip(dataclasses.fields(Config), Config().table(), strict=True):
        takes = "any value"
        try:
            item.metadata["check"](object())
        except ValueError as error:
            takes = str(error).removeprefix("give ")
        text = escape(f"{help[0].upper()}{help[1:]}. Give {takes}.")
        default = "No default." if default == "-" else f"Default: `{default}`."
        entries.append(f".. confval:: {name}\n\n   {text} {default}\n")
    return "\n".join(entries)


def errors() -> str:
    """Return a table of the public errors with the code, the status and the seconds to wait that each has."""
    rows = [
        f"   :exc:`{name}`, {error.default_code}, {error.status}, {error.default_retry_after or ''}"
        for name in sse.__all__
        if issubclass(error := getattr(sse, name), sse.SSEError)
    ]
    return "\n".join([".. csv-table::", "   :header: error, code, status, retry_after", "", *rows])


def commands() -> str:
    """Return the help of each `flask sse` command."""
    parent = click.Context(cli, info_name="flask sse", terminal_width=90)
    entries = []
    for name in cli.list_commands(parent):
        command = cli.get_command(parent, name)
        assert command
        text = command.get_help(click.Context(command, parent, name))
        body = "\n".join(f"   {line}".rstrip() for line in text.splitlines())
        entries.append(f".. rubric:: flask sse {name}\n   :name: flask-sse-{name}\n\n.. code-block:: none\n\n{body}\n")
    return "\n".join(entries)


def directive(text: Callable[[], str]) -> type[SphinxDirective]:
    """Return a directive that stands for reStructuredText which a function writes."""

    class Written(SphinxDirective):
        def run(self) -> list[nodes.Node]:
            return self.parse_text_to_nodes(text())

    return Written


def resolve(app: Sphinx, docname: str, source: list[str]) -> None:
    """Put the README in the place of the page `start`, and let links that leave docs/ lead to the repository."""
    if docname == "start":
        readme = (ROOT / "README.md").read_text(encoding="utf-8")
        source[0] = re.sub(r"\]\((?!\w+:|#)(docs/)?", lambda link: "](" if link[1] else "](../", readme)
    source[0] = source[0].replace("](../README.md", "](start.md")
    source[0] = source[0].replace("](../", f"]({app.config.source_url}/")


def setup(app: Sphinx) -> None:
    addresses = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["urls"]
    app.add_config_value("source_url", addresses["Source"], "env", str)
    app.connect("source-read", resolve)
    for function in (settings, errors, commands):
        app.add_directive(f"sse-{function.__name__}", directive(function))
