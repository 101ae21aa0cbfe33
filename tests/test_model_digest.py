"""The fingerprint of a model file."""

from __future__ import annotations

from pathlib import Path

from first_llama.model_digest import model_digest


def test_digests_tell_models_apart(tmp_path: Path) -> None:
    first, second = tmp_path / "a.gguf", tmp_path / "b.gguf"
    first.write_bytes(b"GGUF" + bytes(100))
    second.write_bytes(b"GGUF" + bytes(99) + b"x")
    assert model_digest(first) == model_digest(first)
    assert model_digest(first).startswith("a.gguf:")
    assert model_digest(first).split(":")[1] != model_digest(second).split(":")[1]
