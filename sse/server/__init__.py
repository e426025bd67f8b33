"""gunicorn's worker. Only this folder, and the stub `sse.worker`, know gevent and gunicorn.

Along the way of a request: `gunicorn_request` reads it within bounds, with `head` for its first part. `worker` answers
each request in a greenlet. Its `responder` calls the app, writes small answers in one write (`framing`), and hands off
a stream or a waiting poll. From then on the connection has no greenlet: it is a number in one of the `rows`, which
decide what each connection gets next, `handed_off` keeps its permit and its end, and `tally` what it got so far.
`quiet` has the rows that wait for a request, and `row` is the base of all.

In the fast lane, the event loop reads a request, `plain` recognises it, and one greenlet of `lane` answers it without
Flask or has it stored by `publishes`, the queue of publish requests. `lane_switch` says whether the lane is on.

Rows know no gevent and no sockets. They act through `effects`, which the `loop` provides with epoll (`sockets`), a
timer `wheel` and greenlets. The loop runs `rounds`, each of which does the work on the `agenda`. While it is late,
`backpressure` has publishers wait. `load_error` is the page of `--reload` while the app cannot be loaded, and
`one_process` refuses several workers with the memory store.
"""
