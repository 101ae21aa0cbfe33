"""A GGUF file gives the same model in transformers as in llama.cpp."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGUFReader

from first_llama.errors import FirstError
from first_llama.train import gguf_model
from first_llama.train.depth import Depth, Example, collate
from first_llama.train.gguf_model import Base, load_base, load_tokenizer
from tests.driver import Session
from tests.runtime_calls import DECODE, PROMPT, First
from tests.tiny_models import MORE_ARCHITECTURES, write_tiny
from tests.train.conftest import tokens

Weights = list[tuple[str, torch.Tensor]]

DENSE = ["llama", "qwen2", "qwen3", "gemma3", *MORE_ARCHITECTURES]

# Both sides compute in F32, in another order of summation; logits are of the order of 1. ggml looks GELU up
# in a table of half-precision values; the others use SiLU in full precision.
TOLERANCE = dict.fromkeys(DENSE, 1e-3) | dict.fromkeys(("gemma", "gemma2", "gemma3"), 5e-3)


@pytest.mark.parametrize("arch", DENSE)
@torch.inference_mode()
def test_logits_are_llama_cpps(tiny_base: Callable[[str], Base], arch: str) -> None:
    base = tiny_base(arch)
    prompt = tokens(40)
    with Session(base.source, kv_f32=True) as session:
        expected = session.eval(prompt, all_outputs=True)
    logits = base.model(torch.tensor([prompt])).logits[0].numpy()
    assert expected.std() > 50 * TOLERANCE[arch]
    np.testing.assert_allclose(logits, expected, atol=TOLERANCE[arch], rtol=0)


@pytest.mark.parametrize("arch", DENSE)
@torch.inference_mode()
def test_masked_decode_is_the_runtimes(tiny_base: Callable[[str], Base], arch: str) -> None:
    """What training computes with hard masks is what a prompt's answer is decoded with."""
    base, skipped = tiny_base(arch), [2, 3]
    example = Example(tokens(30), tokens(21, seed=1))
    with Session(base.source, kv_f32=True) as session:
        first = First(session)
        first.list(skipped)
        first.phase(PROMPT)
        session.eval(example.prompt)
        first.phase(DECODE)
        expected = session.steps(example.response[:-1])
        assert first.skipped() == skipped
    depth, batch = Depth(base), collate([example])
    keep = torch.ones(1, depth.n_layer, dtype=torch.bool)
    keep[0, skipped] = False
    prefix = depth.prompt(batch)
    logits = depth.logits(depth.decode(batch, prefix, keep))[0].numpy()
    np.testing.assert_allclose(logits, expected, atol=TOLERANCE[arch], rtol=0)
    full = depth.logits(depth.decode(batch, prefix))[0].numpy()
    assert np.abs(full - expected).max() > 20 * TOLERANCE[arch]


@torch.inference_mode()
def test_long_rope_up_to_its_limit(tmp_path: Path) -> None:
    """llama.cpp takes the short factors in a context of at most so many tokens, training up to as many."""
    limit, prompt = 256, tokens(60)  # llama.cpp makes contexts of multiples of 256
    base = load_base(str(write_tiny(tmp_path / "m.gguf", "phi3", long_rope=limit)), torch.float32)
    got = []
    for n_ctx in (limit, 2 * limit):
        with Session(base.source, kv_f32=True, n_ctx=n_ctx) as session:
            got.append(session.eval(prompt, all_outputs=True))
    depth = Depth(base)
    logits = depth.logits(depth.prompt(collate([Example(prompt, [1, 2])])).output)[0].numpy()
    np.testing.assert_allclose(logits, got[0], atol=TOLERANCE["phi3"], rtol=0)
    assert np.abs(got[1] - got[0]).max() > 20 * TOLERANCE["phi3"]
    depth.prompt(collate([Example(tokens(limit), [1, 2])]))
    with pytest.raises(FirstError, match="more than 256 tokens"):
        depth.prompt(collate([Example(tokens(limit + 1), [1, 2])]))


@pytest.mark.parametrize(
    ("arch", "key", "value", "reason"),
    [
        ("llama", "rope.scaling.type", "yarn", "rope scaling 'yarn'"),
        ("llama", "rope.dimension_count", 8, "rotates a part of each head"),
        ("olmo2", "attention.sliding_window", 16, "sliding window"),
        ("granite", "rope.scaling.finetuned", False, "no rotary positions"),
        ("gemma2", "rope.freq_base_swa", 500.0, "rotary frequencies of their own"),
    ],
)
def test_metadata_that_no_mapping_covers(
    tmp_path: Path, arch: str, key: str, value: object, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_tiny(tmp_path / "m.gguf", arch)
    read = gguf_model._read

    def changed(path: Path) -> object:
        reader, meta = read(path)
        return reader, replace(meta, values={**meta.values, f"{arch}.{key}": value})

    monkeypatch.setattr(gguf_model, "_read", changed)
    with pytest.raises(FirstError, match=f"{reason}.*give the Hugging Face folder instead"):
        load_base(str(path), torch.float32)


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
    with pytest.raises(
        FirstError, match="cannot train architecture 'qwen3moe' from a GGUF file; give the Hugging"
    ):
        load_base(str(path), torch.float32)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda weights: weights[:-1], "is missing"),
        (lambda weights: [*weights, weights[0]], "is none of its weights, or was there before"),
        (lambda weights: [*weights, ("model.what", weights[0][1])], "model.what is none of its weights"),
        (
            lambda weights: [(weights[0][0], weights[0][1][:1]), *weights[1:]],
            r"is \[1, \d+\], not \[",
        ),
    ],
)
def test_weights_that_do_not_fit(
    change: Callable[[Weights], Weights], reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = gguf_model._weights
    monkeypatch.setattr(gguf_model, "_weights", lambda *given: iter(change(list(read(*given)))))
    with pytest.raises(FirstError, match=f"m.gguf: tensors do not fit a llama model .*{reason}"):
        load_base(str(write_tiny(tmp_path / "m.gguf")), torch.float32)


def test_weights_are_in_memory_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alive: list[weakref.ref[torch.Tensor]] = []
    read = gguf_model._weights

    def watched(*given: Any) -> Iterator[tuple[str, torch.Tensor]]:
        for name, values in read(*given):
            alive.append(weakref.ref(values))
            yield name, values
            del values
            assert sum(one() is not None for one in alive) <= 1

    monkeypatch.setattr(gguf_model, "_weights", watched)
    load_base(str(write_tiny(tmp_path / "m.gguf")), torch.float32)
    assert len(alive) > 10 and not any(one() is not None for one in alive)


def test_missing_and_broken_files(tmp_path: Path) -> None:
    with pytest.raises(FirstError, match="no such file"):
        load_base(str(tmp_path / "none.gguf"), torch.float32)
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"not a model at all" * 10)
    with pytest.raises(FirstError, match=r"broken\.gguf"):
        load_base(str(broken), torch.float32)


def test_tokenizer_has_the_files_chat_template(tiny_file: Path) -> None:
    tokenizer = load_tokenizer(str(tiny_file))
    text = tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False)
    assert text == "<|im_start|>user\nHi<|im_end|>\n"


def test_marks_are_those_of_the_file(tiny_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where transformers takes another token for one: for SmolLM2 5.17 takes <|im_start|> as the end."""
    load = gguf_model.AutoTokenizer.from_pretrained

    def mistaken(*arguments: Any, **named: Any) -> Any:
        tokenizer = load(*arguments, **named)
        tokenizer.eos_token, tokenizer.bos_token = "<|im_start|>", "<|im_end|>"
        return tokenizer

    monkeypatch.setattr(gguf_model.AutoTokenizer, "from_pretrained", mistaken)
    tokenizer = load_tokenizer(str(tiny_file))
    fields = GGUFReader(tiny_file).fields
    assert tokenizer.eos_token_id == fields["tokenizer.ggml.eos_token_id"].contents()
    assert tokenizer.bos_token_id == fields["tokenizer.ggml.bos_token_id"].contents()
