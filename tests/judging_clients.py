"""Clients that compare every block that they receive with the events that were really published.

They share no code with `sse/` but the app that they ask.
"""

from __future__ import annotations

import contextlib
import json
import random
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple
from urllib.parse import urlencode

import flask
from flask import Flask, Response
from werkzeug.test import create_environ

from sse import SSE
from sse.service import Service
from sse.transports.stream import Cut, Stream
from sse.web.views import make_blueprint
from sse.wire import BARE_HEARTBEAT, HEARTBEAT
from tests.client import Event as Block
from tests.client import Parser
from tests.driven_streams import driven

LOST = "lost"  # the client's place in a channel that it must be told the loss of


class Refused(Exception):
    """A bare stream's position cannot be continued. `answer` has the resets and the position to go on from."""

    def __init__(self, answer: dict[str, Any]) -> None:
        super().__init__(answer)
        self.answer = answer


class Over(Exception):
    """All channels of a stream's request have ended. `reasons` has why, if the answer says so."""

    def __init__(self, reasons: dict[str, str]) -> None:
        super().__init__(reasons)
        self.reasons = reasons


class Request(NamedTuple):
    """The parts of a request that carry a client's position: its query, and its Last-Event-ID header."""

    query: tuple[tuple[str, str], ...]
    header: str | None = None

    @property
    def entries(self) -> dict[str, str]:
        return entries(self.header or dict(self.query).get("last_event_id", ""))

    @property
    def replay(self) -> int:
        """The number of events to replay of a channel without a position."""
        query = dict(self.query)
        return 0 if self.header or "last_event_id" in query else int(query.get("replay", 0))


def entries(last_event_id: str) -> dict[str, str]:
    """Return the entries of a last event id, as they are written."""
    return {name: position for name, _, position in (part.partition("=") for part in last_event_id.split("~")) if name}


class Site:
    """The routes of a service, called within this process. With `rng`, other streams join and leave at random.

    With `own`, a view of the app answers in place of the routes, with the channels that the client asks for.
    """

    def __init__(self, service: Service, rng: random.Random | None = None, *, own: bool = False) -> None:
        self.service = service
        self._rng = rng
        self._app = Flask("tests")
        self._app.register_blueprint(make_blueprint(service, lambda: None))
        self._app.extensions["sse"] = service
        self._app.add_url_rule("/own", view_func=lambda: SSE().subscribe(*flask.request.args.getlist("of")))
        self._browser = self._app.test_client()
        self._environ = create_environ()
        self._own = own

    def _asked(self, request: Request, route: str, *more: tuple[str, str], **headers: str) -> dict[str, Any]:
        """Return the WSGI environment of a request. The test client takes five times as long to make one."""
        query = [*request.query, *more]
        if self._own:
            route, query = "/own", [("of" if name == "channel" else name, value) for name, value in query]
        if request.header is not None:
            headers["HTTP_LAST_EVENT_ID"] = request.header
        return self._environ | {"PATH_INFO": route, "QUERY_STRING": urlencode(query)} | headers

    def stream(self, request: Request) -> Iterator[bytes]:
        """Yield the chunks of a stream, which connects at the first chunk. A stream that is cut just ends.

        :raises Refused: in place of the first.
        :raises Over: in place of the first, if all channels have ended.
        """
        environ = self._asked(request, "/sse/stream")
        if self._rng:
            with self._app.request_context(environ):
                answer = self._app.full_dispatch_request()
            _check_status(answer)
            assert isinstance(answer.response, Stream)
            with contextlib.suppress(Cut):
                yield from driven(answer.response, self._rng)
            return
        response = self._browser.open(flask.Request(environ))
        _check_status(response)
        try:
            with contextlib.suppress(Cut):
                yield from response.iter_encoded()
        finally:
            response.close()

    def body(self, request: Request) -> bytes:
        """Return all that a stream sends until it is quiet."""
        return b"".join(until_quiet(self.stream(request)))

    def poll(self, request: Request, timeout: int = 0) -> dict[str, Any]:
        request = request._replace(query=tuple(pair for pair in request.query if pair[0] != "ids"))
        environ = self._asked(request, "/sse/poll", ("timeout", str(timeout)), HTTP_ACCEPT="application/json")
        response = self._browser.open(flask.Request(environ))
        assert response.status_code == 200, response.get_data()
        return dict(response.get_json())


def _check_status(response: Response) -> None:
    if response.status_code == 204:
        assert not response.get_data()
        raise Over({})
    if response.status_code == 410:
        answer = response.get_json()
        raise Over(answer["ended"]) if answer["error"]["code"] == "ended" else Refused(answer)
    assert response.status_code == 200, response.get_data()


class Rings(ABC):
    """The events that were published, which clients are compared with. Positions are as written on the wire."""

    @abstractmethod
    def after(self, channel: str, position: str) -> tuple[str, str, str] | None:
        """Return the position, type and data of the event after a position."""

    @abstractmethod
    def before(self, channel: str, position: str) -> str:
        """Return the position before an event's position."""

    @abstractmethod
    def is_top(self, channel: str, position: str) -> bool:
        """Return whether the position is the newest."""

    @abstractmethod
    def keeps(self, channel: str, position: str) -> bool:
        """Return whether a client at the position can go on without a reset."""

    @abstractmethod
    def knows(self, channel: str, position: str) -> bool:
        """Return whether a reset may lead a client to the position."""

    def reason(self, channel: str, position: str) -> str | None:
        """Return the reason of the end at this position; None if the position is no end."""
        return None

    def may_be_empty(self, channel: str, reason: str) -> bool:
        """Return whether a run has ended for this reason without any event before its end."""
        return False

    def loses_texts(self, channel: str) -> bool:
        """Return whether a run's text may be gone, so that a client without a position is reset."""
        return False

    @property
    def may_be_behind(self) -> bool:
        """True if a hub may not know of an end yet that a client has had from another one."""
        return False

    @abstractmethod
    def starts(self, channel: str, position: str, replay: int) -> bool:
        """Return whether a client without a position, that asks for `replay` events, may start at the position."""


def until_quiet(chunks: Iterator[bytes], enough: Callable[[], bool] = lambda: True) -> Iterator[bytes]:
    """Yield chunks up to the first heartbeat at which there is `enough`, for at most 3 seconds."""
    deadline = time.monotonic() + 15
    for chunk in chunks:
        is_quiet = chunk in (HEARTBEAT, BARE_HEARTBEAT)
        if is_quiet and enough():
            return
        assert time.monotonic() < deadline, "the stream has not told all"
        if not is_quiet:
            yield chunk


class Client:
    """A client of the three channels: its last event id, and the position that it really received.

    A place is a position, LOST, or None where nothing was promised yet. Every block is judged as it comes: an event
    must be the one after the place, a reset must be due, and the id must claim the places, no more and no less.
    """

    def __init__(self, rings: Rings, first: Request, places: dict[str, str | None]) -> None:
        self.rings = rings
        self.first = first
        self.held = ""
        self.places = places
        self.asked = first
        self.resets: list[tuple[str, str]] = []

    @property
    def state(self) -> tuple[str, tuple[str | None, ...]]:
        return self.held, tuple(self.places.values())

    @property
    def has_all(self) -> bool:
        return all(place is not None and self.rings.is_top(channel, place) for channel, place in self.places.items())

    def copy(self) -> Client:
        other = type(self)(self.rings, self.first, dict(self.places))
        other.held = self.held
        return other

    def request(self) -> Request:
        """Return the next request. EventSource repeats its URL, and sends its last event id unless that is empty."""
        return self.first._replace(header=self.held) if self.held else self.first

    def other_requests(self) -> Iterable[Request]:
        """Return other requests with the same last event id, as of a script that rebuilds its URL."""
        if self.held:
            yield with_parameter(self.first, self.held)

    def connect(self, request: Request) -> Parser:
        self.asked = request
        return Parser(self.held)

    def take(self, block: Block) -> None:
        assert block.data is not None
        self.hold(block)
        if block.event == "sse.open":
            self._open(block.json()["channels"])
        elif block.event == "sse.end":
            self._end(block.json()["channel"], block.json()["reason"])
            channel, position = next(iter(entries(block.own_id or "").items()))
            assert self.places[channel] == position
        elif block.event == "sse.reset":
            told = block.json()
            self._reset(told["channel"], told["reason"], told["missed"], entries(block.own_id or "")[told["channel"]])
        elif block.event in ("sse.heartbeat", "sse.close"):
            assert block.own_id is None
        else:
            assert block.own_id is not None
            channel, position = next(iter(entries(block.own_id).items()))
            self._event(channel, position, block.event, block.data)
        self.judge()

    def hold(self, block: Block) -> None:
        self.held = block.id

    def judge(self) -> None:
        held = entries(self.held)
        for channel, place in self.places.items():
            if place == LOST:
                assert not self.rings.keeps(channel, held.get(channel, "")), f"{self.held} claims a lost {channel}"
            else:
                claims = self.claims(channel, place)
                assert held.get(channel) in claims, f"{self.held} claims {channel} where {place} was given"

    def claims(self, channel: str, place: str | None) -> Iterable[str | None]:
        """Return the positions that the client may hold where it is at a place."""
        return (place,)

    def take_over(self, over: Over) -> None:
        """Take the answer that all channels have ended. The client must have had all ends."""
        assert self.has_all
        assert not over.reasons
        for channel, place in self.places.items():
            assert self.rings.reason(channel, str(place)), f"{channel} goes on"

    def take_answer(self, answer: dict[str, Any], request: Request) -> None:
        """Take a poll's answer. Its resets count as received before its events."""
        self.asked = request
        self.held = answer["last_event_id"]
        first: dict[str, str] = {}
        for event in answer["events"]:
            channel, position = event["id"].split("=")
            assert channel == event["channel"]
            first.setdefault(channel, self._before_text(channel, position, event["data"]))
        ends = entries(self.held)
        ended = answer.get("ended", {})
        starts = {ch: first.get(ch) or self._before_end(ch, ends[ch], ch in ended) for ch in self.places}
        reset_channels = [reset["channel"] for reset in answer["resets"]]
        for reset in answer["resets"]:
            channel = reset["channel"]
            if self.places[channel] is None:
                assert self.rings.loses_texts(channel)
                self.places[channel] = LOST
            if reset_channels.count(channel) == 1:
                self._reset(channel, reset["reason"], reset["missed"], starts[channel])
            elif self.places[channel] != starts[channel]:
                # A hub that was behind resets twice; the answer does not say what place came between.
                self._reset(channel, reset["reason"], None, starts[channel], exact=False)
        for channel, place in self.places.items():
            assert place != LOST or answer["more"], f"{channel} was not reset"
            if place is None:
                assert self.rings.starts(channel, starts[channel], request.replay)
                self.places[channel] = starts[channel]
        for event in answer["events"]:
            self._event(event["channel"], event["id"].split("=")[1], event["type"], event["data"])
        ended = answer.get("ended", {})
        for channel, reason in ended.items():
            if self.places[channel] == ends[channel]:
                assert self.rings.reason(channel, ends[channel]) == reason
            else:
                self._end(channel, reason)
        for channel, place in self.places.items():
            is_end = self.rings.reason(channel, str(place)) is not None
            assert (channel in ended) == is_end or (self.rings.may_be_behind and is_end)
        whole = {channel for channel in first if starts[channel].startswith("0-")}
        assert set(answer.get("whole", ())) == whole
        self.judge()

    def _open(self, channels: dict[str, dict[str, Any]]) -> None:
        assert list(channels) == list(self.places)
        for channel, told in channels.items():
            place, asked = self.places[channel], self.asked.entries.get(channel)
            if place is None and told["position"] is None:
                assert self.rings.loses_texts(channel)
                self.places[channel] = LOST
            elif place is None:
                assert not told["resumed"]
                assert self.rings.starts(channel, told["position"], self.asked.replay)
                self.places[channel] = told["position"]
            elif told["resumed"]:
                assert told["position"] == place == asked
            else:
                assert told["position"] is None or told["position"] == asked, f"{channel} goes on as if it were new"
            if told["resumed"]:
                ended = self.rings.reason(channel, told["position"])
                assert told.get("ended") == ended or (self.rings.may_be_behind and "ended" not in told)
                assert told.get("whole", False) == told["position"].startswith("0-")

    def _event(self, channel: str, position: str, type: str, data: str) -> None:
        place = self.places[channel]
        assert place is not None
        found = self.rings.after(channel, place)
        while type == "text" and found and found[0] != position:  # pieces, joined
            follows = self.rings.after(channel, found[0])
            assert found[1] == "text", f"{channel} was at {place}"
            assert follows, f"{channel} was at {place}"
            assert follows[1] == "text", f"{channel} was at {place}"
            found = (follows[0], "text", found[2] + follows[2])
        assert found == (position, type, data), f"{channel} was at {place}"
        self.places[channel] = position

    def _end(self, channel: str, reason: str) -> None:
        place = self.places[channel]
        assert place is not None
        found = self.rings.after(channel, place)
        assert found, f"{channel} has not ended, or its end was told before"
        assert found[1] == "sse.end", f"{channel} was at {place}"
        assert self.rings.reason(channel, found[0]) == reason
        self.places[channel] = found[0]

    def _before_text(self, channel: str, position: str, data: str) -> str:
        """Return the position before an event, which may be several pieces."""
        before = self.rings.before(channel, position)
        found = self.rings.after(channel, before)
        assert found
        text = found[2]
        while text != data:
            assert len(text) < len(data), f"{channel} has no {data} at {position}"
            position, before = before, self.rings.before(channel, before)
            found = self.rings.after(channel, before)
            assert found
            text = found[2] + text
        return before

    def _before_end(self, channel: str, position: str, is_ended: bool) -> str:
        """Return the position of a channel without events in an answer, as it was before its end was told."""
        place = self.places[channel]
        return self.rings.before(channel, position) if is_ended and place != position else position

    def _reset(self, channel: str, reason: str, missed: int | None, position: str, exact: bool = True) -> None:
        place = self.places[channel]
        unsaid = self.asked.header is not None and not self.asked.entries.get(channel)
        assert place is not None
        assert place == LOST or unsaid or not self.rings.keeps(channel, place), f"{channel} could go on from {place}"
        if reason == "trimmed" and missed is None and exact:
            assert self.rings.loses_texts(channel)
        elif reason == "trimmed" and exact:
            lost = self.asked.entries[channel] if place == LOST else place
            assert missed == max(int(position.split("-")[0]) - int(lost.split("-")[0]), 0)
        else:
            assert missed is None
        assert self.rings.knows(channel, position)
        self.places[channel] = position
        self.resets.append((channel, reason))


class LiteralClient(Client):
    """A reader that follows WHATWG HTML 9.2.6 literally: each connection begins with an empty last event id."""

    def connect(self, request: Request) -> Parser:
        super().connect(request)
        return Parser()


class DeltaClient(Client):
    """A script that keeps the positions of all channels itself, and sends them in the URL."""

    def request(self) -> Request:
        return with_parameter(self.first, self.held) if self.held else self.first

    def other_requests(self) -> Iterable[Request]:
        return ()

    def hold(self, block: Block) -> None:
        told = entries(block.own_id or "")
        assert block.event == "sse.open" or len(told) <= 1
        held = entries(self.held) | told
        self.held = "~".join(f"{channel}={position}" for channel, position in held.items())


class BareClient(Client):
    """A reader that takes every block for an event. It hears of an end by a comment, which has no id.

    It has no place in a channel before the first id that names it. So it may hear that a run has ended without events,
    and still have no place there. `empty` has the reason of such an end, until a later id claims the end.
    """

    def __init__(self, rings: Rings, first: Request, places: dict[str, str | None]) -> None:
        super().__init__(rings, first, places)
        self.empty: dict[str, str] = {}

    def connect(self, request: Request) -> Parser:
        self.asked = request
        self.empty.clear()
        for channel, place in self.places.items():
            if place is not None and place != LOST and self._is_unclaimed_end(channel, place):
                self.places[channel] = self.rings.before(channel, place)  # the end will be told again
        return Parser(bare=True, comments=True)

    def take(self, block: Block) -> None:
        assert block.data is not None
        if block.event == "comment":
            name, _, data = block.data.partition(" ")
            if name == "end":
                told = json.loads(data)
                if self.places[told["channel"]] is None:
                    self._end_of_empty(told["channel"], told["reason"])
                else:
                    self._end(told["channel"], told["reason"])
            return
        assert block.own_id, "the ids of other blocks mean nothing to it"
        assert not block.event.startswith("sse.")
        self.held = block.own_id
        channel, position = next(iter(entries(block.own_id).items()))
        for name, claimed in entries(block.own_id).items():
            if self.places[name] is None:
                start = self._before_text(name, claimed, block.data) if name == channel else claimed
                if name in self.empty:
                    assert self.rings.reason(name, claimed) == self.empty.pop(name)
                    start = self.rings.before(name, claimed)
                assert self.rings.starts(name, start, self.asked.replay)
                self.places[name] = start if name == channel else claimed
        self._event(channel, position, block.event, block.data)
        self.judge()

    def _end_of_empty(self, channel: str, reason: str) -> None:
        assert self.rings.may_be_empty(channel, reason), f"{channel} has ended after events that were not told"
        self.empty[channel] = reason

    def claims(self, channel: str, place: str | None) -> Iterable[str | None]:
        is_end = place is not None and self.rings.reason(channel, place) is not None
        return (place, self.rings.before(channel, place)) if place and is_end else (place,)

    def _is_unclaimed_end(self, channel: str, place: str) -> bool:
        if self.rings.reason(channel, place) is None:
            return False
        return entries(self.held).get(channel) == self.rings.before(channel, place)

    def take_over(self, over: Over) -> None:
        """Take the answer that all channels have ended. The client may not have had the ends, which have no ids."""
        reasons: dict[str, str | None] = {}
        for channel, place in self.places.items():
            if place is None:
                reason = over.reasons.get(channel, "done")
                self._end_of_empty(channel, reason)
                reasons[channel] = reason
                continue
            if self.rings.reason(channel, place) is None:
                found = self.rings.after(channel, place)
                assert found
                self.places[channel] = found[0]
            reasons[channel] = self.rings.reason(channel, str(self.places[channel]))
        assert over.reasons == ({} if set(reasons.values()) == {"done"} else reasons)

    def take_refusal(self, answer: dict[str, Any], request: Request) -> None:
        """Go on from the position in the 410."""
        assert answer["error"]["code"] == "gone"
        assert answer["resets"]
        self.take_answer({"events": [], "more": False, **answer}, request)


def with_parameter(request: Request, last_event_id: str) -> Request:
    query = [(name, value) for name, value in request.query if name not in ("last_event_id", "replay")]
    return Request((*query, ("last_event_id", last_event_id)))
