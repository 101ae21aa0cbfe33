"""Grouped attention, by products or fused, equals the textbook's formula."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from first_llama.errors import FirstError
from first_llama.train import attention
from first_llama.train.attention import additive, fold, grouped_attention

MODULE = torch.nn.Identity()


def textbook(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float, cap: float | None
) -> Tensor:
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    scores = query @ key.transpose(2, 3) * scale
    scores = scores if cap is None else cap * torch.tanh(scores / cap)
    return (scores.masked_fill(~mask, float("-inf")).softmax(-1) @ value).transpose(1, 2)


def parts(rows: int, keys: int, n_key: int = 2, n: int = 2) -> list[Tensor]:
    rng = torch.Generator().manual_seed(rows)
    shapes = [(n, 6, rows, 8), (n, n_key, keys, 8), (n, n_key, keys, 5)]
    return [torch.randn(shape, generator=rng).requires_grad_() for shape in shapes]


def some_mask(rows: int, keys: int, n: int = 2) -> Tensor:
    mask = torch.ones(n, 1, rows, keys, dtype=torch.bool).tril(keys - rows)
    mask[0, :, :, 1:3] = False
    mask[:, :, :, 0] = True
    return mask


@pytest.fixture(params=["products", "fused"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways; CHUNK is small so that a few rows make several chunks, the last one smaller."""
    monkeypatch.setattr(attention, "CHUNK", 4)
    monkeypatch.setattr(attention, "MAX_KEPT", 1 << 25 if request.param == "products" else 0)
    return str(request.param)


def same(got: Tensor, expected: Tensor, inputs: list[Tensor]) -> None:
    """Values and gradients agree; float32, sums of at most 30 terms."""
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
    weight = torch.randn(got.shape, generator=torch.Generator().manual_seed(9))
    got_grads = torch.autograd.grad((got * weight).sum(), inputs)
    for a, b in zip(got_grads, torch.autograd.grad((expected * weight).sum(), inputs), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("n_key", [1, 2, 6])
@pytest.mark.parametrize(("rows", "keys"), [(11, 11), (5, 20), (1, 7)])
def test_causal(way: str, rows: int, keys: int, n_key: int) -> None:
    inputs = parts(rows, keys, n_key)
    mask = torch.ones(rows, keys, dtype=torch.bool).tril(keys - rows)
    got = grouped_attention(MODULE, *inputs, None, scaling=0.3)[0]
    same(got, textbook(*inputs, mask, 0.3, None), inputs)


@pytest.mark.parametrize("form", ["bool", "additive", "folded", "folded bool"])
@pytest.mark.parametrize(("rows", "keys"), [(11, 11), (5, 20), (1, 7)])
def test_masks(way: str, rows: int, keys: int, form: str) -> None:
    inputs, mask = parts(rows, keys), some_mask(rows, keys)
    given = mask if "bool" in form else additive(mask, torch.float32)
    given = fold(given, 3) if "folded" in form else given
    same(grouped_attention(MODULE, *inputs, given)[0], textbook(*inputs, mask, 8**-0.5, None), inputs)


@pytest.mark.parametrize("causal", [True, False])
def test_softcap(way: str, causal: bool) -> None:
    inputs, mask = parts(9, 9), some_mask(9, 9)
    mask = torch.ones(9, 9, dtype=torch.bool).tril() if causal else mask
    got = grouped_attention(MODULE, *inputs, None if causal else mask, scaling=1.0, softcap=0.7)[0]
    same(got, textbook(*inputs, mask, 1.0, 0.7), inputs)
    assert (got - textbook(*inputs, mask, 1.0, None)).abs().max() > 0.01


def test_one_mask_for_the_whole_batch(way: str) -> None:
    inputs, mask = parts(5, 8), some_mask(5, 8)[1:]
    same(grouped_attention(MODULE, *inputs, mask)[0], textbook(*inputs, mask, 8**-0.5, None), inputs)


def test_bfloat16_is_near(way: str) -> None:
    """Scores and weights are rounded to 8 bits: a few times 2**-8 of values of the order of 1."""
    inputs = [item.detach().bfloat16().requires_grad_() for item in parts(11, 11)]
    mask = torch.ones(11, 11, dtype=torch.bool).tril()
    got = grouped_attention(MODULE, *inputs, None)[0]
    expected = textbook(*[item.float() for item in inputs], mask, 8**-0.5, None)
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got.float(), expected, atol=3e-2, rtol=3e-2)


def test_products_serve_gradients_only(monkeypatch: pytest.MonkeyPatch) -> None:
    used = []
    original = attention._products
    monkeypatch.setattr(attention, "_products", lambda *a: used.append(1) or original(*a))
    inputs = parts(5, 5)
    with torch.no_grad():
        quiet = grouped_attention(MODULE, *inputs, None)[0]
    grouped_attention(MODULE, *[item.detach() for item in inputs], None)
    assert not used
    torch.testing.assert_close(grouped_attention(MODULE, *inputs, None)[0], quiet, atol=1e-5, rtol=1e-5)
    assert used


def test_unknown_wishes_are_refused() -> None:
    inputs = parts(3, 3)
    assert grouped_attention(MODULE, *inputs, None, sliding_window=2, use_cache=None)[0].shape == (2, 3, 6, 5)
    with pytest.raises(FirstError, match="Identity needs an attention that knows s_aux"):
        grouped_attention(MODULE, *inputs, None, s_aux=torch.zeros(6))
