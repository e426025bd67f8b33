"""The errors by which a store refuses an event, in words. All stores use them."""

from __future__ import annotations

from sse.errors import Ended, IdempotencyConflict, LeaseLost, RunFailed, Stopped, TooLarge


def conflict(channel: str) -> IdempotencyConflict:
    """Return the error for a key that was used on this channel for another event."""
    return IdempotencyConflict(
        f"the idempotency key was used for another event on channel {channel}", "use a new key for a new event"
    )


def ended(channel: str) -> Ended:
    """Return the error for a channel that has ended."""
    return Ended(f"channel {channel} has ended", "publish on another channel, or begin a new run on this one")


def too_large(channel: str, size: int, held: int, bound: int) -> TooLarge:
    """Return the error for an event of `size` bytes that does not fit into the ring of a run beside `held` bytes."""
    return TooLarge(
        f"the run on channel {channel} holds {held} bytes, and SSE_RUN_BYTES of {bound} leaves no room for {size} more",
        "publish less there, or raise SSE_RUN_BYTES",
    )


def over_bound(channel: str, size: int, held: int, bound: int) -> RunFailed:
    """Return the error for a run that has written more than fits into its ring."""
    return RunFailed(
        f"the run on channel {channel} holds {held} bytes, and SSE_RUN_BYTES of {bound} leaves no room for {size} more",
        "write less in one run, or raise SSE_RUN_BYTES",
    )


def incomplete(channel: str) -> RunFailed:
    """Return the error for a run of which the store has lost a part."""
    return RunFailed(
        f"the store has lost a part of the run on channel {channel}",
        "begin the run again; see whether Redis was restarted from an older file, or emptied",
    )


def stopped(channel: str) -> Stopped:
    """Return the error for a run that may not write any more."""
    return Stopped(f"the run on channel {channel} has been stopped, has ended, or was begun anew", "write no more")


def lease_lost(channel: str) -> LeaseLost:
    """Return the error for a source whose lease has run out, or is another runner's."""
    return LeaseLost(f"the lease of the source on channel {channel} is not held here any more", "stop this runner")
