"""Print a command block of README.md: the one that follows the line <!-- command: NAME -->."""

from __future__ import annotations

import re
import sys
from pathlib import Path

README = Path(__file__).parent.parent / "README.md"


def command(name: str) -> str:
    """Return the text of the shell block marked with the name.

    Raises:
        SystemExit: if README.md has no such block.
    """
    pattern = rf"<!-- command: {re.escape(name)} -->\s*```(?:bash|sh)\n(.*?)```"
    found = re.search(pattern, README.read_text(encoding="utf-8"), re.DOTALL)
    if not found:
        raise SystemExit(f"error: README.md has no command block named {name}")
    return found.group(1)


if __name__ == "__main__":
    print(command(sys.argv[1]), end="")
