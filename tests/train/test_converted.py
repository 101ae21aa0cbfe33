"""Files that llama.cpp's own converter makes of tiny transformers models: one model in all three places.

The folder in training, the converted file in training, and the converted file in the runtime give the same
logits, over the prompt at full depth and over masked decoding.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from first_llama.train.depth import Depth, Example, collate
from first_llama.train.gguf_model import load_base
from tests.driver import Session
from tests.runtime_calls import DECODE, PROMPT, First
from tests.train.conftest import tokens
from tests.train.tiny_transformers import tiny_transformers
from tests.train.upstream_convert import convert

pytestmark = pytest.mark.slow

#: Names in ``tiny_transformers``, with the settings that llama.cpp presupposes: it takes the width of a head
#: for Gemma's score scale, knows the special layers of Gemma 3 and SmolLM3 by their number, and has no window
#: for Phi-3.
MODELS: dict[str, dict[str, Any]] = {
    "llama": {},
    "llama3": {},
    "smollm2": {},
    "smollm3": {"no_rope_layers": [1, 1, 1, 0]},
    "mistral": {},
    "qwen2": {},
    "qwen3": {},
    "gemma": {},
    "gemma2": {"query_pre_attn_scalar": 24},
    "gemma3": {
        "query_pre_attn_scalar": 24,
        "num_hidden_layers": 6,
        "layer_types": ["sliding_attention"] * 5 + ["full_attention"],
    },
    "phi3": {"original_max_position_embeddings": 512},
    "phi3-window": {"original_max_position_embeddings": 512, "sliding_window": None},
    "olmo2": {},
    "granite": {},
}

# All compute in float32, in another order of summation; logits are of the order of 1. ggml looks GELU up in a
# table of half-precision values.
TOLERANCE = dict.fromkeys(MODELS, 1e-3) | dict.fromkeys(("gemma", "gemma2", "gemma3"), 5e-3)

SKIPPED = [1, 2]


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of all models, each with its ``model.gguf``."""
    folders = {name: tmp_path_factory.mktemp(name) for name in MODELS}
    for name, settings in MODELS.items():
        tiny_transformers(name, **settings).save_pretrained(folders[name])
    convert(list(folders.values()))
    return folders


@pytest.mark.parametrize("name", MODELS)
@torch.inference_mode()
def test_folder_file_and_runtime_agree(converted: dict[str, Path], name: str) -> None:
    folder, example = converted[name], Example(tokens(30), tokens(16, seed=1))
    with Session(folder / "model.gguf", kv_f32=True) as session:
        first = First(session)
        first.list(SKIPPED)
        first.phase(PROMPT)
        prompt = session.eval(example.prompt, all_outputs=True)
        first.phase(DECODE)
        decoded = session.steps(example.response[:-1])
        assert first.skipped() == SKIPPED
    assert prompt.std() > 50 * TOLERANCE[name]
    for source in (folder, folder / "model.gguf"):
        depth = Depth(load_base(str(source), torch.float32, torch.device("cpu")))
        batch = collate([example])
        prefix = depth.prompt(batch)
        np.testing.assert_allclose(depth.logits(prefix.output)[0], prompt, atol=TOLERANCE[name], rtol=0)
        keep = torch.ones(1, depth.n_layer, dtype=torch.bool)
        keep[0, SKIPPED] = False
        masked = depth.logits(depth.decode(batch, prefix, keep))[0]
        np.testing.assert_allclose(masked, decoded, atol=TOLERANCE[name], rtol=0)
        full = depth.logits(depth.decode(batch, prefix))[0]
        assert (full - torch.tensor(decoded)).abs().max() > 20 * TOLERANCE[name]
