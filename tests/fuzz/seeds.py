"""The seed corpus of both fuzzers: small GGUF files, sound and malformed, and a dictionary of words.

``python -m tests.fuzz.seeds FOLDER`` writes FOLDER/seeds/*.gguf and FOLDER/gguf.dict. A seed has the keys of
a tiny model and of its routers and hardly anything else, so that a fuzzer spends its time on them.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np

from first_llama.convert.embed import embed
from first_llama.convert.keys import KEYS
from tests.malformed import CASES, N_EMBD, N_LAYER
from tests.tiny_models import random_routers


def write_base(path: Path, n_layer: int = N_LAYER, n_embd: int = N_EMBD) -> Path:
    """Write a GGUF file with the shape of a model, a value of each other type, and two small tensors."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(n_layer)
    writer.add_embedding_length(n_embd)
    writer.add_uint8("x.u8", 1)
    writer.add_int16("x.i16", -1)
    writer.add_uint64("x.u64", 2**40)
    writer.add_float64("x.f64", 0.5)
    writer.add_bool("x.bool", True)
    writer.add_array("x.strs", ["a", "", "ü"])
    writer.add_array("x.ints", [1, 2, 3])
    writer.add_tensor("output_norm.weight", np.ones(n_embd, np.float32))
    writer.add_tensor("blk.0.attn_norm.weight", np.ones(n_embd, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_seeds(folder: Path) -> int:
    """Write the seeds into a folder and return their number."""
    folder.mkdir(parents=True, exist_ok=True)
    base = write_base(folder / "base.gguf")
    budgets = np.array([0.1, 0.25], np.float32), np.array([0.4, 0.55], np.float32)
    routers = replace(random_routers(), budget_fraction=budgets[0], budget_threshold=budgets[1])
    routers = replace(routers, train={"steps": 1, "lr": 0.5, "data": "x", "resumed": True})
    sound = folder / "sound.gguf"
    embed(base, routers, sound, force=True)
    small = write_base(folder / "base-small.gguf", 3, 2)
    embed(small, random_routers(3, 2, norm="none"), folder / "sound-small.gguf", force=True)
    for i, case in enumerate(CASES):
        case.write(sound, folder / f"case-{i:03}.gguf")
    return len(list(folder.glob("*.gguf")))


def write_dictionary(path: Path) -> None:
    """Write the words that a fuzzer puts into files, in libFuzzer's format."""
    words = [key.name for key in KEYS]
    words += ["llama.block_count", "llama.embedding_length", "general.alignment", "split.count"]
    words += ["rms", "none", "mean", "fnv1a64:", "general.architecture", "output_norm.weight"]
    numbers = [bytes((i, 0, 0, 0)) for i in range(13)]
    numbers += [b"\xff" * 4, b"\xff" * 8, b"\0" * 8, b"\0\0\xc0\x7f", b"\0\0\x80\x7f", b"\0\0\x80\x3f"]
    lines = [f'"{word}"' for word in words]
    lines += ['"' + "".join(f"\\x{byte:02x}" for byte in number) + '"' for number in numbers]
    path.write_text("\n".join(lines) + "\n", encoding="ascii")


def main(folder: Path) -> None:
    """Write the corpus and the dictionary into a folder."""
    n = write_seeds(folder / "seeds")
    write_dictionary(folder / "gguf.dict")
    print(f"{n} seeds in {folder / 'seeds'}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
