"""The code of gunicorn's worker processes. Only this, `sse.fanout` and the stub `sse.worker` import gevent."""
