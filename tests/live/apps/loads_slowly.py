"""The inspected service, whose import takes as many seconds as the file says that SLOW names."""

from __future__ import annotations

import os
import time
from pathlib import Path

from tests.live.apps.inspected import application

__all__ = ["application"]

if (slow := Path(os.environ["SLOW"])).exists():
    time.sleep(float(slow.read_text()))
