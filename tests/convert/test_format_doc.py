"""docs/format.md agrees with the code: its table of keys, its example and its list of JSON names."""

from __future__ import annotations

import re
from pathlib import Path

from first_llama.convert.container import Record
from first_llama.convert.inspect import inspect
from first_llama.convert.keys import KEYS
from first_llama.convert.scan import scan

DOC = (Path(__file__).parents[2] / "docs" / "format.md").read_text(encoding="utf-8")


def test_the_table_lists_the_keys_with_their_types() -> None:
    rows = re.findall(r"^\| `(first\.[a-z_.]+)` \| ([^|]+) \|", DOC, re.MULTILINE)
    expected = [
        (
            k.name,
            *(["f32[]", "u64[]"] if k.blocks else [Record(k.name, k.type, k.is_array, 0, b"", 0).type_name]),
        )
        for k in KEYS
    ]
    assert [(name, *types.split(" or ")) for name, types in rows] == expected


def test_the_example_is_what_embed_writes(embedded: Path) -> None:
    rows = re.findall(r"^    (first\.\S+) +(\S+) ", DOC, re.MULTILINE)
    written = {r.key: r.type_name for r in scan(embedded).records}
    assert rows == [(key, written[key]) for key, _ in rows]
    assert [key for key, _ in rows] == [k.name for k in KEYS] + ["first.train.steps"]


def test_the_json_names_are_those_of_inspect(embedded: Path) -> None:
    table = DOC[DOC.index("| name | value |") :]
    names = [
        n for row in re.findall(r"^\| (`.*?) \|", table, re.MULTILINE) for n in re.findall(r"`(\w+)`", row)
    ]
    assert sorted(names) == sorted(inspect(embedded).document())
