"""A connection may be cut after any byte. The client reconnects with the last event id that it holds and loses nothing.

The rings do not change while a body is cut, so the answer to a request depends on its last event id alone. Therefore
the tests can follow every series of cuts: they visit each state that a client can be in after some byte of some body
once, and continue from it by every way to reconnect.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import random
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest

from sse.config import Config
from sse.event import EndReason, Event, Piece
from sse.service import Service
from sse.stores import Publication, Standing
from tests.client import Event as Block
from tests.judging_clients import (
    LOST,
    BareClient,
    Client,
    DeltaClient,
    LiteralClient,
    Over,
    Refused,
    Request,
    Rings,
    Site,
    entries,
    until_quiet,
    with_parameter,
)
from tests.writing import Run

CHANNELS = ("a", "b", "c")
QUIET = 0.002  # seconds; a heartbeat after so short a pause tells that a stream has said all


class World(Site, Rings):
    """A service over one store, and a record of all events that were published there."""

    def __init__(
        self,
        redis_url: str | None,
        *,
        ring: int,
        rng: random.Random | None = None,
        own: bool = False,
        **settings: Any,
    ) -> None:
        config = Config.load({"SSE_PUBLIC": "*", "SSE_RING": ring, "SSE_REDIS_URL": redis_url})
        super().__init__(Service(dataclasses.replace(config, heartbeat=QUIET, **settings)), rng, own=own)
        self.ring = ring
        self.positions: dict[str, list[str]] = {channel: [] for channel in (*CHANNELS, "r", "s", "t")}
        self.opened: dict[str, int] = {}  # how many positions there were when the first connection was made
        self._after: dict[tuple[str, str], tuple[str, str, str]] = {}
        self._before: dict[tuple[str, str], str] = {}
        self._runs: dict[str, Run] = {}
        self._reasons: dict[tuple[str, str], str] = {}

    def publish(self, channel: str, data: str, type: str = "message") -> None:
        position = str(self.service.publish([Publication(channel, Event(data, type))])[0])
        if not self.positions[channel]:
            self.positions[channel].append(str(self.service.store.before([(channel, self.ring)])[0]))
        self._note(channel, position, type, data)

    def _note(self, channel: str, position: str, type: str, data: str) -> None:
        known = self.positions[channel]
        self._after[channel, known[-1]] = (position, type, data)
        self._before[channel, position] = known[-1]
        known.append(position)

    def begin(self, channel: str) -> None:
        """Begin a run on a channel."""
        self._runs[channel] = Run(self.service.store, channel)
        (standing,) = self.service.store.standing([channel])
        assert isinstance(standing, Standing)
        self.positions[channel] = [str(standing.newest)]

    def write(self, channel: str, *items: str | Event) -> None:
        """Write pieces and events of a run."""
        for item, position in zip(items, self._runs[channel].write(*items), strict=True):
            event = Piece(item) if isinstance(item, str) else item
            self._note(channel, str(position), event.type, event.data)

    def end(self, channel: str, reason: EndReason) -> None:
        position = str(self._runs[channel].end(reason))
        self._note(channel, position, "sse.end", reason)
        self._reasons[channel, position] = reason

    def reason(self, channel: str, position: str) -> str | None:
        return self._reasons.get((channel, position))

    def after(self, channel: str, position: str) -> tuple[str, str, str] | None:
        return self._after.get((channel, position))

    def before(self, channel: str, position: str) -> str:
        return self._before[channel, position]

    def is_top(self, channel: str, position: str) -> bool:
        return position == self.positions[channel][-1]

    def keeps(self, channel: str, position: str) -> bool:
        known = self.positions[channel]
        return position in (known if channel in self._runs else known[-self.ring - 1 :])

    def knows(self, channel: str, position: str) -> bool:
        """A text has no middle, so a reset leads to its beginning."""
        return position == self.positions[channel][0] if channel in self._runs else self.keeps(channel, position)

    def starts(self, channel: str, position: str, replay: int) -> bool:
        known = self.positions[channel]
        if channel in self._runs:
            return position == known[0]
        return position in (known[-1 - replay], known[self.opened.get(channel, 0) - 1 - replay])


class TypedClient(Client):
    """A client with types=data."""

    def take(self, block: Block) -> None:
        if block.event == "sse.event":
            assert block.data is not None
            type, _, data = block.data.partition("\n")
            block = dataclasses.replace(block, event=type, data=data)
        super().take(block)


class NativeDeltaClient(Client):
    """An EventSource with ids=delta, which no client should use: its id names one channel, and all others are reset."""

    def judge(self) -> None:
        pass

    def other_requests(self) -> Iterable[Request]:
        return ()


def walk(
    client: Client,
    request: Request,
    body: bytes,
    visit: Callable[[Client], object],
) -> None:
    """Read a body. `visit` gets the client as it is when the connection ends, at each state that it can be in then.

    A cut amid a block leaves the client where the block before has left it: tests/test_tests_parser.py.
    """
    parser = client.connect(request)
    state = client.state
    for block in parser.feed(body):
        client.take(block)
        if client.state != state:
            state = client.state
            visit(client.copy())


def follow_all_cuts(world: World, client: Client, first_body: bytes) -> int:
    """Cut the first body and all that follow after each byte, and return how many states a client can be in."""
    body, poll = functools.cache(world.body), functools.cache(world.poll)
    seen = {client.copy().state}
    todo = [client.copy()]

    def visit(cut: Client) -> None:
        if cut.state not in seen:
            seen.add(cut.state)
            todo.append(cut)

    walk(client, client.request(), first_body, visit)
    assert client.has_all
    while todo:
        cut = todo.pop()
        for request in (cut.request(), *cut.other_requests()):
            back = cut.copy()
            try:
                try:
                    told = body(request)
                except Refused as refused:
                    assert isinstance(back, BareClient)
                    back.take_refusal(refused.answer, request)
                    visit(back.copy())
                    request = back.request()
                    told = body(request)
                walk(back, request, told, visit)
            except Over as over:
                back.take_over(over)
            assert back.has_all, f"back with {request}, ended with {back.places}"
            for timeout in (0,) if cut.has_all else (0, 1):
                polled = cut.copy()
                answer = poll(request, timeout)
                polled.take_answer(answer, request)
                visit(polled)
                while not polled.has_all:
                    assert answer["more"], f"polled with {request}, ended with {polled.places}"
                    request = with_parameter(request, polled.held)
                    answer = poll(request)
                    polled.take_answer(answer, request)
        assert len(seen) < 1000
    return len(seen)


@contextlib.contextmanager
def make_world(redis_url: str | None, ring: int = 4, **settings: Any) -> Iterator[World]:
    world = World(redis_url, ring=ring, **settings)
    # Channel a: two to replay; b: trimmed away; c: events that no client asks for.
    for channel, count in (("a", 3), ("b", 7), ("c", 2)):
        for number in range(count):
            world.publish(channel, f"{channel}{number}\nsecond line", "note" if number % 2 else "message")
    yield world
    left = world.service.hub.subscribers
    world.service.close()
    assert left == 0


@pytest.fixture(params=["memory", "redis", "driven"])
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    """A world over each store, with streams that are iterated or driven as the worker does."""
    url = request.getfixturevalue("redis_url") if request.param == "redis" else None
    seed = request.config.getoption("hypothesis_seed")
    with make_world(url, rng=random.Random(seed) if request.param == "driven" else None) as world:
        yield world


def positions(world: World) -> dict[str, str]:
    return {
        "a": world.positions["a"][1],
        "b": world.positions["b"][-1],
        "c": world.positions["c"][-1],
        "trimmed": world.positions["b"][1],
        "unknown": "3-1234567",
        "diverged": "6-1234567",
    }


BY_PARAMETER = {
    "trimmed": ("a={a}~b={trimmed}", {"b": "trimmed"}),
    "diverged": ("a={a}~b={diverged}", {"b": "diverged"}),
    "unborn": ("a={a}~b=0-0", {"b": "diverged"}),
    "invalid": ("a={a}~b=soon", {"b": "invalid"}),
    "twice": ("a={a}~b={b}~b={trimmed}", {"b": "invalid"}),
    "damaged": ("a={a}~b", {"b": "invalid", "c": "invalid"}),
    "all invalid": ("a=1~b=2~c=3", {"a": "invalid", "b": "invalid", "c": "invalid"}),
    "no channel at all": ("?", {"a": "invalid", "b": "invalid", "c": "invalid"}),
    "all lost": ("a={diverged}~b={trimmed}~c={diverged}", {"a": "diverged", "b": "trimmed", "c": "diverged"}),
    "all to be continued": ("c={c}~b={b}~a={a}", {}),
    "all new": ("elsewhere={a}", {}),
}  # fmt: skip
BY_HEADER = {
    "trimmed": ("a={a}~b={trimmed}", {"b": "trimmed", "c": "missing"}),
    "diverged": ("a={a}~b={diverged}~c={c}", {"b": "diverged"}),
    "invalid": ("a={a}~b=soon~c={c}", {"b": "invalid"}),
    "missing": ("c={c}~a={a}", {"b": "missing"}),
    "damaged": ("b={trimmed}~a={a}~c-{c}", {"b": "trimmed", "c": "invalid"}),
    "nothing": ("~", {"a": "missing", "b": "missing", "c": "missing"}),
    "all invalid": ("a=~b=~c=", {"a": "invalid", "b": "invalid", "c": "invalid"}),
}


def start(
    world: World,
    kind: type[Client],
    last_event_id: str | None,
    resets: Iterable[str],
    *,
    by_header: bool = False,
    channels: Iterable[str] = CHANNELS,
    extra: Iterable[tuple[str, str]] = (),
) -> Client:
    """Return a client before its first connection. It has positions if its last event id can be continued."""
    query = tuple(("channel", channel) for channel in channels) + tuple(extra)
    header = last_event_id if by_header else None
    if last_event_id is not None and not by_header:
        query += (("last_event_id", last_event_id),)
    held = entries(last_event_id or "")
    places: dict[str, str | None] = {ch: LOST if ch in resets else held.get(ch) for ch in channels}
    return kind(world, Request(query, header), places)


def record(world: World, client: Client, *happenings: Callable[[], None]) -> bytes:
    """Return the body of a first connection: what there is, and what comes by each of these happenings."""
    world.opened = {channel: len(known) for channel, known in world.positions.items()}
    parser = client.connect(client.request())
    chunks = world.stream(client.request())
    body = b""
    for happen in (lambda: None, *happenings):
        happen()
        for chunk in until_quiet(chunks, lambda: client.has_all):
            body += chunk
            for block in parser.feed(chunk):
                client.take(block)
    chunks.close()
    return body


def cut_everywhere(world: World, make: Callable[[], Client], resets: dict[str, str]) -> None:
    witness = make()

    def publish_live() -> None:
        for number in range(2):
            for channel in witness.places:
                world.publish(channel, f"live {number}\n" if number else "", f"{channel}-live")

    body = record(world, witness, publish_live)
    assert sorted(witness.resets) == sorted(resets.items())
    # States: nothing heard; opened, if the client hears of that; and one after each reset, each event.
    heard = 1 if isinstance(witness, BareClient) else 2
    assert follow_all_cuts(world, make(), body) >= heard + len(resets) + 2 * len(witness.places)


FORMS: dict[str, tuple[type[Client], list[tuple[str, str]]]] = {
    "plain": (Client, []),
    "delta": (DeltaClient, [("ids", "delta")]),
    "typed": (TypedClient, [("types", "data")]),
    "cut": (LiteralClient, [("end", "cut")]),
    "bare": (BareClient, [("form", "bare")]),
}


@pytest.fixture
def world_with_runs(request: pytest.FixtureRequest, world: World) -> World:
    """The same world with the text of a run on each of the channels r, s and t."""
    for channel in "rst":
        world.begin(channel)
    world.write("r", "one\n", "\n two", Event("1", "step"), " three", "\n", "four")
    world.write("s", "five")
    return world


def record_to_the_end(world: World, client: Client) -> bytes:
    """Return the body of a first connection: the texts so far, then pieces and ends that come meanwhile."""

    def end_one() -> None:
        world.write("r", "\nlast")
        world.end("r", "done")

    def end_the_others() -> None:
        world.end("s", "failed")
        world.write("t", "late", "\n", "er")
        world.end("t", "done")

    return record(world, client, end_one, end_the_others)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("channels", ["rst", "rtb", "rt"])
def test_the_ends_of_channels_are_told_once_after_any_cuts(world_with_runs: World, form: str, channels: str) -> None:
    """After the ends of r, s and t there is nothing more, and a request hears so. Channel b goes on."""
    world = world_with_runs
    kind, extra = FORMS[form]
    text = "~".join(f"{channel}={world.positions[channel][0 if channel in 'rst' else -1]}" for channel in channels)

    def make() -> Client:
        return start(world, kind, text, (), channels=channels, extra=extra)

    body = record_to_the_end(world, make())
    assert body.count(b"sse.end" if form != "bare" else b": end") == len(channels.replace("b", ""))
    assert follow_all_cuts(world, make(), body) >= 2 + len(channels)
    if "b" not in channels:
        over = start(world, kind, "~".join(f"{ch}={world.positions[ch][-1]}" for ch in channels), (), channels=channels,
                     extra=extra)  # fmt: skip
        with pytest.raises(Over):
            next(world.stream(over.request()))


@pytest.mark.parametrize("form", FORMS)
def test_a_lost_position_leads_to_the_whole_text_after_any_cuts(world_with_runs: World, form: str) -> None:
    world = world_with_runs
    kind, extra = FORMS[form]
    world.end("r", "stopped")
    client = start(world, kind, f"r=77-77~b={world.positions['b'][-1]}", ("r",), channels="rb", extra=extra)
    if isinstance(client, BareClient):
        with pytest.raises(Refused) as refused:
            next(world.stream(client.request()))
        client.take_refusal(refused.value.answer, client.request())
    body = world.body(client.request())
    assert follow_all_cuts(world, client, body) >= 3


@pytest.mark.parametrize("kind", [Client, DeltaClient])
@pytest.mark.parametrize("case", BY_PARAMETER)
def test_a_client_that_began_with_a_parameter_has_all_after_any_cuts(
    world: World, case: str, kind: type[Client]
) -> None:
    template, resets = BY_PARAMETER[case]
    extra = [("ids", "delta")] if kind is DeltaClient else []
    text = template.format_map(positions(world))
    cut_everywhere(world, lambda: start(world, kind, text, resets, extra=extra), resets)


@pytest.mark.parametrize("case", BY_HEADER)
def test_a_client_that_began_with_a_header_has_all_after_any_cuts(world: World, case: str) -> None:
    template, resets = BY_HEADER[case]
    text = template.format_map(positions(world))
    cut_everywhere(world, lambda: start(world, Client, text, resets, by_header=True), resets)


@pytest.mark.parametrize(
    ("case", "by_header"),
    [*((case, False) for case in BY_PARAMETER if case != "all new"), *((case, True) for case in BY_HEADER)],
)
def test_a_bare_client_is_refused_in_place_of_a_reset_and_has_all_after_any_cuts(
    world: World, case: str, by_header: bool
) -> None:
    template, resets = (BY_HEADER if by_header else BY_PARAMETER)[case]
    text = template.format_map(positions(world))
    client = start(world, BareClient, text, resets, by_header=by_header, extra=[("form", "bare")])
    assert isinstance(client, BareClient)
    if resets:
        for _ in range(2):  # asked twice, it answers twice
            with pytest.raises(Refused) as refused:
                next(world.stream(client.request()))
        client.take_refusal(refused.value.answer, client.request())
    assert sorted(client.resets) == sorted(resets.items())
    cut_everywhere(world, client.copy, {})


@pytest.mark.parametrize("replay", [0, 2])
def test_a_client_that_began_with_nothing_has_all_after_any_cuts(world: World, replay: int) -> None:
    extra = [("replay", str(replay))]
    cut_everywhere(world, lambda: start(world, Client, None, (), extra=extra), {})


@pytest.mark.parametrize("by_header", [True, False])
@pytest.mark.parametrize("reason", ["", "trimmed", "diverged", "invalid"])
def test_a_client_of_one_channel_has_all_after_any_cuts(world: World, reason: str, by_header: bool) -> None:
    text = "b=" + {"": world.positions["b"][-4], "invalid": "?", **positions(world)}[reason]
    resets = {"b": reason} if reason else {}
    cut_everywhere(world, lambda: start(world, Client, text, resets, by_header=by_header, channels="b"), resets)


@pytest.fixture(params=["iterated", "driven"])
def own_world(request: pytest.FixtureRequest) -> Iterator[World]:
    """A world whose channels are read through a view of the app."""
    seed = request.config.getoption("hypothesis_seed")
    with make_world(None, rng=random.Random(seed) if request.param == "driven" else None, own=True) as world:
        yield world


@pytest.mark.parametrize("by_header", [True, False])
@pytest.mark.parametrize("case", BY_HEADER)
def test_a_client_of_a_view_has_all_after_any_cuts_and_is_reset_alike_by_parameter_and_header(
    own_world: World, case: str, by_header: bool
) -> None:
    template, resets = BY_HEADER[case]
    text = template.format_map(positions(own_world))
    cut_everywhere(own_world, lambda: start(own_world, Client, text, resets, by_header=by_header), resets)


@pytest.mark.parametrize("form", ["delta", "cut", "typed"])
def test_a_client_of_a_view_has_all_in_each_form(own_world: World, form: str) -> None:
    kind, extra = FORMS[form]
    text = "c={c}~b={b}~a={a}".format_map(positions(own_world))
    cut_everywhere(own_world, lambda: start(own_world, kind, text, (), extra=extra), {})


def test_a_client_of_a_view_that_began_with_nothing_has_all_after_any_cuts(own_world: World) -> None:
    cut_everywhere(own_world, lambda: start(own_world, Client, None, (), extra=[("replay", "2")]), {})


def test_an_event_source_with_delta_ids_is_told_of_what_it_loses(world: World) -> None:
    text = "a={a}~b={trimmed}".format_map(positions(world))
    resets = {"b": "trimmed"}
    cut_everywhere(world, lambda: start(world, NativeDeltaClient, text, resets, extra=[("ids", "delta")]), resets)


def test_a_reader_that_begins_each_connection_without_an_id_has_all_after_any_cuts(world: World) -> None:
    text = "a={a}~b={trimmed}".format_map(positions(world))
    resets = {"b": "trimmed"}
    cut_everywhere(world, lambda: start(world, LiteralClient, text, resets), resets)


def test_streams_that_end_by_themselves_are_continued(store_url: str | None) -> None:
    with make_world(store_url, stream_lifetime=0.01) as world:
        text = "a={a}~b={trimmed}".format_map(positions(world))
        for kind, extra in ((Client, []), (LiteralClient, []), (Client, [("end", "cut")])):
            client = start(world, kind, text, {"b"}, extra=extra)
            body = b"".join(world.stream(client.request()))
            assert b"event: sse.close" in body
            assert follow_all_cuts(world, client, body) >= 5
        text = "a={a}~b={b}".format_map(positions(world))
        for extra in ([("form", "bare")], [("form", "bare"), ("end", "cut")]):
            client = start(world, BareClient, text, {}, extra=extra)
            body = b"".join(world.stream(client.request()))
            assert b": close" in body
            assert follow_all_cuts(world, client, body) >= 3


def test_a_busy_answer_leaves_the_client_where_it_was(store_url: str | None) -> None:
    with make_world(store_url, max_subscribers=1) as world:
        client = start(world, Client, "a={a}~b={b}~c={c}".format_map(positions(world)), ())
        walk(client, client.request(), world.body(client.request()), lambda cut: None)
        other = world.stream(client.first)
        next(other)
        held = client.state
        walk(client, client.request(), b"".join(world.stream(client.request())), lambda cut: pytest.fail("it moved"))
        assert client.state == held
        other.close()


def test_cut_after_every_byte_with_a_connection_for_each(world: World) -> None:
    text = "a={a}~b={trimmed}".format_map(positions(world))
    size = 1
    cut_at = 0
    while cut_at < size:
        client = start(world, Client, text, {"b"})
        parser = client.connect(client.request())
        chunks = world.stream(client.request())
        body = b""
        while len(body) < cut_at:
            body += next(chunks)
        chunks.close()
        size = max(size, len(body) + 1)
        for block in parser.feed(body[:cut_at]):
            client.take(block)
        if cut_at == size - 1 and not client.has_all:
            size += 1
        walk(client, client.request(), world.body(client.request()), lambda cut: None)
        assert client.has_all
        assert client.resets == [("b", "trimmed")]
        cut_at += 1
    assert size > 500


@pytest.mark.parametrize("timeout", [0, 1])
@pytest.mark.parametrize("max_bytes", [None, 20_000])
def test_an_answer_that_is_lost_is_told_again_page_by_page(
    store_url: str | None, timeout: int, max_bytes: int | None
) -> None:
    """At each page, a stream could take over."""
    with make_world(store_url, ring=1500) as world:
        text = "b={b}~a={a}~c={c}".format_map(positions(world))
        for number in range(1100):
            world.publish("a", f"{number}")
        for number in range(20):
            world.publish("b", f"{number} " + "x" * 60_000)
        extra = [("max_bytes", str(max_bytes))] if max_bytes else []
        client = start(world, Client, text, (), extra=extra)
        pages = 0
        while not client.has_all:
            request = with_parameter(client.first, client.held) if client.held else client.first
            answer = world.poll(request, timeout)
            assert world.poll(request, timeout) == answer
            if pages % 4 == 0:
                streamed = client.copy()
                parser = streamed.connect(request)
                for chunk in until_quiet(world.stream(request), lambda client=streamed: client.has_all):
                    for block in parser.feed(chunk):
                        streamed.take(block)
            client.take_answer(answer, request)
            assert answer["more"] == (not client.has_all)
            pages += 1
        assert pages > 1
