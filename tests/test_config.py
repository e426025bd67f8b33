"""Settings: read once, refused all together, told with their secrets hashed."""

from __future__ import annotations

import dataclasses

import pytest

from sse.config import Config, check_pattern, matches, setting_name
from sse.errors import ConfigError, InvalidEvent

KEY = "k" * 22


def test_the_defaults_are_those_of_the_documentation() -> None:
    assert {row[0]: (row[1], row[2]) for row in Config().table()} == {
        name: (value, value)
        for name, value in {
            "SSE_REDIS_URL": "-",
            "SSE_NAMESPACE": "sse",
            "SSE_PUBLIC": "-",
            "SSE_ORIGINS": "-",
            "SSE_PUBLISH_KEYS": "-",
            "SSE_RING": "1000",
            "SSE_RING_TTL": "86400",
            "SSE_HEARTBEAT": "15",
            "SSE_STREAM_LIFETIME": "900",
            "SSE_POLL_TIMEOUT": "25",
            "SSE_RETRY": "3000",
            "SSE_MAX_CHANNELS": "50",
            "SSE_MAX_EVENT_BYTES": "65536",
            "SSE_MAX_SUBSCRIBERS": "10000",
            "SSE_PREFIX": "/sse",
        }.items()
    }
    assert all(row[3] for row in Config().table())


def test_every_default_passes_its_own_check() -> None:
    for item in dataclasses.fields(Config):
        assert item.metadata["check"](item.default) == item.default, setting_name(item)


def test_a_later_source_wins_and_other_names_are_passed_over() -> None:
    config = Config.load({"SSE_RING": "5", "SSE_RETRY": "10", "HOME": "/root"}, {"SSE_RING": 7, "DEBUG": True})
    assert (config.ring, config.retry) == (7, 10)


def test_redis_url_is_taken_under_its_common_name_too() -> None:
    assert Config.load({"REDIS_URL": "redis://a"}).redis_url == "redis://a"
    assert Config.load({"REDIS_URL": "redis://a", "SSE_REDIS_URL": "redis://b"}).redis_url == "redis://b"
    assert Config.load({"REDIS_URL": ""}).redis_url is None
    assert Config.load({"SSE_REDIS_URL": "redis://a"}, {"SSE_REDIS_URL": None}).redis_url is None


@pytest.mark.parametrize(
    ("name", "value", "taken"),
    [
        ("ring", " 5 ", 5),
        ("heartbeat", 3, 3),
        ("poll_timeout", "0", 0),
        ("public", "a, b/*\n*", ("a", "b/*", "*")),
        ("public", ["a/b"], ("a/b",)),
        ("public", "", ()),
        ("origins", "*", ("*",)),
        ("origins", "https://a.example http://b:3000", ("https://a.example", "http://b:3000")),
        ("origins", ["http://[::1]:8080"], ("http://[::1]:8080",)),
        ("publish_keys", f"{KEY},{'!' * 22}", (KEY, "!" * 22)),
        ("redis_url", "unix:///run/redis.sock", "unix:///run/redis.sock"),
        ("redis_url", "rediss://:p@h:1/2", "rediss://:p@h:1/2"),
        ("namespace", "my-app.v1", "my-app.v1"),
        ("prefix", "/a/b.c~d", "/a/b.c~d"),
    ],
)  # fmt: skip
def test_a_value_that_is_taken(name: str, value: object, taken: object) -> None:
    assert getattr(Config.load({f"SSE_{name.upper()}": value}), name) == taken


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("RING", ["", "x", "0", "-1", "1.5", 1.5, True, None, "100001", "9" * 5000, "٣", "1_000", "1e3"]),
        ("HEARTBEAT", [2, "soon"]),
        ("RING_TTL", [59]),
        ("STREAM_LIFETIME", [4]),
        ("POLL_TIMEOUT", [61, -1]),
        ("MAX_CHANNELS", [0, 101]),
        ("MAX_EVENT_BYTES", [2**20 + 1]),
        ("PUBLIC", ["a/", "/*", "a*", "*/a", "a/*/b", "**", "a/**", "sse.x", "a b=c", 5, None, [5]]),
        ("ORIGINS", ["a.example", "https://a.example/", "https://a.example/x", "https://*.a.example", "HTTPS://a.example",
                     "https://A.example", "null", "https://", "https://u@a.example", "https://a.example:99999",
                     "https://a.example:0", "https://a.example:", "*, https://a.example", "ftp://a.example",
                     "https://a.example?x", "https://[::1", "https://a..example", "https://.a", 5]),
        ("PUBLISH_KEYS", ["short", "k" * 21, "k" * 22 + "ä", 5]),
        ("REDIS_URL", ["localhost:6379", "http://a", 5]),
        ("NAMESPACE", ["", "a b", "a{b}", "a:b", "x" * 65, 5]),
        ("PREFIX", ["", "/", "sse", "/sse/", "/a//b", "/a b", "/<a>", 5]),
    ],
)  # fmt: skip
def test_a_bad_value_is_refused_with_its_name_and_the_remedy(name: str, values: list[object]) -> None:
    for value in values:
        with pytest.raises(ConfigError, match=f"^SSE_{name}.*: .*give|^SSE_{name}.*key 1") as refusal:
            Config.load({f"SSE_{name}": value})
        assert "flask sse config" in refusal.value.hint


def test_all_faults_are_told_together_and_no_secret_with_them() -> None:
    with pytest.raises(ConfigError) as refusal:
        Config.load(
            {"SSE_RING": "x", "SSE_HARTBEAT": 5, "SSE_ZZZ": 1, "SSE_PUBLISH_KEYS": "hush", "SSE_REDIS_URL": "hush"}
        )
    told = str(refusal.value)
    assert "SSE_RING is 'x'" in told
    assert "SSE_HARTBEAT is not a setting: did you mean SSE_HEARTBEAT?" in told
    assert "SSE_ZZZ is not a setting" in told
    assert "SSE_PUBLISH_KEYS: key 1" in told
    assert "SSE_REDIS_URL: give" in told
    assert "hush" not in told


def test_secrets_are_shown_as_a_hash_only() -> None:
    config = Config.load(
        {"SSE_REDIS_URL": "redis://:hush@h", "SSE_PUBLISH_KEYS": f"{KEY} {'q' * 30}", "SSE_PUBLIC": "a b"}
    )
    rows = {name: value for name, value, _, _ in config.table()}
    assert rows["SSE_PUBLISH_KEYS"].count("sha256:") == 2
    assert rows["SSE_REDIS_URL"].startswith("sha256:")
    assert rows["SSE_PUBLIC"] == "a, b"
    for text in (str(rows), repr(config)):
        assert "hush" not in text
        assert KEY not in text


@pytest.mark.parametrize("pattern", ["*", "a", "a/b", "a/*", "a/b/*", "a.b:c@d/*"])
def test_a_pattern(pattern: str) -> None:
    assert check_pattern(pattern) == pattern


@pytest.mark.parametrize(
    "pattern", ["", "/*", "a*", "a/b*", "*/b", "a/*/c", "a/*/*", "a/**", "*/*", "sse.a/*", "a b", "a//*"]
)
def test_what_is_no_pattern_is_refused(pattern: str) -> None:
    with pytest.raises(InvalidEvent):
        check_pattern(pattern)


@pytest.mark.parametrize(
    ("pattern", "yes", "no"),
    [
        ("*", ["a", "a/b"], []),
        ("a", ["a"], ["a/b", "ab", "b", "A"]),
        ("a/*", ["a/b", "a/b/c"], ["a", "ab", "b/a", "ab/c", "A/b"]),
        ("a/b/*", ["a/b/c"], ["a/b", "a/bc/d", "a/c"]),
    ],
)
def test_the_star_stands_for_one_or_more_segments(pattern: str, yes: list[str], no: list[str]) -> None:
    assert [matches(pattern, channel) for channel in yes + no] == [True] * len(yes) + [False] * len(no)
