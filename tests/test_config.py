"""Settings are read once, all faults are reported together, and secrets are shown as hashes."""

from __future__ import annotations

import dataclasses

import pytest

from sse.config import Config, check_pattern, foreign, matches, setting_name
from sse.errors import ConfigError, InvalidEvent
from sse.stores import RedisStore, connect
from tests.subclasses import strings

KEY = "k" * 22


def test_the_defaults_are_those_of_the_documentation() -> None:
    assert {row[0]: (row[1], row[2]) for row in Config().table()} == {
        name: (value, value)
        for name, value in {
            "SSE_REDIS_URL": "-",
            "SSE_REDIS_TIMEOUT": "5",
            "SSE_NAMESPACE": "sse",
            "SSE_PUBLIC": "-",
            "SSE_ORIGINS": "-",
            "SSE_PUBLISH_KEYS": "-",
            "SSE_PUBLISH_KEYS_FILE": "-",
            "SSE_SECRET": "-",
            "SSE_JWKS": "-",
            "SSE_ISSUER": "-",
            "SSE_AUDIENCE": "sse",
            "SSE_TOKEN_LIFETIME": "604800",
            "SSE_COOKIE": "sse_token",
            "SSE_QUERY_TOKENS": "0",
            "SSE_PROXIES": "0",
            "SSE_LIMIT_SUBSCRIBE": "3000/minute",
            "SSE_LIMIT_PUBLISH": "100000/minute",
            "SSE_LIMIT_PUBLISH_BYTES": "67108864/minute",
            "SSE_LIMIT_CHANNEL": "100000/minute",
            "SSE_LIMIT_NEW_CHANNELS": "6000/minute",
            "SSE_LIMITS_URL": "-",
            "SSE_RING": "1000",
            "SSE_RING_TTL": "86400",
            "SSE_HEARTBEAT": "15",
            "SSE_STREAM_LIFETIME": "900",
            "SSE_POLL_TIMEOUT": "25",
            "SSE_RETRY": "3000",
            "SSE_MAX_CHANNELS": "50",
            "SSE_MAX_EVENT_BYTES": "65536",
            "SSE_MAX_SUBSCRIBERS": "10000",
            "SSE_SEND_BUFFER": "16384",
            "SSE_DRAIN": "0",
            "SSE_DRAIN_DELAY": "0",
            "SSE_RUN_BYTES": "4194304",
            "SSE_RUN_TTL": "3600",
            "SSE_RUN_GRACE": "25",
            "SSE_WRITE_EVERY": "20",
            "SSE_MAX_SOURCES": "100",
            "SSE_PRESENCE": "-",
            "SSE_DOCTOR": "0",
            "SSE_LOG": "text",
            "SSE_LOG_RATE": "50",
            "SSE_LANE": "auto",
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


@pytest.mark.parametrize(
    ("environ", "config", "taken"),
    [
        ({"REDIS_URL": "redis://a"}, {"REDIS_URL": "redis://b"}, "redis://b"),
        ({"SSE_REDIS_URL": "redis://a"}, {"REDIS_URL": "redis://b"}, "redis://b"),
        ({"SSE_REDIS_URL": "redis://a", "REDIS_URL": "redis://c"}, {"REDIS_URL": "redis://b"}, "redis://b"),
        ({"REDIS_URL": "redis://a"}, {"SSE_REDIS_URL": "redis://b"}, "redis://b"),
        ({"REDIS_URL": "redis://a"}, {"SSE_REDIS_URL": "redis://b", "REDIS_URL": "redis://c"}, "redis://b"),
        ({"REDIS_URL": "redis://a"}, {"SSE_REDIS_URL": None, "REDIS_URL": "redis://c"}, None),
        ({"REDIS_URL": "no address"}, {"REDIS_URL": "redis://b"}, "redis://b"),
        ({"REDIS_URL": "redis://a", "SSE_REDIS_URL": "redis://a"}, {"SSE_REDIS_URL": None}, None),
        ({"REDIS_URL": "redis://a", "SSE_REDIS_URL": "redis://a"}, {"SSE_REDIS_URL": ""}, None),
        ({"REDIS_URL": "redis://a"}, {"REDIS_URL": None}, None),
        ({"REDIS_URL": "redis://a"}, {"REDIS_URL": ""}, None),
        # `REDIS_URL = os.environ.get("REDIS_URL")` is a usual line of a config class.
        ({"SSE_REDIS_URL": "redis://a"}, {"REDIS_URL": None}, "redis://a"),
        ({"SSE_REDIS_URL": "redis://a", "REDIS_URL": "redis://c"}, {"REDIS_URL": ""}, "redis://a"),
    ],
)
def test_the_app_s_redis_wins_over_the_environment_s_under_both_names(
    environ: dict[str, object], config: dict[str, object], taken: str | None
) -> None:
    assert Config.load(environ, config).redis_url == taken


def test_a_bad_redis_url_is_told_by_the_name_that_it_was_given_as() -> None:
    with pytest.raises(ConfigError, match=r"^REDIS_URL: give redis://"):
        Config.load({"SSE_REDIS_URL": "redis://a"}, {"REDIS_URL": "hush"})


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("SSE_PUBLIC", "news/*"),
        ("SSE_ORIGINS", "https://a.example"),
        ("SSE_PUBLISH_KEYS", "k" * 22),
        ("SSE_PUBLISH_KEYS_FILE", "/etc/keys"),
        ("SSE_SECRET", "s" * 32),
        ("SSE_JWKS", "/etc/jwks"),
        ("SSE_ISSUER", "a"),
        ("SSE_LIMITS_URL", "redis://a"),
    ],
)
def test_none_in_the_app_s_config_keeps_the_environment_s_value_out(name: str, given: str) -> None:
    assert Config.load({name: given}) != Config()
    assert Config.load({name: given}, {name: None}) == Config()


@pytest.mark.parametrize(
    ("before", "after", "late"),
    [
        ({}, {}, []),
        ({}, {"DEBUG": True}, []),
        ({}, {"SSE_RING": 5, "SSE_PUBLIC": "*"}, ["SSE_PUBLIC", "SSE_RING"]),
        ({"SSE_RING": 7}, {"SSE_RING": 5}, ["SSE_RING"]),
        ({"SSE_RING": 7}, {}, ["SSE_RING"]),
        ({"SSE_RING": 7}, {"SSE_RING": "7", "SSE_RETRY": 3000}, []),  # the same, and a default
        ({"SSE_PUBLIC": ["a"]}, {"SSE_PUBLIC": ["a", "b"]}, ["SSE_PUBLIC"]),
        ({}, {"SSE_RING": "many"}, ["SSE_RING"]),
        ({}, {"SSE_HARTBEAT": 5}, ["SSE_HARTBEAT (not a setting: did you mean SSE_HEARTBEAT?)"]),
        ({}, {"SSE_SECRET": "hush" * 8}, ["SSE_SECRET"]),
        ({}, {"REDIS_URL": "redis://:hush@b"}, ["REDIS_URL"]),
        ({}, {"SSE_REDIS_URL": "redis://:hush@b"}, ["SSE_REDIS_URL"]),
        ({}, {"SSE_REDIS_URL": None}, ["SSE_REDIS_URL"]),
        ({}, {"REDIS_URL": None}, ["REDIS_URL"]),
        ({}, {"REDIS_URL": "redis://environment"}, []),
        ({"REDIS_URL": "redis://b"}, {}, ["REDIS_URL"]),
        ({"SSE_REDIS_URL": "redis://b"}, {"SSE_REDIS_URL": "redis://b", "REDIS_URL": "redis://c"}, []),
    ],
)
def test_settings_that_come_late_are_found_and_told_by_name_alone(
    before: dict[str, object], after: dict[str, object], late: list[str]
) -> None:
    environ = {"REDIS_URL": "redis://environment", "SSE_RETRY": "3000"}
    assert Config.load(environ, before).late(environ, after) == late


def test_a_list_that_grows_in_place_is_found_too() -> None:
    config = {"SSE_PUBLIC": ["a"]}
    read = Config.load({}, config)
    config["SSE_PUBLIC"].append("b")
    assert read.late({}, config) == ["SSE_PUBLIC"]


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
        ("lane", " on ", "on"),
        ("prefix", "/a/b.c~d", "/a/b.c~d"),
        ("secret", "s" * 32, ("s" * 32,)),
        ("secret", f"{'ä' * 16} {'t' * 40}", ("ä" * 16, "t" * 40)),
        ("jwks", "", ()),
        ("jwks", None, ()),
        ("jwks", "/etc/keys.json", ("/etc/keys.json",)),
        ("jwks", "https://id.example/keys, /a", ("https://id.example/keys", "/a")),
        ("jwks", "http://127.0.0.1:9/keys", ("http://127.0.0.1:9/keys",)),
        ("query_tokens", "1", True),
        ("query_tokens", False, False),
        ("issuer", "", ()),
        ("limit_subscribe", "", None),
        ("limit_subscribe", "5/second", "5/second"),
        ("limits_url", "memory://", None),
        ("limits_url", "redis://h", "redis://h"),
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
        ("SEND_BUFFER", [0, 4095, 2**24 + 1, "16k"]),
        ("DRAIN", [-1, 3601, 0.5, "soon"]),
        ("PUBLIC", ["a/", "/*", "a*", "*/a", "a/*/b", "**", "a/**", "sse.x", "a b=c", 5, [5], [None]]),
        ("ORIGINS", ["a.example", "https://a.example/", "https://a.example/x", "https://*.a.example", "HTTPS://a.example",
                     "https://A.example", "null", "https://", "https://u@a.example", "https://a.example:99999",
                     "https://a.example:0", "https://a.example:", "*, https://a.example", "ftp://a.example",
                     "https://a.example?x", "https://[::1", "https://a..example", "https://.a", 5]),
        ("PUBLISH_KEYS", ["short", "k" * 21, "k" * 22 + "ä", 5]),
        ("REDIS_URL", ["localhost:6379", "http://a", 5]),
        ("NAMESPACE", ["", "a b", "a{b}", "a:b", "x" * 65, 5]),
        ("SECRET", ["s" * 31, f"{'s' * 32},short", 5]),
        ("JWKS", ["http://id.example/keys", "https://", "https://u@h/", "https://h:0/", "ftp://h/x", "https://[::1",
                  "a, \0", 5]),
        ("ISSUER", ["a \0", 5]),
        ("AUDIENCE", ["", 5]),
        ("TOKEN_LIFETIME", [59]),
        ("COOKIE", ["", "a b", "a=b", 5]),
        ("QUERY_TOKENS", ["yes", 2, None]),
        ("PROXIES", [-1, 11]),
        ("LIMIT_PUBLISH", ["0/minute", "5", "5/week", "5 per minute", 5]),
        ("LIMIT_PUBLISH_BYTES", ["0/minute", "64MB/minute", "5", "5/week", 5, "1" * 13 + "/day"]),
        ("LIMITS_URL", ["memcached://h", 5]),
        ("PUBLISH_KEYS_FILE", ["a\n", 5]),
        ("LANE", ["", "1", "yes", True, None]),
        ("PREFIX", ["", "/", "sse", "/sse/", "/a//b", "/a b", "/<a>", 5]),
    ],
)  # fmt: skip
def test_a_bad_value_is_refused_with_its_name_and_the_remedy(name: str, values: list[object]) -> None:
    for value in values:
        with pytest.raises(ConfigError, match=f"^SSE_{name}.*: .*give|^SSE_{name}.*key 1") as refusal:
            Config.load({f"SSE_{name}": value})
        assert "docs/settings.md" in refusal.value.hint


@pytest.mark.parametrize(
    "url",
    [
        "redis://h", "redis://h/", "redis://h:6379/15", "redis://a.example.:1", "redis://[::1]:6379/0", "redis://u:p@h",
        "redis://:p%40%2F%23%3F%25@h/0", "rediss://u:p@h:6380/0",
        "redis://h?db=3", "redis://h/?db=3", "redis://h/3?db=3", "redis://h/03?db=3", "redis://h?db=0",
        "rediss://h?db=3&ssl_cert_reqs=none", "rediss://h/3?db=3",
        "rediss://h?ssl_cert_reqs=none&ssl_check_hostname=false",
        "rediss://h?ssl_ca_certs=/etc/ca.pem&ssl_certfile=/etc/c%20d.pem&ssl_keyfile=k.pem",
        "unix:///run/redis.sock", "unix://u:p@/run/redis.sock?db=3", "unix:///r?username=u&password=p%26q",
    ],
)  # fmt: skip
def test_a_redis_url_that_redis_can_be_asked_by_is_taken(url: str) -> None:
    assert Config.load({"SSE_REDIS_URL": url}).redis_url == url
    connect(url, ring=1, ring_ttl=60).close()


@pytest.mark.parametrize(
    ("url", "fault"),
    [
        ("redis://127.0.0.1:999999/0", "port"),
        ("redis://h:x", "port"),
        ("redis://h:0", "port"),
        ("redis://[::1", "host"),
        ("redis://", "host"),
        ("redis:///0", "host"),
        ("redis://:hush@", "host"),
        ("redis://a..b", "host"),
        (f"redis://{'x' * 64}", "host"),
        ("redis://a,b", "host"),
        ("redis://h/abc", "database"),
        ("redis://h/-1", "database"),
        ("redis://h/0/1", "database"),
        ("redis://h?nonsense=1", "no option but db"),
        ("redis://h?db=x", "db"),
        ("redis://h?db=", "db"),
        ("redis://h?db=-1", "db"),
        ("redis://h?db=1&db=1", "twice"),
        ("redis://h/2?db=3", "two databases, /2 and ?db=3"),
        ("rediss://h/0?db=3", "two databases, /0 and ?db=3"),
        ("redis://h?hush=1", "no option but db"),
        ("redis://h?ssl_cert_reqs=none", "leave out ssl_cert_reqs"),
        ("redis://h?db=1&decode_responses=True", "leave out decode_responses"),
        ("redis://h?protocol=3", "leave out protocol"),
        ("redis://h?health_check_interval=30", "leave out health_check_interval"),
        ("redis://h?password=hush", "USER:PASSWORD@ before the host in place of password"),
        ("rediss://h?socket_timeout=x", "no option but db, ssl_cert_reqs"),
        ("rediss://h?socket_timeout=5", "set SSE_REDIS_TIMEOUT in place of socket_timeout"),
        ("rediss://h?max_connections=1", "leave out max_connections"),
        ("rediss://h?ssl_cert_reqs=CERT_NONE", "ssl_cert_reqs"),
        ("rediss://h?ssl_check_hostname=maybe", "ssl_check_hostname"),
        ("rediss://h?ssl_ca_certs=", "ssl_ca_certs"),
        ("rediss://h?ssl_certfile=a%00b", "NUL"),
        ("unix://", "socket"),
        ("unix:///", "socket"),
        ("unix://run/redis.sock", "socket"),
        ("unix:///run/redis.sock?db=x", "db"),
        ("unix:///run/redis.sock?db=1&db=2", "twice"),
        ("redis://h\n", "white space"),
        ("redis://h ", "white space"),
        ("redis://:hush@hä", "ASCII"),
        # Passwords that were to be percent-encoded, so that what follows is taken for another part.
        ("redis://:hush#x@h", "percent-encode"),
        ("redis://:x#hush@h", "percent-encode"),
        ("redis://:1/hush@h", "percent-encode"),
        ("redis://:x?hush=1@h", "percent-encode"),
        ("redis://u?hush@h", "percent-encode"),
        ("redis://u:[hush@h", "percent-encode"),
        ("redis://hush:x@h:99999", "percent-encode"),
        ("unix://:1/hush@/run/redis.sock", "percent-encode"),
    ],
)  # fmt: skip
def test_a_redis_url_that_could_only_fail_later_is_refused_and_its_password_not_shown(url: str, fault: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        Config.load({"SSE_REDIS_URL": url})
    assert fault in refusal.value.message.partition("; give")[0]
    assert "; give redis://" in refusal.value.message
    assert "hush" not in str(refusal.value)


@pytest.mark.parametrize(
    ("url", "database"),
    [
        ("redis://h", 0), ("redis://h/2", 2), ("redis://h?db=3", 3), ("redis://h/?db=3", 3), ("redis://h/3?db=3", 3),
        ("rediss://h?db=4", 4), ("unix:///run/redis.sock?db=5", 5),
    ],
)  # fmt: skip
def test_the_number_of_the_database_stands_in_the_path_or_in_an_option(url: str, database: int) -> None:
    store = connect(url, ring=1, ring_ttl=60)
    assert isinstance(store, RedisStore)
    assert store.announcements("a") == f"sse:{database}:{{a}}"
    store.close()


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("SSE_HARTBEAT", "SSE_HEARTBEAT"),  # a letter is missing
        ("SSE_HEARTBEATS", "SSE_HEARTBEAT"),
        ("SSE_HEARTBAET", "SSE_HEARTBEAT"),  # two letters are swapped
        ("SSE_HATBEAT", "SSE_HEARTBEAT"),
        ("SSE_RINGTTL", "SSE_RING_TTL"),
        ("SSE_RINGS", "SSE_RING"),
        ("SSE_PUBLISH_KEY", "SSE_PUBLISH_KEYS"),
        ("SSE_REDIS_URI", "SSE_REDIS_URL"),
        ("SSE_ORIGIN", "SSE_ORIGINS"),
    ],
)
def test_a_mistyped_name_in_the_environment_is_refused_with_what_it_must_mean(name: str, meant: str) -> None:
    assert foreign({name: "hush"}) == []
    with pytest.raises(ConfigError, match=f"{name} is not a setting: did you mean {meant}") as refusal:
        Config.load({name: "hush"})
    assert "hush" not in str(refusal.value)


OTHERS = ["SSE_KMS_KEY_ID", "SSE_CUSTOMER_KEY", "SSE_HEARTBEAT_MS", "SSE_", "SSE_C", "SSE_ALGORITHM", "SSE_RINGING"]


@pytest.mark.parametrize("name", OTHERS)
def test_another_program_s_name_is_passed_over_in_the_environment_and_refused_in_the_app_s_config(name: str) -> None:
    assert foreign({name: "hush", "SSE_RING": "5", "HOME": "/root"}) == [name]
    assert Config.load({name: "hush", "SSE_RING": "5"}).ring == 5
    with pytest.raises(ConfigError, match=f"{name} is not a setting"):
        Config.load({name: "hush"}, {name: "hush"})


def test_a_letter_too_many_is_told_for_every_setting() -> None:
    names = [name for name, _, _, _ in Config().table()]
    for name in names:
        with pytest.raises(ConfigError, match=f"did you mean {name}"):
            Config.load({f"{name}X": "1"})


def test_all_faults_are_told_together_and_no_secret_with_them() -> None:
    with pytest.raises(ConfigError) as refusal:
        Config.load(
            {
                "SSE_RING": "x",
                "SSE_HARTBEAT": 5,
                **dict.fromkeys(("SSE_PUBLISH_KEYS", "SSE_REDIS_URL", "SSE_SECRET", "SSE_LIMITS_URL"), "hush"),
            },
            {"SSE_ZZZ": 1, "SSE_HARTBEATS": 5},
        )
    told = str(refusal.value)
    assert "SSE_RING is 'x'" in told
    assert "SSE_HARTBEAT is not a setting: did you mean SSE_HEARTBEAT?" in told
    assert "SSE_HARTBEATS is not a setting: did you mean SSE_HEARTBEAT?" in told
    assert "SSE_ZZZ is not a setting" in told
    assert "SSE_PUBLISH_KEYS: key 1" in told
    assert "SSE_REDIS_URL: give" in told
    assert "hush" not in told


def test_secrets_are_shown_as_a_hash_or_not_at_all() -> None:
    config = Config.load(
        {"SSE_REDIS_URL": "redis://:hush@h", "SSE_PUBLISH_KEYS": f"{KEY} {'q' * 30}", "SSE_PUBLIC": "a b"}
    )
    rows = {name: value for name, value, _, _ in config.table()}
    assert rows["SSE_PUBLISH_KEYS"].count("sha256:") == 2
    assert rows["SSE_REDIS_URL"] == "redis://…@h"
    assert rows["SSE_PUBLIC"] == "a, b"
    for text in (str(rows), repr(config)):
        assert "hush" not in text
        assert KEY not in text


@pytest.mark.parametrize(
    ("setting", "value", "shown"),
    [
        ("REDIS_URL", "rediss://user:hu@sh@h:1/2?ssl_cert_reqs=none", "rediss://…@h:1/2?…"),
        ("REDIS_URL", "unix:///run/redis.sock?password=hush,sh", "unix:///run/redis.sock?…"),
        ("LIMITS_URL", "redis://h:1", "redis://h:1"),
        ("JWKS", "https://h/keys?key=hush, /etc/keys", "https://h/keys?… /etc/keys"),
    ],
)
def test_what_is_secret_in_an_address_is_not_shown(setting: str, value: str, shown: str) -> None:
    config = Config.load({f"SSE_{setting}": value})
    assert {name: text for name, text, _, _ in config.table()}[f"SSE_{setting}"] == shown


def test_an_address_at_fault_is_not_repeated_where_a_subclass_of_str_hides_that_it_is_one() -> None:
    for value in strings("https://user:hush@h/keys"):
        with pytest.raises(ConfigError) as refusal:
            Config.load({"SSE_JWKS": value})
        assert "hush" not in str(refusal.value)


def test_settings_may_be_named_by_members_of_an_enum() -> None:
    for name in strings("SSE_RING")[:3]:
        assert Config.load({name: 7}).ring == 7
        with pytest.raises(ConfigError, match="SSE_RING is 'x'"):
            Config.load({name: strings("x")[0]})


@pytest.mark.parametrize("value", ["https://user:hush@h/keys", "https:/user:hush@h/keys", "https://user:hush@h/\a"])
def test_an_address_at_fault_is_not_repeated(value: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        Config.load({"SSE_JWKS": value})
    assert "hush" not in str(refusal.value)


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
