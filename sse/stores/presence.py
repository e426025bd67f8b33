"""The part of a store that presence needs: who is connected to a channel, over all workers.

A *record* has the connections of one worker to one channel. Its worker reports changes, and renews it at least every
RENEW_SECONDS. Any worker that reports on the channel, or asks for it, removes the records that have not been renewed
for RECORD_SECONDS, by the store's clock. A subject *has joined* when it gets its first connection in any record. It
*has left* when it has had none for ABSENCE_SECONDS. Each of the two is told to one worker, once.

These are the steps of a record, and what makes each of them safe:

    step                       if the worker dies, the store is away, or the reply is lost
    -------------------------  -----------------------------------------------------------------------------------------
    report 1 makes the record  The name of the record is new, so nobody else has it.
    report N+1 changes it      The store takes it only if report N was the last one. A report gives the number of
                               connections, not the difference, so it may come twice, and a late one changes nothing.
    a report fails             The worker does not know whether it was taken. It begins a new record, with report 1,
                               which has all its connections. The same step removes its older records.
    a report is not known      The record was removed, because the worker was frozen, or the store has lost it, or went
                               back to an older state. The worker begins a new record in the same way.
    the worker dies            The record ends by itself. Its subjects have left 30 s after that, if no other has them.
    the last report            It removes the record.

A channel's presence has an `origin`, a random name. If a worker knew another origin, the store has lost its data. Then
the worker's subjects are no newcomers, and none of them counts as joined.
"""

from __future__ import annotations

import base64
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from sse.errors import StoreUnavailable

RECORD_SECONDS: Final = 20.0
"""Seconds for which a record lasts that its worker does not renew."""

RENEW_SECONDS: Final = 5.0
"""Seconds after which a worker renews a record."""

ABSENCE_SECONDS: Final = 30.0
"""Seconds without a connection after which a subject has left."""

KEPT_SECONDS: Final = 120
"""Seconds for which the presence of a channel is kept after the last report."""

CHANGES_AT_ONCE: Final = 250
"""The most changes in one report, and the most connections of lost records that one call removes."""


class Report(NamedTuple):
    """What a worker tells about its connections to a channel.

    :param record: the name of its record, `WORKER.COUNT`. A record with a greater count replaces the worker's others.
    :param number: 1 for the first report of this record, then 2, and so on.
    :param changes: by `connection_key`: how many such connections there are now. It is 0 once there are none, and 1 for
        a client, however many connections it has.
    :param origin: the origin that the worker knows; empty if this is its first report on the channel.
    :param is_last: whether the record is to be removed.
    """

    channel: str
    record: str
    number: int
    changes: Mapping[str, int]
    origin: str = ""
    is_last: bool = False


class Outcome(NamedTuple):
    """What became of a report.

    :param is_known: False if nothing was changed, because the store does not have the record as of the last report.
    :param origin: the channel's origin now; empty if it has no presence.
    :param joined: the subjects that have joined by this report.
    :param left: the subjects that have left. Nobody else is told of these.
    :param leaving: how many subjects have no connection, and have not left yet.
    :param has_more: whether another report should follow at once, because this one has not removed or told everything.
    """

    is_known: bool
    origin: str = ""
    joined: Sequence[str] = ()
    left: Sequence[str] = ()
    leaving: int = 0
    has_more: bool = False


class Attendance(NamedTuple):
    """The number of connections to a channel, and the number of each subject's, which leaves the anonymous ones out."""

    total: int
    connections: Mapping[str, int]


class PresenceStore(ABC):
    """The presence of the channels of one store. The methods keep the rules of `Store` about faults, time and threads.

    A connection of a client that is in several records, as while it changes workers, counts once.
    """

    @abstractmethod
    def report(self, reports: Sequence[Report]) -> list[Outcome | StoreUnavailable]:
        """Take reports, in one round trip; each in one step. Reports on one channel are taken in their order."""

    @abstractmethod
    def count(self, channel: str) -> int:
        """Return the number of connections to a channel."""

    @abstractmethod
    def read(self, channel: str) -> Attendance:
        """Return who is connected to a channel."""


def connection_key(sub: str, client: str = "") -> str:
    """Return the key of connections that count together: a client's count once, and all others one by one.

    It has a hash of the client's id, which is scoped by the subject, and then the subject.

    >>> connection_key("ann"), sub_of(connection_key("ann", "a-page-of-hers"))
    ('=ann', 'ann')
    """
    digest = hashlib.sha256(client.encode()).digest()[:12] if client else b""
    return f"{base64.urlsafe_b64encode(digest).decode()}={sub}"


def sub_of(key: str) -> str:
    """Return the subject in a connection's key; empty if it is anonymous."""
    return key.partition("=")[2]


def is_client(key: str) -> bool:
    """Return whether the connections with this key are those of one client, so that they count once."""
    return not key.startswith("=")
