"""The text that is written is the text that is read: whatever is cut, and however the client comes back."""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Iterator
from typing import Any

import pytest
import redis
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from sse.config import Config
from sse.event import Event
from sse.service import Service
from sse.stores import Publication
from tests.client import Parser
from tests.judging_clients import Over, Request, Site, entries

RUNS = ("r", "s")
CHANNELS = (*RUNS, "b")
QUIET = 0.002  # seconds of a heartbeat
FORMS: dict[str, list[tuple[str, str]]] = {
    "plain": [],
    "delta": [("ids", "delta")],
    "typed": [("types", "data")],
    "typed delta": [("types", "data"), ("ids", "delta")],
    "bare": [("form", "bare")],
    "cut": [("end", "cut")],
}

Items = list[tuple[str, str]]  # (type, data); consecutive pieces are one

texts = st.text("ab\r\n é\u2028🎈", max_size=6) | st.sampled_from(["\r", "\n", "\r\n", "", "x" * 20_000, "data: x\n\n"])
writes = st.tuples(st.just("write"), st.sampled_from(RUNS), texts)
events = st.tuples(st.just("event"), st.sampled_from(CHANNELS), st.sampled_from(["1", "two\nlines", ""]))
streams = st.tuples(st.just("stream"), st.sampled_from(list(FORMS)), st.floats(0, 1))
polls = st.tuples(st.just("poll"), st.sampled_from([None, 1024, 5000, 100_000]), st.integers(0, 1))
ends = st.tuples(st.just("end"), st.sampled_from(RUNS), st.just(None))
steps = st.lists(writes | writes | events | streams | streams | polls | ends, max_size=25)


class Reader:
    """A client of all channels. It appends pieces, and holds the positions that it was given."""

    def __init__(self, site: Site) -> None:
        self.items: dict[str, Items] = {channel: [] for channel in CHANNELS}
        self.ended: set[str] = set()
        self.is_over = False
        self._site = site
        self._held: dict[str, str] = {}

    def stream(self, form: str, part: float) -> None:
        """Read a stream until it is quiet; the connection breaks off after a part of it."""
        try:
            body = self._site.body(self._request(FORMS[form]))
        except Over:
            self.is_over = True
            self.ended.update(RUNS)  # a bare client may not have had the ends
            return
        for event in Parser(bare=form == "bare").feed(body[: round(len(body) * part)]):
            type, data = event.event, event.data or ""
            if event.event == "sse.event":
                type, _, data = data.partition("\n")
            if event.own_id is None:
                assert type in ("sse.heartbeat", "sse.close")
                continue
            told = entries(event.own_id)
            self._held = self._held | told if "delta" in form else told
            if not type.startswith("sse."):
                self._take(next(iter(told)), type, data)
            elif type == "sse.end":
                self._end(event.json()["channel"])
            else:
                assert type == "sse.open", f"{type}: nothing is lost here"

    def poll(self, max_bytes: int | None, timeout: int) -> None:
        extra = [("max_bytes", str(max_bytes))] if max_bytes else []
        # A poll that has nothing to tell would wait.
        answer = self._site.poll(self._request(extra), timeout if not self._held else 0)
        assert not answer["resets"]
        for event in answer["events"]:
            self._take(event["channel"], event["type"], event["data"])
        self._held = entries(answer["last_event_id"])
        for channel in answer.get("ended", {}):
            self.ended.add(channel)

    def _request(self, extra: list[tuple[str, str]]) -> Request:
        query = [("channel", channel) for channel in CHANNELS] + extra
        held = "~".join(f"{channel}={position}" for channel, position in self._held.items())
        return Request((*query, ("last_event_id", held)) if held else tuple(query))

    def _end(self, channel: str) -> None:
        assert channel not in self.ended, "the end is told once"
        self.ended.add(channel)

    def _take(self, channel: str, type: str, data: str) -> None:
        assert channel not in self.ended, "nothing follows the end"
        append(self.items[channel], type, data)


def append(items: Items, type: str, data: str) -> None:
    if type == "text" and items and items[-1][0] == "text":
        items[-1] = ("text", items[-1][1] + data)
    else:
        items.append((type, data))


@contextlib.contextmanager
def make_service(redis_url: str | None) -> Iterator[Service]:
    config = Config.load({"SSE_PUBLIC": "*", "SSE_REDIS_URL": redis_url})
    service = Service(dataclasses.replace(config, heartbeat=QUIET, write_every=0, max_event_bytes=65_536))
    yield service
    assert service.hub.subscribers == 0
    service.close()


def publish(service: Service, channel: str, data: str) -> None:
    service.publish([Publication(channel, Event(data, "step"))])


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(steps=steps)
@example(steps=[("write", "s", "\r"), ("event", "s", "1"), ("write", "s", "\n"), ("write", "s", "\n")])
def test_the_text_that_is_read_is_the_text_that_was_written(store_url: str | None, steps: list[Any]) -> None:
    with make_service(store_url) as service, contextlib.ExitStack() as stack:
        if store_url:
            service.store.newest(["r"])
            clear(store_url)
        writers = {channel: stack.enter_context(service.writing(channel, Event, restart=False)) for channel in RUNS}
        wanted: dict[str, Items] = {channel: [] for channel in CHANNELS}
        written: dict[str, str] = dict.fromkeys(RUNS, "")
        after_cr = dict.fromkeys(RUNS, False)

        def settle(channel: str) -> None:
            """Note the text of a channel that was written since the last event, as it is to be read.

            A CR and its LF are one line end, also with an event between them.
            """
            text, written[channel] = written[channel], ""
            if text:
                text, after_cr[channel] = text.removeprefix("\n" * after_cr[channel]), text.endswith("\r")
            if text := re.sub("\r\n?", "\n", text):
                append(wanted[channel], "text", text)

        reader = Reader(Site(service))
        reader.poll(None, 1)  # so that each channel has a ring, and the reader a position
        done: set[str] = set()
        for what, which, how in steps:
            if what == "write" and which not in done:
                writers[which].write(how)
                written[which] += how
            elif what == "event" and which == "b":
                publish(service, "b", how)
                wanted["b"].append(("step", how))
            elif what == "event" and which not in done:
                settle(which)
                writers[which].publish(how, "step")
                wanted[which].append(("step", how))
            elif what == "end" and which not in done:
                done.add(which)
                writers[which].end("done")
            elif what == "stream":
                reader.stream(which, how)
            elif what == "poll":
                reader.poll(which, how)
        for channel in RUNS:
            settle(channel)
            if channel not in done:
                writers[channel].end("done")
        for number in range(200):
            if reader.ended == {*RUNS} and reader.items["b"] == wanted["b"]:
                break
            reader.stream(list(FORMS)[number % len(FORMS)], 1.0) if number % 2 else reader.poll(5000, 0)
        assert reader.items == wanted


def clear(url: str) -> None:
    with redis.Redis.from_url(url) as connection:
        connection.flushdb()


@pytest.mark.parametrize("form", FORMS)
def test_a_request_after_the_end_of_all_is_over_in_each_form(store_url: str | None, form: str) -> None:
    with make_service(store_url) as service:
        if store_url:
            clear(store_url)
        for channel in RUNS:
            with service.writing(channel, Event, restart=False) as out:
                out.write("x")
        site = Site(service)
        held = site.poll(Request((("channel", "r"), ("channel", "s"))))["last_event_id"]
        with pytest.raises(Over):
            site.body(Request((("channel", "r"), ("channel", "s"), ("last_event_id", held), *FORMS[form])))
