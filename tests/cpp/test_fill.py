"""K and V of skipped layers are written, never left as whatever the memory held before."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.cpp.samples import tokens
from tests.driver import F32, Session
from tests.runtime_calls import DECODE, PROMPT, First
from tests.tiny_models import ARCHITECTURES, write_tiny

N_CTX = 256


def eval_constant(session: Session, value: float, n: int) -> None:
    """Evaluate n rows whose input embedding is the value everywhere."""
    llama = session.llama
    n_embd = llama.llama_model_n_embd(session.model)
    batch = llama.llama_batch_init(n, n_embd, 1)
    batch.n_tokens = n
    for i in range(n):
        batch.pos[i], batch.logits[i], batch.n_seq_id[i], batch.seq_id[i][0] = i, i == 0, 1, 0
    np.ctypeslib.as_array(batch.embd, (n * n_embd,))[:] = value
    assert llama.llama_decode(session.ctx, batch) == 0
    llama.llama_batch_free(batch)


def poison(session: Session, value: float) -> None:
    """Fill every cell of the KV cache with what the model makes of hidden states of this value.

    NaN embeddings give NaN in K and V of every layer. Clearing the cache without its data then frees the
    cells and keeps their content, as reusing a slot does.
    """
    eval_constant(session, value, N_CTX)
    session.llama.llama_memory_clear(session.memory, False)


def two_turns(session: Session, skip: list[int]) -> F32:
    """A prompt, 20 decode steps that skip, and a second prompt at full depth that reads what they stored."""
    first = First(session)
    first.list(skip)
    first.phase(PROMPT)
    session.eval(tokens(30))
    first.phase(DECODE)
    session.steps(tokens(20, seed=1))
    first.phase(PROMPT)
    return session.eval(tokens(15, seed=2), all_outputs=True)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_second_turn_reads_no_unwritten_memory(tmp_path: Path, arch: str) -> None:
    path = write_tiny(tmp_path / "m.gguf", arch)
    with Session(path, n_ctx=N_CTX, n_batch=N_CTX, flash=True) as clean:
        expected = two_turns(clean, [1, 3, 4])
    with Session(path, n_ctx=N_CTX, n_batch=N_CTX, flash=True) as session:
        # flash attention passes over masked cells, so even NaN in cells that no row may read is harmless
        poison(session, np.nan)
        logits = two_turns(session, [1, 3, 4])
    assert np.isfinite(logits).all()
    np.testing.assert_array_equal(logits, expected)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_poison_spreads(tmp_path: Path, arch: str) -> None:
    """The test above can fail: a row that reads poisoned cells has no finite logits."""
    path = write_tiny(tmp_path / "m.gguf", arch)
    with Session(path, n_ctx=N_CTX, n_batch=N_CTX, flash=True) as session:
        eval_constant(session, np.nan, 8)
        session.n_past = 8
        assert np.isnan(session.eval(tokens(1))).any()
