"""Hostile files are refused before libllama gets them; sound ones of every kind pass."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import numpy as np
import pytest

from first_llama.cli import main
from first_llama.convert.container import ValueType
from first_llama.convert.loadable import ModelFileError, check_loadable
from first_llama.convert.rewrite import encode_scalar, encode_string, encode_text
from first_llama.default_model import base_model
from first_llama.errors import FirstError
from tests.hostile import HOSTILE
from tests.malformed import CASES
from tests.malformed_containers import Parts
from tests.model_changes import Hostile
from tests.tiny_models import ARCHITECTURES, write_tiny


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {arch: write_tiny(folder / f"{arch}.gguf", arch) for arch in ARCHITECTURES}


def test_names_are_unique() -> None:
    assert len({case.name for case in HOSTILE}) == len(HOSTILE)


@pytest.mark.parametrize("case", HOSTILE, ids=lambda case: case.name)
def test_hostile_files_are_refused(case: Hostile, models: dict[str, Path], tmp_path: Path) -> None:
    path = case.write(models[case.arch], tmp_path / "m.gguf")
    with pytest.raises(ModelFileError) as caught:
        check_loadable(path)
    assert case.says in str(caught.value)
    assert str(caught.value).isprintable()


VERBS = {
    "inspect": ["{}"],
    "run": ["-m", "{}", "Hello"],
    "serve": ["-m", "{}"],
    "bench": ["-m", "{}"],
    "eval": ["-m", "{}", "--data", "{data}"],
    "train": ["{}", "--data", "{data}", "-o", "{out}"],
}


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_refuses_with_one_line(
    verb: str, models: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (case,) = (case for case in HOSTILE if case.name == "0 layers")
    path = case.write(models["llama"], tmp_path / "m.gguf")
    data = tmp_path / "data.jsonl"
    data.write_text('{"prompt": "a", "response": "b"}\n' * 40)
    names = {"data": data, "out": tmp_path / "out"}
    arguments = [argument.format(path, **names) for argument in VERBS[verb]]
    assert main([verb, *arguments]) == 1
    out, err = capsys.readouterr()
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert out == "" and len(lines) == 1
    assert "0 layers" in lines[0]


def test_the_binding_refuses_with_one_line(models: dict[str, Path], tmp_path: Path) -> None:
    from first_llama import Llama

    (case,) = (case for case in HOSTILE if case.name == "0 layers")
    path = case.write(models["llama"], tmp_path / "m.gguf")
    for error in (FirstError, ValueError):
        with pytest.raises(error, match="0 layers"):
            Llama(str(path))
    adapter = _adapter(tmp_path / "a.gguf", encode_scalar("adapter.type", ValueType.UINT32, 1))
    with pytest.raises(FirstError, match=r"adapter\.type"):
        Llama(str(models["llama"]), lora_path=str(adapter), verbose=False)


def test_sound_models_pass(models: dict[str, Path], tmp_path: Path) -> None:
    for path in models.values():
        check_loadable(path)
    for kind in ("F16", "BF16", "Q8_0", "Q4_0"):
        check_loadable(write_tiny(tmp_path / "q.gguf", "qwen3moe", weight_type=kind))
    check_loadable(base_model())


def test_malformed_routers_pass(embedded: Path, tmp_path: Path) -> None:
    # They cost the routers, not the model.
    for case in CASES[::10]:
        check_loadable(case.write(embedded, tmp_path / "m.gguf"))


def test_a_file_is_read_again_when_it_has_changed(models: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    sound = models["llama"].read_bytes()
    path.write_bytes(sound)
    check_loadable(path)
    with path.open("r+b") as file:  # same inode, same size
        file.write(b"XXXX")
    os.utime(path, ns=(1, 1))
    with pytest.raises(ModelFileError, match="not a GGUF file"):
        check_loadable(path)


def test_missing_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="does not exist"):
        check_loadable(tmp_path / "none.gguf")
    with pytest.raises(FirstError, match="cannot read"):
        check_loadable("a\0b")
    with pytest.raises(FirstError, match="cannot read"):
        check_loadable(tmp_path)


def _parts(sound: Path, folder: Path, *, second: bytes | None = None) -> Path:
    """Write a model as two parts, its tensors in the second one, and return the path of the first."""
    count = encode_text("split.count") + struct.pack("<IH", ValueType.UINT16, 2)
    first = Parts.of(sound)
    first.records.append(count)
    rest = Parts([second or count], first.tensors, first.data)
    first.tensors, first.data = [], b""
    (folder / "m-00001-of-00002.gguf").write_bytes(first.pack())
    (folder / "m-00002-of-00002.gguf").write_bytes(rest.pack())
    return folder / "m-00001-of-00002.gguf"


def test_split_models_are_checked_part_by_part(models: dict[str, Path], tmp_path: Path) -> None:
    path = _parts(models["llama"], tmp_path)
    check_loadable(path)
    other = tmp_path / "m-00002-of-00002.gguf"
    whole = other.read_bytes()
    other.write_bytes(whole[:-4])
    with pytest.raises(ModelFileError, match="m-00002-of-00002"):
        check_loadable(_parts_again(path))
    other.write_bytes(whole)
    bad = encode_scalar("split.no", ValueType.UINT32, 1)
    with pytest.raises(ModelFileError, match=r"split\.no has the type u32"):
        check_loadable(_parts_again(_parts(models["llama"], tmp_path, second=bad)))


def _parts_again(path: Path) -> Path:
    os.utime(path, ns=(2, path.stat().st_mtime_ns + 1))
    return path


def _adapter(path: Path, *records: bytes, kind: int = 0) -> Path:
    values = {
        "general.type": encode_string("general.type", "adapter"),
        "general.architecture": encode_string("general.architecture", "llama"),
        "adapter.type": encode_string("adapter.type", "lora"),
        "adapter.lora.alpha": encode_scalar("adapter.lora.alpha", ValueType.FLOAT32, 8.0),
    }
    for raw in records:
        (size,) = struct.unpack_from("<Q", raw)
        values[raw[8 : 8 + size].decode()] = raw
    tensors = [(b"blk.0.attn_q.weight.lora_a", [32, 2], kind, 0)]
    path.write_bytes(Parts(list(values.values()), tensors, np.zeros(64, np.float32).tobytes()).pack())
    return path


@pytest.mark.parametrize(
    "record",
    [
        encode_scalar("general.type", ValueType.UINT32, 1),
        encode_scalar("adapter.type", ValueType.UINT32, 1),
        encode_scalar("general.architecture", ValueType.FLOAT32, 1),
        encode_scalar("adapter.lora.alpha", ValueType.UINT32, 8),
        encode_string("adapter.lora.alpha", "8"),
    ],
)
def test_hostile_adapters_are_refused(record: bytes, models: dict[str, Path], tmp_path: Path) -> None:
    check_loadable(models["llama"], _adapter(tmp_path / "a.gguf"))
    with pytest.raises(ModelFileError, match="has the type"):
        check_loadable(models["llama"], _adapter(tmp_path / "b.gguf", record))


def test_adapters_of_integers_are_refused(models: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="no weight has"):
        check_loadable(models["llama"], _adapter(tmp_path / "a.gguf", kind=26))
