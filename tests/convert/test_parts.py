"""Split models: all verbs that read or write routers take the first part and work on the whole model."""

from __future__ import annotations

import json
import os
import shutil
import struct
from contextlib import closing
from pathlib import Path

import gguf
import pytest

from first_llama.cli import main
from first_llama.convert import embed as embed_module
from first_llama.convert.container import ValueType
from first_llama.convert.embed import embed, strip
from first_llama.convert.fingerprint import fingerprint
from first_llama.convert.inspect import inspect
from first_llama.convert.loadable import MAX_PARTS, ModelFileError, check_loadable
from first_llama.convert.parts import output_paths, scan_model
from first_llama.convert.quantize import quantize
from first_llama.convert.rewrite import copy_range, encode_text
from first_llama.convert.routers import Routers
from first_llama.convert.run_folder import save_run
from first_llama.convert.scan import scan
from first_llama.convert.validate import read_routers
from first_llama.errors import FirstError
from tests.adapters import SHAPES, random_matrices, write_adapter
from tests.llama_helpers import PROMPT, answer, load
from tests.malformed_containers import Parts
from tests.tiny_models import write_tiny

N_PARTS = 3


def parts_of(first: Path) -> list[Path]:
    """Return the paths of all parts."""
    return [first.with_name(first.name.replace("00001-of", f"{i:05}-of")) for i in range(1, N_PARTS + 1)]


def contents(first: Path) -> list[bytes]:
    return [path.read_bytes() for path in parts_of(first)]


def tensors(*paths: Path) -> dict[str, bytes]:
    return {t.name: t.data.tobytes() for path in paths for t in gguf.GGUFReader(path).tensors}


def test_the_parts_are_the_model(split: Path, base: Path) -> None:
    model = scan_model(split)
    assert [part.path for part in model.parts] == parts_of(split)
    assert model.total_bytes == sum(map(len, contents(split)))
    assert fingerprint(model) == fingerprint(scan(base)) != ""
    assert {t.name for part in model.parts for t in part.tensors} == {t.name for t in scan(base).tensors}
    whole, found = inspect(base).document(), inspect(split).document()
    for document in (whole, found):
        del document["file"], document["bytes"]
    assert (whole.pop("n_parts"), found.pop("n_parts")) == (1, N_PARTS)
    assert found == whole


@pytest.mark.parametrize("name", ["o.gguf", "o-00001-of-00003.gguf"])
def test_round_trip(name: str, split: Path, base: Path, routers: Routers, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "bare").mkdir()
    written = embed(split, routers, tmp_path / "full" / name)
    full = tmp_path / "full" / "o-00001-of-00003.gguf"
    assert (written.path, written.n_parts) == (full, N_PARTS)
    assert sorted((tmp_path / "full").iterdir()) == parts_of(full)
    assert written.n_bytes == sum(map(len, contents(full)))
    assert contents(full)[1:] == contents(split)[1:]
    reading = read_routers(scan_model(full))
    assert reading.errors == [] and reading.base == fingerprint(scan(base))
    stripped = strip(full, tmp_path / "bare" / name)
    assert stripped.keys == written.keys
    assert contents(stripped.path) == contents(split)


def test_the_runtime_takes_it_as_it_takes_one_file(
    split: Path, base: Path, routers: Routers, tmp_path: Path
) -> None:
    embed(base, routers, tmp_path / "whole.gguf")
    found = []
    for path in (tmp_path / "whole.gguf", embed(split, routers, tmp_path / "split.gguf").path):
        with closing(load(path)) as llm:
            found.append((answer(llm, llm.tokenize(PROMPT)), llm.route))
    assert found[0] == found[1]
    assert len(found[0][1].skipped) > 0 and found[0][1].scores[0] is None


def test_llama_quantize_keeps_the_routers_in_its_one_file(
    split: Path, routers: Routers, tmp_path: Path
) -> None:
    quantize(embed(split, routers, tmp_path / "o.gguf").path, tmp_path / "q.gguf", "Q8_0", threads=1)
    reading = read_routers(scan_model(tmp_path / "q.gguf"))
    assert reading.errors == [] and reading.base_matches
    assert scan_model(tmp_path / "q.gguf").others == ()


def test_an_adapter_is_merged_part_by_part(split: Path, base: Path, routers: Routers, tmp_path: Path) -> None:
    run = tmp_path / "run"
    save_run(run, routers)
    write_adapter(run / "adapter", random_matrices())
    seen: list[tuple[int, int]] = []
    whole = embed(base, run, tmp_path / "whole.gguf")
    made = embed(split, run, tmp_path / "o.gguf", progress=lambda done, total: seen.append((done, total)))
    assert made.n_merged == whole.n_merged == 6 * len(SHAPES)
    assert seen[0] == (0, made.n_merged) and seen[-1] == (made.n_merged,) * 2 and seen == sorted(seen)
    changed, expected = tensors(*parts_of(made.path)), tensors(whole.path)
    assert changed == expected != tensors(base)
    assert read_routers(scan_model(made.path)).errors == []
    with pytest.raises(FirstError, match="already has an adapter merged"):
        embed(made.path, run, tmp_path / "p.gguf")


def test_the_verbs(split: Path, routers: Routers, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_run(tmp_path / "run", routers)
    first = str(tmp_path / "o-00001-of-00003.gguf")
    assert main(["embed", str(split), str(tmp_path / "run"), "-o", str(tmp_path / "o.gguf"), "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert (made["output"], made["n_parts"], made["valid"]) == (first, N_PARTS, True)
    assert main(["inspect", first]) == 0
    assert f"{first} and 2 more" in capsys.readouterr().out
    assert main(["verify", first, "--base", str(split), "--threads", "1", "--json"]) == 0
    checks = {c["name"]: c["ok"] for c in json.loads(capsys.readouterr().out)["checks"]}
    assert all(checks[name] for name in ("file", "routers", "fingerprint", "loads", "runtime", "base"))
    assert main(["diff", first, str(tmp_path / "run"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["layers"]["both"] == [1, 2, 3, 4]
    assert main(["strip", first, "-o", str(tmp_path / "s.gguf")]) == 0
    assert "s-00001-of-00003.gguf and 2 more" in capsys.readouterr().err
    assert contents(tmp_path / "s-00001-of-00003.gguf") == contents(split)


@pytest.mark.parametrize("verb", ["embed", "strip", "inspect", "verify", "diff"])
def test_another_part_is_refused_by_each_verb(
    verb: str, split: Path, routers: Routers, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_run(tmp_path / "run", routers)
    second, run = str(parts_of(split)[1]), str(tmp_path / "run")
    rest = {"embed": [run, "-o", str(tmp_path / "o")], "strip": ["-o", str(tmp_path / "o")], "diff": [run]}
    assert main([verb, second, *rest.get(verb, [])]) == 1
    out, err = capsys.readouterr()
    text = out if verb == "verify" else err
    assert text.count("\n") == 1 and f"part 2 of 3 of a split model; give the first part, {split}" in text
    assert sorted(tmp_path.iterdir()) == [tmp_path / "run"]


def _patched(path: Path, key: str, code: str, value: int, kind: int) -> None:
    """Give a part another value under one of its keys."""
    parts = Parts.of(path)
    start = encode_text(key)
    parts.records = [
        start + struct.pack("<I" + code, kind, value) if raw.startswith(start) else raw
        for raw in parts.records
    ]
    path.write_bytes(parts.pack())


U16, U32, I32 = ValueType.UINT16, ValueType.UINT32, ValueType.INT32


@pytest.mark.parametrize(
    ("part", "key", "code", "value", "kind", "says"),
    [
        (2, "split.no", "H", 2, U16, "it is part 3 of 3, its name part 2 of 3"),
        (2, "split.count", "H", 4, U16, "it is part 2 of 4, its name part 2 of 3"),
        (3, "split.no", "I", 2, U32, "it is no part"),
        (1, "split.no", "I", 0, U32, "missing or not a u16"),
        (1, "split.count", "I", 3, U32, "missing or not a u16"),
        (1, "split.count", "H", 2, U16, "does not end in -00001-of-00002.gguf"),
        (1, "split.tensors.count", "i", 99, I32, "says 99"),
        (1, "split.tensors.count", "I", 57, U32, "says None"),
    ],
)
def test_parts_that_do_not_belong_together(
    part: int, key: str, code: str, value: int, kind: int, says: str, split: Path, tmp_path: Path
) -> None:
    for path in parts_of(split):
        shutil.copy(path, tmp_path)
    first = tmp_path / split.name
    assert scan_model(first).others
    _patched(parts_of(first)[part - 1], key, code, value, kind)
    with pytest.raises(FirstError, match=says) as caught:
        scan_model(first)
    assert "\n" not in str(caught.value)


def test_missing_and_foreign_parts(split: Path, routers: Routers, tmp_path: Path) -> None:
    for path in parts_of(split):
        shutil.copy(path, tmp_path)
    first, second, third = parts_of(tmp_path / split.name)
    third.unlink()
    with pytest.raises(FirstError, match=r"m-00003-of-00003\.gguf does not exist; all 3 parts"):
        embed(first, routers, tmp_path / "o.gguf")
    # of another split of the same model: the numbers fit, the tensors do not
    (tmp_path / "other").mkdir()
    write_tiny(tmp_path / "other" / "m.gguf", split_max_tensors=25)
    shutil.copy(tmp_path / "other" / third.name, third)
    with pytest.raises(FirstError, match="of different models"):
        scan_model(first)
    shutil.copy(parts_of(split)[2], third)
    second.write_bytes(b"GGUF")
    with pytest.raises(FirstError, match=r"m-00002-of-00003\.gguf: it ends within"):
        scan_model(first)
    renamed = first.rename(tmp_path / "model.gguf")
    with pytest.raises(FirstError, match="first of 3 parts, but its name does not end in -00001-of-00003"):
        inspect(renamed)


def test_a_tensor_in_two_parts(split: Path, tmp_path: Path) -> None:
    for path in parts_of(split):
        shutil.copy(path, tmp_path)
    first, second, third = parts_of(tmp_path / split.name)
    a, b = Parts.of(second), Parts.of(third)
    b.tensors[0] = (a.tensors[0][0], *b.tensors[0][1:])
    third.write_bytes(b.pack())
    with pytest.raises(FirstError, match="two of its parts have the tensor"):
        scan_model(first)


def test_too_many_parts_for_libllama(base: Path, tmp_path: Path) -> None:
    parts = Parts.of(base)
    parts.records.append(encode_text("split.count") + struct.pack("<IH", U16, MAX_PARTS + 1))
    (tmp_path / "m.gguf").write_bytes(parts.pack())
    with pytest.raises(ModelFileError, match="it claims 1025 parts"):
        check_loadable(tmp_path / "m.gguf")


def test_names_of_outputs(tmp_path: Path) -> None:
    assert output_paths(tmp_path / "o-00001-of-00003.gguf", 1) == [tmp_path / "o-00001-of-00003.gguf"]
    names = [tmp_path / f"ö x.bin-0000{i}-of-00002.gguf" for i in (1, 2)]
    assert output_paths(tmp_path / "ö x.bin", 2) == output_paths(names[0], 2) == names
    for wrong in ("o-00002-of-00002.gguf", "o-00001-of-00003.gguf", "o-00000-of-00002.gguf"):
        with pytest.raises(FirstError, match=r"give .*o-00001-of-00002\.gguf, or .*o\.gguf"):
            output_paths(tmp_path / wrong, 2)


def test_nothing_that_exists_is_overwritten(split: Path, routers: Routers, tmp_path: Path) -> None:
    last = tmp_path / "o-00003-of-00003.gguf"
    last.write_bytes(b"precious")
    for out in ("o.gguf", "o-00001-of-00003.gguf"):
        with pytest.raises(FirstError, match=r"o-00003-of-00003\.gguf exists; add --force"):
            embed(split, routers, tmp_path / out)
        with pytest.raises(FirstError, match=r"o-00003-of-00003\.gguf exists; add --force"):
            strip(split, tmp_path / out)
    assert list(tmp_path.iterdir()) == [last] and last.read_bytes() == b"precious"
    with pytest.raises(FirstError, match="is a folder"):
        embed(split, routers, tmp_path, force=True)
    embed(split, routers, tmp_path / "o.gguf", force=True)
    assert read_routers(scan_model(tmp_path / "o-00001-of-00003.gguf")).errors == []


def test_the_model_itself_can_be_the_output(split: Path, routers: Routers, tmp_path: Path) -> None:
    for path in parts_of(split):
        shutil.copy(path, tmp_path)
    first = tmp_path / split.name
    embed(first, routers, first, force=True)
    assert read_routers(scan_model(first)).routers is not None
    strip(first, first, force=True)
    assert contents(first) == contents(split)
    assert len(list(tmp_path.iterdir())) == N_PARTS


@pytest.mark.parametrize("error", [KeyboardInterrupt(), FirstError("no"), OSError(28, "No space left")])
def test_an_error_in_the_last_part_leaves_nothing(
    error: BaseException, split: Path, routers: Routers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    last = parts_of(split)[-1]

    def fails(source: object, out: object, start: int, size: int, path: Path) -> None:
        copy_range(source, out, start, size // 2 if path == last else size, path)  # type: ignore[arg-type]
        if path == last:
            raise error

    monkeypatch.setattr(embed_module, "copy_range", fails)
    expected = KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else FirstError
    with pytest.raises(expected) as caught:
        embed(split, routers, tmp_path / "o.gguf")
    assert list(tmp_path.iterdir()) == []
    if isinstance(error, OSError):
        assert str(caught.value) == f"cannot write {tmp_path / 'o-00003-of-00003.gguf'}: No space left"


def test_the_first_part_gets_its_name_last(
    split: Path, routers: Routers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    named: list[str] = []
    replace = os.replace

    def watch(source: Path, target: Path) -> None:
        named.append(target.name)
        replace(source, target)

    monkeypatch.setattr(os, "replace", watch)
    embed(split, routers, tmp_path / "o.gguf")
    assert named == [f"o-0000{i}-of-00003.gguf" for i in (3, 2, 1)]
