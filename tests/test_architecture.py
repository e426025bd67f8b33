"""docs/architecture.md and its picture name the folders, the modules and the steps that there are."""

from __future__ import annotations

import re
from xml.etree import ElementTree

from tests.servers import ROOT
from tests.test_layers import ORDER

PAGE = (ROOT / "docs" / "architecture.md").read_text()
PICTURE = ElementTree.parse(ROOT / "docs" / "architecture.svg").getroot()


def part(heading: str) -> str:
    return PAGE.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]


def words(kind: str) -> list[str]:
    """Return the texts of one kind in the picture."""
    return ["".join(text.itertext()) for text in PICTURE.findall(".//{*}text") if kind in text.get("class", "").split()]


def test_the_floors_are_those_that_are_held() -> None:
    rows = re.findall(r"^\| (`.*?) \|", part("The floors"), re.MULTILINE)
    held = [set(floor) for floor in reversed(ORDER)][1:-1]
    assert [set(re.findall(r"`([a-z]+)/?`", row)) for row in rows] == held


def test_the_picture_numbers_the_steps_that_the_text_explains() -> None:
    steps = re.findall(r"^(\d)\. ", part("The way of an event"), re.MULTILINE)
    assert list(dict.fromkeys(words("number"))) == steps


def test_every_part_in_the_picture_is_in_the_text_too() -> None:
    text = " ".join(part("The way of an event").split())
    for name in (
        "service",
        "publish.lua",
        "follower",
        "channel",
        "subscriber",
        "loop",
        "row of streams",
        "row of polls",
    ):
        assert name in words("name")
        assert re.search(name, text, re.IGNORECASE), name
