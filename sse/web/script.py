"""The embed script as it is served, as a script or a module: static/sse.js without comments and unneeded spaces."""

from __future__ import annotations

import base64
import gzip
import hashlib
import html
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

from sse.version import __version__

# Comments that start a line, and comments at a line's end without a quote in them, which cannot be part of a string.
_COMMENT = re.compile(
    r"""^[ \t]*(?://[^\n]*\n?|/\*.*?\*/(?:[ \t]*(?:\n|\Z))?)|(?<=[;,{}()\]]) // [^"\n]*$""", re.DOTALL | re.MULTILINE
)
# A string or a regular expression, which stays as it is; or the white space around an operator or a bracket. A division
# is not mistaken for a regular expression, because a space follows it.
_SPACES = re.compile(
    r"""("(?:\\.|[^"\\\n])*"|/(?![ /*])(?:\\.|\[(?:\\.|[^]\\\n])*\]|[^/\\\n[])+/)|\s*([-+*=<>!&|?:;,(){}[\]])\s*"""
)


class Variant(NamedTuple):
    """The bytes in one content encoding, and the text in their ETag."""

    body: bytes
    etag: str


@dataclass(frozen=True, slots=True)
class Script:
    """The embed script or module, plain and gzipped; `integrity` is its hash, which a page can check (W3C SRI)."""

    plain: Variant
    gzipped: Variant
    integrity: str


# The file is one expression, so these words before it make a module with a default export (ECMA-262, 16.2.3).
_MODULE = "export default "


@cache
def load(module: bool = False) -> Script:
    """Return the script of this version, or the same as a module. Each is read from disk once."""
    begin = _MODULE if module else ""
    body = f"/* Throughline {__version__}, MIT licence */\n{begin}{squeeze(read_static('sse.js').decode())}".encode()
    return Script(
        _variant(body),
        _variant(gzip.compress(body, 9, mtime=0)),
        f"sha384-{base64.b64encode(hashlib.sha384(body).digest()).decode()}",
    )


def squeeze(source: str) -> str:
    """Return the source without comments, and without the white space that a program does not need.

    Its strings have double quotes, its statements end with semicolons, and no two signs such as `- -1` stand side by
    side.
    """
    code = re.sub(r"^\s+", "", strip_comments(source), flags=re.MULTILINE)
    return _SPACES.sub(lambda found: found[1] or found[2], code)


def strip_comments(source: str) -> str:
    """Return the source without its comments.

    The source must have no string or template, and no comment beside code, that continues on the next line. Line ends
    stay, so no statement runs into another (ECMA-262, 12.10).
    """
    return _COMMENT.sub("", source)


def embed_tag(prefix: str, channels: Sequence[str]) -> str:
    """Return the HTML that puts this version of the script into a page; `prefix` is the service's address."""
    attributes = {
        "src": f"{prefix}/sse.{__version__}.js",
        "integrity": load().integrity,
        "crossorigin": "anonymous",
        **({"data-channels": " ".join(channels)} if channels else {}),
    }
    written = " ".join(f'{name}="{html.escape(value)}"' for name, value in attributes.items())
    return f"<script {written} defer></script>"


@cache
def read_static(name: str) -> bytes:
    """Return a file of static/, which is in the package if that was installed, and beside it in the repository."""
    package = Path(__file__).parent.parent
    installed = package / "static" / name
    return (installed if installed.exists() else package.parent / "static" / name).read_bytes()


def _variant(body: bytes) -> Variant:
    return Variant(body, hashlib.sha256(body).hexdigest()[:32])
