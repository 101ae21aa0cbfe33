"""What stage L trained is what the runtime runs: an adapter merged into a GGUF file, on each architecture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from first_llama.convert.embed import embed
from first_llama.train.adapter import Adapter
from first_llama.train.depth import Depth, Example, collate
from first_llama.train.gguf_model import load_base
from tests.driver import Session
from tests.runtime_calls import DECODE, PROMPT, First
from tests.tiny_models import write_tiny
from tests.train.conftest import tokens
from tests.train.test_gguf_model import DENSE, TOLERANCE

SKIPPED = [2, 3]


@pytest.mark.parametrize("arch", DENSE)
@torch.no_grad()
def test_masked_decode_with_the_adapter_is_the_merged_files(tmp_path: Path, arch: str) -> None:
    path = write_tiny(tmp_path / "m.gguf", arch)
    base = load_base(str(path), torch.float32, torch.device("cpu"))
    adapter = Adapter(base, rank=2, alpha=2.0, seed=0)
    torch.manual_seed(1)
    for parameter in adapter.parameters():  # as the file stores them: float16
        parameter.copy_((0.1 * torch.randn_like(parameter)).half())
    adapter.save(tmp_path)
    written = embed(path, tmp_path, tmp_path / "merged.gguf")
    assert written.n_merged == len(adapter.layers) == (24 if arch == "phi3" else 42)

    example = Example(tokens(20), tokens(13, seed=1))
    depth, batch = Depth(base), collate([example])
    keep = torch.ones(1, depth.n_layer, dtype=torch.bool)
    keep[0, SKIPPED] = False
    logits = depth.logits(depth.decode(batch, depth.prompt(batch), keep))[0].numpy()
    found = []
    for file in (tmp_path / "merged.gguf", path):
        with Session(file, kv_f32=True) as session:
            first = First(session)
            first.list(SKIPPED)
            first.phase(PROMPT)
            session.eval(example.prompt)
            first.phase(DECODE)
            found.append(session.steps(example.response[:-1]))
    np.testing.assert_allclose(found[0], logits, atol=TOLERANCE[arch], rtol=0)
    assert np.abs(found[1] - logits).max() > 20 * TOLERANCE[arch]
