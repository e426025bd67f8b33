"""The two transports: how a subscriber's events reach its client.

From the bottom up: `life` is one pure function that says when a connection ends and with which close reason. `dialect`
writes the blocks of a stream (opening, events, resets, notices, heartbeats, close), and does no I/O. `body` has
the detaching and the hand-off for streams and polls alike. `stream` is a subscriber as an endless `text/event-stream`
body: it takes events from the hub and gives bytes. `poll` is a subscriber as one JSON answer from the same positions,
for clients that cannot keep a stream.

Both are plain iterators for any WSGI server. Our own worker does not iterate over them: it opens them and hands them
off to `sse.server.rows`, where one stream or poll may serve many connections (`merge`, `split`, `release`).

`items` and `probe` are no transports of a subscriber. `items` is an iterable of the app as a stream for one client, and
`probe` is a stream of the doctor, with blocks at set times.
"""
