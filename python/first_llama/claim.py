"""One process at a time writes to a file that grows, or to a run's folder."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import IO

from first_llama.errors import FirstError

if sys.platform == "win32":

    def claim(file: IO[bytes], path: Path) -> None:
        """Do nothing: the locks of Windows would keep readers out too."""

else:
    import fcntl

    def claim(file: IO[bytes], path: Path) -> None:
        """Keep other processes from claiming the same file until this one closes it or ends.

        Args:
            file: open for writing; a lock of this process, not of the handle, as fcntl's are.
            path: what to call it.

        Raises:
            FirstError: if another process has it.
        """
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            raise FirstError(
                f"{path}: another process is writing there; wait until it is done, or give another path"
            ) from None
        except OSError:
            pass  # a file system without locks
