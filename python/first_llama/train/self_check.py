"""Does Depth compute what the model's own forward computes? Asked of every base when it is loaded.

An architecture may do something that no rule of ``Decoder`` knows. Then the logits of a few random tokens
differ, and the base is refused: training is never wrong silently.

Two comparisons. In the dtype of the weights, as training will run: between two right ways to attend (fused,
or product by product) logits differ in bfloat16 by 5 % of their spread with SmolLM2-135M and 11 % with
Gemma 3 270M, so only much more says something. A soft cap left out changes less. So the same is asked in
float32, each part's weights being widened while it runs (widening is exact, and one layer is held twice at a
time), where right ways agreed to 3e-6 and 1.4e-5.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from first_llama.errors import FirstError
from first_llama.train import attention
from first_llama.train.decoder import Decoder
from first_llama.train.depth import Depth, Example, collate

if TYPE_CHECKING:
    from first_llama.train.gguf_model import Base

#: Greatest difference in float32, and in narrower types (see above), relative to the spread of the logits.
EXACT, ROUNDED = 1e-3, 0.5
#: Tokens that a sliding layer sees during the check, so that a few tokens reach over its window.
WINDOW = 3
#: What running parts in an unforeseen way may raise.
FAILURES = (AttributeError, TypeError, ValueError, LookupError, RuntimeError)


def verify(base: Base) -> None:
    """Choose an attention that gives the logits of the plain forward, or refuse the base.

    Grouped attention is tried first. Some layers want of their attention what it does not know (sinks);
    they get transformers' plain one, which is slower.

    Raises:
        FirstError: if Depth cannot run the layers, or gives other logits than the plain forward.
    """
    choices = [attention.NAME, "eager"] if base.model.is_backend_compatible() else ["eager"]
    for implementation in choices:
        base.model.set_attn_implementation(implementation)
        reason = _fault(base)
        if reason is None:
            return
    raise FirstError(f"{base.source}: cannot train {type(base.model).__name__} ({reason}); use another model")


def _fault(base: Base) -> str | None:
    """Say what is wrong, if anything is."""
    try:
        exact = difference(base, wide=True)
        rounded = exact if base.model.dtype == torch.float32 else difference(base)
    except FirstError as error:
        return str(error)
    except FAILURES as error:
        return f"its layers cannot be run one by one: {(str(error).splitlines() or [repr(error)])[0]}"
    if exact <= EXACT and rounded <= ROUNDED:
        return None
    return f"run layer by layer its logits differ from its own by {max(exact, rounded):.2g} of their spread"


@torch.no_grad()
def difference(base: Base, wide: bool = False) -> float:
    """Return the root mean square of (Depth - plain) over that of the plain logits about their mean.

    Two sequences of unlike lengths share a batch, so padding takes part; prompt and response rows count.

    Args:
        base: the model.
        wide: run it in float32, whatever its weights are.
    """
    vocabulary = base.model.get_input_embeddings().num_embeddings
    rng = torch.Generator().manual_seed(0)
    examples = []
    for n_prompt, n_response in ((7, 3), (3, 6)):
        tokens = torch.randint(vocabulary, (n_prompt + n_response,), generator=rng).tolist()
        examples.append(Example(tokens[:n_prompt], tokens[n_prompt:]))
    with _narrow_window(base.model), _widened(base.model) if wide else nullcontext():
        own, plain = _depth_logits(base, examples), _plain_logits(base, examples)
    spread = (plain - plain.mean(-1, keepdim=True)).square().mean().sqrt()
    value = float((own - plain).square().mean().sqrt() / spread)
    return value if value == value else float("inf")


def _depth_logits(base: Base, examples: list[Example]) -> Tensor:
    """Logits [rows, n_vocab] of all prompt and response rows, one sequence after the other."""
    depth = Depth(base)
    batch = collate(examples, base.device)
    prefix = depth.prompt(batch)
    if len(prefix.cache.store) != depth.n_layer:
        raise FirstError("its layers do not each store keys and values of their own")
    hidden = depth.decode(batch, prefix)
    parts = []
    for row, example in enumerate(examples):
        parts += [prefix.output[row, batch.prompt_mask[row]], hidden[row, : len(example.response) - 1]]
    return depth.logits(torch.cat(parts))


def _plain_logits(base: Base, examples: list[Example]) -> Tensor:
    """The same from the model's own forward, one sequence at a time, with transformers' plain attention."""
    model, used = base.model, base.model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        sequences = [torch.tensor([e.prompt + e.response[:-1]], device=base.device) for e in examples]
        return torch.cat([model(ids, use_cache=False).logits[0].float() for ids in sequences])
    finally:
        model.set_attn_implementation(used)


@contextmanager
def _narrow_window(model: Any) -> Iterator[None]:
    """Let sliding layers see WINDOW tokens; models read their window whenever they make a mask."""
    config = model.config.get_text_config(decoder=True)
    window = getattr(config, "sliding_window", None)
    if window is None:
        yield
        return
    config.sliding_window = WINDOW
    try:
        yield
    finally:
        config.sliding_window = window


@contextmanager
def _widened(model: Any) -> Iterator[None]:
    """Run embedding, layers, norm and head in float32; each part's weights are wide only while it runs."""
    decoder = Decoder(model)
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    with ExitStack() as stack:
        handle = embedding.register_forward_hook(lambda _module, _inputs, output: output.float())
        stack.callback(handle.remove)
        for part in (*decoder.layers, decoder.final_norm, head):
            stack.enter_context(_wide_while_run(part))
        yield


@contextmanager
def _wide_while_run(module: nn.Module) -> Iterator[None]:
    narrow: dict[nn.Parameter, Tensor] = {}

    def widen(_module: nn.Module, _inputs: Any) -> None:
        for parameter in module.parameters():
            if parameter.dtype in (torch.bfloat16, torch.float16):
                narrow[parameter], parameter.data = parameter.data, parameter.data.float()

    def restore(*_: Any) -> None:
        for parameter, data in narrow.items():
            parameter.data = data
        narrow.clear()

    handles = [module.register_forward_pre_hook(widen), module.register_forward_hook(restore)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        restore()
