"""The README opens with the two commands, is short, and its code is that of the first page of the documentation."""

from __future__ import annotations

import re

from tests.docs import code_blocks
from tests.servers import ROOT

README = (ROOT / "README.md").read_text()


def test_it_opens_with_one_sentence_and_the_two_commands() -> None:
    title, sentence = README.split("\n\n")[:2]
    assert title == "# Throughline"
    assert sentence.rstrip().count(". ") == 0
    commands = re.findall(r"^make (\w+)", README, re.MULTILINE)
    assert commands[:2] == ["run", "test"]


def test_it_is_short() -> None:
    assert len(README.splitlines()) <= 100


def test_its_server_and_its_page_are_those_of_the_first_steps() -> None:
    start = (ROOT / "docs" / "start.md").read_text()
    (server,) = [code for language, code in code_blocks(README) if language == "python"]
    (page,) = [code for language, code in code_blocks(README) if language == "html"]
    assert server in start
    start = start.replace(' data-into="#orders" data-template="order {number} is paid"', "")
    assert set(page.splitlines()) <= {line.strip().removesuffix('"""') for line in start.splitlines()}
