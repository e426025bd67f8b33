"""Scores that one worker polls for all pages, and only while somebody looks."""

import json
import time
from pathlib import Path

from flask import Flask, Response

from sse import SSE

GAMES = json.loads((Path(__file__).parent / "games.json").read_text())  # recorded: [seconds, game, home, away]

app = Flask(__name__)
app.config["SSE_PUBLIC"] = "scores/*"
sse = SSE(app)


def upstream(league: str) -> list[dict[str, object]]:
    """Stand in for the provider of the scores: return the games of a league as they stand now."""
    now = time.time() % GAMES["seconds"]  # the recording begins anew when it is over
    games: dict[str, dict[str, object]] = {}
    for second, game, home, away in GAMES["leagues"][league]:
        if second <= now:
            games[game] = {"game": game, "home": home, "away": away, "minute": int(now * 90 / GAMES["seconds"])}
    return list(games.values())


@sse.source("scores/<any(north, south):league>", interval=1, changes_only=True)
def scores(league: str) -> list[dict[str, object]]:
    print(f"asking for the scores of {league}", flush=True)
    return upstream(league)


@app.get("/")
def page() -> Response:
    return app.send_static_file("index.html")
