"""A poll's answer: when it comes, what it contains, and that a client may ask for it twice."""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from sse.access.permit import Permit
from sse.access.revocations import Revocations
from sse.access.token import Grant
from sse.errors import Busy, StoreUnavailable
from sse.event import LastEventId, Position
from sse.hub.hub import Hub
from sse.hub.subscriber import Start, starting_points
from sse.stores import MemoryStore, Store, connect
from sse.transports.poll import Poll
from tests.driven_streams import poll, poll_bytes
from tests.publishing import publish_for_ids
from tests.servers import wait_until

RETRY = 1000


@pytest.fixture
def store(store_url: str | None) -> Iterator[Store]:
    store = connect(store_url, ring=3000, ring_ttl=3600)
    yield store
    store.close()


@pytest.fixture
def hub(store: Store) -> Iterator[Hub]:
    hub = Hub(store, max_subscribers=10)
    yield hub
    hub.close()
    assert hub.subscribers == 0


def ask(hub: Hub, place: str | None = None, channels: str = "a", timeout: float = 0, **options: Any) -> dict[str, Any]:
    last = None if place is None else LastEventId.parse(place)
    return poll(hub, starting_points(channels, last, **options), timeout=timeout, retry=RETRY)


def data(answer: dict[str, Any]) -> list[str]:
    return [event["data"] for event in answer["events"]]


@pytest.mark.parametrize("timeout", [0, 5])
def test_a_first_poll_answers_at_once_with_the_newest_position(hub: Hub, store: Store, timeout: float) -> None:
    (top,) = publish_for_ids(store, "a", "before")
    begun = time.monotonic()
    assert ask(hub, timeout=timeout) == {
        "last_event_id": top,
        "events": [],
        "resets": [],
        "more": False,
        "retry": RETRY,
    }
    assert time.monotonic() - begun < 1


@pytest.mark.parametrize("timeout", [0, 5])
def test_a_first_poll_with_a_replay_answers_at_once(hub: Hub, store: Store, timeout: float) -> None:
    ids = publish_for_ids(store, "a", *range(10))
    answer = ask(hub, timeout=timeout, replay=3)
    assert (data(answer), answer["last_event_id"]) == (["7", "8", "9"], ids[-1])


@pytest.mark.parametrize("timeout", [0, 5])
def test_what_has_come_since_is_answered_at_once(hub: Hub, store: Store, timeout: float) -> None:
    ids = publish_for_ids(store, "a", *range(5))
    answer = ask(hub, ids[1], timeout=timeout)
    assert [event["id"] for event in answer["events"]] == ids[2:]
    assert (answer["last_event_id"], answer["more"]) == (ids[-1], False)


@pytest.mark.parametrize("timeout", [0, 5])
def test_a_reset_is_answered_at_once(hub: Hub, store: Store, timeout: float) -> None:
    (a,) = publish_for_ids(store, "a", "x")
    (b,) = publish_for_ids(store, "b", "x")
    answer = ask(hub, f"{a}~b=7-7~c=oops", "abc", timeout)
    assert sorted(answer["resets"], key=lambda reset: reset["channel"]) == [
        {"channel": "b", "reason": "diverged", "missed": None},
        {"channel": "c", "reason": "invalid", "missed": None},
    ]
    assert answer["last_event_id"].startswith(f"{a}~") or a in answer["last_event_id"].split("~")
    assert b in answer["last_event_id"].split("~")
    assert ask(hub, answer["last_event_id"], "ab", 0)["resets"] == []


def test_a_trimmed_position_tells_how_many_were_missed(hub: Hub) -> None:
    store = MemoryStore(ring=5, ring_ttl=60)
    ids = publish_for_ids(store, "a", *range(10))
    small = Hub(store, max_subscribers=1)
    for timeout in (0, 1):
        answer = ask(small, ids[0], timeout=timeout)
        assert answer["resets"] == [{"channel": "a", "reason": "trimmed", "missed": 9}]
        assert (answer["events"], answer["last_event_id"]) == ([], ids[-1])
    small.close()


def test_with_nothing_to_tell_it_waits_its_time_and_keeps_its_position(hub: Hub, store: Store) -> None:
    (top,) = publish_for_ids(store, "a", "x")
    begun = time.monotonic()
    answer = ask(hub, top, timeout=0.4)
    assert 0.35 < time.monotonic() - begun < 2
    assert (answer["events"], answer["last_event_id"], answer["more"]) == ([], top, False)


def test_it_waits_no_longer_for_a_client_that_has_gone(hub: Hub, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Poll, "LOOK", 0.05)
    (top,) = publish_for_ids(store, "a", "x")
    starts = starting_points("a", LastEventId.parse(top))
    looks = iter([False, False, True])
    waiting = Poll(hub, starts, timeout=20, retry=RETRY, gone=lambda: next(looks))
    assert waiting.open() is None
    begun = time.monotonic()
    assert waiting.wait() == waiting.nothing
    assert time.monotonic() - begun < 5
    assert next(looks, None) is None
    assert hub.subscribers == 0


def test_while_the_client_is_there_it_waits_its_time_and_is_told_what_comes(
    hub: Hub, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Poll, "LOOK", 0.05)
    (top,) = publish_for_ids(store, "a", "x")
    starts = starting_points("a", LastEventId.parse(top))
    begun = time.monotonic()
    quiet = Poll(hub, starts, timeout=0.4, retry=RETRY, gone=lambda: False)
    assert quiet.open() is None
    assert quiet.wait() == quiet.nothing
    assert 0.35 < time.monotonic() - begun < 2
    waiting = Poll(hub, starts, timeout=20, retry=RETRY, gone=lambda: False)
    assert waiting.open() is None
    later = threading.Timer(0.2, publish_for_ids, [store, "a", "y"])
    later.start()
    assert data(json.loads(waiting.wait())) == ["y"]
    later.join(5)


def test_the_first_event_ends_the_waiting_and_brings_those_close_behind(hub: Hub, store: Store) -> None:
    (top,) = publish_for_ids(store, "a", "x")
    with ThreadPoolExecutor(1) as pool:
        waiting: Future[dict[str, Any]] = pool.submit(ask, hub, top, timeout=10)
        wait_until(lambda: [top for _, top in hub.newest("a") if top], 3)
        time.sleep(0.05)
        begun = time.monotonic()
        for number in range(3):
            publish_for_ids(store, "a", number)
        answer = waiting.result(5)
        assert time.monotonic() - begun < 1
    assert data(answer) == ["0", "1", "2"]


def test_asked_twice_it_answers_twice(hub: Hub, store: Store) -> None:
    ids = publish_for_ids(store, "a", *range(5))
    for timeout in (0, 1):
        first = ask(hub, f"{ids[1]}~b=5-5", "ab", timeout)
        assert ask(hub, f"{ids[1]}~b=5-5", "ab", timeout) == first
        assert data(first) == ["2", "3", "4"]


def test_without_waiting_nothing_is_ensured_or_attached(hub: Hub, store: Store) -> None:
    answer = ask(hub, None, "ab")
    assert answer["last_event_id"] == "a=0-0~b=0-0"
    assert store.newest(["a", "b"]) == [None, None]
    assert (hub.channels, hub._follower._thread) == (0, None)
    publish_for_ids(store, "a", "x")
    assert [reset["channel"] for reset in ask(hub, answer["last_event_id"])["resets"]] == ["a"]


def test_with_waiting_a_ring_is_ensured_and_nothing_after_it_is_missed(hub: Hub, store: Store) -> None:
    place = ask(hub, None, timeout=1)["last_event_id"]
    assert place.startswith("a=0-")
    publish_for_ids(store, "a", "x")
    answer = ask(hub, place, timeout=1)
    assert (data(answer), answer["resets"]) == (["x"], [])


@pytest.mark.parametrize(("timeout", "first"), [(0, 100), (1, 1000)])
def test_an_answer_is_bounded_in_events_and_says_that_there_is_more(
    hub: Hub, store: Store, timeout: float, first: int
) -> None:
    ids = publish_for_ids(store, "a", "start", *range(2500))
    place, heard = ids[0], list[str]()
    for number in range(30):
        answer = ask(hub, place, timeout=timeout)
        assert len(answer["events"]) <= 1000
        assert number or len(answer["events"]) >= first
        heard += data(answer)
        place = answer["last_event_id"]
        if not answer["more"]:
            break
    assert heard == [str(number) for number in range(2500)]
    assert place == ids[-1]


@pytest.mark.parametrize("timeout", [0, 1])
def test_an_answer_is_bounded_in_bytes(hub: Hub, store: Store, timeout: float) -> None:
    ids = publish_for_ids(store, "a", "start", *[f"{number} " + "x" * 60_000 for number in range(40)])
    place, heard = ids[0], list[str]()
    for _ in range(10):
        answer = ask(hub, place, timeout=timeout)
        assert 1 <= len(answer["events"]) <= 17
        heard += [text.split()[0] for text in data(answer)]
        place = answer["last_event_id"]
        if not answer["more"]:
            break
    assert heard == [str(number) for number in range(40)]


@pytest.mark.parametrize("timeout", [0, 1])
def test_one_event_over_the_bound_still_comes(hub: Hub, store: Store, timeout: float) -> None:
    ids = publish_for_ids(store, "a", "start", "\n" * 1_000_000, "next")  # seven megabytes on a stream
    answer = ask(hub, ids[0], timeout=timeout)
    assert (len(answer["events"]), answer["more"]) == (1, True)
    assert data(ask(hub, answer["last_event_id"], timeout=timeout)) == ["next"]


def test_over_the_limit_of_subscribers_a_waiting_poll_is_refused(hub: Hub) -> None:
    subscribers = [hub.attach({"a": Start()}, 3) for _ in range(10)]
    with pytest.raises(Busy):
        ask(hub, timeout=1)
    for subscriber in subscribers:
        hub.detach(subscriber)


def test_a_poll_that_its_ring_has_passed_is_to_ask_again() -> None:
    store = MemoryStore(ring=5, ring_ttl=60)
    hub = Hub(store, max_subscribers=1)
    (top,) = publish_for_ids(store, "a", "x")
    gone = threading.Event()

    def wait() -> str:
        try:
            ask(hub, top, timeout=5)
        except Busy as error:
            return error.hint
        finally:
            gone.set()
        return ""

    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(wait)
        wait_until(lambda: [top for _, top in hub.newest("a") if top], 3)
        time.sleep(0.05)
        assert not gone.is_set()
        publish_for_ids(store, "a", *["x" * 300_000] * 10)
        assert waiting.result(5) == "ask again with the same last event id"
    assert ask(hub, top, timeout=1)["resets"] == [{"channel": "a", "reason": "trimmed", "missed": 10}]
    hub.close()


def test_a_position_that_was_polled_is_the_one_that_was_published(hub: Hub, store: Store) -> None:
    ids = publish_for_ids(store, "a", "1", "2")
    answer = ask(hub, ids[0], "ab", 1)
    last = LastEventId.parse(answer["last_event_id"])
    assert last.positions["a"] == Position.parse(ids[1].removeprefix("a="))
    assert set(last.positions) == {"a", "b"}


def test_a_reset_is_told_though_another_poll_at_the_same_position_was_answered_without(hub: Hub, store: Store) -> None:
    first, second = publish_for_ids(store, "a", "1", "2")
    (b,) = publish_for_ids(store, "b", "x")
    assert ask(hub, f"{first}~{b}", "ab", 1)["resets"] == []
    answer = ask(hub, f"{first}~b=soon", "ab", 1)
    assert answer["resets"] == [{"channel": "b", "reason": "invalid", "missed": None}]
    assert data(answer) == ["2"]
    assert {*answer["last_event_id"].split("~")} == {second, b}


# Without a seat


def test_an_answer_at_once_is_the_same_whether_its_poll_takes_a_seat_or_not(
    hub: Hub, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    names, rng = "abc", random.Random(7)
    places = {name: publish_for_ids(store, name, "first") for name in names}
    keep = [hub.attach(starting_points(name, None), 5) for name in names]
    for number in range(60):
        name = rng.choice(names)
        places[name] += publish_for_ids(store, name, f"{number}" * rng.choice([1, 10, 300]))
    wait_until(lambda: all(hub.newest_of(name) == Position.parse(places[name][-1][2:]) for name in names), 5)
    attach, attached = hub.attach, []
    monkeypatch.setattr(hub, "attach", lambda *args: attached.append(args) or attach(*args))
    answers = 0
    for _ in range(200):
        asked = rng.sample(names, rng.randint(1, 3))
        last = LastEventId.parse("~".join(rng.choice(places[name]) for name in asked))
        bound = rng.choice([None, 1024, 5000])
        found = []
        for is_attached in (False, True):
            poll = Poll(hub, starting_points(asked, last), timeout=5, retry=RETRY, max_bytes=bound)
            hub.last_answer = None, b"", 0
            with monkeypatch.context() as patch:
                if is_attached:
                    patch.setattr(hub, "at_hand", lambda _: None)
                attached.clear()
                found.append((poll.open(), poll.events))
                waits = found[-1][0] is None
                assert bool(attached) is (is_attached or waits)
            poll.close()
        assert found[0] == found[1]
        answers += found[0][0] is not None
    assert answers > 150
    for subscriber in keep:
        hub.detach(subscriber)


def test_an_answer_at_once_takes_no_seat(hub: Hub, store: Store) -> None:
    publish_for_ids(store, "a", 0)
    seats = [hub.attach(starting_points("a", None), 5) for _ in range(10)]
    first, second = publish_for_ids(store, "a", 1, 2)
    wait_until(lambda: str(hub.newest_of("a")) == second[2:], 5)
    assert data(ask(hub, first, timeout=5)) == ["2"]
    with pytest.raises(Busy):
        ask(hub, second, timeout=5)
    for subscriber in seats:
        hub.detach(subscriber)


def test_polls_that_are_answered_at_once_keep_their_channel_from_idling(hub: Hub, store: Store) -> None:
    publish_for_ids(store, "a", 0)
    hub.detach(hub.attach(starting_points("a", None), 5))
    first, second = publish_for_ids(store, "a", 1, 2)
    wait_until(lambda: str(hub.newest_of("a")) == second[2:], 5)
    before = hub._channels["a"].idle_since
    assert before is not None
    assert data(ask(hub, first, timeout=5)) == ["2"]
    after = hub._channels["a"].idle_since
    assert after is not None
    assert after > before


# Within max_bytes


def ask_for(hub: Hub, place: str, channels: str, timeout: float, max_bytes: int) -> tuple[dict[str, Any], int]:
    """Return the answer, and its bytes."""
    starts = starting_points(channels, LastEventId.parse(place))
    answer = poll_bytes(hub, starts, timeout=timeout, retry=RETRY, max_bytes=max_bytes)
    return json.loads(answer), len(answer)


@pytest.mark.parametrize("timeout", [0, 5])
@pytest.mark.parametrize("max_bytes", [1024, 1500, 5000, 1 << 20])
def test_an_answer_keeps_within_its_bytes_and_the_rest_comes_in_order(
    hub: Hub, store: Store, timeout: float, max_bytes: int
) -> None:
    begun = {channel: publish_for_ids(store, channel, "before")[0] for channel in "abc"}
    sizes = [(number * 37) % 800 for number in range(40)]
    ids = {ch: publish_for_ids(store, ch, *[f'"é\n{ch}' + "ö" * size for size in sizes]) for ch in "abc"}
    place, got = "~".join(begun.values()), dict[str, list[str]](a=[], b=[], c=[])
    while True:
        answer, size = ask_for(hub, place, "abc", timeout, max_bytes)
        assert size <= max_bytes or len(answer["events"]) == 1
        assert answer["events"]
        for event in answer["events"]:
            got[event["channel"]].append(event["id"])
        place = answer["last_event_id"]
        assert set(place.split("~")) == {got[ch][-1] if got[ch] else begun[ch] for ch in "abc"}
        assert answer["more"] == (got != ids)
        if not answer["more"]:
            break
        if max_bytes < 1 << 20:
            # No event of the next answer would have had room in this one: all have less than 2,000 bytes.
            assert size > max_bytes - 2100 or len(answer["events"]) == 1
    assert got == ids


@pytest.mark.parametrize("timeout", [0, 5])
def test_at_least_one_event_is_sent_whatever_its_size(hub: Hub, store: Store, timeout: float) -> None:
    first, *_ = ids = publish_for_ids(store, "a", "before", "x" * 5000, "y" * 5000, "")
    answer, size = ask_for(hub, first, "a", timeout, 1024)
    assert [event["id"] for event in answer["events"]] == ids[1:2]
    assert (answer["more"], size > 5000) == (True, True)
    answer, _ = ask_for(hub, ids[2], "a", timeout, 1024)
    assert ([event["id"] for event in answer["events"]], answer["more"]) == (ids[3:], False)


@pytest.mark.parametrize("timeout", [0, 5])
@pytest.mark.parametrize("lost", ["b=7-7~c=7-7~d=7-7", "b=oops~c=oops~d=oops", "b=7-7~c=oops~d=7-7"])
def test_resets_count_among_the_bytes(hub: Hub, store: Store, timeout: float, lost: str) -> None:
    first, *ids = publish_for_ids(store, "a", "before", *["x" * 20] * 30)
    for channel in "bcd":
        publish_for_ids(store, channel, *["y" * 20] * 30)
    place = f"{first}~{lost}"
    got, resets = [], []
    while True:
        answer, size = ask_for(hub, place, "abcd", timeout, 1024)
        assert size <= 1024
        resets += [reset["channel"] for reset in answer["resets"]]
        got += [event["id"] for event in answer["events"]]
        place = answer["last_event_id"]
        if not answer["more"]:
            break
    assert (got, sorted(resets)) == (ids, ["b", "c", "d"])


@pytest.mark.parametrize("timeout", [0, 5])
def test_resets_without_room_come_and_so_does_what_follows(hub: Hub, store: Store, timeout: float) -> None:
    first, *ids = publish_for_ids(store, "a", "before", *"12")
    names = [f"{letter * 100}" for letter in "bcdefghijklmno"]
    starts = starting_points(["a", *names], LastEventId.parse("~".join([first, *(f"{name}=?" for name in names)])))
    got, place = [], ""
    while True:
        answer = poll(hub, starts, timeout=timeout, retry=RETRY, max_bytes=1024)
        got += data(answer)
        if not place:
            assert sorted(reset["channel"] for reset in answer["resets"]) == names
        place = answer["last_event_id"]
        starts = starting_points(["a", *names], LastEventId.parse(place))
        if not answer["more"]:
            break
    assert got == ["1", "2"]
    assert ids[-1] in place.split("~")


@pytest.mark.parametrize("timeout", [0, 5])
def test_no_channel_is_left_out_of_all_small_answers(hub: Hub, store: Store, timeout: float) -> None:
    place = "~".join(publish_for_ids(store, channel, "before", *["x" * 700] * 100)[0] for channel in "abc")
    heard = set()
    for _ in range(60):
        answer, _ = ask_for(hub, place, "abc", timeout, 1024)
        heard |= {event["channel"] for event in answer["events"]}
        place = answer["last_event_id"]
    assert heard == {"a", "b", "c"}


def test_the_store_is_asked_for_no_more_than_a_small_answer_needs(hub: Hub, store: Store) -> None:
    first, *_ = publish_for_ids(store, "a", "before", *["x" * 100] * 2000)
    asked = list[int]()
    read = store.read

    def watched(places: Any, limit: int, max_bytes: int) -> Any:
        asked.append(max_bytes)
        return read(places, limit, max_bytes)

    store.read = watched  # type: ignore[method-assign,assignment]
    for channels in ("a", "abc"):
        _, size = ask_for(hub, first, channels, 0, 2000)
        assert asked
        assert max(asked) <= 2000
        assert size <= 2000
        asked.clear()


def test_polls_with_other_bounds_do_not_share_an_answer(hub: Hub, store: Store) -> None:
    first, *ids = publish_for_ids(store, "a", "before", *["x" * 500] * 5)
    sizes = []
    for max_bytes in (5000, 1024, 5000, 2000):
        answer, size = ask_for(hub, first, "a", 5, max_bytes)
        sizes.append(len(answer["events"]))
        assert size <= max_bytes
    assert sizes == [5, 1, 5, 3]
    assert len(ask(hub, first, timeout=5)["events"]) == 5
    starts = starting_points("a", LastEventId.parse(ids[-1]))
    one, other = [Poll(hub, starts, timeout=9, retry=RETRY, max_bytes=bound) for bound in (1024, 2000)]
    assert (one.open(), other.open()) == (None, None)
    assert one.merge_key != other.merge_key
    one.close()
    other.close()


# Waiting together, and iterated


def waiting(hub: Hub, place: str, channels: str = "a", timeout: float = 10) -> Poll:
    """Return a poll that was opened and has to wait."""
    one = Poll(hub, starting_points(channels, LastEventId.parse(place)), timeout=timeout, retry=RETRY)
    assert one.open() is None
    return one


def test_polls_at_the_same_position_wait_as_one_and_get_the_same_answer(hub: Hub, store: Store) -> None:
    ids = publish_for_ids(store, "a", "before")
    (b,) = publish_for_ids(store, "b", "x")
    place = f"{ids[0]}~{b}"
    row, *others = [waiting(hub, place, "ab", timeout) for timeout in (10, 20, 30)]
    for number, other in enumerate(others, 2):
        assert other.merge_key == row.merge_key
        assert other.nothing == row.nothing
        assert row.merge(other)
        assert (hub.subscribers, len(hub._channels["a"].subscribers)) == (3, 4 - number)
    assert not row.is_behind
    assert row.answer() is None
    ids += publish_for_ids(store, "a", "1", "2")
    wait_until(lambda: row.is_behind, 3)
    wait_until(lambda: [top.offset for _, top in hub.newest(["a"]) if top] == [3], 3)
    answer = row.answer()
    assert answer
    assert data(json.loads(answer)) == ["1", "2"]
    assert json.loads(row.nothing)["last_event_id"] == place  # asked again from there, all of it is told
    assert ask(hub, place, "ab", 1) == json.loads(answer)
    for left in (2, 1):
        row.release()
        assert hub.subscribers == left
    row.detach()
    assert hub.subscribers == 0


def test_polls_at_different_places_or_of_different_channels_do_not_wait_as_one(hub: Hub, store: Store) -> None:
    first, top = publish_for_ids(store, "a", "1", "2")
    (b,) = publish_for_ids(store, "b", "x")
    one = waiting(hub, top)
    behind = Poll(hub, starting_points("a", LastEventId.parse(first)), timeout=10, retry=RETRY)
    behind.subscriber = hub.attach(behind._starts, 3)
    both = waiting(hub, f"{top}~{b}", "ab")
    turned = waiting(hub, f"{b}~{top}", "ba")
    keys = {one.merge_key, behind.merge_key, both.merge_key, turned.merge_key}
    assert len(keys) == 4  # an answer's id is in its poll's own order
    assert not one.merge(behind)
    assert not one.merge(both)
    hub.detach(behind.subscriber)
    for other in (one, both, turned):
        other.close()
        other.close()


def test_iterated_it_is_one_answer_and_detached(hub: Hub, store: Store) -> None:
    (top,) = publish_for_ids(store, "a", "before")
    done = list[str]()
    one = waiting(hub, top)
    one.closing = [lambda: done.append("closed")]
    publish_for_ids(store, "a", "after")
    (answer,) = one
    assert data(json.loads(answer)) == ["after"]
    assert (hub.subscribers, done) == (0, ["closed"])

    one = waiting(hub, top := json.loads(answer)["last_event_id"], timeout=0.3)
    assert [json.loads(part) for part in one] == [json.loads(one.nothing)]
    assert json.loads(one.nothing)["last_event_id"] == top


@pytest.mark.parametrize("fault", [Busy("too much", "again"), StoreUnavailable("away")])
def test_iterated_what_cannot_be_given_is_to_be_asked_for_again(
    hub: Hub, store: Store, fault: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    (top,) = publish_for_ids(store, "a", "before")
    one = waiting(hub, top)

    def fail(*_: object) -> None:
        raise fault

    monkeypatch.setattr(type(one.subscriber), "take", fail)
    publish_for_ids(store, "a", "after")
    assert list(one) == [one.nothing]
    assert hub.subscribers == 0
    monkeypatch.undo()
    assert data(ask(hub, top, timeout=1)) == ["after"]


def test_at_a_drain_those_that_wait_are_answered_and_newcomers_at_once(hub: Hub, store: Store) -> None:
    (top,) = publish_for_ids(store, "a", "before")
    with ThreadPoolExecutor(4) as pool:
        begun = time.monotonic()
        waiting = [pool.submit(ask, hub, top, timeout=20) for _ in range(3)]
        wait_until(lambda: hub.subscribers == 3, 3)
        hub.drain(0.3)
        waiting.append(pool.submit(ask, hub, top, timeout=20))
        for one in waiting:
            answer = one.result(5)
            assert (data(answer), answer["last_event_id"], answer["more"]) == ([], top, False)
        assert time.monotonic() - begun < 3
        publish_for_ids(store, "a", "after")
        wait_until(lambda: data(ask(hub, top, timeout=20)) == ["after"], 3)


def test_one_that_is_revoked_while_it_takes_what_has_come_is_told_nothing(store: Store, hub: Hub) -> None:
    revocations = Revocations(store, 3600)

    class Slow(Poll):
        def answer(self) -> bytes | None:
            answer = super().answer()
            if answer:
                revocations.revoke("sub", "ann")
            return answer

    try:
        (place,) = publish_for_ids(store, "a", "before")
        permit = Permit(revocations, Grant("ann", ("a",)), ["a"])
        body = Slow(hub, starting_points("a", LastEventId.parse(place)), timeout=5, retry=RETRY, permit=permit)
        assert body.open() is None
        publish_for_ids(store, "a", "secret news")
        answer = json.loads(body.wait())
        assert (answer["events"], answer["last_event_id"]) == ([], place)
    finally:
        revocations.close()
