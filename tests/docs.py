"""Reads sections and code blocks of the documents, for tests that run them as they are."""

from __future__ import annotations

import re

CLIENTS_ADDRESS = "http://127.0.0.1:5000"
"""The service's address in the programs of docs/clients.md."""
LOAD = "load the state"
"""What those programs print after a reset."""


def section(page: str, heading: str) -> str:
    """Return the text below a second-level heading of a page, up to the next one."""
    _, found, after = page.partition(f"\n## {heading}\n")
    assert found, f"there is no section {heading!r}"
    return after.partition("\n## ")[0]


def code_blocks(text: str) -> list[tuple[str, str]]:
    """Return the language or directive, which may be empty, and the code of each fenced block."""
    return re.findall(r"^```(\S*).*?\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
