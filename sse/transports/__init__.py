"""The two ways to a client: `stream` writes `text/event-stream`, `poll` answers once, with JSON."""
