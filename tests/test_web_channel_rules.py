"""Rules for channels, in Flask's route syntax without the leading slash."""

from __future__ import annotations

import pytest
from werkzeug.routing import BaseConverter

from sse.web.channel_rules import ChannelRules, Found


def made(*rules: str) -> ChannelRules:
    made = ChannelRules()
    for rule in rules:
        made.add(rule, rule)
    return made


@pytest.mark.parametrize(
    ("channel", "found"),
    [
        ("prices/acme", Found("prices/<symbol>", {"symbol": "acme"})),
        ("prices/7", Found("prices/<int:number>", {"number": 7})),
        ("prices/gold", Found("prices/gold", {})),
        ("prices/acme/bid", Found("prices/<path:rest>", {"rest": "acme/bid"})),
        ("scores", Found("scores", {})),
        ("score", None),
        ("prices", None),
        ("Prices/acme", None),
    ],
)
def test_the_most_specific_rule_wins_whatever_the_order(channel: str, found: Found | None) -> None:
    rules = ("prices/<path:rest>", "prices/<symbol>", "prices/<int:number>", "prices/gold", "scores")
    assert made(*rules).match(channel) == found
    assert made(*reversed(rules)).match(channel) == found


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("scores", "scores"),
        ("prices/<symbol>", "prices/<name>"),
        ("prices/<symbol>", "prices/<string:name>"),
        ("prices/<default:symbol>", "prices/<name>"),
        ("a/<any(x,y):one>", "a/<any(x,y):two>"),
        ("<one>/<int:two>", "<a>/<int:b>"),
    ],
)
def test_equal_rules_are_refused_and_the_error_names_both(first: str, second: str) -> None:
    rules = made(first)
    with pytest.raises(ValueError) as caught:
        rules.add(second, "second")
    assert repr(first) in str(caught.value)
    assert repr(second) in str(caught.value)


@pytest.mark.parametrize(
    "rule",
    ["", "/scores", "scores/", "a//b", "a/<b", "a/<b>/<b>", "a/<no_such:b>", "sse.a/<b>", "a/../<b>", "a b", "a/*", 7],
)
def test_a_rule_that_could_match_no_channel_is_refused(rule: str) -> None:
    with pytest.raises(ValueError, match="rule"):
        made().add(rule, "value")


def test_a_channel_that_was_asked_for_is_found_by_a_rule_that_comes_later() -> None:
    rules = made()
    assert not rules
    assert rules.match("scores") is None
    rules.add("scores", "value")
    assert rules
    assert rules.match("scores") == Found("value", {})


def test_an_app_may_have_converters_of_its_own() -> None:
    class Ticker(BaseConverter):
        regex = "[A-Z]{1,5}"

    rules = made()
    rules.know({"ticker": Ticker})
    rules.add("prices/<ticker:symbol>", "value")
    assert rules.match("prices/ACME") == Found("value", {"symbol": "ACME"})
    assert rules.match("prices/acme") is None


def test_a_converter_that_fails_is_logged_and_asked_again(caplog: pytest.LogCaptureFixture) -> None:
    class Upper(BaseConverter):
        broken = True

        def to_python(self, value: str) -> str:
            if self.broken:
                raise KeyError(value)
            return value.upper()

    rules = ChannelRules()
    rules.know({"upper": Upper})
    rules.add("prices/<upper:symbol>", "any")
    assert rules.match("prices/acme") is None
    assert "a converter of the app has failed for channel prices/acme" in caplog.text
    Upper.broken = False
    assert rules.match("prices/acme") == Found("any", {"symbol": "ACME"})
