"""A subscriber as one JSON answer, for clients that cannot keep a stream. It has the same positions and rings."""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from functools import lru_cache
from math import inf
from typing import ClassVar, Final

from sse.access.permit import Permit
from sse.connection_log import ended, opened
from sse.errors import Busy, StoreUnavailable
from sse.event import End, EndReason, Entry, Event, Position, format_last_event_id, id_size
from sse.hub.hub import ATTACH_TIMEOUT, Charge, Hub
from sse.hub.subscriber import Delivery, Item, Lagging, Reset, Start, Subscriber
from sse.stores.leases import State
from sse.transports.body import Body
from sse.transports.channel_facts import ended_at, ends_among, is_anchor, size_in_answer
from sse.transports.life import Next, decide
from sse.wire import encode_json

_MAX_EVENTS: Final = 1000  # in one answer
_MAX_BYTES: Final = 1 << 20  # of events and resets in one answer, if the client sets no bound
_MAX_REST: Final = 120  # bytes of an answer besides its events, its resets and what it says of each channel
_WRITTEN: Final = Event("")  # instead of the event, once its JSON is there, to save memory


class Poll(Body):
    """One JSON answer with the events that came since a position: iterate over it, or drive it by `open` and `answer`.

    The answer comes at once if there is something to send, or if a channel has no position yet. Else it comes some
    milliseconds after the first event, or empty after `timeout` seconds. The same question gets the same answer.

    :param timeout: seconds to wait at most. With 0 no ring is created; a channel without one has position `0-0`.
    :param retry: milliseconds that the client is to wait after a failure.
    :param max_bytes: of the answer. It has one event and all resets even if they are larger. None if the client has set
        no bound.
    :param permit: the right to read; None if all of its channels are public. When it ends, the wait ends too, with an
        empty answer.
    :param charge: counts the channels that it creates, see `Hub.attach`.
    :param gone: returns whether the client has gone. `wait` calls it every few seconds, and ends if it has.
    """

    __slots__ = (
        *("_began", "_charge", "_clock", "_gone", "_max_bytes", "_retry", "_starts", "_timeout"),
        "events",
    )
    is_stream: ClassVar[bool] = False
    """True for a stream, False for a poll."""
    GATHER: Final = 0.01
    """Seconds for which a waiting poll gathers more events after the first one."""
    LOOK: Final = 3.0
    """Seconds after which a waiting poll checks again if its client is there: as long as the shortest heartbeat."""

    def __init__(
        self,
        hub: Hub,
        starts: Mapping[str, Start],
        *,
        timeout: float,
        retry: int,
        max_bytes: int | None = None,
        permit: Permit | None = None,
        charge: Charge | None = None,
        gone: Callable[[], bool] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.closing = ()
        self.permit = permit
        self.request_id = ""
        self.events = 0
        """The number of events in its answer."""
        self.hub = hub
        self._starts = starts
        self._timeout = timeout
        self._retry = retry
        self._max_bytes = max_bytes
        self._clock = clock
        self._charge = charge
        self._gone = gone
        self._attached = False
        self.deadline = clock() + timeout
        """The time, by the clock, when it is answered even if no event comes. Infinity once it is handed off."""

    @property
    def merge_key(self) -> Hashable:
        """A key that is equal for polls that wait for the same answer."""
        return (
            self.hub,
            self._retry,
            self._max_bytes,
            self.subscriber.channels,
            self.subscriber.told,
            tuple(self.subscriber.positions),
        )

    @property
    def nothing(self) -> bytes:
        """The empty answer, with the positions from which the poll began."""
        ended = ended_at(self.subscriber.channels, self._began.values())
        return _encode((), self._began, self._began, self._retry, ended, self.subscriber.sources, more=False)

    @property
    def is_behind(self) -> bool:
        """True if there is something to tell, or if this process drains.

        That is an event, a position that cannot be continued, the end of all channels, or another state of a source.
        """
        subscriber = self.subscriber
        is_over = subscriber.draining or subscriber.has_ended
        return is_over or subscriber.has_source_change or not subscriber.has_all()

    def open(self) -> bytes | None:
        """Return the answer if it comes at once; else None, and the poll waits until `close`.

        :raises Unavailable: if there is no room for another subscriber, or the store is away.
        """
        if self._timeout == 0:
            names = list(self._starts)
            first = self._first_channel({name: start.position for name, start in self._starts.items()})
            starts = {name: self._starts[name] for name in names[first:] + names[:first]}
            look = self.hub.reader.look(starts, _MAX_EVENTS, self._max_body, _in_json)
            positions = {name: look.positions[name] for name in self._starts}
            sources = self.hub.sources(self._starts)
            return _encode(look.taken, look.begins, positions, self._retry, look.ended, sources, more=look.more)
        begins = {name: start.position for name, start in self._starts.items() if not start.fault}
        if len(begins) == len(self._starts) and (answer := self._last_answer(self._question(begins))):
            return answer
        answer = None
        if at_hand := self.hub.at_hand(self._starts):
            answer = self._answer_of(at_hand)
        if answer is None:
            answer = self._attach()
        return answer

    def _attach(self) -> bytes | None:
        """Attach, and return the answer if it comes at once."""
        subscriber = self.hub.attach(self._starts, max(self._timeout, ATTACH_TIMEOUT), self._charge)
        self._attached = True
        try:
            answer = self._answer_of(subscriber)
            if answer is None and not all(start.position for start in self._starts.values()):
                answer = self.nothing
        except BaseException:
            self.close()
            raise
        if answer is not None:
            self.close()
        else:
            opened("poll", self.request_id)
        return answer

    def _answer_of(self, subscriber: Subscriber) -> bytes | None:
        """Return the answer with what a new subscriber can take now; None if there is nothing."""
        self.subscriber = subscriber
        self._began = subscriber.positions_by_name
        if self._max_bytes is not None:
            subscriber.turn(self._first_channel(self._began))
        return self.answer()

    def answer(self) -> bytes | None:
        """Return the answer with the events that have come; None if there are none, and some may still come.

        :raises Busy: if too many events have come at once, so that the ring has passed the poll.
        :raises StoreUnavailable: if older entries are needed and cannot be read.
        """
        subscriber = self.subscriber
        began = subscriber.positions_by_name
        question = self._question(began)
        if not subscriber.resets and (answer := self._last_answer(question)):
            return answer
        try:
            taken = subscriber.take(_MAX_EVENTS, self._max_body, _in_json)
        except Lagging as error:
            raise Busy(
                f"the ring of channel {error.message} has passed this poll", "ask again with the same last event id"
            ) from None
        if not taken:
            return self.nothing if subscriber.draining or subscriber.has_ended else None
        positions, more = subscriber.positions_by_name, subscriber.is_behind()
        answer = _encode(taken, began, positions, self._retry, subscriber.ended, subscriber.sources, more=more)
        deliveries = [item for item in taken if isinstance(item, Delivery)]
        self.events = len([item for item in deliveries if item.entry.body])
        if len(deliveries) == len(taken):
            self.hub.last_answer = question, answer, self.events
        return answer

    def merge(self, other: Poll) -> bool:
        """Wait for another poll's client too, and end that poll. Return False if their positions differ."""
        return self.hub.merge(self.subscriber, other.subscriber)

    def wait(self) -> bytes:
        """Return the answer of a poll that was opened, as soon as there is one, and close the poll.

        :raises Unavailable: as `answer` does.
        """
        began, reason, answer = self._clock(), "fault", b""
        try:
            answer, reason = self._wait()
            return answer
        finally:
            events = self.events if reason == "answered" else 0
            ended("poll", reason, self._clock() - began, events, len(answer), self.request_id)
            self.close()

    def _wait(self) -> tuple[bytes, str]:
        """Return the answer, and the reason why it comes now."""
        if self.permit:
            self.permit.begin(self.subscriber.notify)
        answer = None
        while answer is None:
            if self.subscriber.draining:
                return self.nothing, "drain"
            if reason := self._end_of_wait():
                return self.nothing, reason
            time.sleep(self.GATHER)
            answer = self.answer()
            if self.permit and self._next(self._clock()).reason == "expired":  # while the store was asked
                return self.nothing, "expired"
        return answer, "answered"

    def _end_of_wait(self) -> str:
        """Wait until an event may have come. Return the reason if the poll ends without one; else nothing."""
        now = self._clock()
        while not (outcome := self._next(now)).is_end:
            left = outcome.until - now
            if self.subscriber.wait(min(left, self.LOOK) if self._gone else left):
                return ""
            if self._gone and self._gone():
                return "left"
            now = self._clock()
        if outcome.reason != "expired" and self.subscriber.wait(0):
            return ""
        return outcome.reason_of_poll

    def _next(self, now: float) -> Next:
        ends_in = self.permit.ends_in if self.permit else inf
        return decide(now, self.deadline, ends_in=ends_in, draining=self.subscriber.draining)

    @property
    def _max_body(self) -> int:
        """The bytes that events and resets may have in the answer."""
        if self._max_bytes is None:
            return _MAX_BYTES
        return max(self._max_bytes - _MAX_REST - id_size(self._starts) - size_in_answer(self._starts), 1)

    def _first_channel(self, positions: Mapping[str, Position | None]) -> int:
        """Return the index of the channel with which a bounded answer begins.

        It depends on the positions alone. So the same request gets the same answer, and because positions move on, no
        channel is left out for ever.
        """
        if self._max_bytes is None:
            return 0
        return zlib.crc32(repr(sorted(positions.items())).encode()) % len(positions)

    def _question(self, positions: Mapping[str, Position | None]) -> object:
        # A position commits to all entries before it, so the entries between two positions are always the same.
        places: object
        if len(positions) == 1:
            [(name, position)] = positions.items()
            places = name, position, self.hub.newest_of(name)
        else:
            places = frozenset(positions.items()), self.hub.newest(positions)
        return self._retry, self._max_bytes, places, self.hub.sources(positions)

    def _last_answer(self, question: object) -> bytes | None:
        """Return the hub's last answer if it fits: very many polls come back from the same positions at once."""
        last, answer, events = self.hub.last_answer
        if question != last:
            return None
        self.events = events
        return answer

    def __iter__(self) -> Iterator[bytes]:
        # This poll was opened and has to wait. After an empty answer, its client asks again.
        try:
            yield self.wait()
        except (Busy, StoreUnavailable):
            yield self.nothing


def _in_json(channel: str, entry: Entry) -> Delivery:
    """Return the delivery of an entry for a poll. Its body is the event's JSON, with a comma before it.

    The body of an end is empty, because the answer says by `ended` which channels have ended.
    """
    event = entry.event
    if isinstance(event, End):
        return Delivery(channel, entry._replace(body=b""))
    in_json = {"channel": channel, "id": f"{channel}={entry.position}", "type": event.type, "data": event.data}
    return Delivery(channel, Entry(entry.position, _WRITTEN, b"," + encode_json(in_json).encode()))


def _encode(
    taken: Sequence[Item],
    began: Mapping[str, Position],
    positions: Mapping[str, Position],
    retry: int,
    ended: Mapping[str, EndReason],
    sources: Mapping[str, State],
    *,
    more: bool,
) -> bytes:
    events = [item.entry.body for item in taken if isinstance(item, Delivery)]
    is_plain = len(events) == len(taken) and all(events) and not (ended or sources)
    if is_plain and not any(map(is_anchor, began.values())):
        return _joined(positions, events, _plain_rest(more, retry))
    # The answer lists resets apart from events. The events before a reset are left out, because the client drops the
    # state to which they belong.
    resets = {item.channel: index for index, item in enumerate(taken) if isinstance(item, Reset)}
    told = [
        item
        for index, item in enumerate(taken)
        if isinstance(item, Delivery) and item.entry.body and index > resets.get(item.channel, -1)
    ]
    if len(told) < len(taken):  # there are resets or ends
        began = {**began, **{item.channel: item.position for item in taken if isinstance(item, Reset)}}
        ended = {**ended, **ends_among(taken)}
    events = [item.entry.body for item in told]
    whole = [name for name in positions if is_anchor(began[name]) and any(item.channel == name for item in told)]
    rest = {
        "resets": [
            item.json for index, item in enumerate(taken) if isinstance(item, Reset) and index == resets[item.channel]
        ],
        **{name: member for name, member in (("ended", ended), ("whole", whole), ("source", sources)) if member},
        "more": more,
        "retry": retry,
    }
    return _joined(positions, events, encode_json(rest).encode())


@lru_cache(maxsize=64)
def _plain_rest(more: bool, retry: int) -> bytes:
    """Return the members after the events, as JSON, of an answer that has events and nothing else to tell."""
    return encode_json({"resets": [], "more": more, "retry": retry}).encode()


def _joined(positions: Mapping[str, Position], events: Sequence[bytes], rest: bytes) -> bytes:
    """Return an answer, joined by hand, because the events are large and JSON already."""
    # A last event id has no character that JSON escapes.
    head = f'{{"last_event_id":"{format_last_event_id(positions)}","events":['.encode()
    return b"".join([head, b"".join(events)[1:], b"],", rest[1:]])
