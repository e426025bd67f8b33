"""A subscriber as one JSON answer: the same positions, from the same rings, for clients that cannot keep a stream."""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from math import inf
from typing import ClassVar, Final

from sse.access.permit import Permit
from sse.errors import Busy, StoreUnavailable
from sse.event import Entry, Event, Position, format_last_event_id, id_size
from sse.hub.hub import ATTACH_TIMEOUT, Charge, Hub
from sse.hub.subscriber import Delivery, Lagging, Reset, Start, Subscriber
from sse.transports.life import Handed, Next, decide
from sse.wire import encode_json

_MAX_EVENTS: Final = 1000
_MAX_BYTES: Final = 1 << 20
_MAX_REST: Final = 80  # bytes of an answer beside its events, its resets and its last event id
_WRITTEN: Final = Event("")  # in place of one whose JSON is there: only one of both is kept


class Poll:
    """One JSON answer with the events that came since a position: iterate over it; or drive it by `open` and `answer`.

    The answer comes at once if there is something to tell, or if a channel has no position yet. Else it comes some
    milliseconds after the first event, or empty after `timeout` seconds. The same question gets the same answer.

    :param timeout: seconds to wait at the most; with 0 no ring is founded, and a channel that has none stands at `0-0`.
    :param retry: milliseconds that the client is to wait after a failure.
    :param max_bytes: of the answer; one event is given whatever its size, and so are the resets. None if the client has
        set no bound.
    :param permit: the right that it stands on, where not all of its channels are public. When that ends, so does the
        wait, and nothing is told.
    :param charge: counts the channels that it brings into being, see `Hub.attach`.
    :param gone: tells whether the client has gone; asked every few seconds of `wait`, which ends then.
    """

    __slots__ = (
        *("_began", "_charge", "_clock", "_gone", "_max_bytes", "_opened", "_retry", "_starts", "_timeout"),
        *("closing", "deadline", "hub", "permit", "subscriber"),
    )
    is_stream: ClassVar[bool] = False
    """Tells a stream from a poll."""
    GATHER: Final = 0.01
    """Seconds for which a waiting poll gathers further events after the first."""
    LOOK: Final = 3.0
    """Seconds after which a waiting poll looks again whether its client is there: the shortest heartbeat there is."""
    subscriber: Subscriber

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
        self.closing: Sequence[Callable[[], object]] = ()
        """Called at the end."""
        self.permit = permit
        """The right that it stands on; None where all is public, and once it is handed off."""
        self.hub = hub
        self._starts = starts
        self._timeout = timeout
        self._retry = retry
        self._max_bytes = max_bytes
        self._clock = clock
        self._charge = charge
        self._gone = gone
        self._opened = False
        self.deadline = clock() + timeout
        """When it is answered even if nothing comes."""

    @property
    def alike(self) -> Hashable:
        """Equal for polls that wait for the same."""
        return (
            self.hub,
            self._retry,
            self._max_bytes,
            self.subscriber.channels,
            tuple(self.subscriber.positions),
        )

    @property
    def nothing(self) -> bytes:
        """The answer that nothing has come since it began."""
        return _encode((), self._began, self._retry, more=False)

    @property
    def is_behind(self) -> bool:
        """True if something has come, if a position cannot be continued, or if the poll is to end."""
        subscriber = self.subscriber
        return subscriber.draining or any(subscriber.at_hand(index) != [] for index in subscriber.order())

    def open(self) -> bytes | None:
        """Return the answer if it comes at once; else None, and the poll waits until `close`.

        :raises Unavailable: if there is no room for another subscriber, or the store is away.
        """
        if self._timeout == 0:
            names = list(self._starts)
            first = self._first({name: start.position for name, start in self._starts.items()})
            starts = {name: self._starts[name] for name in names[first:] + names[:first]}
            look = self.hub.reader.look(starts, _MAX_EVENTS, self._room, _in_json)
            positions = {name: look.positions[name] for name in self._starts}
            return _encode(look.taken, positions, self._retry, more=look.more)
        begins = {name: start.position for name, start in self._starts.items() if not start.fault}
        if len(begins) == len(self._starts) and (answer := self._known(begins)):
            return answer
        self.subscriber = self.hub.attach(self._starts, max(self._timeout, ATTACH_TIMEOUT), self._charge)
        self._opened = True
        self._began = {**self.subscriber.positions_by_name}
        self.subscriber.turn(self._first(self._began))
        try:
            answer = self.answer()
            if answer is None and not all(start.position for start in self._starts.values()):
                answer = self.nothing
        except BaseException:
            self.close()
            raise
        if answer is not None:
            self.close()
        return answer

    def answer(self) -> bytes | None:
        """Return the answer with what has come since; None if there is nothing.

        :raises Busy: if it cannot be given, because too much has come at once.
        :raises StoreUnavailable: if older entries are needed and cannot be read.
        """
        subscriber = self.subscriber
        if not subscriber.resets and (answer := self._known(subscriber.positions_by_name)):
            return answer
        stands = self._stands(subscriber.positions_by_name)
        try:
            taken = subscriber.take(_MAX_EVENTS, self._room, _in_json)
        except Lagging as error:
            raise Busy(
                f"the ring of channel {error.message} has passed this poll", "ask again with the same last event id"
            ) from None
        if not taken:
            return self.nothing if subscriber.draining else None
        answer = _encode(taken, subscriber.positions_by_name, self._retry, more=subscriber.is_behind())
        if not any(isinstance(item, Reset) for item in taken):
            self.hub.last_answer = stands, answer
        return answer

    def merge(self, other: Poll) -> bool:
        """Wait for another too from now on, and end that; False if they are not at the same place."""
        return self.hub.merge(self.subscriber, other.subscriber)

    def release(self) -> None:
        """Forget one of its clients; others are left."""
        self.hub.release(self.subscriber)

    def detach(self) -> None:
        """Forget its last client; a second time does nothing."""
        if self._opened:
            self.hub.detach(self.subscriber)

    def hand_off(self) -> Handed:
        """Give up all that concerns its client alone: from now on, a row decides when that connection ends."""
        handed = Handed(self.deadline, self.permit, self.closing)
        self.deadline, self.permit, self.closing = inf, None, ()
        return handed

    def wait(self) -> bytes:
        """Return the answer of a poll that was opened, as soon as there is one, and close the poll.

        :raises Unavailable: as `answer` does.
        """
        try:
            if self.permit:
                self.permit.begin(self.subscriber.notify)
            answer = None
            while answer is None and not self.subscriber.draining and self._is_woken():
                time.sleep(self.GATHER)
                answer = self.answer()
                if self.permit and self._next(self._clock()).reason == "expired":  # perhaps while the store was asked
                    return self.nothing
            return answer or self.nothing
        finally:
            self.close()

    def _is_woken(self) -> bool:
        """Wait until something may have come; False if it is to end without that, or its client has gone."""
        now = self._clock()
        while not (outcome := self._next(now)).ends:
            left = outcome.until - now
            if self.subscriber.wait(min(left, self.LOOK) if self._gone else left):
                return True
            if self._gone and self._gone():
                return False
            now = self._clock()
        return outcome.reason != "expired" and self.subscriber.wait(0)

    def _next(self, now: float) -> Next:
        ends_in = self.permit.ends_in if self.permit else inf
        return decide(now, self.deadline, ends_in=ends_in, draining=self.subscriber.draining)

    def close(self) -> None:
        """Detach, and end its permit; a second time does nothing."""
        self.detach()
        if self.permit:
            self.permit.end()
        closing, self.closing = self.closing, ()
        for done in closing:
            done()

    @property
    def _room(self) -> int:
        """The bytes that events and resets may take."""
        if self._max_bytes is None:
            return _MAX_BYTES
        return max(self._max_bytes - _MAX_REST - id_size(self._starts), 1)

    def _first(self, positions: Mapping[str, Position | None]) -> int:
        """Return the channel, by number, with which a bounded answer begins.

        It depends on where the poll stands: asked twice, it answers twice, and no channel is left out of all answers.
        """
        if self._max_bytes is None:
            return 0
        return zlib.crc32(repr(sorted(positions.items())).encode()) % len(positions)

    def _stands(self, positions: Mapping[str, Position | None]) -> Hashable:
        # A position commits to all before it, so what lies between two is always the same.
        return self._retry, self._max_bytes, frozenset(positions.items()), self.hub.newest(positions)

    def _known(self, positions: Mapping[str, Position | None]) -> bytes | None:
        """The answer, if it is the one that was given last: very many come back from the same place at once."""
        stood, answer = self.hub.last_answer
        return answer if stood is not None and stood == self._stands(positions) else None

    def __iter__(self) -> Iterator[bytes]:
        # One that was opened and has to wait; what cannot be given is asked for again.
        try:
            yield self.wait()
        except (Busy, StoreUnavailable):
            yield self.nothing


def _in_json(channel: str, entry: Entry) -> Delivery:
    """The delivery for a poll: the body is the event as it stands in the answer, with the comma before it."""
    event = entry.event
    told = {"channel": channel, "id": f"{channel}={entry.position}", "type": event.type, "data": event.data}
    return Delivery(channel, Entry(entry.position, _WRITTEN, b"," + encode_json(told).encode()))


def _encode(taken: Sequence[Delivery | Reset], positions: Mapping[str, Position], retry: int, *, more: bool) -> bytes:
    # The answer lists resets apart from events: those before a reset are of a state that the client is to give up.
    resets = {item.channel: index for index, item in enumerate(taken) if isinstance(item, Reset)}
    events = [
        item.entry.body
        for index, item in enumerate(taken)
        if isinstance(item, Delivery) and index > resets.get(item.channel, -1)
    ]
    rest = {
        "resets": [
            item.json for index, item in enumerate(taken) if isinstance(item, Reset) and index == resets[item.channel]
        ],
        "more": more,
        "retry": retry,
    }
    head = {"last_event_id": format_last_event_id(positions)}
    # Put together by hand, because the events are large, and JSON already.
    events[:1] = [body[1:] for body in events[:1]]
    return b"".join([encode_json(head)[:-1].encode(), b',"events":[', *events, b"],", encode_json(rest)[1:].encode()])
