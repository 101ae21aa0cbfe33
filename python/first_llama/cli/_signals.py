"""SIGTERM and SIGHUP end a verb as Ctrl-C does: what is half written goes away, children end."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))


class Stopped(SystemExit):
    """Raised where the verb stands when such a signal comes."""

    def __init__(self, number: int) -> None:
        """Take the exit code that shells give to what a signal ended: 143 for SIGTERM, 129 for SIGHUP."""
        super().__init__(128 + number)
        self.exit_code = 128 + number


@contextmanager
def signals_stop() -> Iterator[None]:
    """Let the signals raise Stopped inside the block.

    One that somebody handles or ignores already (nohup) is left alone, and so are all of them outside the
    main thread, where Python allows no handlers.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    ours = [number for number in _SIGNALS if signal.getsignal(number) is signal.SIG_DFL]
    try:
        for number in ours:
            signal.signal(number, _stop)
        yield
    finally:
        for number in ours:
            signal.signal(number, signal.SIG_DFL)


def _stop(number: int, _frame: FrameType | None) -> None:
    # a closed terminal sends one and a service manager the other soon after: let the cleaning up end
    for name in _SIGNALS:
        signal.signal(name, signal.SIG_IGN)
    raise Stopped(number)
