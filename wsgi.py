"""For a WSGI server: `gunicorn -c gunicorn.conf.py wsgi:application`."""

import sys

from app import create_app
from sse import ConfigError

try:
    application = create_app()
except ConfigError as error:
    sys.stderr.write(f"Throughline does not start: {error}\n")
    sys.exit(3)  # the code of a worker that failed to boot: gunicorn's master ends, and does not try again for ever
