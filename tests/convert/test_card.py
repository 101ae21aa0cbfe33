"""Model cards: what is known and nothing else, and no text of a file as markup."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from first_llama.convert.build import Built
from first_llama.convert.card import card, code, load_bench
from first_llama.convert.container import Container
from first_llama.convert.rewrite import encode_string
from first_llama.convert.routers import Routers
from first_llama.convert.scan import scan
from first_llama.errors import FirstError
from tests.malformed_containers import Parts

NASTY = "a`b</script><img src=x onerror=alert(1)> [x](http://y) | # *c*\n## d \x1b[2J $e$ www.f.org"

ROW = {"skip": "off", "n_skipped": 0, "prefill_tok_s": 100.0, "decode_tok_s": 20.5, "speedup": 1.0}
BENCH: dict[str, Any] = {
    "model": "/home/somebody/model.gguf",
    "n_layer": 6,
    "threads": 2,
    "n_prompt": 256,
    "n_decode": 64,
    "repeats": 5,
    "rows": [ROW, ROW | {"skip": [1, 2, 4], "n_skipped": 3, "decode_tok_s": 31.25, "speedup": 1.5244}],
}


def _source(base: Path, folder: Path, **words: str) -> Container:
    parts = Parts.of(base)
    keys = {f"general.{key.replace('__', '.')}": value for key, value in words.items()}
    parts.records = [r.raw for r in scan(base).records if r.key not in keys]
    parts.records += [encode_string(key, value) for key, value in keys.items()]
    (folder / "m.gguf").write_bytes(parts.pack())
    return scan(folder / "m.gguf")


def _built(source: Container, path: str = "model.gguf", **values: Any) -> Built:
    sizes = {"Q4_K": 3_000_000, "F32": 100_000}
    return replace(Built(Path("/tmp") / path, 3_200_000, 9, sizes, 0, "", source), **values)


def test_what_is_known_is_said(base: Path, routers: Routers, tmp_path: Path) -> None:
    source = _source(
        base, tmp_path, license="apache-2.0", organization="HuggingFaceTB", base_model__0__name="B"
    )
    page = card(_built(source, n_merged=42, requantized="Q8_0"), source, "models/base", routers)
    for line in (
        "# `model.gguf`",
        "- made from: `models/base`",
        "- licence: `apache-2.0`",
        "- by: `HuggingFaceTB`",
        "- itself made from: `B`",
        "- `llama`, 6 layers, width 64",
        "- 3.2 MB; weights: `Q4_K` 3.0 MB, `F32` 0.1 MB",
        "- quantized from `Q8_0`, so its weights were rounded twice",
        "- routers: 4 linear ones, for the layers 1-4",
        "- adapter: LoRA, merged into 42 weights",
        "- `data`: `self-written`",
        "- `lr`: 0.001",
        "- `resumed`: false",
        "- licence of the training data: the run does not say",
        "| 10.0% | 0.4000 |",
        "| 25.0% | 0.5500 |",
        "first-llama run -m model.gguf 'Why is the sky blue?'",
        "Stock llama.cpp loads the file too: it ignores the routers and runs every layer.",
    ):
        assert line in page.splitlines(), line
    assert "tokens/s" not in page and "## Speed" not in page


def test_a_licence_of_the_data_is_quoted(base: Path, routers: Routers, tmp_path: Path) -> None:
    source = _source(base, tmp_path)
    page = card(_built(source), source, "b", replace(routers, train={"data_licence": "CC BY 4.0"}))
    assert "- `data_licence`: `CC BY 4.0`" in page and "the run does not say" not in page
    assert "- licence: the file does not say" in page


def test_without_routers_nothing_is_claimed(base: Path, tmp_path: Path) -> None:
    source = _source(base, tmp_path)
    page = card(_built(source), source, "b", None)
    assert "without routers" in page
    assert not re.search(r"threshold|Training|adapter|Stock", page)
    assert "merged into 3 weights" in card(_built(source, n_merged=3), source, "b", None)


def test_speeds_are_those_given(base: Path, routers: Routers, tmp_path: Path) -> None:
    source = _source(base, tmp_path)
    (tmp_path / "bench.json").write_text(json.dumps(BENCH))
    page = card(_built(source), source, "b", routers, load_bench(tmp_path / "bench.json"))
    assert "Of `model.gguf` on 2 CPU thread(s), 256 prompt tokens and 64 answer tokens, medians of 5" in (
        page.replace("\n", " ")
    )
    assert "| `off` | 0 of 6 | 100.0 | 20.5 | 1.000 |" in page
    assert "| 1-2, 4 | 3 of 6 | 100.0 | 31.2 | 1.524 |" in page
    assert "somebody" not in page


@pytest.mark.parametrize(
    "change",
    [
        {"rows": []},
        {"rows": [ROW | {"decode_tok_s": float("nan")}]},
        {"rows": [ROW | {"decode_tok_s": -1}]},
        {"rows": [{"skip": "off"}]},
        {"threads": 0},
        {"model": None},
        {"rows": [ROW] * 65},
    ],
)
def test_other_documents_are_refused(change: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "bench.json"
    path.write_text(json.dumps(BENCH | change))
    with pytest.raises(FirstError, match=r"bench\.json.*first-llama bench --json") as caught:
        load_bench(path)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("raw", [b"", b"[]", b"\xff", b"[" * 100_000, b" " * ((1 << 20) + 1)])
def test_no_document_at_all(raw: bytes, tmp_path: Path) -> None:
    (tmp_path / "bench.json").write_bytes(raw)
    with pytest.raises(FirstError) as caught:
        load_bench(tmp_path / "bench.json")
    assert str(caught.value).isprintable()


def test_nothing_of_a_stranger_is_markup(base: Path, routers: Routers, tmp_path: Path) -> None:
    words = dict.fromkeys(("name", "organization", "license", "architecture"), NASTY)
    source = _source(base, tmp_path, **words)
    (tmp_path / "bench.json").write_text(
        json.dumps(BENCH | {"model": NASTY, "rows": [ROW | {"skip": NASTY}]})
    )
    page = card(
        _built(source, path=NASTY.replace("/", "_"), tensor_types={NASTY: 1}, requantized=NASTY),
        source,
        NASTY,
        replace(routers, train={NASTY: NASTY, "b": "`" * 300}),
        load_bench(tmp_path / "bench.json"),
    )
    assert all(line.isprintable() for line in page.splitlines())
    prose, _, rest = page.partition("```sh\n")
    shell, _, rest = rest.partition("\n```\n")
    assert "`" not in shell and shell.count("\n") == 1
    for line in (*prose.splitlines(), *rest.splitlines()):
        assert line.count("`") % 2 == 0
        outside = "".join(line.split("`")[::2])
        assert not re.search(r"[<\[\]*$]|http|www|alert", outside), outside
    assert [line for line in page.splitlines() if line.startswith("#")][1:] == [
        f"## {title}" for title in ("Base model", "File", "Training", "Layers left out", "Usage", "Speed")
    ]
    row = next(line for line in rest.splitlines() if line.startswith("| `a"))
    assert len(re.findall(r"(?<!\\)\|", row)) == 6


def test_code_spans_are_never_empty_or_long() -> None:
    assert code("") == code("\n\x00") == "` `"
    assert len(code("x" * 5000)) == 202
    assert code("a ``` b") == "`a ''' b`"
