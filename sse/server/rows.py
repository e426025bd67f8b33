"""The rows of connections that were handed off: which of them wait together, and what each one gets next.

A connection that was handed off is only a file descriptor in a row. It has no greenlet. `Stream` and `Poll` decide
which bytes are sent, `life` decides when a stream or a waiting poll ends, and this module decides which connections
get the bytes and when the other connections end.
Nothing here waits or knows an event loop: everything that does is passed in as `Effects`. The rows that wait for a
request are in `quiet`.

A connection is in one row, or a greenlet has it, or it waits for a greenlet in `Rows.waiting`. "Closed after the
round" means: it leaves its row now, and its number becomes free when the round is over.

    row         waits for                  when                             the connection goes to
    ----------  -------------------------  -------------------------------  ----------------------------------------
    Parked      its next request           bytes come                       Handled, once they are read; a greenlet if
                                                                            there is no fast lane, or if 16 MB are held
                                           its time is over, or its room    closed at once; as above if bytes have come
                                           is needed, or the peer hangs up  just now
    Handled     its turn in the fast lane  its request is answered          Parked, Sending, or Handled again if the
                or its answer, see `lane`                                   next request has come; closed
                                           it is a stream or a poll         Streams or Polls
                                           its request is gunicorn's        a greenlet, with all bytes that were read;
                                                                            `Rows.waiting` if none is free
                                           more bytes are needed            Partial
    Partial     the rest of a request      all of it has come               Handled
                                           20 s have passed without the     closed at once
                                           whole head, its room is needed,
                                           or such heads have over 4 MB
                                           the body is late, such bodies    a greenlet, with all bytes that were read
                                           have over 4 MB, or the peer
                                           hangs up
    Streams     an event                   the peer hangs up, or the        closed after the round
                                           stream ends
    Polls       an event                   the whole answer goes out        Parked; as from Parked if the next request
                                                                            has come; closed after the round if this
                                                                            was the last answer
                                           a part of the answer goes out    Sending
                                           the peer hangs up                closed after the round
    Sending     its client to take more    all unsent bytes go out          as after the whole answer of Polls
                                           no byte is taken for 20 s, the   closed after the round
                                           connection breaks, or over 64
                                           MB of answers are unsent

A greenlet of `lane` holds a connection of Handled that is not in `Rows.ready`. Nobody else closes or moves it, so its
number cannot become another client's. If something happens on it meanwhile, epoll is only told to watch it no more.

A row of streams is in one of the states below. To *wake* a row is to put it on the agenda, so that the next round
serves it. Only these change the state: the rounds (`serve` and `check`), the connections' events (`on_ready` and
`on_hang_up`), and the greenlet that runs `ask_store`. All of them but `ask_store` may write.

    state       known by                   when                             the next state
    ----------  -------------------------  -------------------------------  ----------------------------------------
    caught up   none of the fields below   it is served                     caught up, once all connections have the
                                           with bytes that the hub has      bytes
                                           it is served, and the hub lacks  asking
                                           some of the entries
                                           a connection takes only a part   that connection alone, in a row of its own:
                                           of a push, or of a notice        stalled
                                           another row that is caught up    both become one row
                                           has the same key and positions
                                           a connection takes only a part   that connection alone, in a row of its own:
                                           of its goodbye, or of that end   ending
                                           it is served, and only the end   each connection gets that end: closed after
                                           of its last channel is left      the round
    asking      `is_asking`                the store answers                holding; detached if no connection is left
                                           it is woken                      asking: it is woken again after its push
    holding     `chunk` is not None        it is served                     caught up, and woken once more; away if the
                                                                            store did not answer
    away        `stream.awaits_store`      it is due after 1 s, or woken    asking
    stalled     `unsent`                   all unsent bytes go out          caught up, and woken
                                           no byte is taken for 20 s        closed after the round
    ending      `unsent` and `closes`      all unsent bytes go out          closed after the round
                                           no byte is taken for 20 s        closed after the round
                                           it is due, and its stream is     what `life` says
                                           lost, so it has no goodbye
    any but     -                          a connection is due              what `life` says for that connection alone:
    ending                                                                  a goodbye and the end, a cut, or it goes on

A row of polls waits for events. Once there is something to tell, it `is_asking` for its answer, and no further poll
joins it. If a connection ends while the answer is being made, because of a drain or its permit, it gets an empty
answer. The answer to a long row pauses between its writes, too: polls that come then have a row of their own.

A push to a long row of streams pauses between its writes, so that other greenlets have their turn. During a pause this
may happen:

    end         A connection leaves its row and gives up its seat. The push may still write to its number. No other
                connection can have that number before the round is over. If only a part of such a write is taken, it
                is ignored.
    stall       Only the push itself finds that a connection takes no more bytes. A connection that stalled before may
                catch up meanwhile: its own row is woken, and the next round serves it.
    join        A new connection gets a row of its own, which the next round serves. Rows merge only at the beginning
                or the end of `serve`.
    revoke      The connection is checked in the next round. Until then it gets this push or, if its row is served
                later in this round, all events that its row then takes. Some of these may have come after the
                revocation. The same holds for a pause between two checks. A revocation may take 2 s, and a round takes
                far less.
    drain       As for `revoke`. A connection that comes now is due at once.
    wake        The next round serves the row again.
"""

from __future__ import annotations

import contextlib
import math
from array import array
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable
from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple, cast

from sse.server.agenda import Agenda
from sse.server.effects import Effects, EndFunctions, Interest
from sse.server.framing import LAST_CHUNK, date, framed
from sse.server.handed_off import HandedOff
from sse.server.quiet import REQUEST_BYTES, Gathers, Parked, QuietConnections
from sse.server.row import Row
from sse.server.tally import Tally
from sse.small_set import added, removed
from sse.spread import PAUSE, spread
from sse.transports.life import STALLED_AFTER, ClientPart, CloseReason, Next, Pending, decide

if TYPE_CHECKING:
    from sse.access.permit import Permit
    from sse.transports.poll import Poll
    from sse.transports.stream import Stream

MAX_READ_AHEAD: Final = 8192
"""Bytes that a client may send behind the request of a waiting poll."""

_TURN: Final = 128  # connections that are written to between two pauses: about 1 ms
_MOST_UNSENT: Final = 64 << 20  # bytes of the answers in `Sending`
_READ: Final = 4096  # bytes in one read
_MOST_HELD: Final = 16 << 20  # bytes that were read and are not consumed; no more is read beyond that
_MOST_AHEAD: Final = 4 << 20  # of these, bytes behind waiting polls, which could hold them for a minute
_DROPPED: Final = 65_536  # bytes that are read and dropped before the end of a connection, so that it is not reset
_NOTHING: Final = memoryview(b"")


class Unsent(NamedTuple):
    """The bytes of an answer that the kernel has not taken yet, and whether the connection closes after them."""

    data: memoryview  # of the whole answer, which stays in memory until then
    closes: bool


def send(write: Callable[[int, bytes | memoryview], int], fd: int, data: bytes | memoryview) -> int:
    """Write to a connection. Return how many bytes it takes now; -1 if it is broken.

    :param write: as `os.write`.
    """
    try:
        return write(fd, data)
    except BlockingIOError:
        return 0
    except OSError:
        return -1


class Streams(Row):
    """Streams that have got the same bytes: a push is encoded once, and costs one write for each connection."""

    __slots__ = ("chunk", "chunked", "closes", "last_progress", "slot", "stream", "unsent")
    rows: Rows
    interest = "input"

    def __init__(self, rows: Rows, stream: Stream, *, chunked: bool) -> None:
        super().__init__(rows)
        self.stream = stream
        self.chunked = chunked
        self.chunk: bytes | None = None  # the next bytes, from the store
        # The bytes of the last write that the kernel has not taken. A row with unsent bytes has one connection.
        self.unsent = _NOTHING
        self.last_progress = 0.0
        self.closes = ""  # the reason why the connection closes once the unsent bytes are out; empty if it goes on
        self.slot = 0  # of the wheel, when this row is looked at next

    @property
    def due(self) -> float:
        """The time when it has something to send even without an event, or when it has stalled for too long."""
        return self.last_progress + STALLED_AFTER if self.unsent else self.stream.due

    @property
    def merge_key(self) -> Hashable:
        """Equal for rows that can merge once their positions are equal; None if this row is not caught up."""
        stream = self.stream.merge_key if self._is_all_written else None
        return None if stream is None else (*cast("tuple[Hashable, ...]", stream), self.chunked)

    @property
    def _is_all_written(self) -> bool:
        """True if everything that was taken from the hub or the store has gone out."""
        return not (self.unsent or self.is_asking or self.chunk is not None)

    def serve(self) -> None:
        if self.unsent:
            if decide(self.rows.effects.clock(), math.inf, last_progress=self.last_progress, pending="unsent").is_cut:
                self.end_all("slow")
            return  # the wheel looks at this row again in any case
        if self.is_asking or (self.chunk is None and self.rows.merge(self)):
            return
        chunk, self.chunk = self.chunk, None
        has_asked = chunk is not None
        if chunk is None:
            chunk = self.stream.next_bytes_at_hand(self.rows.agenda.shared)
        if chunk is None:
            self.is_asking = True
            self.rows.effects.call_in_greenlet(self.ask_store)
        elif self.stream.ended:
            self._end(chunk)
        else:
            self._send_all(chunk)
            if has_asked and not self.stream.awaits_store:
                self.rows.agenda.serve_soon(self)  # an event that came while it was asking had no effect
            elif self.fds and not self.rows.merge(self):
                self.set_timer()

    def ask_store(self) -> None:
        """Get the next bytes from the store, which may take long. The next round sends them."""
        try:
            if self.fds:
                self.chunk = self.stream.next_bytes()
        except BaseException:
            self.end_all("fault")
            raise
        finally:
            self.asking_done()

    def set_timer(self) -> None:
        """Have the wheel look at this row when it is due, or earlier if that is already set."""
        self.slot = self.rows.effects.timer(self, self.due, self.slot)

    def on_ready(self, fd: int) -> None:
        if not self._is_peer_there(fd):
            self.rows.end(fd, "left")
        elif self.unsent:
            self._send_unsent(fd)

    def next_for(self, fd: int) -> Next:
        pending: Pending = "unsent" if self.unsent else "nothing" if self._is_all_written else "events"
        return self.rows.next_of(
            fd, pending, last_progress=self.last_progress if self.unsent else math.inf, has_notice=True
        )

    def check(self, fd: int) -> None:
        if self.closes and not self.stream.lost:
            return  # a part of its goodbye is out, and `serve` cuts it after 20 s without progress
        decided = self.next_for(fd)
        if decided.is_cut:
            self.rows.end(fd, decided.reason)
        elif decided.reason:
            self._say_goodbye(fd, decided.reason)
        else:
            self.rows.set_end(fd, decided.until)
            permit = self.rows.handed_off.permit(fd)
            if decided.tells_notice and permit:
                self._send_to(fd, self.stream.notice(permit))

    def release(self) -> None:
        self.stream.release()

    def detach(self) -> None:
        self.stream.detach()

    def log_end(self, fd: int, reason: str) -> None:
        rows, stream = self.rows, self.stream
        seconds, events, size, request_id = rows.tally.end(fd, rows.effects.clock(), stream.events, stream.size)
        rows.effects.ended("stream", reason, seconds, events, max(size - len(self.unsent), 0), request_id)

    def _send_all(self, chunk: bytes) -> None:
        if not chunk:
            return
        self.stream.begin_write(len(chunk))  # a connection that stalls takes a copy of the stream along
        self._push(framed(chunk) if self.chunked else chunk)
        self.stream.mark_written(self.rows.effects.clock())
        if self.stream.may_change_key and self.merge_key != self.joinable_as:
            # The bytes have changed its key. It leaves the old one, and the merge at the end of `serve` enters it under
            # the new one.
            self.rows.joinable.remove(self)

    def _push(self, data: bytes) -> None:
        # This loop is the cost of a push, so it does as little as possible for each connection.
        size = len(data)
        write, pause = self.rows.effects.write, self.rows.effects.pause
        fds = list(self.fds)
        for start in range(0, len(fds), _TURN):
            for fd in fds[start : start + _TURN]:
                try:
                    sent = write(fd, data)
                except BlockingIOError:
                    sent = 0
                except OSError:
                    self.rows.end(fd, "left")
                    continue
                if sent != size and fd in self.fds:
                    self.stall(fd, memoryview(data)[sent:])
            pause()

    def _end(self, chunk: bytes) -> None:
        """Send each connection the end of the stream.

        A goodbye, and the end of the last channel, give each client a random pause of its own before it reconnects. A
        lost stream has no goodbye.
        """
        stream, pause = self.stream, self.rows.effects.pause
        for number, fd in enumerate(list(self.fds), 1):
            if fd in self.fds:  # else it has left in a pause
                if stream.reason and not stream.lost:
                    self._say_goodbye(fd, stream.reason)
                else:
                    self._send_to(fd, stream.farewell(chunk), last=stream.end_reason)
            if number % _TURN == 0:
                pause()

    def _say_goodbye(self, fd: int, reason: CloseReason) -> None:
        self._send_to(fd, self.stream.goodbye(reason, self.rows.handed_off.permit(fd)), last=reason)

    def _send_to(self, fd: int, data: bytes, *, last: str = "") -> None:
        """Send something to one connection.

        :param last: the reason for the log why the connection closes after it; empty if it goes on.
        """
        if self.chunked and data:  # an empty chunk would end the body
            data = framed(data, LAST_CHUNK if last and not self.stream.cuts else b"")
        sent = send(self.rows.effects.write, fd, data)
        if 0 <= sent < len(data):
            self.stall(fd, memoryview(data)[sent:]).closes = last
        elif sent < 0 or last:
            self.rows.end(fd, "left" if sent < 0 else last)

    def stall(self, fd: int, unsent: memoryview) -> Streams:
        """Have a connection that takes no more be alone in a row with its unsent bytes. Return that row."""
        row = self
        if len(self.fds) > 1:
            row = Streams(self.rows, self.stream.split(), chunked=self.chunked)
            self.rows.move(fd, row)
            row.stream.subscriber.wake_by(row)
        self.rows.joinable.remove(row)
        row.unsent, row.last_progress = unsent, self.rows.effects.clock()
        self.rows.effects.modify(fd, "input or room")
        row.set_timer()
        return row

    def _send_unsent(self, fd: int) -> None:
        sent = send(self.rows.effects.write, fd, self.unsent)
        if sent > 0:
            self.unsent, self.last_progress = self.unsent[sent:], self.rows.effects.clock()
        if sent < 0 or (self.closes and not self.unsent):
            self.rows.end(fd, "left" if sent < 0 else self.closes)
        elif not self.unsent:
            self.unsent = _NOTHING
            self.rows.effects.modify(fd, self.interest)
            self.stream.mark_written(self.rows.effects.clock())
            self.rows.agenda.serve_soon(self)

    def _is_peer_there(self, fd: int) -> bool:
        """Return whether the peer is still there. Bytes that it sends are read and dropped."""
        try:
            return bool(self.rows.effects.read(fd, _READ))
        except BlockingIOError:
            return True
        except OSError:
            return False


class Polls(Row):
    """Polls that wait at the same positions and have the same head, so that they get the same answer."""

    __slots__ = ("head", "poll")
    rows: Rows
    interest = "input"

    def __init__(self, rows: Rows, poll: Poll, head: bytes) -> None:
        super().__init__(rows)
        self.poll = poll
        self.head = head

    def serve(self) -> None:
        if not self.is_asking and self.poll.is_behind:
            self.is_asking = True
            self.rows.effects.call_later(self.poll.GATHER, self.answer)

    def on_ready(self, fd: int) -> None:
        # They are read and kept, because the end of the connection might never arrive behind unread bytes.
        try:
            data = self.rows.effects.read(fd, _READ)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.rows.end(fd, "left")
            return
        self.keep_ahead(fd, data)

    def keep_ahead(self, fd: int, data: bytes) -> None:
        """Keep bytes that have come behind a request. If those are too many, the poll does not wait any longer."""
        rows = self.rows
        rows.keep(fd, read_ahead := rows.read_ahead.get(fd, b"") + data)
        rows.held_by_polls += len(data)
        if len(read_ahead) > MAX_READ_AHEAD or rows.held_by_polls > _MOST_AHEAD:
            rows.effects.modify(fd, "end")
            if not self.is_asking or self.next_for(fd).is_end:  # else the answer is on its way
                self._reply_nothing(fd, "answered")

    def on_removed(self, fd: int) -> None:
        self.rows.held_by_polls -= len(self.rows.read_ahead.get(fd, b""))
        super().on_removed(fd)

    def next_for(self, fd: int) -> Next:
        return self.rows.next_of(fd, "answer" if self.is_asking else "nothing")

    def check(self, fd: int) -> None:
        decided = self.next_for(fd)
        if decided.is_end:
            self._reply_nothing(fd, decided.reason_of_poll)
        else:
            self.rows.set_end(fd, decided.until)

    def release(self) -> None:
        self.poll.release()

    def detach(self) -> None:
        self.poll.detach()

    def answer(self) -> None:
        """Answer all connections. This runs in a greenlet, and may wait for the store."""
        reason = "answered"
        self.poll.events = 0
        try:
            answer = self.poll.answer() if self.fds else None
        except Exception as error:  # noqa: BLE001 - logged; the client asks again
            self.rows.effects.warn("polls are to ask again: %s", error)
            answer, reason = self.poll.nothing, "fault"
        self.rows.joinable.remove(self)  # a poll that comes now waits for the next answer
        try:
            if answer is not None:
                self._reply_all(answer, reason)
        finally:
            self.asking_done()

    def _reply_all(self, answer: bytes, reason: str) -> None:
        rows, events = self.rows, self.poll.events
        draining, data = rows.draining, self._whole(answer)
        for number, fd in enumerate(list(self.fds), 1):
            if draining is not rows.draining:
                draining, data = rows.draining, self._whole(answer)
            if fd in self.fds:
                if rows.handed_off.is_over(fd):  # neither its deadline nor a drain keeps it from this answer
                    self._reply_nothing(fd, "expired")
                else:
                    self.log_end(fd, reason, events, len(answer))
                    self._reply(fd, data)
            if number % _TURN == 0:
                rows.effects.sleep(PAUSE)

    def _reply_nothing(self, fd: int, reason: str) -> None:
        # This answer has the positions where the poll began. A client that asks again from there misses nothing.
        answer = self.poll.nothing
        self.log_end(fd, reason, 0, len(answer))
        self._reply(fd, self._whole(answer))

    def log_end(self, fd: int, reason: str, events: int = 0, size: int = 0) -> None:
        seconds, _, _, request_id = self.rows.tally.end(fd, self.rows.effects.clock(), 0, 0)
        self.rows.effects.ended("poll", reason, seconds, events, size, request_id)

    def _whole(self, body: bytes) -> bytes:
        head = self.head
        if self.rows.draining:
            head = head.replace(b"\r\nConnection: keep-alive\r\n", b"\r\nConnection: close\r\n", 1)
        return b"%bDate: %b\r\nContent-Length: %d\r\n\r\n%b" % (head, date(), len(body), body)

    def _reply(self, fd: int, data: bytes) -> None:
        closes = self.rows.draining or b"\r\nConnection: close\r\n" in self.head
        sent = send(self.rows.effects.write, fd, data)
        if sent < 0 or (closes and sent == len(data)):
            self.rows.end(fd)
        elif sent == len(data):
            self.rows.after_answer(fd)
        else:
            self.rows.finish_answer(fd, Unsent(memoryview(data)[sent:], closes))


class Sending(Row):
    """Connections whose client does not take a whole answer at once: the rest is sent as the client takes more."""

    __slots__ = ("_clients", "_size", "_unsent")
    rows: Rows
    interest = "room"
    awaits_events = False

    def __init__(self, rows: Rows) -> None:
        super().__init__(rows)
        self._unsent: dict[int, Unsent] = {}
        self._clients: dict[int, dict[int, None]] = {}  # the connections that get each answer, by its `id`
        self._size = 0  # of these answers

    @property
    def until_from_now(self) -> float:
        """The time when a connection is cut if its client takes nothing from now on."""
        return self.rows.effects.clock() + STALLED_AFTER

    def begin(self, fd: int, unsent: Unsent) -> None:
        """Begin to send a connection of this row its unsent bytes.

        If the answers here have over 64 MB together, the answer that has been here longest is given up, and all its
        connections are cut. The whole of an answer counts, and once for all its connections.
        """
        self._unsent[fd] = unsent
        answer = unsent.data.obj
        clients = self._clients.setdefault(id(answer), {})
        clients[fd] = None
        if len(clients) > 1:
            return
        self._size += memoryview(answer).nbytes
        while self._size > _MOST_UNSENT:  # the new answer is given up at the latest
            for other in list(next(iter(self._clients.values()))):
                self.rows.end(other)

    def on_ready(self, fd: int) -> None:
        unsent = self._unsent[fd]
        sent = send(self.rows.effects.write, fd, unsent.data)
        if sent < 0 or (unsent.closes and sent == len(unsent.data)):
            self.rows.end(fd)
        elif sent == len(unsent.data):
            self.rows.after_answer(fd)
        elif sent:
            self._unsent[fd] = unsent._replace(data=unsent.data[sent:])
            self.rows.set_end(fd, self.until_from_now)

    def check(self, fd: int) -> None:
        self.rows.end(fd)

    def on_removed(self, fd: int) -> None:
        unsent = self._unsent.pop(fd, None)
        if unsent is None:
            return
        answer = unsent.data.obj
        del self._clients[id(answer)][fd]
        if not self._clients[id(answer)]:
            del self._clients[id(answer)]
            self._size -= memoryview(answer).nbytes


class Handled(Row):
    """Connections whose request has come and is not answered yet. Only their holder closes them, see `lane`."""

    __slots__ = ()
    rows: Rows
    interest = "input"
    awaits_events = False

    def on_ready(self, fd: int) -> None:
        self.rows.unwatch(fd)  # epoll reports bytes or a hang-up again once the connection is watched again

    on_hang_up = on_ready


class Joinable:
    """The rows that newcomers may join, by key: see `Stream.merge_key` and `Poll.merge_key`."""

    __slots__ = ("_rows",)

    def __init__(self) -> None:
        self._rows: dict[Hashable, Row] = {}

    def add(self, row: Row, key: Hashable) -> None:
        """Have newcomers with this key find a row."""
        self._rows[key] = row
        row.joinable_as = key

    def merge_poll(self, key: Hashable, poll: Poll) -> Polls | None:
        """Merge a poll into the row with its key. Return that row, or None if there is none to merge with."""
        row = self._rows.get(key)
        if isinstance(row, Polls) and not row.is_asking and row.poll.merge(poll):
            return row
        return None

    def merge_streams(self, row: Streams) -> Streams | None:
        """Merge the stream of a row into that of the row with its key. Return that row, or None.

        If no row has its key, this row is added, so that later rows find it.
        """
        key = row.merge_key
        if key is None:
            return None
        other = self._rows.get(key)
        if other is None:
            self.add(row, key)
            return None
        if isinstance(other, Streams) and other.merge_key == key and other.stream.merge(row.stream):
            return other
        return None

    def remove(self, row: Row) -> None:
        """Have no newcomer join this row any more."""
        if self._rows.get(row.joinable_as) is row:
            del self._rows[row.joinable_as]
        row.joinable_as = None


class Rows:
    """The register of all connections that were handed off: the row of each, its end, and its permit."""

    def __init__(self, effects: Effects, keepalive: float) -> None:
        self.effects = effects
        self.agenda: Agenda[Row] = Agenda(effects.clock, effects.wake)
        self.handed_off = HandedOff()
        self.tally = Tally()
        self.draining = False
        self.max_connections: float = math.inf
        """The number of connections that may be here."""
        self.row_of: dict[int, Row] = {}
        """The row of each connection."""
        self.slots = array("q")
        """The slot of the wheel when each connection is due.

        It is 0 once the connection is on the agenda to be checked, until its next check is set. If that check says
        goodbye, it stays 0.

        File descriptors are small numbers close together, so an array with 8 bytes for each is enough.
        """
        self.waiting: deque[int] = deque()
        """Connections that wait for a greenlet."""
        self.ready: OrderedDict[int, None] = OrderedDict()  # a dict finds its first member slowly if many have left
        """The connections of `Handled` that wait for their turn in the fast lane, the first one first."""
        self.has_lane = False
        """True if requests go to the fast lane; else each goes to a greenlet."""
        self.read_ahead: dict[int, bytes] = {}
        """The bytes of each connection that were read and belong to a request that is not answered yet."""
        self.held = 0
        """The number of these bytes, with those in `Partial`."""
        self.held_by_polls = 0
        """The number of bytes that have come behind the requests of waiting polls."""
        self.joinable = Joinable()
        self._unwatched: set[int] = set()  # connections of `Handled` that epoll does not watch
        self._handled = Handled(self)
        self._quiet = QuietConnections(self, keepalive)
        self._sending = Sending(self)

    @property
    def is_empty(self) -> bool:
        """True if no connection is here."""
        return not (self.row_of or self.waiting)

    @property
    def is_full(self) -> bool:
        """True if there is no room for another connection, and no parked connection to close for it."""
        return len(self.row_of) + len(self.waiting) >= self.max_connections and not self._quiet

    @property
    def is_serving(self) -> bool:
        """True if a connection waits for events, or for the rest of an answer."""
        return len(self.row_of) > len(self._quiet) + len(self._handled.fds)

    @property
    def unanswered(self) -> int:
        """The number of connections whose request has come in part or as a whole, and that no greenlet has."""
        quiet = self._quiet
        return len(self._handled.fds) + len(quiet.heads.fds) + len(quiet.bodies.fds) + len(self.waiting)

    @property
    def is_holding_much(self) -> bool:
        """True if so many bytes were read and are not consumed that no more are to be read."""
        return self.held > _MOST_HELD

    # For the worker. After these calls, only this module writes to the connection and closes it.

    def take_over_stream(self, fd: int, stream: Stream, *, chunked: bool, unsent: memoryview = _NOTHING) -> None:
        """Take over a connection with a stream that has been opened.

        :param unsent: the bytes of its opening that the client has not taken yet.
        """
        self._watch(fd, Streams.interest)  # if this fails, the greenlet still has to close the stream
        self._drop(fd)
        row = Streams(self, stream, chunked=chunked)
        self.tally.begin(fd, self.effects.clock(), stream.request_id)
        self._admit(fd, row, stream.hand_off())
        if unsent:
            row.stall(fd, unsent)
        stream.subscriber.wake_by(row)  # this wakes the row at once

    def take_over_poll(self, fd: int, poll: Poll, head: bytes, read_ahead: bytes = b"") -> None:
        """Take over a connection with a poll that waits.

        :param head: of its answer, without the date and the length.
        :param read_ahead: the bytes that have come behind the request.
        """
        self._watch(fd, Polls.interest)
        self._drop(fd)
        key = poll.merge_key, head
        row = self.joinable.merge_poll(key, poll)
        if row is None:
            row = Polls(self, poll, head)
            self.joinable.add(row, key)
        self.tally.begin(fd, self.effects.clock(), poll.request_id)
        self._admit(fd, row, poll.hand_off())
        if row.poll is poll:
            poll.subscriber.wake_by(row)
        if read_ahead:
            row.keep_ahead(fd, read_ahead)

    def park(self, fd: int, *, new: bool = False) -> None:
        """Take over a connection until its next request comes, or its first if it is `new`."""
        self._watch(fd, Parked.interest)
        parked = self._quiet.new if new else self._quiet.kept
        self._put(fd, parked)
        parked.begin(fd)
        self._make_room()

    def accept(self, fd: int) -> None:
        """Take over a new connection. Its first request is read if it has come by now."""
        self._unwatched.add(fd)
        self._put(fd, self._handled)
        try:
            if self.has_lane and not self.is_holding_much:
                self._read_request(fd, is_new=True)
            elif self.effects.unread(fd):
                self.give_back(fd)
            else:
                self.park(fd, new=True)
        except OSError:  # the kernel watches too many connections
            self.close(fd)
            raise

    def take_back(self, fd: int, read_ahead: bytes) -> None:
        """Take over a connection from a greenlet that has answered its request.

        :param read_ahead: the bytes that have come behind the request.
        """
        if read_ahead:
            self._unwatched.add(fd)
            self._put(fd, self._handled)
            self.keep(fd, read_ahead)
            self.have_handled(fd)
        else:
            self.park(fd)

    def send_unsent(self, fd: int, unsent: memoryview, *, closes: bool, read_ahead: bytes) -> None:
        """Take over a connection to send the unsent bytes of a greenlet's answer, as the client takes them.

        :param read_ahead: the bytes that have come behind the request.
        """
        self._watch(fd, Sending.interest)
        self.keep(fd, read_ahead)
        self._admit(fd, self._sending, ClientPart(self._sending.until_from_now, None, ()))
        self._sending.begin(fd, Unsent(unsent, closes))

    def drain(self, window: float) -> None:
        """Say goodbye to all streams and polls, spread over `window` seconds. New ones get their goodbye at once.

        A parked connection stays for one more second, because its client may be sending the next request just now.
        """
        self.draining = True
        self._quiet.shorten()
        awaiting = [fd for fd, row in self.row_of.items() if row.awaits_events]
        spread(awaiting, window, self._drain_one, self.effects.sleep, self.effects.clock)

    def _drain_one(self, fd: int) -> None:
        row = self.row_of.get(fd)
        if row is not None and row.awaits_events:  # else it has ended, and another connection may have its number
            self.check_soon(fd)

    def check_late(self) -> None:
        """Check the quiet connections whose time is over."""
        self._quiet.check_late()

    # For the fast lane, which holds the connection until then

    def answered(self, fd: int, read_ahead: bytes, *, closes: bool) -> None:
        """Go on with a connection whose request is answered.

        :param read_ahead: the bytes that have come behind the request.
        """
        if closes:
            with contextlib.suppress(OSError):  # a connection with unread bytes is reset, which may destroy the answer
                self.effects.read(fd, _DROPPED)
            self.close(fd)
        elif read_ahead:
            self.keep(fd, read_ahead)
            self.have_handled(fd)
        else:
            self._drop(fd)
            self.park(fd)

    def give_up(self, fd: int) -> None:
        """Close a connection after a fault, unless it has left the fast lane."""
        row = self.row_of.get(fd)
        if row is self._handled:
            self.close(fd)
        elif row is not None and row.awaits_events:
            self.end(fd, "fault")

    def gather(self, fd: int, gathered: Gathers, *, is_head: bool) -> None:
        """Have the rest of a request come. `gathered` has the bytes that have come already."""
        row = self._quiet.heads if is_head else self._quiet.bodies
        self._watch(fd, row.interest)
        self._drop(fd)
        self._put(fd, row)
        row.gather(fd, gathered)

    # For the rows

    def take_up(self, fd: int) -> None:
        """Read what has come on a parked connection, and have it handled."""
        if self.has_lane and not self.is_holding_much:
            self._read_request(fd)
        else:
            self.give_back(fd)

    def have_handled(self, fd: int) -> None:
        """Have the fast lane handle the bytes that were read of a connection; without it, give them to a greenlet."""
        if not self.has_lane:
            self.give_back(fd)
            return
        self._put(fd, self._handled)
        self.ready[fd] = None
        self.effects.wake_lane()

    def unwatch(self, fd: int) -> None:
        """Have epoll watch a handled connection no more."""
        self.effects.unregister(fd)
        self._unwatched.add(fd)

    def keep(self, fd: int, read_ahead: bytes) -> None:
        """Keep the bytes that were read of a connection and belong to requests that are not answered yet."""
        self._drop(fd)
        if read_ahead:
            self.read_ahead[fd] = read_ahead
            self.held += len(read_ahead)

    def take(self, fd: int) -> bytes:
        """Return the bytes that were kept, and keep them no more."""
        read_ahead = self.read_ahead.pop(fd, b"")
        self.held -= len(read_ahead)
        return read_ahead

    def merge(self, row: Streams) -> bool:
        """Merge a row into the row with the same key, if their positions are equal. Return whether that was done."""
        other = self.joinable.merge_streams(row) if row.joinable_as is None else None
        if other is None:
            return False
        events, size = other.stream.events - row.stream.events, other.stream.size - row.stream.size
        for fd in list(row.fds):
            self.tally.move(fd, events, size)
            self.move(fd, other)
        other.set_timer()  # it may be due sooner now
        return True

    def move(self, fd: int, other: Row) -> None:
        """Move a connection to another row that wakes up for the same events."""
        self._put(fd, other)

    def next_of(self, fd: int, pending: Pending, *, last_progress: float = math.inf, has_notice: bool = False) -> Next:
        """Return what is to happen to a connection now, see `HandedOff.next_of`."""
        now = self.effects.clock()
        return self.handed_off.next_of(
            fd, now, pending, draining=self.draining, last_progress=last_progress, has_notice=has_notice
        )

    def set_end(self, fd: int, moment: float) -> None:
        """Have a connection checked at a moment, by the clock of `Effects`."""
        self.slots[fd] = self.effects.timer(fd, moment, 0)

    def check_soon(self, fd: int) -> None:
        """Have a connection checked in the next round."""
        if fd in self.row_of:
            self.slots[fd] = 0
            self.agenda.check_soon(fd)

    def after_answer(self, fd: int) -> None:
        """Park the connection of an answered poll, or give it to a greenlet if its next request has come."""
        parked = self._quiet.kept
        self._move_answered(parked, fd)
        parked.begin(fd)
        if fd in self.read_ahead:
            self.have_handled(fd)

    def finish_answer(self, fd: int, unsent: Unsent) -> None:
        """Move a connection to `Sending`, with the unsent bytes of its poll's answer."""
        self._move_answered(self._sending, fd)
        self.set_end(fd, self._sending.until_from_now)
        self._sending.begin(fd, unsent)

    def give_back(self, fd: int) -> None:
        """Give a connection to a greenlet, or have it wait until one is free."""
        self.effects.call_all(self._remove(fd))
        if not self.effects.give_back(fd):
            self.waiting.append(fd)

    def close(self, fd: int) -> None:
        """Close a quiet or handled connection at once. No push is writing to it."""
        self._remove(fd)
        self._drop(fd)
        self.effects.close(fd)

    def end(self, fd: int, reason: str | None = None) -> None:
        """Close a connection after the round. If its number were free earlier, another client could get its bytes.

        :param reason: for the log; None if its end was logged before, or is not to be logged.
        """
        if fd in self.row_of:
            if reason:
                self.row_of[fd].log_end(fd, reason)
            at_end = self._remove(fd)
            self._drop(fd)
            self.effects.close_after_round(fd, at_end)

    # The connections

    def _read_request(self, fd: int, *, is_new: bool = False) -> None:
        """Read what has come on a parked or new connection, and have it handled. If nothing has come, park it."""
        try:
            data = self.effects.read(fd, REQUEST_BYTES)
        except BlockingIOError:
            if is_new:
                self.park(fd, new=True)
            return
        except OSError:
            data = b""
        if not data:
            self.close(fd)
            return
        self.keep(fd, data)
        self.have_handled(fd)
        if is_new:
            self._make_room()

    def _make_room(self) -> None:
        if len(self.row_of) + len(self.waiting) > self.max_connections:  # this process has no files for more
            self._quiet.make_room()

    def _admit(self, fd: int, row: Row, part: ClientPart) -> None:
        self._put(fd, row)
        self.set_end(fd, part.deadline)
        self.handed_off.add(fd, part)
        self._make_room()
        if part.permit:
            self._begin(fd, row, part.permit)
        elif self.draining and row.awaits_events:
            self.check_soon(fd)

    def _put(self, fd: int, row: Row) -> None:
        """Put a connection into a row, out of the one in which it is."""
        if fd >= len(self.slots):
            self.slots.frombytes(bytes(self.slots.itemsize * (fd + 1 - len(self.slots))))
        before = self.row_of.get(fd)
        if before is not None:
            before.fds = removed(before.fds, fd)
        row.fds = added(row.fds, fd)
        self.row_of[fd] = row

    def _watch(self, fd: int, interest: Interest) -> None:
        """Have epoll watch a connection for what its next row waits for.

        :raises OSError: if the kernel watches too many.
        """
        if fd not in self.row_of:
            self.effects.register(fd, interest)
        elif fd in self._unwatched:
            self.effects.register(fd, interest)
            self._unwatched.remove(fd)
        elif interest != Handled.interest:
            self.effects.modify(fd, interest)

    def _begin(self, fd: int, row: Row, permit: Permit) -> None:
        decided = row.next_for(fd)
        self.set_end(fd, decided.until)
        permit.begin(partial(self.check_soon, fd))  # this may make the connection due at once
        if decided.is_end or decided.tells_notice:
            self.check_soon(fd)

    def _remove(self, fd: int) -> EndFunctions:
        at_end = self._take_out(fd)
        if fd in self._unwatched:
            self._unwatched.remove(fd)
        else:
            self.effects.unregister(fd)
        return at_end

    def _take_out(self, fd: int) -> EndFunctions:
        """Take a connection out of its row. Return the functions to call after its end."""
        at_end = self.handed_off.remove(fd)
        row = self.row_of.pop(fd)
        row.fds = removed(row.fds, fd)
        self.ready.pop(fd, None)
        if not row.fds:
            self.joinable.remove(row)
        row.on_removed(fd)
        return at_end

    def _move_answered(self, row: Row, fd: int) -> None:
        """Move a connection whose poll is answered to another row."""
        at_end = self._take_out(fd)
        self._put(fd, row)
        self.effects.modify(fd, row.interest)
        self.effects.call_all(at_end)

    def _drop(self, fd: int) -> None:
        if fd in self.read_ahead:
            self.take(fd)
