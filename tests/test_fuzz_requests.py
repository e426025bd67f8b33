"""Random requests with random credentials.

Only allowed requests are let in, none causes a 5xx or a forged frame. fuzzed_requests.py makes the requests.
The long form: FUZZ=1000000 pytest -o faulthandler_timeout=3600 tests/test_fuzz_requests.py
"""

from __future__ import annotations

import base64
import contextlib
import json
import random
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qsl

import pytest
from flask import Flask

from sse import SSE
from tests.client import Parser
from tests.conftest import MakeApp
from tests.fuzzed_requests import COUNT, ENDED, PARTS, WAYS, Fuzzer, Input
from tests.tokens import KEY, SECRET, jwk_set
from tests.writing import Run

NEWS = "the private news"
OURS = re.compile(r"own(/(?!\.\.?(/|\Z))[A-Za-z0-9_.:@-]+)+")
# All are to be met with, lest a generator gone blunt is taken for a service that holds.
CODES = """bad_batch bad_json bad_request forbidden idempotency_conflict invalid_channel invalid_data invalid_event
    invalid_idempotency_key invalid_type method_not_allowed not_found token_audience token_claims token_early
    token_expired token_in_query token_invalid token_lifetime token_revoked too_large unauthorized unsupported_media
    trimmed unknown diverged invalid missing gone ended""".split()

TypeAndData = tuple[str, str]


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes


def opening(text: bytes) -> dict[str, Any]:
    """Return the data of a stream's opening block."""
    if text.startswith(b": open "):
        return dict(json.loads(text.splitlines()[0].removeprefix(b": open ")))
    (block,) = [block for block in Parser().feed(text) if block.event == "sse.open"]
    return dict(block.json())


def is_bare(environ: dict[str, Any]) -> bool:
    return ("form", "bare") in parse_qsl(environ["QUERY_STRING"])


def asked(environ: dict[str, Any]) -> list[str]:
    """Return the channels in the query, as the standard library parses it."""
    query = parse_qsl(environ["QUERY_STRING"], keep_blank_values=True)
    return list(dict.fromkeys(value for name, value in query if name == "channel"))


def published(given: Input) -> list[tuple[str, TypeAndData | None]] | None:
    """Return the published data by channel, with None where it is not known."""
    if given.body is None:
        return None
    path, kind = given.environ["PATH_INFO"], given.environ["CONTENT_TYPE"]
    if path == "/sse/publish":
        events = json.loads(given.body)
        return [
            (channel, (event.get("type") or "message", as_lines(event["data"])))
            for event in (events if isinstance(events, list) else [events])
            for channel in (event["channel"] if isinstance(event["channel"], list) else [event["channel"]])
        ]
    channel, text = path.removeprefix("/sse/publish/"), given.body.decode("utf-8", "replace")
    if kind == "image/png":
        text = f"data:image/png;base64,{base64.b64encode(given.body).decode()}"
    elif kind not in ("text/plain", "text/plain; charset=utf-8"):
        return [(channel, None)]
    query = dict(reversed(parse_qsl(given.environ["QUERY_STRING"])))  # the first counts
    return [(channel, (query.get("type", "message"), as_lines(text)))]


def as_lines(data: Any) -> str:
    text = data if isinstance(data, str) else json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    return re.sub("\r\n?", "\n", text)


def reason_of(channel: str) -> Any:
    return channel.removeprefix("own/")


class Judge:
    """Sends a fuzzer's requests, checks the answers, and records what was published and received."""

    def __init__(self, app: Flask, seed: int) -> None:
        self.app = app
        self.private = str(app.extensions["sse"].store.newest(["private"])[0])
        self.fuzzer = Fuzzer(seed, self.private)
        self.stored = self.fuzzer.stored
        self.texts: dict[str, TypeAndData | None] = {}  # by id
        for channel in ENDED:
            run = Run(app.extensions["sse"].store, channel)
            self.stored[channel] = [*map(str, run.write("the text")), str(run.end(reason_of(channel)))]
            self.texts[f"{channel}={self.stored[channel][0]}"] = ("text", "the text")
        self.met: Counter[object] = Counter()

    def check(self, given: Input) -> None:
        answer = None
        try:
            answer = self.send(given.environ)
            self.judge(given, answer)
        except Exception as fault:
            fault.add_note(f"{given} gave {answer}")
            raise

    def send(self, environ: dict[str, Any]) -> Answer:
        """The answer; of a stream, what comes without waiting."""
        told: list[Any] = []
        wsgi: Any = self.app.wsgi_app
        body = wsgi(environ, lambda *answer: told.append(answer[:2]))
        with contextlib.closing(body):
            ((status, fields),) = told
            for name, value in fields:
                assert re.fullmatch("[A-Za-z0-9-]+", name)
                assert re.fullmatch("[\x20-\x7e]*", value), "what no header should have"
            headers = {name.lower(): value for name, value in fields}
            chunks: Iterator[bytes] = iter(body)
            if headers.get("content-type") != "text/event-stream" or environ["REQUEST_METHOD"].upper() != "GET":
                return Answer(int(status[:3]), headers, b"".join(chunks))
            text = next(chunks)
            opened = opening(text)["channels"]
            if any(self.is_behind(name, channel["position"]) for name, channel in opened.items()):
                text += next(chunks)
            return Answer(int(status[:3]), headers, text)

    def is_behind(self, channel: str, position: str | None) -> bool:
        stored = self.stored.get(channel)
        return position is None or bool(stored and position != stored[-1])

    def judge(self, given: Input, answer: Answer) -> None:
        environ, credential = given.environ, given.credential
        status, headers, body = answer
        assert status in (200, 201, 204, 304) or 400 <= status < 500
        if (status, headers.get("content-type")) == (400, "text/html; charset=utf-8"):
            assert "HTTP_HOST" in environ  # which Flask checks first
            return
        self.judge_secrecy(given, answer)
        if status >= 400 and environ["REQUEST_METHOD"] != "HEAD":
            error = json.loads(body)["error"]
            assert error.keys() - {"channels"} == {"code", "message", "hint"}
            assert error["message"] and (error["hint"] or given.body is None), "an error names the fault and the remedy"
            self.met[error["code"]] += 1
        if status in (200, 201) and environ["REQUEST_METHOD"].upper() in ("GET", "POST", "HEAD"):
            assert credential.good, "one got in who should not"
            if body and environ["PATH_INFO"].startswith("/sse/publish"):
                self.judge_published(given, json.loads(body)["ids"])
            elif body:
                self.judge_told(environ["PATH_INFO"], environ["QUERY_STRING"], asked(environ), body)
        if status == 410:
            assert credential.good, "one was told of a ring who may not read it"
            assert is_bare(environ)
            self.judge_gone(asked(environ), body)
        elif status in (204, 409):
            assert credential.good, "one was told of an end who may not read it"
            assert (status == 204) == (environ["PATH_INFO"] == "/sse/stream")
            assert {*ENDED} & {*asked(environ), environ["PATH_INFO"].removeprefix("/sse/publish/")} or given.body
            self.met["ended", status] += 1
        elif given.sound:
            assert (status == WAYS[given.way or ""][2]) if credential.good else (status in (401, 403)), "the wrong one"
        for item in given.spoiled or {"nothing"}:
            self.met[item, status < 400] += 1
        self.met[given.way, status] += 1

    def judge_secrecy(self, given: Input, answer: Answer) -> None:
        environ, credential = given.environ, given.credential
        status, headers, body = answer
        assert headers["x-content-type-options"] == "nosniff"
        assert headers.get("access-control-allow-origin") in (None, "https://a.example")
        assert "access-control-allow-origin" not in headers or environ["HTTP_ORIGIN"] == "https://a.example"
        assert NEWS.encode() not in body
        brought = f"{environ['QUERY_STRING']} {environ.get('HTTP_LAST_EVENT_ID')}"
        assert self.private.encode() not in body or self.private in brought
        if (status, given.way) != (201, "ticket"):
            pieces = re.split("[. ]", " ".join([SECRET, KEY, credential.query or "", *credential.headers.values()]))
            told = f"{body!r} {headers}"
            assert not [piece for piece in pieces if len({*piece}) > 14 and piece in told], "a credential is told"

    def judge_told(self, path: str, query: str, asked: list[str], body: bytes) -> None:
        """What a reader is told: of the channels asked for alone, in order, and as it was published."""
        assert asked and all(map(OURS.fullmatch, asked))
        told: list[tuple[str, str, str]] = []
        resets: list[Any] = []
        if path == "/sse/ticket":
            payload = json.loads(body)["ticket"].split(".")[1]
            assert json.loads(base64.urlsafe_b64decode(payload + "=="))["subscribe"] == asked
        elif path == "/sse/poll":
            answer = json.loads(body)
            places = dict(entry.split("=") for entry in answer["last_event_id"].split("~"))
            assert list(places) == asked
            behind = [channel for channel, position in places.items() if self.is_behind(channel, position)]
            assert answer["more"] or not behind
            assert "max_bytes=1024" not in query or len(body) <= 1024 or len(answer["events"]) <= 1
            told = [(event["id"], event["type"], event["data"]) for event in answer["events"]]
            resets = answer["resets"]
            ends = {channel: reason_of(channel) for channel in ENDED if places.get(channel) == self.stored[channel][-1]}
            assert answer.get("ended", {}) == ends
        else:
            for block in Parser(bare=body.startswith(b": ")).feed(body):
                assert {entry.partition("=")[0] for entry in block.id.split("~")} <= {*asked}
                if block.event == "sse.open":
                    assert list(block.json()["channels"]) == asked
                elif block.event == "sse.reset":
                    resets.append(block.json())
                elif block.event == "sse.end":
                    assert block.json()["reason"] == reason_of(block.json()["channel"])
                elif block.event != "sse.heartbeat":
                    type, data = block.event, block.data or ""
                    if type == "sse.event":
                        type, _, data = data.partition("\n")
                    told.append((block.id.partition("~")[0], type, data))
        assert {reset["channel"] for reset in resets} <= {*asked}
        self.met.update(reset["reason"] for reset in resets)
        self.met["event"] += len(told)
        before: dict[str, int] = {}
        for id, type, data in told:
            channel, _, position = id.partition("=")
            offset = int(position.partition("-")[0])
            assert self.texts[id] in (None, (type, data)), "a forged frame"
            assert channel in asked and before.get(channel, offset - 1) == offset - 1
            before[channel] = offset

    def judge_gone(self, asked: list[str], body: bytes) -> None:
        """How a bare stream is refused whose position cannot be continued."""
        if not body:
            return  # of a HEAD
        answer = json.loads(body)
        places = dict(entry.split("=") for entry in answer["last_event_id"].split("~"))
        assert list(places) == asked
        if answer["error"]["code"] == "ended":
            assert answer["ended"] == {channel: reason_of(channel) for channel in asked}
            assert "own/failed" in asked, "else it is 204"
            return
        reset = {item["channel"]: item["reason"] for item in answer["resets"]}
        assert reset
        assert reset.keys() <= {*asked}
        for channel in reset:  # to a place in the ring, from which it can go on
            assert places[channel].startswith("0-") or places[channel] in self.stored[channel]
        self.met.update(reset.values())

    def judge_published(self, given: Input, ids: list[str]) -> None:
        texts = published(given) or [(id.partition("=")[0], None) for id in ids]
        for id, (channel, text) in zip(ids, texts, strict=True):
            name, _, position = id.partition("=")
            assert name == channel and OURS.fullmatch(name)
            if id in self.texts:
                known = self.texts[id]
                assert "HTTP_IDEMPOTENCY_KEY" in given.environ and (text is None or known in (None, text))
                self.texts[id] = known or text
            else:
                self.texts[id] = text
                self.stored[channel].append(position)
                assert position.partition("-")[0] == str(len(self.stored[channel])), "stored once"


@pytest.fixture
def fuzzed(make_app: MakeApp, tmp_path: Path) -> Flask:
    (tmp_path / "jwks").write_text(jwk_set("RS256"))
    (tmp_path / "keys").write_text(f"own {KEY} own/*\n")
    sse = SSE()
    app = make_app(
        sse, SSE_PUBLIC="", SSE_SECRET=SECRET, SSE_JWKS=str(tmp_path / "jwks"), SSE_ORIGINS="https://a.example",
        SSE_PUBLISH_KEYS_FILE=str(tmp_path / "keys"), SSE_PROXIES=1, SSE_RING=5,
        SSE_LIMIT_SUBSCRIBE="999999999/minute", SSE_LIMIT_PUBLISH="", SSE_LIMIT_CHANNEL="",
        SSE_LIMIT_PUBLISH_BYTES="",
    )  # fmt: skip
    with app.app_context():
        sse.publish("private", NEWS)
        sse.revoke(token="revoked")
        sse.revoke(sub="revoked")
    return app


def test_nobody_gets_in_and_nothing_falls_over(fuzzed: Flask, request: pytest.FixtureRequest) -> None:
    seed = int(request.config.option.hypothesis_seed)
    judge = Judge(fuzzed, seed)
    for number in range(COUNT):
        if number % 500 == 0:
            judge.fuzzer.renew()
        try:
            judge.check(judge.fuzzer.request())
        except Exception as fault:
            fault.add_note(f"input {number} of seed {seed}")
            raise
    store, met = fuzzed.extensions["sse"].store, judge.met
    rings = {channel: str(ring.newest) for channel, ring in store._rings.items() if ring.newest.offset}
    stored = {channel: positions[-1] for channel, positions in judge.stored.items() if positions}
    assert rings == stored | {"private": judge.private}, "each publication is stored, and nothing else"
    # The inputs are worth something only if each way is gone, in and out, and each reason given.
    assert met.keys() >= {*CODES}, {*CODES} - met.keys()
    assert met["nothing", False] < met["nothing", True], met
    assert min(met[part, through] for part in PARTS for through in (True, False)) > COUNT / 200, met
    assert min(met[way, status] for way, (_, _, status) in WAYS.items()) > COUNT / 50, met
    assert met["event"] > COUNT / 10, met
    assert min(met["ended", status] for status in (204, 409)) > COUNT / 2000, met


def test_what_is_published_is_one_frame_whatever_it_holds(fuzzed: Flask) -> None:
    fuzzer = Fuzzer(random.SystemRandom().randrange(2**32), private="")
    client = fuzzed.test_client()
    reader = {"Authorization": f"Bearer {fuzzer.tokens[0]}"}
    for number in range(200):
        channel = f"own/frames/{number}"
        text = fuzzer.text().encode("utf-8", "replace").decode()
        answer = client.post(f"/sse/publish/{channel}", data=text.encode(), content_type="text/plain",
                             headers={"Authorization": f"Bearer {KEY}"})  # fmt: skip
        assert answer.status_code == 201
        with client.get(f"/sse/stream?channel={channel}&replay=1", headers=reader) as stream:
            chunks: Iterator[Any] = iter(stream.response)
            parser = Parser()
            blocks = [block for block in parser.feed(next(chunks) + next(chunks)) if not block.event.startswith("sse.")]
        expected = text.replace("\r\n", "\n").replace("\r", "\n")
        assert [(block.event, block.data) for block in blocks] == [("message", expected)]
