"""An answer that comes word by word, survives a reload, and can be stopped."""

import secrets
import time
from collections.abc import Iterator

from flask import Flask, Response, request

from sse import SSE, Event

app = Flask(__name__)
sse = SSE(app)
ANSWER = """You asked: {}
This answer is made up, and comes one word at a time. Reload the page now: the words so far come at once, and the rest
follows. Another tab shows the same. Press Stop: the writing ends."""


def words(question: str) -> Iterator[str]:
    """Stand in for a model: yield the words of an answer, each after a moment."""
    for word in ANSWER.format(question).split(" "):
        yield word + " "
        time.sleep(0.08)


def parts(question: str) -> Iterator[object]:
    """Yield the same answer in the AI SDK's protocol."""
    yield from ({"type": "start"}, {"type": "text-start", "id": "1"})
    for word in words(question):
        yield {"type": "text-delta", "id": "1", "delta": word}
    yield from ({"type": "text-end", "id": "1"}, {"type": "finish"}, Event("[DONE]"))


@app.get("/")
def page() -> Response:
    return app.send_static_file("index.html")


@app.post("/ask")
def ask() -> dict[str, str]:
    answer = secrets.token_urlsafe(16)  # to know this is the right to read the answer
    sse.run(f"chat/{answer}", words(request.form["question"]))
    return {"answer": answer}


@app.get("/answers/<answer>")
def read(answer: str) -> Response:
    return sse.subscribe(f"chat/{answer}")


@app.post("/answers/<answer>/stop")
def stop(answer: str) -> dict[str, bool]:
    return {"stopped": sse.stop(f"chat/{answer}")}


@app.post("/api/chat")
def chat() -> Response:
    question = request.get_json()["messages"][-1]
    channel = f"chat/{question['id']}"
    sse.run(channel, parts(question["parts"][0]["text"]))
    return sse.subscribe(channel, form="bare", headers={"x-vercel-ai-ui-message-stream": "v1"})
