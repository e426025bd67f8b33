"""gunicorn's worker. Only this folder, and the stub `sse.worker`, know gevent and gunicorn.

`worker` answers each request in a greenlet, and hands off a stream or a poll that waits. From then on its connection is
in one of the `rows`, which decide who gets what next. They know no gevent and no sockets: the `loop` gives them the
means to write and to wait.
"""
