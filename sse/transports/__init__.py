"""The two ways to a client: `stream` writes `text/event-stream` in one `dialect`, `poll` answers once, with JSON.

`life` says when a connection of either ends.
"""
