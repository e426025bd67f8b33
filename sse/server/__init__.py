"""gunicorn's worker: the only part that knows gevent and gunicorn, beside the stub `sse.worker`."""
