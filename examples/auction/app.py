"""An auction: bids by POST, prices by stream, and who is there."""

import sqlite3
from pathlib import Path

from flask import Flask, Response, redirect, request, session
from werkzeug.wrappers import Response as BaseResponse

from sse import SSE

app = Flask(__name__, instance_path=str(Path(__file__).parent / "data"))
app.config.update(SECRET_KEY="for the example alone", SSE_PRESENCE="auction/*", SSE_PUBLIC="auction/*")
sse = SSE(app)
LOTS = {"clock": "A clock that runs backwards", "map": "A map of a town that never was"}


def database() -> sqlite3.Connection:
    Path(app.instance_path).mkdir(exist_ok=True)
    connection = sqlite3.connect(Path(app.instance_path) / "auction.db", isolation_level=None)
    connection.execute("CREATE TABLE IF NOT EXISTS bid (lot TEXT PRIMARY KEY, price INTEGER, bidder TEXT)")
    return connection


@sse.identify
def who() -> str | None:
    return session.get("name")


@sse.joined("auction/<lot>")
@sse.left("auction/<lot>")
def tell_who_is_there(lot: str, sub: str) -> None:  # noqa: ARG001 - its coming or going is told by the list
    sse.publish(f"auction/{lot}", sorted(member["sub"] for member in sse.members(f"auction/{lot}")), type="people")


@app.post("/name")
def name() -> BaseResponse:
    session["name"] = request.form["name"][:30]
    return redirect("/")


@app.get("/lots")
def lots() -> dict[str, object]:
    bids = {lot: (price, bidder) for lot, price, bidder in database().execute("SELECT lot, price, bidder FROM bid")}
    return {lot: {"title": title, "price": bids.get(lot, (0, ""))[0]} for lot, title in LOTS.items()}


@app.post("/lots/<lot>/bid")
def bid(lot: str) -> tuple[dict[str, object], int]:
    price, bidder = int(request.form["price"]), session.get("name", "somebody")
    higher = "INSERT INTO bid VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET price = ?2, bidder = ?3 WHERE price < ?2"
    if lot not in LOTS or not database().execute(higher, (lot, price, bidder)).rowcount:
        return {"error": "somebody has bid as much, or more"}, 409
    return {"id": sse.publish(f"auction/{lot}", {"price": price, "bidder": bidder}, type="price")}, 201


@app.get("/")
def page() -> Response:
    return app.send_static_file("index.html")
