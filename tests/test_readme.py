"""What the README says of the settings is what the code has."""

from __future__ import annotations

import re
from pathlib import Path

from sse.config import Config

README = Path(__file__).parent.parent.joinpath("README.md").read_text()


def test_the_table_of_settings_is_that_of_the_code() -> None:
    rows = re.findall(r"^\| `(SSE_\w+)` \| (.*?) \| (.+) \|$", README, re.MULTILINE)
    assert rows == [(name, "" if default == "-" else default, text) for name, _, default, text in Config().table()]


def test_it_opens_with_one_sentence_and_the_two_commands() -> None:
    title, sentence = README.split("\n\n")[:2]
    assert title == "# Throughline"
    assert sentence.rstrip().count(". ") == 0
    commands = re.findall(r"^make (\w+)", README, re.MULTILINE)
    assert commands[:2] == ["run", "test"]
