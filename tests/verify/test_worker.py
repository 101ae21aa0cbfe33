"""The worker: the logits that a session of the tests gives, and an end of its own for what does not work."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from first_llama import _library
from first_llama.errors import FirstError
from first_llama.verify.worker import N_ANSWER, N_PROMPT, evaluate
from tests.conftest import TinyModel
from tests.driver import Session
from tests.runtime_calls import THRESHOLD, First


def ours() -> Path:
    folder = _library.lib_folder()
    assert folder is not None
    return folder


def test_logits_and_route(tiny_model: TinyModel) -> None:
    path = tiny_model()
    found = evaluate(path, ours(), ours=True)
    assert found.available and found.n_layer == 6 and found.routed_finite
    # flash attention is on by default; a session of the tests has it off by default
    with Session(path, n_ctx=64, n_batch=64, n_ubatch=64, flash=True) as session:
        first = First(session)
        tokens = [7919 * (i + 1) % session.n_vocab for i in range(N_PROMPT + N_ANSWER)]
        first.mode(0)
        prompt = session.eval(tokens[:N_PROMPT], all_outputs=True)
        answer = session.steps(tokens[N_PROMPT:])
        session.clear()
        first.mode(THRESHOLD)
        session.eval(tokens[:N_PROMPT])
        session.steps(tokens[N_PROMPT:])
        skipped = first.skipped()
    np.testing.assert_array_equal(found.logits, np.concatenate([prompt, answer]))
    assert found.skipped == skipped


def test_a_file_without_routers(tiny_model: TinyModel) -> None:
    found = evaluate(tiny_model(routers=False), ours(), ours=True)
    assert not found.available and found.skipped is None
    assert found.logits.shape[0] == N_PROMPT + N_ANSWER


def test_files_and_libraries_that_do_not_work(tiny_model: TinyModel, tmp_path: Path) -> None:
    (tmp_path / "bad.gguf").write_bytes(tiny_model().read_bytes()[:3000])
    with pytest.raises(FirstError, match=r"bad\.gguf does not work") as caught:
        evaluate(tmp_path / "bad.gguf", ours(), ours=True)
    assert "\n" not in str(caught.value)
    with pytest.raises(FirstError, match="does not work with the library in"):
        evaluate(tiny_model(), tmp_path, ours=False)
