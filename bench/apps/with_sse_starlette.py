"""sse-starlette with a queue for each client."""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator

from sse_starlette.sse import EventSourceResponse
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

clients: defaultdict[str, set[asyncio.Queue[str]]] = defaultdict(set)


async def stream(request: Request) -> EventSourceResponse:
    channel = request.query_params.get("channel", "")

    async def body() -> AsyncIterator[dict[str, str]]:
        mine: asyncio.Queue[str] = asyncio.Queue()
        clients[channel].add(mine)
        try:
            yield {"comment": "open"}
            while True:
                yield {"data": await mine.get()}
        finally:
            clients[channel].discard(mine)

    return EventSourceResponse(body(), headers={"Access-Control-Allow-Origin": "*"})


async def publish(request: Request) -> Response:
    for item in await request.json():
        for client in clients[item["channel"]]:
            client.put_nowait(item["data"])
    return Response(status_code=201)


async def healthz(_: Request) -> Response:
    return Response("ok")


app = Starlette(
    routes=[
        Route("/stream", stream),
        Route("/publish", publish, methods=["POST"]),
        Route("/healthz", healthz),
    ]
)
