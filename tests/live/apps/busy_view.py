"""An app with one view that computes for 5 ms, so that accepted requests can be told from served requests."""

import time

from flask import Flask

from sse import SSE

app = Flask(__name__)
SSE(app)


@app.get("/slow")
def slow() -> str:
    end = time.perf_counter() + 0.005
    while time.perf_counter() < end:
        pass
    return "served"
