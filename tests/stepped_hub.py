"""A hub without its thread, for tests that decide when it moves on."""

from __future__ import annotations

import threading
from typing import Any

from sse.hub.hub import Hub
from sse.stores import Store


class SteppedHub(Hub):
    """A hub that takes its turns when `step` is called, or when a subscriber waits for it."""

    def __init__(self, store: Store, **options: Any) -> None:
        super().__init__(store, **({"max_subscribers": 100} | options))
        self.follower = self._follower
        self.feed = store.feed()
        self.follower._thread = threading.Thread(target=lambda: None)  # so that none is started
        self.follower._patience = lambda: 0.0  # type: ignore[method-assign]
        self.follower.wake = self.step  # type: ignore[method-assign]

    def step(self) -> None:
        """Take turns until there is nothing more to do."""
        for _ in range(100):
            self.follower._turn(self.feed)
            upkeep = self.follower.upkeep
            if not (upkeep.is_behind or upkeep.checks.is_under_way or self.follower.arrivals or self._has_notices):
                return
        raise AssertionError("the hub does not come to rest")

    @property
    def _has_notices(self) -> bool:
        filled: threading.Event = self.feed._filled  # type: ignore[attr-defined]
        return filled.is_set()
