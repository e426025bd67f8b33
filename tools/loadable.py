"""Check that gunicorn could load the app: `python tools/loadable.py MASTER_PID gunicorn's arguments…`.

systemd runs this before it has the master reload. If the new workers could not load the app, gunicorn would end, after
it has told the old workers to end. The workers get the master's environment, even if the file of settings has changed
since the master started, so this process takes that environment too.
"""

import os
import sys
from pathlib import Path

_, master, *arguments = sys.argv
os.environ.clear()
for pair in Path(f"/proc/{master}/environ").read_bytes().split(b"\0"):
    name, found, value = pair.partition(b"=")
    if found:
        os.environb[name] = value
sys.path.insert(0, os.getcwd())  # as gunicorn does
sys.argv = ["gunicorn", *arguments]

from gunicorn.app.wsgiapp import WSGIApplication  # noqa: E402

import sse.server.worker  # noqa: E402, F401

app = WSGIApplication("%(prog)s")
assert app.cfg.worker_class
os.environ.update(app.cfg.env)  # gunicorn's setting raw_env
app.load()
sys.stdout.flush()
os._exit(0)  # without waiting for threads that the app has started
