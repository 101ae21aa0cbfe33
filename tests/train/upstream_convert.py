"""llama.cpp's own converter, from the tree that the build unpacked, on folders of tiny transformers models.

It runs in a process of its own (``python -m tests.train.upstream_convert FOLDER...``), because it brings its
own gguf package, and writes ``FOLDER/model.gguf`` in F32. The vocabulary is that of ``tests.tiny_models``:
tiny models have no tokenizer.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent


def tree() -> Path:
    """Return the unpacked llama.cpp tree of the latest build."""
    found = sorted(ROOT.glob("build/*/llama.cpp/*/conversion/__init__.py"), key=lambda p: p.stat().st_mtime)
    assert found, "no unpacked llama.cpp under build/: install as README says, in this folder"
    return found[-1].parent.parent


def convert(folders: Sequence[Path]) -> list[Path]:
    """Convert saved models in one process; returns the files."""
    command = [sys.executable, "-m", "tests.train.upstream_convert", *map(str, folders)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [folder / "model.gguf" for folder in folders]


def _main(folders: Sequence[Path]) -> None:
    sys.path[:0] = [str(tree() / "gguf-py"), str(tree())]
    import conversion
    import gguf
    import torch

    from tests import tiny_models

    for folder in folders:
        tokens = [token.decode() for token in tiny_models.vocabulary()[0]]
        listing = {"model": {"vocab": {token: i for i, token in enumerate(tokens)}}, "added_tokens": []}
        (folder / "tokenizer.json").write_text(json.dumps(listing))
        hparams = conversion.ModelBase.load_hparams(folder, False)
        kind = conversion.get_model_architecture(hparams, conversion.ModelType.TEXT)
        converter = conversion.get_model_class(kind)
        converter.set_vocab = lambda self: tiny_models._add_vocabulary(self.gguf_writer)
        with torch.inference_mode():
            # A name of its own: in a file named after Phi-3 llama.cpp looks for a token of its vocabulary.
            out = folder / "model.gguf"
            converter(folder, gguf.LlamaFileType.ALL_F32, out, model_name="tiny").write()


if __name__ == "__main__":
    _main([Path(argument) for argument in sys.argv[1:]])
