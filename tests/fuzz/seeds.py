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
from first_llama.convert.rewrite import encode_array
from first_llama.convert.scan import scan
from tests.hostile import HOSTILE
from tests.malformed import ACCEPTED, CASES, N_EMBD, N_LAYER
from tests.malformed_containers import Parts
from tests.model_changes import TOKENS, TYPES, strings
from tests.tiny_models import random_routers, write_tiny

#: What is left of a model for the seeds that llama.cpp must not get: all bytes and some more, two tensors.
_N_TOKENS = 310
_KEPT = ("blk.1.attn_norm.weight", "output_norm.weight")
_OF_TOKENS = (TYPES, "tokenizer.ggml.scores")


def write_base(path: Path, n_layer: int = N_LAYER, n_embd: int = N_EMBD, part: int | None = None) -> Path:
    """Write a GGUF file with the shape of a model, a value of each other type, and two small tensors.

    With ``part`` it is that part, from 0, of a model in two, whose other part has no tensors.
    """
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
    if part is not None:
        writer.add_uint16("split.no", part)
        writer.add_uint16("split.count", 2)
        writer.add_int32("split.tensors.count", 2)
    writer.add_tensor("output_norm.weight", np.ones(n_embd, np.float32))
    writer.add_tensor("blk.0.attn_norm.weight", np.ones(n_embd, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


#: A larger seed would slow a fuzzer down.
MOST = 1 << 15


def write_seeds(folder: Path) -> int:
    """Write the seeds into a folder and return their number."""
    folder.mkdir(parents=True, exist_ok=True)
    base = write_base(folder / "base.gguf")
    budgets = np.array([0.1, 0.25], np.float32), np.array([0.4, 0.55], np.float32)
    routers = replace(random_routers(), budget_fraction=budgets[0], budget_threshold=budgets[1])
    routers = replace(routers, train={"steps": 1, "lr": 0.5, "data": "x", "resumed": True})
    sound = folder / "sound.gguf"
    embed(base, routers, sound, force=True)
    embed(base, random_routers(rank=32), folder / "sound-stand-ins.gguf", force=True)
    small = write_base(folder / "base-small.gguf", 3, 2)
    embed(small, random_routers(3, 2, norm="none"), folder / "sound-small.gguf", force=True)
    for kind, cases in (("case", CASES), ("accepted", ACCEPTED)):
        for i, case in enumerate(cases):
            path = case.write(sound, folder / f"{kind}-{i:03}.gguf")
            if path.stat().st_size > MOST:
                path.unlink()
    for part in range(2):
        write_base(folder / f"part-{part}.gguf", part=part)
    write_hostile(folder)
    return len(list(folder.glob("*.gguf")))


def write_hostile(folder: Path) -> None:
    """Write the hostile files whose headers tell what they are, small."""
    models: dict[str, Path] = {}
    for i, case in enumerate(HOSTILE):
        if case.tensor is not None and case.tensor[0] not in _KEPT:
            continue
        if case.arch not in models:
            models[case.arch] = write_small(folder / f"small-{case.arch}.gguf", case.arch)
        case.write(models[case.arch], folder / f"hostile-{i:03}.gguf")


def write_small(path: Path, arch: str) -> Path:
    """Write a tiny model without most of its vocabulary and of its tensors: the same header, small."""
    parts, container = Parts.of(write_tiny(path, arch)), scan(path)
    records = {r.key: r.raw for r in container.records}
    for record in container.records:
        if record.key == TOKENS:
            strings(TOKENS, *record.raw_strings()[:_N_TOKENS])(records)
        elif record.key in _OF_TOKENS:
            records[record.key] = encode_array(record.key, np.asarray(record.value())[:_N_TOKENS])
    parts.records = list(records.values())
    kept = [t for t in container.tensors if t.name in _KEPT]
    data = [parts.data[t.offset : t.offset + (t.n_bytes or 0)] for t in kept]
    parts.tensors = [
        (t.name.encode(), list(t.shape), t.type, sum(map(len, data[:i]))) for i, t in enumerate(kept)
    ]
    parts.data = b"".join(data)
    path.write_bytes(parts.pack())
    return path


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
