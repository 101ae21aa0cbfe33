"""A GGUF file gives the same model in transformers as in llama.cpp."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from first_llama.errors import FirstError
from first_llama.train.gguf_model import Base, load_base, load_tokenizer
from tests.driver import Session
from tests.tiny_models import write_tiny
from tests.train.conftest import tokens


@pytest.mark.parametrize("arch", ["llama", "qwen2", "qwen3", "gemma3"])
@torch.inference_mode()
def test_logits_are_llama_cpps(tiny_base: Callable[[str], Base], arch: str) -> None:
    base = tiny_base(arch)
    prompt = tokens(40)
    with Session(base.source, kv_f32=True) as session:
        expected = session.eval(prompt, all_outputs=True)
    logits = base.model(torch.tensor([prompt])).logits[0].numpy()
    # ggml looks GELU up in a table of half-precision values; the others use SiLU in full precision.
    np.testing.assert_allclose(logits, expected, atol=5e-3 if arch == "gemma3" else 1e-3)


def test_quantized_weights_are_dequantized(tmp_path: Path) -> None:
    plain = load_base(str(write_tiny(tmp_path / "f32.gguf")), torch.float32)
    packed = load_base(str(write_tiny(tmp_path / "q8.gguf", weight_type="Q8_0")), torch.float32)
    a, b = plain.model.lm_head.weight, packed.model.lm_head.weight
    assert b.dtype == torch.float32
    assert 0 < (a - b).abs().max() < 0.02 * a.abs().max()


def test_base_is_frozen_and_marked(tiny_base: Callable[[str], Base]) -> None:
    base = tiny_base("llama")
    assert not base.model.training
    assert not any(p.requires_grad for p in base.model.parameters())
    assert base.fingerprint.startswith("fnv1a64:")


def test_hugging_face_folder_is_the_same_model(tiny_base: Callable[[str], Base], tmp_path: Path) -> None:
    base = tiny_base("qwen2")
    base.model.save_pretrained(tmp_path / "hf")
    again = load_base(str(tmp_path / "hf"), torch.float32)
    prompt = torch.tensor([tokens(10)])
    with torch.inference_mode():
        torch.testing.assert_close(again.model(prompt).logits, base.model(prompt).logits)
    assert again.fingerprint == ""


@pytest.mark.parametrize("arch", ["qwen3moe"])
def test_unsupported_architecture(tmp_path: Path, arch: str) -> None:
    path = write_tiny(tmp_path / "m.gguf", arch)
    with pytest.raises(FirstError, match="cannot train architecture 'qwen3moe'; supported: llama"):
        load_base(str(path))


def test_missing_and_broken_files(tmp_path: Path) -> None:
    with pytest.raises(FirstError, match="no such file"):
        load_base(str(tmp_path / "none.gguf"))
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"not a model at all" * 10)
    with pytest.raises(FirstError, match=r"broken\.gguf"):
        load_base(str(broken))


def test_tokenizer_has_the_files_chat_template(tiny_file: Path) -> None:
    tokenizer = load_tokenizer(str(tiny_file))
    text = tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False)
    assert text == "<|im_start|>user\nHi<|im_end|>\n"
