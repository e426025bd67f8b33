"""What a first attempt at server push in Flask looks like: a queue for each client."""

import queue
from collections.abc import Iterator

from flask import Flask, Response, request

app = Flask(__name__)
clients: set[queue.SimpleQueue[str]] = set()


@app.get("/stream")
def stream() -> Response:
    def body() -> Iterator[str]:
        mine: queue.SimpleQueue[str] = queue.SimpleQueue()
        clients.add(mine)
        try:
            yield ": open\n\n"
            while True:
                yield mine.get()
        finally:
            clients.discard(mine)

    return Response(body(), mimetype="text/event-stream", headers={"Access-Control-Allow-Origin": "*"})


@app.post("/publish")
def publish() -> tuple[str, int]:
    for data in request.get_json():
        for client in clients:
            client.put(f"data: {data}\n\n")
    return "", 201


@app.get("/healthz")
def healthz() -> str:
    return "ok"
