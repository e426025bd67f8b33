"""What a first attempt at server push in Flask looks like: a queue for each client."""

import queue
from collections import defaultdict
from collections.abc import Iterator

from flask import Flask, Response, request

app = Flask(__name__)
clients: defaultdict[str, set[queue.SimpleQueue[str]]] = defaultdict(set)


@app.get("/stream")
def stream() -> Response:
    channel = request.args.get("channel", "")

    def body() -> Iterator[str]:
        mine: queue.SimpleQueue[str] = queue.SimpleQueue()
        clients[channel].add(mine)
        try:
            yield ": open\n\n"
            while True:
                yield mine.get()
        finally:
            clients[channel].discard(mine)

    return Response(body(), mimetype="text/event-stream", headers={"Access-Control-Allow-Origin": "*"})


@app.post("/publish")
def publish() -> tuple[str, int]:
    for item in request.get_json():
        for client in clients[item["channel"]]:
            client.put(f"data: {item['data']}\n\n")
    return "", 201


@app.get("/healthz")
def healthz() -> str:
    return "ok"
