"""The whole method in plain PyTorch, F32, one sequence: what the C++ runtime is compared with.

Written from the description of the method, not from the C++ code: prompt rows run every layer and are scored;
decode rows leave the skipped layers out, which still store the K and V of the bypassed state; later prompt
rows read them.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGUFReader

from first_llama.convert.routers import Routers

Tensor = torch.Tensor


def rms(x: Tensor, eps: float) -> Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps)


class Reference:
    """A dense llama, qwen2 or qwen3 model read from an F32 GGUF file."""

    def __init__(self, path: Path) -> None:
        reader = GGUFReader(path)
        self.weights = {t.name: torch.tensor(t.data.copy()) for t in reader.tensors}
        self.arch = str(reader.fields["general.architecture"].contents())
        self.n_layer = self._key(reader, "block_count")
        self.n_head = self._key(reader, "attention.head_count")
        self.n_head_kv = self._key(reader, "attention.head_count_kv")
        self.eps = float(reader.fields[f"{self.arch}.attention.layer_norm_rms_epsilon"].contents())
        self.rope_base = float(reader.fields[f"{self.arch}.rope.freq_base"].contents())
        self.head = self.weights["blk.0.attn_q.weight"].shape[0] // self.n_head
        self.k: list[Tensor] = [torch.zeros(0, self.n_head_kv, self.head) for _ in range(self.n_layer)]
        self.v: list[Tensor] = [torch.zeros(0, self.n_head_kv, self.head) for _ in range(self.n_layer)]

    def _key(self, reader: GGUFReader, name: str) -> int:
        return int(reader.fields[f"{self.arch}.{name}"].contents())

    def rows(
        self, tokens: list[int], skip: list[int], routers: Routers | None = None
    ) -> tuple[Tensor, Tensor]:
        """Append rows.

        Returns:
            logits [n, n_vocab] and, with routers, the scores of these rows [n, n_router]. Their stand-ins
            take the place of skipped layers.
        """
        hidden = self.weights["token_embd.weight"][tokens]
        scores = []
        for il in range(self.n_layer):
            if routers is not None and il in routers.layers:
                scores.append(self._score(hidden, routers, list(routers.layers).index(il)))
            normed = rms(hidden, self.eps) * self.weights[f"blk.{il}.attn_norm.weight"]
            attention = self._attention(normed, il)
            if il in skip:
                hidden = hidden if routers is None else self._without(hidden, routers, il)
                continue
            hidden = hidden + attention
            hidden = hidden + self._feed_forward(hidden, il)
        normed = rms(hidden, self.eps) * self.weights["output_norm.weight"]
        output = self.weights.get("output.weight", self.weights["token_embd.weight"])
        return normed @ output.T, torch.stack(scores, 1) if scores else torch.zeros(len(tokens), 0)

    def _score(self, hidden: Tensor, routers: Routers, index: int) -> Tensor:
        inputs = rms(hidden, routers.norm_eps) if routers.norm == "rms" else hidden
        logit = inputs @ torch.tensor(routers.weight[index]) + float(routers.bias[index])
        return torch.sigmoid(logit)

    def _without(self, hidden: Tensor, routers: Routers, il: int) -> Tensor:
        maps = routers.stand_ins
        if maps is None:
            return hidden
        row = list(routers.layers).index(il)
        inputs = rms(hidden, routers.norm_eps) if routers.norm == "rms" else hidden
        inner = self.product(maps.down[row], inputs)
        return hidden + self.product(maps.up[row], inner) + torch.tensor(maps.bias[row])

    def product(self, matrix: np.ndarray[Any, Any], x: Tensor) -> Tensor:
        """Return a stand-in's matrix [m, n] times rows of x [rows, n]."""
        return x @ torch.tensor(matrix).T

    def _project(self, x: Tensor, il: int, name: str, n_head: int) -> Tensor:
        y = x @ self.weights[f"blk.{il}.attn_{name}.weight"].T
        bias = self.weights.get(f"blk.{il}.attn_{name}.bias")
        y = (y if bias is None else y + bias).view(len(x), n_head, self.head)
        norm = self.weights.get(f"blk.{il}.attn_{name}_norm.weight")
        return y if norm is None else rms(y, self.eps) * norm

    def _rope(self, x: Tensor, start: int) -> Tensor:
        half = self.head // 2
        angles = torch.arange(start, start + len(x))[:, None] * self.rope_base ** (-torch.arange(half) / half)
        cos, sin = angles.cos()[:, None], angles.sin()[:, None]
        if self.arch == "llama":  # neighbouring elements are a pair
            even, odd = x[..., 0::2], x[..., 1::2]
            return torch.stack((even * cos - odd * sin, even * sin + odd * cos), -1).flatten(-2)
        first, second = x[..., :half], x[..., half:]
        return torch.cat((first * cos - second * sin, first * sin + second * cos), -1)

    def _attention(self, x: Tensor, il: int) -> Tensor:
        past, n = len(self.k[il]), len(x)
        q = self._rope(self._project(x, il, "q", self.n_head), past)
        self.k[il] = torch.cat((self.k[il], self._rope(self._project(x, il, "k", self.n_head_kv), past)))
        self.v[il] = torch.cat((self.v[il], self._project(x, il, "v", self.n_head_kv)))
        group = self.n_head // self.n_head_kv
        k, v = self.k[il].repeat_interleave(group, 1), self.v[il].repeat_interleave(group, 1)
        logits = torch.einsum("qhd,khd->hqk", q, k) / math.sqrt(self.head)
        future = torch.arange(past + n)[None, :] > torch.arange(past, past + n)[:, None]
        weights = logits.masked_fill(future, -math.inf).softmax(-1)
        mixed = torch.einsum("hqk,khd->qhd", weights, v).reshape(n, -1)
        return mixed @ self.weights[f"blk.{il}.attn_output.weight"].T

    def _feed_forward(self, hidden: Tensor, il: int) -> Tensor:
        x = rms(hidden, self.eps) * self.weights[f"blk.{il}.ffn_norm.weight"]
        gate = torch.nn.functional.silu(x @ self.weights[f"blk.{il}.ffn_gate.weight"].T)
        up = x @ self.weights[f"blk.{il}.ffn_up.weight"].T
        return (gate * up) @ self.weights[f"blk.{il}.ffn_down.weight"].T
