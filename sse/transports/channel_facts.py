"""What an opening and a poll's answer say of channels beside their events: `whole`, `ended` and `source`."""

from __future__ import annotations

from collections.abc import Iterable

from sse.event import End, EndReason, Position
from sse.hub.channel import Channel
from sse.hub.subscriber import Delivery, Item, Subscriber


def is_anchor(position: Position) -> bool:
    """Return True if a position is the anchor of a ring, so that the first event of that ring follows it.

    The position `0-0` of a channel without a ring is none.
    """
    return position.offset == 0 and position.tag != 0


def ended_at(
    channels: Iterable[Channel], positions: Iterable[Position], *, is_bare: bool = False
) -> dict[str, EndReason]:
    """Return, for each channel that has nothing after a position, because that is its end, the reason of the end.

    :param positions: of the channels, in their order.
    :param is_bare: whether the end itself, which has no id in a bare stream, counts as nothing.
    """
    reasons: dict[str, EndReason] = {}
    for channel, position in zip(channels, positions, strict=False):  # an ended subscriber has no channels
        end = channel.traits.end
        if end is None or channel.ring is None or not isinstance(end.event, End):
            continue
        if position == end.position or (is_bare and position == channel.ring.before(1)):
            reasons[channel.name] = end.event.reason
    return reasons


def ends_among(taken: Iterable[Item]) -> dict[str, EndReason]:
    """Return the reason of each end among the items that a subscriber has taken.

    An end may have been read from the store before the hub knows of it, so that `Subscriber.ended` lacks it.
    """
    return {
        item.channel: item.entry.event.reason
        for item in taken
        if isinstance(item, Delivery) and isinstance(item.entry.event, End)
    }


def of_opening(subscriber: Subscriber) -> dict[str, dict[str, object]]:
    """Return the further members of each channel in the opening of a subscriber's stream."""
    sources = subscriber.sources
    members: dict[str, dict[str, object]] = {}
    for channel, position in zip(subscriber.channels, subscriber.positions, strict=False):
        end = channel.traits.end
        if position.offset and end is None and not sources:
            continue  # as in almost all streams
        told: dict[str, object] = {"whole": True} if is_anchor(position) else {}
        if end is not None and end.position == position and isinstance(end.event, End):
            told["ended"] = end.event.reason
        if channel.name in sources:
            told["source"] = sources[channel.name]
        if told:
            members[channel.name] = told
    return members


def size_in_answer(channels: Iterable[str]) -> int:
    """Return an upper bound of the bytes of these members in a poll's answer. A source's channel does not end."""
    return sum(2 * len(channel) + 20 for channel in channels)
