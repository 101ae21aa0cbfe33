"""A line on stderr for work that is done once, if it takes longer than a moment."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

#: Shorter work is not worth a line.
QUIET_SECONDS = 1.0


@contextmanager
def notice(line: str) -> Iterator[None]:
    """Print the line if the block takes longer than `QUIET_SECONDS`."""
    timer = threading.Timer(QUIET_SECONDS, print, [line], {"file": sys.stderr, "flush": True})
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
