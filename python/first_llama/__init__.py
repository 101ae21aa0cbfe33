"""llama.cpp models that skip the layers a prompt does not need.

>>> from first_llama import Llama
>>> llm = Llama("model.gguf", skip="auto")          # doctest: +SKIP
>>> llm.create_chat_completion([{"role": "user", "content": "Hi"}])["first"]["skipped"]   # doctest: +SKIP
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from first_llama import _library
from first_llama.errors import FirstError
from first_llama.route import Route, SkipError, Timing

if TYPE_CHECKING:
    from first_llama.llama import Llama

__version__ = "0.1.0"
__all__ = ["FirstError", "Llama", "Route", "SkipError", "Timing", "__version__"]

# Before anybody imports llama_cpp: it looks for its library once.
_library.prepare()


def __getattr__(name: str) -> Any:
    # Loading the library waits until it is needed: model files are read and written without it.
    if name == "Llama":
        from first_llama.llama import Llama

        return Llama
    raise AttributeError(f"module 'first_llama' has no attribute {name!r}")
