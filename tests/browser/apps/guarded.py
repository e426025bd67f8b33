"""A service with its own rule for who may read.

`own/NAME` is readable with the cookie `user=NAME`. The service refuses `answer/STATUS` with that status.
"""

from __future__ import annotations

from flask import Flask, abort, request

from sse import SSE

application = Flask(__name__)
sse = SSE(application)


@sse.authorize
def can_read(channel: str) -> bool:
    kind, _, name = channel.partition("/")
    if kind == "answer":
        abort(int(name))
    return kind == "own" and request.cookies.get("user") == name
