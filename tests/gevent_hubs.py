"""Runs a test in a thread with a gevent hub, since pytest's own thread has none."""

from __future__ import annotations

import threading
from collections.abc import Callable

import gevent


def in_a_hub(run: Callable[[], None]) -> None:
    """Call `run` in a new thread, whose gevent hub ends with it, and raise the error that it raised."""
    faults: list[BaseException] = []

    def thread() -> None:
        try:
            run()
        except BaseException as fault:
            faults.append(fault)
        finally:
            gevent.get_hub().destroy(destroy_loop=True)

    one = threading.Thread(target=thread)
    one.start()
    one.join(20)
    assert not one.is_alive()
    if faults:
        raise faults[0]
