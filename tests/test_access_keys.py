"""Publishing keys have names, may be for some channels only, change without a restart, and are never shown."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from sse.access.keys import PublishKeys, parse_keys
from sse.access.reload import Reloaded
from sse.config import Config
from sse.errors import ConfigError

OLD, NEW = "old-key-of-22-characters", "new-key-of-22-characters"


def test_a_file_has_a_key_a_line_with_its_name_and_patterns() -> None:
    keys = parse_keys(f"# who  key  channels\n\nbilling {OLD} invoices/* orders\nbilling {NEW} *\n")
    assert [(key.name, key.patterns) for key in keys] == [("billing", ("invoices/*", "orders")), ("billing", ("*",))]
    assert {key.scope for key in keys} == {"key.billing"}
    assert OLD not in repr(keys)


@pytest.mark.parametrize(
    "line",
    ["billing", f"billing {OLD}", "billing hush *", f"b/c {OLD} *", f"b {OLD},hush a", f"b {OLD} a*",
     f"b {OLD} a b/*/c", f"b {NEW} * {OLD}="]
)  # fmt: skip
def test_a_line_at_fault_is_named_without_what_is_in_it(line: str) -> None:
    with pytest.raises(ValueError, match=r"^line 2") as refusal:
        parse_keys(f"\n{line}\n")
    assert "hush" not in str(refusal.value)
    assert OLD not in str(refusal.value)


def test_a_key_stands_in_the_file_once() -> None:
    with pytest.raises(ValueError, match="line 2 has the key of a line before"):
        parse_keys(f"a {OLD} *\nb {OLD} *\n")


def test_a_key_is_found_by_all_of_it_only(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text(f"billing {OLD} a\n")
    keys = PublishKeys(Config(publish_keys=(NEW,), publish_keys_file=str(path)))
    assert keys.configured
    found = keys.find(OLD), keys.find(NEW)
    assert [key and (key.name, key.patterns) for key in found] == [("billing", ("a",)), ("", ("*",))]
    for other in ("", OLD[:-1], f"{OLD}x", OLD.upper(), "\udcff"):
        assert keys.find(other) is None
    assert not PublishKeys(Config()).configured


def test_a_key_in_place_of_the_file_is_not_shown() -> None:
    with pytest.raises(ConfigError, match="the file: No such file") as refusal:
        PublishKeys(Config(publish_keys_file=OLD))
    assert OLD not in str(refusal.value)


@pytest.mark.parametrize("text", [None, "hush", b"\xff"])
def test_a_file_at_fault_is_refused_at_start(tmp_path: Path, text: str | bytes | None) -> None:
    path = tmp_path / "keys"
    if text is not None:
        path.write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(ConfigError, match="SSE_PUBLISH_KEYS_FILE") as refusal:
        PublishKeys(Config(publish_keys_file=str(path)))
    assert "hush" not in str(refusal.value)


def test_a_change_is_taken_over_and_a_fault_is_not(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    now = [0.0]
    path = tmp_path / "keys"
    path.write_text(f"a {OLD} *\n")
    file = Reloaded("SETTING", str(path), parse_keys, clock=lambda: now[0])
    before = file.value

    def write(text: str) -> None:
        (tmp_path / "next").write_text(text)
        (tmp_path / "next").replace(path)  # at once, as an editor does
        now[0] += 2

    with caplog.at_level(logging.WARNING, "sse"):
        write("a hush\n")
        assert file.value == before
    assert "SETTING: line 1" in caplog.text
    assert "hush" not in caplog.text
    write(f"a {NEW} *\n")
    assert file.value == parse_keys(f"a {NEW} *\n")
    assert file.generation == 1
    path.unlink()
    now[0] += 2
    assert file.value == parse_keys(f"a {NEW} *\n")
    write("")
    assert file.value == ()


def test_a_change_is_looked_for_once_a_second(tmp_path: Path) -> None:
    now = [0.0]
    path = tmp_path / "keys"
    path.write_text("1")
    file = Reloaded("SETTING", str(path), int, clock=lambda: now[0])
    path.write_text("22")
    now[0] += 0.9
    assert file.value == 1
    now[0] += 0.2
    assert file.value == 22
