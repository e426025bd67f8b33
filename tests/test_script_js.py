"""The embed script's own code: its language level, its size, and its parser of text/event-stream."""

from __future__ import annotations

import base64
import json
import random
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.conftest import MakeApp
from tests.servers import ROOT

SOURCE = ROOT / "static" / "sse.js"
CLIENTS = ROOT / "tests" / "clients"
FUZZED = 4000

Event = tuple[str, str, str]  # type, data, id


# Its language


def es5_faults(source: str) -> str:
    done = subprocess.run(
        ["node", str(CLIENTS / "es5.js")], input=source, capture_output=True, text=True, timeout=30, check=False
    )
    return done.stdout if done.returncode == 0 else done.stderr


def served(make_app: MakeApp) -> str:
    answer = make_app().test_client().get("/sse/sse.js")
    assert answer.status_code == 200
    return answer.get_data(as_text=True)


def test_the_file_is_strict_es5_with_no_newer_name_unguarded_and_no_stray_global() -> None:
    assert es5_faults(SOURCE.read_text()) == ""


def test_so_is_what_is_served(make_app: MakeApp) -> None:
    assert es5_faults(served(make_app)) == ""


@pytest.mark.parametrize(
    ("code", "fault"),
    [
        ("let a = 1;", "SyntaxError"),
        ("var f = () => 1;", "SyntaxError"),
        ("var o = {a};", "SyntaxError"),
        ("var t = `a`;", "SyntaxError"),
        ("f(1,);", "SyntaxError"),
        ("leak = 1;", "leak becomes a global"),
        ("leak += 1;", "leak becomes a global"),
        ("leak++;", "leak becomes a global"),
        ("for (leak in {}) ;", "leak becomes a global"),
        ("undefined = 1;", "undefined becomes a global"),
        ("(function () { var a = 1; }()); a = 2;", "a becomes a global"),
        ("try { f(); } catch (error) { } error.message;", "error is neither declared nor of ES5"),
        ("Promise.resolve();", "Promise is neither"),
        ("fetch('/');", "fetch is neither"),
        ("root.fetch('/');", "root.fetch is newer"),
        ("new root.URL('/');", "root.URL is newer"),
        ("new Map();", "Map is neither"),
        ("root.Promise.resolve();", "Promise is used where nothing has asked"),
        ("root.navigator.locks.request('a');", "locks is used where nothing has asked"),
        ("new root.BroadcastChannel('a');", "BroadcastChannel is used where nothing has asked"),
        ("document.title;", "document is neither"),
        ("(function () {}).bind(root);", ".bind() is newer"),
        ("Object.assign({}, {});", ".assign() is newer"),
        ("'abc'.includes('a');", ".includes() is newer"),
        ("'abc'.startsWith('a');", ".startsWith() is newer"),
    ],
)
def test_the_check_of_the_language_finds(code: str, fault: str) -> None:
    assert fault in es5_faults(f'(function (root) {{\n"use strict";\n{code}\n}})(window);')


@pytest.mark.parametrize(
    ("script", "fault"),
    [
        ("var a = 1;", "a is a global"),
        ("function a() { 'use strict'; }", "a is a global"),
        ("(function () {})();", "not strict"),
    ],
)
def test_the_check_of_the_language_finds_at_the_top(script: str, fault: str) -> None:
    assert fault in es5_faults(script)


def test_good_code_passes_the_check_of_the_language() -> None:
    code = """
    var a = {Promise: 1, b: function named(c) { return arguments.length + c + named.length; }}, key;
    for (key in a) if (a.hasOwnProperty(key)) try { use(a[key]); } catch (error) { use(error.message); }
    function use(value) { return JSON.stringify(value) + root.setTimeout; }
    function canShare() { return Boolean(root.AbortController); }
    canShare();"""
    assert es5_faults(f'(function (root) {{\n"use strict";\n{code}\n}})(window);') == ""


# Its size


def test_it_is_served_in_fourteen_thousand_bytes(make_app: MakeApp) -> None:
    answer = make_app().test_client().get("/sse/sse.js", headers={"Accept-Encoding": "gzip"})
    assert answer.headers["Content-Encoding"] == "gzip"
    assert 1000 < len(answer.data) <= 14_000


# Its parser: WHATWG HTML 9.2.5 and 9.2.6. What is expected was written down from there.


class Vector(NamedTuple):
    name: str
    stream: str | bytes
    events: list[Event]
    retries: list[int]


def vector(name: str, stream: str | bytes, *events: Event, retries: list[int] | None = None) -> Vector:
    return Vector(name, stream, list(events), retries or [])


VECTORS = [
    vector("one event", "data: a\n\n", ("message", "a", "")),
    vector("several lines of data", "data: a\ndata: b\ndata:\ndata: c\n\n", ("message", "a\nb\n\nc", "")),
    vector("empty data is data", "data:\n\ndata: \n\n", ("message", "", ""), ("message", "", "")),
    vector("data without colon", "data\n\ndata\ndata\n\n", ("message", "", ""), ("message", "\n", "")),
    vector("no data, no event", "event: a\n\ndata: b\n\n", ("message", "b", "")),
    vector("blank lines alone", "\n\n\r\r\r\n\r\ndata: a\n\n\n\n", ("message", "a", "")),
    vector("CR", "data: a\rdata: b\r\r", ("message", "a\nb", "")),
    vector("CRLF", "data: a\r\ndata: b\r\n\r\n", ("message", "a\nb", "")),
    vector(
        "CR, LF and CRLF mixed",
        "data: a\rdata: b\ndata: c\r\n\ndata: d\n\rdata: e\r\r\ndata: f\r\n\r",
        ("message", "a\nb\nc", ""),
        ("message", "d", ""),
        ("message", "e", ""),
        ("message", "f", ""),
    ),
    vector("CR LF LF is one line end and a blank line", "data: a\r\n\ndata: b\n\n", ("message", "a", ""),
           ("message", "b", "")),
    vector("other line breaks are text", "data: a\u2028b\u2029c\u0085d\x0b\x0c\n\n",
           ("message", "a\u2028b\u2029c\u0085d\x0b\x0c", "")),
    vector("comments", ":\n: data: no\ndata: a\n:x\n:\n\n", ("message", "a", "")),
    vector("a comment of 2 KB, and of nothing but colons", f":{'x' * 2048}\ndata: a\n{':' * 99}\n\n",
           ("message", "a", "")),
    vector("one BOM is taken off", "\ufeffdata: a\n\ndata: b\n\n", ("message", "a", ""), ("message", "b", "")),
    vector("a second BOM is not", "\ufeff\ufeffdata: a\n\ndata: b\n\n", ("message", "b", "")),
    vector("nor one further on", "data: a\n\n\ufeffdata: b\n\ndata: \ufeffc\n\n", ("message", "a", ""),
           ("message", "\ufeffc", "")),
    vector("a truncated block is discarded", "data: a\nid: 1\n\ndata: b\nid: 2\n", ("message", "a", "1")),
    vector("a truncated line too", "data: a\n\ndata: b", ("message", "a", "")),
    vector("an empty type is message", "event:\ndata: a\n\nevent: b\nevent:\ndata: c\n\n", ("message", "a", ""),
           ("message", "c", "")),
    vector("a type is for its block alone", "event: a\ndata: b\n\ndata: c\n\n", ("a", "b", ""), ("message", "c", "")),
    vector("NUL stays in data and type", "event: x\0y\ndata: a\0b\n\n", ("x\0y", "a\0b", "")),
    vector("a NUL in an id: it is passed over", "id: 1\ndata: a\n\nid: 2\0\ndata: b\n\n", ("message", "a", "1"),
           ("message", "b", "1")),
    vector("an id persists, changes and is reset", "id: 1\ndata: a\n\ndata: b\n\nid: 2\ndata: c\n\nid\ndata: d\n\n",
           ("message", "a", "1"), ("message", "b", "1"), ("message", "c", "2"), ("message", "d", "")),
    vector("an id of a block without data counts", "id: 1\n\ndata: a\n\nid:\n\ndata: b\n\n", ("message", "a", "1"),
           ("message", "b", "")),
    vector("the last id of a block", "id: 1\nid: 2\ndata: a\n\n", ("message", "a", "2")),
    vector("spaces in an id", "id:  1 \ndata: a\n\n", ("message", "a", " 1 ")),
    vector("retry", "retry: 10\nretry:20\nretry: 0030\ndata: a\n\n", ("message", "a", ""), retries=[10, 20, 30]),
    vector("retry with what is no digit",
           "retry: 1a\nretry: -1\nretry: 1.5\nretry: 1e3\nretry:  7\nretry: 7 \nretry: \u0661\ndata: a\n\n",
           ("message", "a", "")),
    vector("retry without a blank line", "retry: 10\n", retries=[10]),
    vector("names are case-sensitive",
           "Data: a\nDATA: b\nEvent: c\nID: 1\nRetry: 5\ndata: d\n\n", ("message", "d", "")),
    vector("spaces before a name make another", " data: a\n\tdata: b\ndata : c\ndata: d\n\n", ("message", "d", "")),
    vector("unknown fields", "foo: a\nfoo\ndatax: b\ndat: c\nevents: d\ndata: e\n\n", ("message", "e", "")),
    vector("one space is taken off", "data:a\ndata: b\ndata:  c\ndata:\td\ndata: e \n\n",
           ("message", "a\nb\n c\n\td\ne ", "")),
    vector("colons in a value", "data:::a: b\nevent: :\nid: x:y\n\n", (":", "::a: b", "x:y")),
    vector("unicode", "event: größe\nid: ☃\ndata: 猫𝄞\n\n", ("größe", "猫𝄞", "☃")),
    vector("what is not UTF-8", b"data: a\xffb\xc3\n\n", ("message", "a\ufffdb\ufffd", "")),
    vector("a long line", f"data: {'0123456789' * 2000}\n\n", ("message", "0123456789" * 2000, "")),
    vector("nothing", ""),
]  # fmt: skip


def parse(streams: list[list[bytes]], script: Path = SOURCE) -> list[list[dict[str, list[object]]]]:
    """Return the results of the script's parser and of the independent one for these chunks of each stream."""
    lines = [json.dumps([base64.b64encode(chunk).decode() for chunk in chunks]) for chunks in streams]
    done = subprocess.run(
        ["node", str(CLIENTS / "parse.js"), str(script)],
        input="\n".join(lines),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.split("\n") if line]


def split(stream: bytes, chance: random.Random) -> list[bytes]:
    cuts = sorted(chance.randrange(len(stream) + 1) for _ in range(chance.choice([1, 2, 5, 20])))
    return [stream[start:end] for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True)]


def test_the_parser_follows_the_standard_however_the_bytes_arrive(request: pytest.FixtureRequest) -> None:
    chance = random.Random(request.config.getoption("hypothesis_seed"))
    streams: list[list[bytes]] = []
    wanted: list[tuple[str, dict[str, object]]] = []
    for name, text, events, retries in VECTORS:
        stream = text if isinstance(text, bytes) else text.encode()
        ways = {
            "whole": [stream],
            "byte by byte": [stream[place : place + 1] for place in range(len(stream))],
            **{f"split at random, {number}": split(stream, chance) for number in range(20)},
        }
        streams += ways.values()
        expected = {"events": [list(event) for event in events], "retries": retries}
        wanted += [(f"{name}, {way}", expected) for way in ways]
    results = parse(streams)
    assert len(results) == len(wanted) == len(VECTORS) * 22
    for (own, _), (name, expected) in zip(results, wanted, strict=True):
        assert own == expected, name


PIECES = [
    *["\n"] * 12, *["\r"] * 4, *["\r\n"] * 6, "\n\n", "\r\r", "\r\n\r\n", "\n\r",
    *["data: "] * 6, *["data:"] * 3, "data", *["event: "] * 3, "event:", "event", *["id: "] * 3, "id:", "id",
    *["retry: "] * 2, "retry:", "retry", "Data: ", "ID:", "foo: ", "da", "ta: ", "datax: ",
    ":", ": ", ":comment", " ", "  ", "\t", "a", "b", "created", "7", "42", "1000", "0", "-1", "1.5", "{\"a\":[1,2]}",
    "\0", "\ufeff", "é", "☃", "𝄞", "\u2028", "\u0085", "x" * 300,
    *[f"data: {number}\n\n" for number in range(3)], "id: 1\nevent: created\ndata: x\n\n",
    "retry: 1000\n", "\nretry:05\r",
]  # fmt: skip


def fuzzed(chance: random.Random) -> bytes:
    pieces = [chance.choice(PIECES).encode() for _ in range(chance.randrange(1, 60))]
    if chance.random() < 0.2:
        pieces.insert(0, "\ufeff".encode())
    if chance.random() < 0.1:
        pieces.insert(chance.randrange(len(pieces)), chance.choice([b"\xff", b"\xc3", b"\xe2\x98", b"\xef\xbb"]))
    return b"".join(pieces)


def test_the_parser_agrees_with_an_independent_one(request: pytest.FixtureRequest) -> None:
    seed = request.config.getoption("hypothesis_seed")
    chance = random.Random(seed)
    streams = [split(fuzzed(chance), chance) for _ in range(FUZZED)]
    results = parse(streams)
    assert len(results) == FUZZED
    for (own, other), chunks in zip(results, streams, strict=True):
        assert own == other, f"seed {seed}: {chunks}"
    counts = [len(own["events"]) for own, _ in results]
    assert sum(counts) > FUZZED, "the streams have events"
    assert sum(bool(own["retries"]) for own, _ in results) > FUZZED / 50


def test_a_parser_that_errs_is_found(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    chance = random.Random(request.config.getoption("hypothesis_seed"))
    streams = [split(fuzzed(chance), chance) for _ in range(1000)]
    for good, bad in [
        ('text.charAt(colon + 1) === " " ? 2 : 1', "1"),
        ('type = "";\n        data = null;', "data = null;"),
        ("half && text.charAt(0)", "text.charAt(0)"),
        (' && value.indexOf("\\0") < 0', ""),
        ("/^[0-9]+$/.test(value) && ", ""),
        ("split(/\\r\\n|\\n|\\r/)", "split(/\\r\\n|\\n/)"),
    ]:
        source = SOURCE.read_text()
        assert good in source, good
        script = tmp_path / "sse.js"
        script.write_text(source.replace(good, bad))
        assert any(own != other for own, other in parse(streams, script)), bad
