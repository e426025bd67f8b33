"""An app whose one view works for 5 ms: so it can be told who was let in from who was served."""

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
