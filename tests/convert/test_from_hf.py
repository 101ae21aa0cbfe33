"""Converting Hugging Face folders: what is refused without running anything, and the converter itself."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import gguf
import numpy as np
import pytest

from first_llama.convert import from_hf
from first_llama.convert.from_hf import INSTALLED, SCRIPT, check_model, find_script, to_gguf
from first_llama.errors import FirstError
from tests.convert.tiny_hf import write_hf

#: Stands in for the converter: it prints what it was given, and does what its name says.
FAKE = """
import os, pathlib, sys
model, _, out, _, kind = sys.argv[1:]
print("INFO:hf-to-gguf:offline", os.environ["HF_HUB_OFFLINE"], kind, file=sys.stderr)
{body}
"""


@pytest.fixture
def model(base: Path, tmp_path: Path) -> Path:
    return write_hf(tmp_path / "hf", base)


def fake(folder: Path, body: str) -> Path:
    folder.mkdir()
    (folder / SCRIPT).write_text(FAKE.format(body=body))
    return find_script(folder)


def refused(folder: Path, says: str, trust: bool = False) -> None:
    with pytest.raises(FirstError, match=says) as caught:
        check_model(folder, trust)
    assert "\n" not in str(caught.value)


def test_the_script_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FirstError, match=SCRIPT):
        find_script(tmp_path)
    monkeypatch.setattr(from_hf, "_package_folders", lambda: [tmp_path / "no", tmp_path])
    with pytest.raises(FirstError, match="--llama-cpp-dir"):
        find_script()
    (tmp_path / INSTALLED).mkdir()
    (tmp_path / INSTALLED / SCRIPT).touch()
    assert find_script() == tmp_path / INSTALLED / SCRIPT


def test_the_build_installs_the_script() -> None:
    script = find_script()
    for part in ("conversion/llama.py", "gguf-py/gguf/__init__.py", "LICENSE"):
        assert (script.parent / part).is_file()


def test_folders_that_are_no_model(model: Path) -> None:
    check_model(model)
    (model / "model.safetensors").unlink()
    refused(model, "no weights")
    (model / "config.json").unlink()
    refused(model, "no config.json")
    (model / "adapter_config.json").touch()
    refused(model, "give its base model")


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
def test_code_in_the_folder_is_not_run_unasked(name: str, model: Path) -> None:
    settings = json.loads((model / name).read_text())
    (model / name).write_text(
        json.dumps(settings | {"auto_map": {"AutoTokenizer": ["code.Tokenizer", None]}})
    )
    refused(model, "--trust-remote-code")
    check_model(model, trust_remote_code=True)


@pytest.mark.parametrize("garbage", ["", "[]", "{", "\ud800", "[" * 100_000])
def test_settings_that_are_no_json_object(garbage: str, model: Path) -> None:
    (model / "config.json").write_bytes(garbage.encode("utf-8", "surrogatepass"))
    refused(model, "config.json")


def test_without_pytorch(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "torch" else find_spec(name)
    )
    refused(model, r"needs torch.*first-llama\[train\]")


def test_the_converter_is_run(model: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    script = fake(tmp_path / "tree", "pathlib.Path(out).write_bytes(b'made')")
    to_gguf(model, tmp_path / "o.gguf", script, "bf16", lines.append)
    assert (tmp_path / "o.gguf").read_bytes() == b"made"
    assert lines == ["INFO:hf-to-gguf:offline 1 bf16"]


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (
            "raise NotImplementedError('Model FooForBar is not supported')",
            "could not convert .*: Model FooForBar",
        ),
        ("import no_such_tokenizer", "pip install no_such_tokenizer"),
        ("sys.exit(1)", "could not convert"),
        ("pass", "could not convert"),
        ("os.abort()", "signal 6"),
    ],
)
def test_refusals_of_the_converter(body: str, says: str, model: Path, tmp_path: Path) -> None:
    script = fake(tmp_path / "tree", body)
    with pytest.raises(FirstError, match=says) as caught:
        to_gguf(model, tmp_path / "o.gguf", script)
    assert "\n" not in str(caught.value) and str(model) in str(caught.value)


@pytest.mark.slow
def test_a_model_comes_back_as_it_was(model: Path, base: Path, tmp_path: Path) -> None:
    """The tiny GGUF file, as a Hugging Face folder, through upstream's converter: the same tensors."""
    to_gguf(model, tmp_path / "o.gguf", find_script(), "f32")
    before, after = gguf.GGUFReader(base), gguf.GGUFReader(tmp_path / "o.gguf")
    tensors = {t.name: t for t in after.tensors}
    assert sorted(tensors) == sorted(t.name for t in before.tensors)
    for tensor in before.tensors:
        assert np.array_equal(tensors[tensor.name].data, tensor.data), tensor.name
    for key in ("block_count", "attention.head_count_kv", "feed_forward_length"):
        name = f"llama.{key}"
        assert after.fields[name].contents() == before.fields[name].contents()
