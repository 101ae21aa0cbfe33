"""verify: what is sound passes, and each kind of damage fails its own check."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from first_llama.convert.embed import embed
from first_llama.errors import FirstError
from first_llama.verify import checks as module
from first_llama.verify.checks import Check, load, passed, verify
from first_llama.verify.worker import Evaluation
from tests.adapters import random_matrices, write_adapter
from tests.conftest import TinyModel
from tests.driver import stock_folder
from tests.tiny_models import random_routers, write_tiny


def marks(checks: list[Check]) -> dict[str, bool | None]:
    return {check.name: check.ok for check in checks}


SOUND = {
    **dict.fromkeys(("file", "routers", "fingerprint", "loads", "runtime", "routes"), True),
    "stock": True,
}


def test_a_sound_file(tiny_model: TinyModel) -> None:
    assert stock_folder().is_dir()
    checks = verify(tiny_model(), base=tiny_model(routers=False))
    assert marks(checks) == SOUND | {"base": True}
    assert passed(checks)
    assert "bit for bit" in checks[-1].detail


def test_a_file_without_routers(tiny_model: TinyModel) -> None:
    found = marks(verify(tiny_model("qwen2", routers=False)))
    assert found == SOUND | dict.fromkeys(("routers", "fingerprint", "routes"))


def test_another_base_fails(tiny_model: TinyModel, tmp_path: Path) -> None:
    other = write_tiny(tmp_path / "other.gguf", seed=1)
    checks = verify(tiny_model(), base=other, stock=tmp_path / "none")
    assert marks(checks) == SOUND | {"stock": None, "base": False}
    assert not passed(checks) and "differ" in checks[-1].detail


def test_a_merged_file_has_no_base(tiny_model: TinyModel, tmp_path: Path) -> None:
    from first_llama.convert.run_folder import save_run

    base = tiny_model(routers=False)
    save_run(tmp_path / "run", random_routers())
    write_adapter(tmp_path / "run" / "adapter", random_matrices())
    embed(base, tmp_path / "run", tmp_path / "merged.gguf")
    checks = verify(tmp_path / "merged.gguf", base=base, stock=tmp_path / "none")
    assert marks(checks) == SOUND | {"stock": None, "base": None}
    assert passed(checks)


def test_routers_of_another_model(tiny_model: TinyModel, tmp_path: Path) -> None:
    raw = tiny_model().read_bytes()
    at = raw.index(b"fnv1a64:") + 8
    (tmp_path / "a.gguf").write_bytes(raw[:at] + b"0" * 16 + raw[at + 16 :])
    checks = verify(tmp_path / "a.gguf", stock=tmp_path / "none")
    assert marks(checks)["routers"] is marks(checks)["fingerprint"] is False
    # the runtime refuses them as well, and runs every layer
    assert marks(checks)["loads"] is marks(checks)["runtime"] is True
    with pytest.raises(FirstError, match="another model"):
        load(tmp_path / "a.gguf")


def test_a_file_that_is_cut_short(tiny_model: TinyModel, tmp_path: Path) -> None:
    (tmp_path / "cut.gguf").write_bytes(tiny_model().read_bytes()[:-4000])
    checks = verify(tmp_path / "cut.gguf")
    assert marks(checks) == {"file": False}
    assert marks(verify(tmp_path / "no.gguf")) == {"file": False}


def evaluation(**changes: object) -> Evaluation:
    sound = Evaluation(6, True, "", [2], True, np.zeros((32, 9), np.float32))
    return replace(sound, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"logits": np.full((32, 9), np.nan, np.float32)}, "loads"),
        ({"available": False, "status": "no"}, "runtime"),
        ({"routed_finite": False}, "routes"),
    ],
)
def test_what_the_runtime_says_counts(
    changes: dict[str, object],
    name: str,
    tiny_model: TinyModel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "evaluate", lambda *args, **kwargs: evaluation(**changes))
    found = marks(verify(tiny_model(), stock=tmp_path / "none"))
    assert [n for n, ok in found.items() if ok is False] == [name]
    with pytest.raises(FirstError):
        load(tiny_model())


def test_a_stock_library_that_differs(
    tiny_model: TinyModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def evaluate(path: Path, lib: Path, ours: bool, threads: int) -> Evaluation:
        return evaluation(logits=np.full((32, 9), 0 if ours else 0.5, np.float32))

    monkeypatch.setattr(module, "evaluate", evaluate)
    checks = verify(tiny_model(), stock=tmp_path)
    assert marks(checks)["stock"] is False and "up to 0.5" in checks[-1].detail
