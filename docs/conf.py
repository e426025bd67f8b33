"""Sphinx builds the site of the pages of this repository, and the reference from the package itself: `make docs`.

The root of Sphinx's source is the repository, so that a link to another page leads there on GitHub and on the site.
"""

from __future__ import annotations

import dataclasses
import functools
import re
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import click
from docutils import nodes
from myst_parser.slugs import github_slugify
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.transforms import SphinxTransform
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
PARTS = ("docs", "deploy", "examples")
include_patterns = ["docs/*.md", "deploy/*/README.md", "examples/README.md", "CONTRIBUTING.md", "SECURITY.md"]
exclude_patterns = ["docs/_build", *(path.name for path in ROOT.iterdir() if path.is_dir() and path.name not in PARTS)]
root_doc = "docs/index"
html_theme = "furo"
html_static_path = ["site.css"]
html_css_files = ["site.css"]
html_search_scorer = str(ROOT / "docs" / "scorer.js")
html_title = f"{project} {release}"
html_copy_source = html_show_copyright = False
nitpicky = True  # a docstring that names an error or a class which is not in the reference is refused
nitpick_ignore_regex = [
    ("py:.*", r"(flask|collections|contextlib)\..*|[A-Z][A-Za-z]*Error|Exception|object|gunicorn\..*"),
    ("py:class", r"sse\.extension\.F|sse\.work\.writer\.Writer"),  # what a decorator takes, and what `writing` gives
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


LINK = re.compile(r"\]\((?!\w+:)([^)\s#]*)(?:#([^)\s]*))?\)")
ANCHORS = re.compile(r'((?:<a id="\w+"></a>\n)+)\n#+ (.*)')


@functools.cache
def anchors(page: Path) -> dict[str, str]:
    """Return the heading that each anchor of a page stands at, as the link to it names the heading."""
    found = ANCHORS.findall(page.read_text(encoding="utf-8"))
    return {name: github_slugify(heading) for names, heading in found for name in re.findall(r'"(.+)"', names)}


def lead(app: Sphinx, docname: str, source: list[str]) -> None:
    """Let links to files that are no pages lead to the repository, and links to anchors to the heading there."""
    page = Path(app.env.doc2path(docname))

    def link(found: re.Match[str]) -> str:
        target = (page.parent / found[1]).resolve() if found[1] else page
        name = target.relative_to(ROOT)
        if str(name.with_suffix("")) in app.env.found_docs:
            return f"]({found[1]}#{anchors(target).get(found[2], found[2])})" if found[2] else found[0]
        return found[0] if target.suffix in (".png", ".svg") else f"]({app.config.source_url}/{name})"

    source[0] = LINK.sub(link, source[0])


class Seen(SphinxTransform):
    """Let the search find a section by each of the phrases in its paragraph "You may see", and by its heading."""

    default_priority = 500  # before quotes become typographic, and before the index is collected

    def apply(self, **_: object) -> None:
        for section in self.document.findall(nodes.section):
            for paragraph in section.children[1:2]:
                title, text = section.children[0].astext(), " ".join(paragraph.astext().split())
                if not text.startswith("You may see: "):
                    continue
                phrases = [title, *text.removeprefix("You may see: ").rstrip(".").split("; ")]
                typed = [re.sub(r"[^\w\s/.:-]", "", phrase) for phrase in phrases]
                entries = [
                    ("single", phrase, section["ids"][0], "main", None) for phrase in dict.fromkeys(phrases + typed)
                ]
                section.insert(1, addnodes.index(entries=entries, inline=False))


def begin(app: Sphinx, error: Exception | None) -> None:
    """Write the page at the site's own address, which leads to the first page."""
    first = f"{app.config.root_doc}.html"
    text = f'<!doctype html><meta charset="utf-8"><meta http-equiv="refresh" content="0; url={first}"><title>{project}'
    if not error:
        Path(app.outdir, "index.html").write_text(f'{text}</title><a href="{first}">{project}</a>\n', encoding="utf-8")


def setup(app: Sphinx) -> None:
    addresses = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["urls"]
    app.add_config_value("source_url", addresses["Source"], "env", str)
    app.connect("source-read", lead)
    app.connect("build-finished", begin)
    app.add_transform(Seen)
    for function in (settings, errors, commands):
        app.add_directive(f"sse-{function.__name__}", directive(function))
