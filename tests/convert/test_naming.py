"""Names by ggml's convention, from metadata that may be missing or hostile."""

from __future__ import annotations

from pathlib import Path

import pytest

from first_llama.convert.container import Container, ValueType
from first_llama.convert.naming import clean, encoding, file_name
from first_llama.convert.rewrite import encode_scalar, encode_string
from first_llama.convert.scan import scan
from tests.malformed_containers import Parts


@pytest.fixture
def described(base: Path, tmp_path: Path) -> object:
    """Return a function that gives the header of the tiny model with these general.* keys and no others."""

    def make(file_type: int | None = None, **words: str) -> Container:
        parts = Parts.of(base)
        parts.records = [r.raw for r in scan(base).records if r.key != "general.name"]
        parts.records += [encode_string(f"general.{key}", value) for key, value in words.items()]
        if file_type is not None:
            parts.records.append(encode_scalar("general.file_type", ValueType.UINT32, file_type))
        (tmp_path / "m.gguf").write_bytes(parts.pack())
        return scan(tmp_path / "m.gguf")

    return make


FULL = {"basename": "Tiny", "size_label": "2M", "finetune": "Instruct", "version": "v1.0", "name": "x"}


@pytest.mark.parametrize(
    ("words", "options", "expected"),
    [
        (FULL, {}, "Tiny-2M-Instruct-v1.0-Q4_K_M.gguf"),
        (FULL, {"routed": True}, "Tiny-2M-Instruct-FiRST-v1.0-Q4_K_M.gguf"),
        (FULL, {"lora": True}, "Tiny-2M-Instruct-v1.0-Q4_K_M-LoRA.gguf"),
        ({"basename": "Tiny"}, {}, "Tiny-Q4_K_M.gguf"),
        ({"name": "Tiny Model 2M"}, {}, "Tiny-Model-2M-Q4_K_M.gguf"),
        ({"basename": "a/../../b", "finetune": "\x1b[2J"}, {}, "a-..-..-b-2J-Q4_K_M.gguf"),
        ({"basename": "..", "name": "`$(rm)`"}, {}, "rm-Q4_K_M.gguf"),
        ({"basename": "/", "name": "\0"}, {}, "stem-Q4_K_M.gguf"),
        ({"basename": "x" * 5000}, {}, "x" * 48 + "-Q4_K_M.gguf"),
    ],
)
def test_names(words: dict[str, str], options: dict[str, bool], expected: str, described: object) -> None:
    made = file_name(described(**words), "stem", "Q4_K_M", **options)  # type: ignore[operator]
    assert made == expected
    assert Path(made).name == made and not made.startswith((".", "-"))


@pytest.mark.parametrize(
    ("stem", "expected"),
    [
        ("model-F16", "model-Q8_0.gguf"),
        ("model.Q4_K_M", "model-Q8_0.gguf"),
        ("SmolLM2-135M", "SmolLM2-135M-Q8_0.gguf"),
        ("...", "model-Q8_0.gguf"),
        ("", "model-Q8_0.gguf"),
    ],
)
def test_without_metadata_the_source_names_it(stem: str, expected: str, described: object) -> None:
    assert file_name(described(), stem, "Q8_0") == expected  # type: ignore[operator]


def test_the_type_is_the_one_asked_for_then_the_files_own(described: object) -> None:
    types = {"Q4_0": 9, "F32": 1}
    for kind, file_type, expected in (
        ("IQ3_XXS", 15, "IQ3_XXS"),
        (None, 15, "Q4_K_M"),
        (None, 0, "F32"),
        (None, 1024, "Q4_0"),
        (None, 999, "Q4_0"),
        (None, None, "Q4_0"),
    ):
        assert encoding(kind, described(file_type), types) == expected  # type: ignore[operator]
    assert encoding(None, described(), {}) == "F32"  # type: ignore[operator]


def test_other_alphabets_stay() -> None:
    assert clean("  Модель 7Б ") == "Модель-7Б"
    assert clean("a\ud800b") == "a-b"
