"""Measurements of the doctor as a client writes them, where nothing is wrong, and changes to them."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

SENT = "doctor=58-2893"
ORIGIN = "https://www.example"
URL = "https://push.example/sse"

Change = Mapping[str, Any]


def blocks(arrivals: Sequence[float], every: float = 1, size: int = 80, took: float = 0.02) -> list[list[float]]:
    """Return blocks that the server sent `every` so many seconds, each with the delay at its place in `arrivals`."""
    return [[n, 1e9 + n * every, n * every + took + late, size] for n, late in enumerate(arrivals)]


def stream(**members: Any) -> dict[str, Any]:
    made = {"status": 200, "headers": {"content-type": ["text/event-stream"]}, "started_at": 0.0, "first_byte": 0.02}
    return {**made, "clean": True, "finished": True, **members}


GOOD: dict[str, Any] = {
    "client": "command",
    "url": URL,
    "origin": ORIGIN,
    "echo": {
        "version": "0.1.0",
        "worker": "1a2b",
        "now": 1e9,
        "http": "HTTP/1.1",
        "scheme": "https",
        "client": "loopback",
        "holds": "many",
        "headers": {"last-event-id": SENT, "accept": "application/json"},
        "cors": {"access-control-allow-origin": ORIGIN, "access-control-allow-credentials": "true"},
        "settings": {"heartbeat": 15, "stream_lifetime": 900, "poll_timeout": 25, "retry": 3000, "proxies": 0},
    },
    "echo_headers": {"server": ["nginx"]},
    "http": "2",
    "tls": True,
    "same_nonce": False,
    "sent": {"last_event_id": SENT},
    "stream_headers": {"last-event-id": SENT},
    "skew": 0.01,
    "rtt": 0.02,
    "client_gap": 0.02,
    "cors": {
        "allow_origin": [ORIGIN],
        "allow_credentials": ["true"],
        "preflight_status": 200,
        "preflight_allow_headers": ["authorization, last-event-id"],
    },
    "statuses": {"204": 204, "404": 404, "410": 410, "429": 429, "503": 503},
    "retry_after": {"429": True, "503": True},
    "streams": {
        "small": stream(blocks=blocks([0.0] * 6), asked=5, ended_at=5.0),
        "fast": stream(blocks=blocks([0.0] * 41, every=0.1, size=2100), asked=4, ended_at=4.0),
        "silent": stream(blocks=blocks([0.0, 0.0], every=90), asked=90, ended_at=90.0),
        "active": stream(blocks=blocks([0.0] * 91), asked=90, ended_at=90.0, started_at=3.0),
    },
    "shared": False,
    "while_streaming": {"answered": True, "after": 0.02},
    "left": {"noticed": True, "after": 0.6},
    "poll": {"asked": 25, "status": 200, "answered_at": 25.02},
    "ticks": {"quiet": 8.0, "longest_gap": 0.26, "same_worker": True, "lost": 0.0},
    "wait": 90,
}
"""A way without any fault."""


def changed(change: Change, base: Mapping[str, Any] = GOOD) -> dict[str, Any]:
    """Return measurements with changes in their objects. The value None takes a member out."""
    made = copy.deepcopy(dict(base))
    for name, value in change.items():
        if value is None:
            made.pop(name, None)
        elif isinstance(value, Mapping) and isinstance(made.get(name), dict):
            made[name] = changed(value, made[name])
        else:
            made[name] = value
    return made
