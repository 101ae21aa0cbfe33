"""Teacher-forced forward passes at full or reduced depth, over any stack of transformers decoder layers.

One pass over prompt and response gives what the runtime computes token by token: prompt rows run every
layer, response rows run the layers that their sequence keeps, and a layer that is run takes the keys and
values of response rows from their current (possibly bypassed) hidden state. Prompt rows never depend on
the mask, so a prompt is run once and its keys and values serve every mask tried on the response.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from first_llama.train.decoder import Context, Decoder

if TYPE_CHECKING:  # loading a base checks itself with Depth
    from first_llama.train.gguf_model import Base


#: Fewer shared tokens are not run apart on a CPU: two passes cost more than they save.
WORTH_SHARING = 8

#: On other devices a pass costs the starts of its kernels, and must save so many tokens. That 3,700 are too
#: few was measured (docs/training.md), the rest is an estimate.
WORTH_SAVING = 16384


@dataclass(frozen=True)
class Example:
    """A prompt and the answer to learn from, as token ids; both hold at least one, the answer two."""

    prompt: list[int]
    response: list[int]


@dataclass
class Batch:
    """Right-padded examples; a response row is one decode step: it reads a response token, predicts the next.

    Attributes:
        prompt: int64 [B, P].
        prompt_len: int64 [B].
        rows: int64 [B, R], the response tokens that decode steps read (all but the last).
        targets: int64 [B, R], the response tokens that they should give (all but the first).
        row_mask: bool [B, R], False on padding.
        shared: first tokens that all prompts have in common (a system prompt, say), not the whole of any.
    """

    prompt: Tensor
    prompt_len: Tensor
    rows: Tensor
    targets: Tensor
    row_mask: Tensor
    shared: int = 0

    @property
    def prompt_mask(self) -> Tensor:
        """Bool [B, P], False on padding."""
        return torch.arange(self.prompt.shape[1], device=self.prompt.device) < self.prompt_len[:, None]


def collate(examples: Sequence[Example], device: torch.device | None = None) -> Batch:
    """Pad examples into one batch."""

    def padded(lists: list[list[int]]) -> Tensor:
        width = max(len(item) for item in lists)
        return torch.tensor([item + [0] * (width - len(item)) for item in lists], device=device)

    device = device or torch.device("cpu")
    n_rows = torch.tensor([len(e.response) - 1 for e in examples], device=device)
    rows = padded([e.response[:-1] for e in examples])
    return Batch(
        prompt=padded([e.prompt for e in examples]),
        prompt_len=torch.tensor([len(e.prompt) for e in examples], device=device),
        rows=rows,
        targets=padded([e.response[1:] for e in examples]),
        row_mask=torch.arange(rows.shape[1], device=device) < n_rows[:, None],
        shared=worth_sharing(shared_tokens([e.prompt for e in examples]), len(examples), device),
    )


def shared_tokens(prompts: Sequence[list[int]]) -> int:
    """Return how many first tokens all prompts share, leaving each at least one; 0 for a single prompt."""
    first, last = min(prompts), max(prompts)  # in their order, whatever these two share lies between, too
    shared = 0
    while shared < min(map(len, prompts)) - 1 and first[shared] == last[shared]:
        shared += 1
    return shared if len(prompts) > 1 else 0


def worth_sharing(shared: int, n_prompts: int, device: torch.device) -> int:
    """Return how many of the shared tokens to run once for all prompts: all, or 0 where it does not pay."""
    saved = shared * (n_prompts - 1)
    pays = shared >= WORTH_SHARING if device.type == "cpu" else saved >= WORTH_SAVING
    return shared if pays else 0


class PromptCache:
    """Keys and values of the prompt, in the shape of a transformers cache as attention layers use it.

    While ``recording`` it stores what it is given, behind what was ``before``; afterwards it puts the stored
    prompt in front of the keys and values of the response, and stores nothing.
    """

    def __init__(self) -> None:
        """Start empty and recording."""
        self.recording = True
        self.store: dict[int, tuple[Tensor, Tensor]] = {}
        self.before: dict[int, tuple[Tensor, Tensor]] = {}

    @classmethod
    def holding(cls, layer: int, keys: Tensor, values: Tensor) -> PromptCache:
        """Return a cache that holds what one layer stored for a prompt and records no more."""
        cache = cls()
        cache.recording = False
        cache.store[layer] = (keys, values)
        return cache

    def expanded(self, size: int) -> PromptCache:
        """Return a recording cache in which each of ``size`` sequences has what this one sequence stored."""
        cache = PromptCache()
        for layer, pair in self.store.items():
            keys, values = (item.expand(size, -1, -1, -1) for item in pair)
            cache.before[layer] = (keys, values)
        return cache

    def front(self, layer: int) -> tuple[Tensor, Tensor] | None:
        """Return what stands in front of what a layer stores next."""
        return (self.before if self.recording else self.store).get(layer)

    def update(
        self, keys: Tensor, values: Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """Return the keys and values [B, heads, tokens, head_dim] that a layer's rows attend to."""
        front = self.front(layer_idx)
        if front is not None:
            keys, values = torch.cat([front[0], keys], dim=2), torch.cat([front[1], values], dim=2)
        if self.recording:
            self.store[layer_idx] = (keys, values)
        return keys, values


@dataclass
class Prefix:
    """A prompt that was run at full depth.

    Attributes:
        cache: its keys and values.
        inputs: the input of each layer at every prompt token, n_layer tensors [B, P, n_embd].
        output: the last layer's output [B, P, n_embd].
    """

    cache: PromptCache
    inputs: list[Tensor]
    output: Tensor


class GrowingCache(PromptCache):
    """Keys and values of prompts with room for tokens decoded one by one, in place."""

    def __init__(self, prompt: PromptCache, room: int) -> None:
        """Copy a prompt's cache and make room for so many tokens."""
        super().__init__()
        self.recording = False
        keys = prompt.store[0][0]
        self.length = keys.shape[2]
        for layer, pair in prompt.store.items():
            spaces = [torch.nn.functional.pad(item, (0, 0, 0, room)) for item in pair]
            self.store[layer] = (spaces[0], spaces[1])

    def update(
        self, keys: Tensor, values: Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """Store one more token of every sequence; ``length`` moves on when all layers have run."""
        stored, end = self.store[layer_idx], self.length + 1
        stored[0][:, :, self.length : end] = keys
        stored[1][:, :, self.length : end] = values
        return stored[0][:, :, :end], stored[1][:, :, :end]

    def shrink(self, index: Tensor) -> None:
        """Keep some of the sequences (int64 [b])."""
        self.store = {layer: (k[index], v[index]) for layer, (k, v) in self.store.items()}


class Depth:
    """Runs the layers of a frozen base model at any depth."""

    def __init__(self, base: Base, checkpointing: bool = False) -> None:
        """Take the layers of a base model.

        Args:
            base: the model.
            checkpointing: keep no activations inside layers for gradients and run each layer once more in the
                backward pass: less memory, about a third more computation.

        Raises:
            FirstError: if the model's layers cannot be run one by one.
        """
        self.base = base
        self.decoder = Decoder(base.model)
        self.checkpointing = checkpointing

    @property
    def n_layer(self) -> int:
        """Number of layers."""
        return len(self.decoder.layers)

    def prompt(self, batch: Batch, grad: bool = False) -> Prefix:
        """Run prompts through every layer; ``grad`` lets gradients flow into them, for adapters.

        Routers alone need none: nothing that a prompt runs is trained then. Tokens that all prompts share are
        run once for all of them.
        """
        size, shared = len(batch.prompt), batch.shared
        with torch.set_grad_enabled(grad and torch.is_grad_enabled()):
            if not shared:
                prefix = self._prompt(batch.prompt, PromptCache())
            else:
                head = self._prompt(batch.prompt[:1, :shared], PromptCache())
                tail = self._prompt(batch.prompt[:, shared:], head.cache.expanded(size))
                prefix = _joined(head, tail, size)
        prefix.cache.recording = False
        return prefix

    def _prompt(self, tokens: Tensor, cache: PromptCache) -> Prefix:
        """Run tokens [B, Q] that follow what the cache holds."""
        past = cache.before[0][0].shape[2] if cache.before else 0
        positions = torch.arange(past + tokens.shape[1], device=tokens.device).expand(len(tokens), -1)
        hidden, inputs = self.decoder.embed(tokens), []
        run = self.context(hidden, positions[:, past:], positions, None)
        for index in range(self.n_layer):
            inputs.append(hidden)
            hidden = self.layer(index, hidden, run, cache)
        return Prefix(cache, inputs, hidden)

    def step(
        self, tokens: Tensor, positions: Tensor, keys: Tensor, valid: Tensor, cache: GrowingCache
    ) -> Tensor:
        """Decode one token of each sequence at full depth; returns the last layer's output [B, n_embd].

        Args:
            tokens: int64 [B].
            positions: int64 [B].
            keys: int64 [B, K], positions of all cached tokens and this one.
            valid: bool [B, K], False on padding.
            cache: the sequences so far; this token is added.
        """
        with torch.no_grad():
            hidden = self.decoder.embed(tokens[:, None])
            run = self.context(hidden, positions[:, None], keys, valid[:, None])
            for index in range(self.n_layer):
                hidden = self.layer(index, hidden, run, cache)
        cache.length += 1
        return hidden[:, 0]

    def embed(self, batch: Batch) -> Tensor:
        """Return the input of layer 0 at response rows, [B, R, n_embd]."""
        return self.decoder.embed(batch.rows)

    def decode(
        self,
        batch: Batch,
        prefix: Prefix,
        keep: Tensor | None = None,
        start: int = 0,
        hidden: Tensor | None = None,
        trace: list[Tensor] | None = None,
    ) -> Tensor:
        """Run response rows through layers start.. and return the last layer's output [B, R, n_embd].

        Args:
            batch: the examples.
            prefix: their prompts, run at full depth.
            keep: [B, n_layer]. Bool: a hard mask, False layers are not computed. Float: the soft mixture
                h + keep * (layer(h) - h), through which gradients flow. None keeps everything.
            start: first layer to run.
            hidden: its input [B, R, n_embd]; the token embeddings by default.
            trace: when given, the input of every layer run is appended to it.
        """
        hidden = self.embed(batch) if hidden is None else hidden
        offset = batch.prompt_len[:, None]
        positions = offset + torch.arange(batch.rows.shape[1], device=offset.device)
        prompt_positions = torch.arange(batch.prompt.shape[1], device=offset.device).expand_as(batch.prompt)
        run = self.context(
            hidden,
            positions,
            torch.cat([prompt_positions, positions], dim=1),
            torch.cat([batch.prompt_mask, batch.row_mask], dim=1)[:, None, :],
        )
        for index in range(start, self.n_layer):
            if trace is not None:
                trace.append(hidden)
            column = None if keep is None else keep[:, index]
            if column is None or (column.dtype == torch.bool and bool(column.all())):
                hidden = self.layer(index, hidden, run, prefix.cache)
            elif column.dtype == torch.bool:
                hidden = self._hard(index, hidden, run, prefix.cache, column)
            else:
                full = self.layer(index, hidden, run, prefix.cache)
                hidden = hidden + column[:, None, None].to(hidden.dtype) * (full - hidden)
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        """Return float32 logits [..., n_vocab] of the last layer's output."""
        return self.head(self.decoder.norm(hidden))

    def head(self, hidden: Tensor) -> Tensor:
        """Return float32 logits [..., n_vocab] of hidden states that went through the final norm."""
        return self.decoder.head(hidden)

    def _hard(self, index: int, hidden: Tensor, run: Context, cache: PromptCache, column: Tensor) -> Tensor:
        kept = column.nonzero()[:, 0]
        if not len(kept):
            return hidden
        keys, values = cache.store[index]
        part = PromptCache.holding(index, keys[kept], values[kept])
        selected = run.select(kept, self.decoder.kinds[index])
        return hidden.index_copy(0, kept, self.layer(index, hidden[kept], selected, part))

    def layer(self, index: int, hidden: Tensor, run: Context, cache: PromptCache) -> Tensor:
        """Run one layer; its keys and values go to the cache."""
        if not (self.checkpointing and torch.is_grad_enabled()):
            return self.decoder.layer(index, hidden, run, cache)

        front = cache.front(index) or ()

        def again(hidden: Tensor, *front: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            # A cache of its own: by the backward pass the prompt's no longer records.
            part = PromptCache()
            if front:
                part.before[index] = (front[0], front[1])
            out = self.decoder.layer(index, hidden, run, part)
            return (out, *part.store[index])

        out, keys, values = checkpoint(again, hidden, *front, use_reentrant=False)
        if cache.recording:
            cache.store[index] = (keys, values)
        result: Tensor = out
        return result

    def context(self, hidden: Tensor, queries: Tensor, keys: Tensor, valid: Tensor | None) -> Context:
        """Build masks and rotary tables for layers, see ``Decoder.context``."""
        return self.decoder.context(hidden, queries, keys, valid)


def _joined(head: Prefix, tail: Prefix, size: int) -> Prefix:
    """Return prompts in one piece: what all share, run as one sequence, before what each has of its own."""

    def joined(first: Tensor, second: Tensor) -> Tensor:
        return torch.cat([first.expand(size, -1, -1), second], dim=1)

    inputs = [joined(*pair) for pair in zip(head.inputs, tail.inputs, strict=True)]
    return Prefix(tail.cache, inputs, joined(head.output, tail.output))


def kl_rows(teacher: Tensor, student: Tensor) -> Tensor:
    """KL(teacher || student) in nats at each row; both are log-probabilities [..., n_vocab]."""
    return (teacher.exp() * (teacher - student)).sum(-1)


def sequence_mean(values: Tensor, row_mask: Tensor) -> Tensor:
    """Mean of row values [B, R] over each sequence's real rows, [B]."""
    return (values * row_mask).sum(1) / row_mask.sum(1).clamp(min=1)
