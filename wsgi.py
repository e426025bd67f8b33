"""For a WSGI server: `gunicorn -c gunicorn.conf.py wsgi:application`."""

import logging
import sys

from app import create_app
from sse import ConfigError

try:
    application = create_app()
except ConfigError as error:
    logging.getLogger("sse").critical("Throughline does not start: %s", error)
    sys.exit(3)  # gunicorn's code for a worker that failed to boot: the master ends, and does not try again for ever
