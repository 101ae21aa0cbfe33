"""How the benchmarks that are modules of their own end: with a JSON document, or with one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from first_llama.errors import FirstError
from first_llama.progress import say


def print_document(measure: Callable[[], dict[str, Any]]) -> int:
    """Print what `measure` returns as JSON; return the exit code: 0, 1 for an error, 130 for Ctrl-C."""
    try:
        document = measure()
    except (FirstError, OSError) as e:
        say(f"error: {e}")
        return 1
    except KeyboardInterrupt:
        return 130
    print(json.dumps(document, indent=1))
    return 0
