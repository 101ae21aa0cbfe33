"""The verbs embed, strip and inspect: JSON alone on stdout, one line for an error, exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from first_llama.cli import main
from first_llama.convert.routers import Routers
from first_llama.convert.run_folder import save_run
from tests.malformed import CASES


def test_embed_inspect_strip(
    base: Path, routers: Routers, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_run(tmp_path / "run", routers)
    full, bare = tmp_path / "full.gguf", tmp_path / "bare.gguf"
    assert main(["embed", str(base), str(tmp_path / "run"), "-o", str(full), "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert (made["layers"], made["n_layer"], made["valid"]) == ([1, 2, 3, 4], 6, True)
    assert main(["inspect", str(full), "--json"]) == 0
    seen = json.loads(capsys.readouterr().out)
    assert seen["has_routers"] and seen["valid"] and seen["base_matches"] and seen["errors"] == []
    assert (seen["n_layer"], seen["n_embd"], seen["architecture"]) == (6, 64, "llama")
    assert seen["budgets"][0] == {"fraction": 0.1, "threshold": 0.4}
    assert seen["train"]["steps"] == 160
    assert [s["layer"] for s in seen["stats"]] == [1, 2, 3, 4]
    assert main(["inspect", str(full)]) == 0
    assert "#oooo#" in capsys.readouterr().out
    assert main(["strip", str(full), "-o", str(bare), "--json"]) == 0
    assert "first.version" in json.loads(capsys.readouterr().out)["removed"]
    assert bare.read_bytes() == base.read_bytes()


def test_human_messages_go_to_stderr(
    base: Path, routers: Routers, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_run(tmp_path / "run", routers)
    args = ["embed", str(base), str(tmp_path / "run"), "-o", str(tmp_path / "o.gguf")]
    assert main([*args, "--threshold", "0.25"]) == 0
    out, err = capsys.readouterr()
    assert out == "" and "threshold 0.25" in err
    assert main(args) == 1
    out, err = capsys.readouterr()
    assert out == "" and "--force" in err and err.count("\n") == 1


def test_inspect_exit_codes(
    base: Path, embedded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["inspect", str(base), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["has_routers"] is False
    for case in CASES:
        path = case.write(embedded, tmp_path / "m.gguf")
        assert main(["inspect", str(path), "--json"]) == 1
        out = capsys.readouterr().out
        assert json.loads(out.encode())["valid"] is False
    (tmp_path / "text.gguf").write_text("hello")
    assert main(["inspect", str(tmp_path / "text.gguf"), "--json"]) == 1
    out, err = capsys.readouterr()
    assert out == "" and "not a GGUF file" in err
    assert main(["inspect"]) == 2
