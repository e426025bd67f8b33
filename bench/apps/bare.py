"""A Flask app with one view, that answers as many bytes as a poll with nothing to tell: what Flask itself costs."""

import json

from flask import Flask, Response

app = Flask(__name__)
POSITION = "news=58-2893764512345678"
ANSWER = json.dumps({"last_event_id": POSITION, "events": [], "resets": [], "more": False, "retry": 3000}).encode()


@app.get("/bare")
def bare() -> Response:
    return Response(ANSWER, mimetype="application/json", headers={"Cache-Control": "no-store"})
