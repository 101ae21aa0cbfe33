"""Teacher-forced forward passes at full or reduced depth, over any stack of transformers decoder layers.

One pass over prompt and response gives what the runtime computes token by token: prompt rows run every
layer, response rows run the layers that their sequence keeps, and a layer that is run takes the keys and
values of response rows from their current (possibly bypassed) hidden state. Prompt rows never depend on
the mask, so a prompt is run once and its keys and values serve every mask tried on the response.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from first_llama.train.decoder import Context, Decoder
from first_llama.train.shared import heads

if TYPE_CHECKING:  # loading a base checks itself with Depth
    from first_llama.train.gguf_model import Base


@dataclass(frozen=True)
class Example:
    """A prompt and the answer to learn from, as token ids; both hold at least one, the answer two.

    Attributes:
        kind: the task that it is of, as ``Record`` has it.
    """

    prompt: list[int]
    response: list[int]
    kind: str = ""


@dataclass(frozen=True)
class Shared:
    """How a batch's prompts begin: heads that are run once each, in the first columns of ``Batch.prompt``.

    Attributes:
        width: columns of the heads; shorter heads are padded on the right.
        family: int64 [B], which head each prompt has.
        leaders: int64 [F], a prompt of each head.
    """

    width: int
    family: Tensor
    leaders: Tensor


@dataclass
class Batch:
    """Padded examples; a response row is one decode step: it reads a response token, predicts the next.

    Attributes:
        prompt: int64 [B, P]; padded on the right, and so is the head of a prompt that shares one.
        prompt_mask: bool [B, P], False on padding.
        rows: int64 [B, R], the response tokens that decode steps read (all but the last).
        targets: int64 [B, R], the response tokens that they should give (all but the first).
        row_mask: bool [B, R], False on padding.
        shared: first tokens that prompts have in common (a system prompt, a passage), not the whole of any.
    """

    prompt: Tensor
    prompt_mask: Tensor
    rows: Tensor
    targets: Tensor
    row_mask: Tensor
    shared: Shared | None = None

    @property
    def prompt_len(self) -> Tensor:
        """Int64 [B], tokens of each prompt."""
        return self.prompt_mask.sum(1)

    @property
    def positions(self) -> Tensor:
        """Int64 [B, P], the position of each prompt token; padding at the end counts on."""
        columns = torch.arange(self.prompt.shape[1], device=self.prompt.device)
        behind = (columns - self.last[:, None]).clamp(min=0)
        return (self.prompt_mask.cumsum(1) - 1).clamp(min=0) + behind

    @property
    def last(self) -> Tensor:
        """Int64 [B], the column of each prompt's last token."""
        columns = torch.arange(self.prompt.shape[1], device=self.prompt.device)
        return (columns * self.prompt_mask).amax(1)


def collate(examples: Sequence[Example], device: torch.device | None = None, share: bool = True) -> Batch:
    """Pad examples into one batch; tokens that prompts share are put apart where that pays, and may be."""
    device = device or torch.device("cpu")

    def padded(lists: list[list[int]]) -> tuple[Tensor, Tensor]:
        width = max(map(len, lists))
        mask = [[True] * len(item) + [False] * (width - len(item)) for item in lists]
        tokens = [item + [0] * (width - len(item)) for item in lists]
        return torch.tensor(tokens, device=device), torch.tensor(mask, device=device)

    prompts = [e.prompt for e in examples]
    plan, shared = heads(prompts, device) if share else None, None
    if plan is None:
        prompt, mask = padded(prompts)
    else:
        family = [0] * len(prompts)
        for number, group in enumerate(plan.groups):
            for i in group:
                family[i] = number
        lengths = [plan.lengths[number] for number in family]
        head, tail = (
            padded([prompt[part] for prompt, part in zip(prompts, parts, strict=True)])
            for parts in ([slice(n) for n in lengths], [slice(n, None) for n in lengths])
        )
        prompt, mask = (torch.cat(pair, dim=1) for pair in zip(head, tail, strict=True))
        leaders = torch.tensor([group[0] for group in plan.groups], device=device)
        shared = Shared(max(plan.lengths), torch.tensor(family, device=device), leaders)
    rows, row_mask = padded([e.response[:-1] for e in examples])
    targets, _ = padded([e.response[1:] for e in examples])
    return Batch(prompt, mask, rows, targets, row_mask, shared)


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

    def for_each(self, family: Tensor) -> PromptCache:
        """Return a recording cache in which each sequence has what its head (int64 [B]) stored."""
        cache = PromptCache()
        for layer, (keys, values) in self.store.items():
            cache.before[layer] = (_chosen(keys, family), _chosen(values, family))
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

    def last(self, batch: Batch) -> Tensor:
        """Return the output at each prompt's last token, [B, n_embd], which gives the first of the answer."""
        rows = torch.arange(len(batch.prompt), device=self.output.device)
        return self.output[rows, batch.last]


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
    """Runs the layers of a frozen base model at any depth.

    Attributes:
        lockstep: run every layer once in a pass, for nothing where all leave it out: its weights are spread
            over processes, which gather them together.
        stand_in: gives what a layer passes on [..., n_embd] where it is left out, from its number and its
            input; None: its input.
    """

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
        self.lockstep = False
        self.stand_in: Callable[[int, Tensor], Tensor] | None = None

    @property
    def n_layer(self) -> int:
        """Number of layers."""
        return len(self.decoder.layers)

    def prompt(self, batch: Batch, grad: bool = False) -> Prefix:
        """Run prompts through every layer; ``grad`` lets gradients flow into them, for adapters.

        Routers alone need none: nothing that a prompt runs is trained then. Tokens that prompts share are run
        once for all that have them.
        """
        shared = batch.shared
        with torch.set_grad_enabled(grad and torch.is_grad_enabled()):
            if shared is None:
                prefix = self._prompt(batch.prompt, PromptCache())
            else:
                head = self._prompt(batch.prompt[shared.leaders, : shared.width], PromptCache())
                tail = self._tails(batch, shared, head.cache.for_each(shared.family))
                prefix = _joined(head, tail, shared.family)
        prefix.cache.recording = False
        return prefix

    def _prompt(self, tokens: Tensor, cache: PromptCache) -> Prefix:
        """Run tokens [B, Q] from the first position on; padding stands at the end."""
        positions = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
        hidden = self.decoder.embed(tokens)
        return self._layers(hidden, self.context(hidden, positions, positions, None), cache)

    def _tails(self, batch: Batch, shared: Shared, cache: PromptCache) -> Prefix:
        """Run what each prompt has of its own, behind its head in the cache."""
        positions = batch.positions
        hidden = self.decoder.embed(batch.prompt[:, shared.width :])
        # One head for all has no padding, and a causal row sees none behind it.
        valid = batch.prompt_mask[:, None] if len(shared.leaders) > 1 else None
        run = self.context(hidden, positions[:, shared.width :], positions, valid)
        return self._layers(hidden, run, cache)

    def _layers(self, hidden: Tensor, run: Context, cache: PromptCache) -> Prefix:
        """Run all layers."""
        inputs = []
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
                w + keep * (layer(h) - w) with w = ``without``, h or its stand-in, through which gradients
                flow. None keeps everything.
            start: first layer to run.
            hidden: its input [B, R, n_embd]; the token embeddings by default.
            trace: when given, the input of every layer run is appended to it.
        """
        hidden = self.embed(batch) if hidden is None else hidden
        offset = batch.prompt_len[:, None]
        positions = offset + torch.arange(batch.rows.shape[1], device=offset.device)
        run = self.context(
            hidden,
            positions,
            torch.cat([batch.positions, positions], dim=1),
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
                without = self.without(index, hidden)
                hidden = without + column[:, None, None].to(hidden.dtype) * (full - without)
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        """Return float32 logits [..., n_vocab] of the last layer's output."""
        return self.head(self.decoder.norm(hidden))

    def head(self, hidden: Tensor) -> Tensor:
        """Return float32 logits [..., n_vocab] of hidden states that went through the final norm."""
        return self.decoder.head(hidden)

    def _hard(self, index: int, hidden: Tensor, run: Context, cache: PromptCache, column: Tensor) -> Tensor:
        kept = column.nonzero()[:, 0]
        idle, without = not len(kept), self.without(index, hidden)
        if idle and not self.lockstep:
            return without
        if idle:
            kept = torch.zeros(1, dtype=torch.int64, device=hidden.device)
        keys, values = cache.store[index]
        part = PromptCache.holding(index, keys[kept], values[kept])
        selected = run.select(kept, self.decoder.kinds[index])
        out = self.layer(index, hidden[kept], selected, part)
        return without + 0 * out if idle else without.index_copy(0, kept, out)

    def without(self, index: int, hidden: Tensor) -> Tensor:
        """Return what a layer passes on where it is left out, [..., n_embd] like its input."""
        return hidden if self.stand_in is None else self.stand_in(index, hidden)

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


def _chosen(items: Tensor, family: Tensor) -> Tensor:
    """Return each sequence's head's item; a view where there is only one head."""
    return items.expand(len(family), *items.shape[1:]) if len(items) == 1 else items[family]


def _joined(head: Prefix, tail: Prefix, family: Tensor) -> Prefix:
    """Return prompts in one piece: heads, each run as one sequence, before the rest of each prompt."""

    def joined(first: Tensor, second: Tensor) -> Tensor:
        return torch.cat([_chosen(first, family), second], dim=1)

    inputs = [joined(*pair) for pair in zip(head.inputs, tail.inputs, strict=True)]
    return Prefix(tail.cache, inputs, joined(head.output, tail.output))


def kl_rows(teacher: Tensor, student: Tensor) -> Tensor:
    """KL(teacher || student) in nats at each row; both are log-probabilities [..., n_vocab]."""
    return (teacher.exp() * (teacher - student)).sum(-1)


def sequence_mean(values: Tensor, row_mask: Tensor) -> Tensor:
    """Mean of row values [B, R] over each sequence's real rows, [B]."""
    return (values * row_mask).sum(1) / row_mask.sum(1).clamp(min=1)
