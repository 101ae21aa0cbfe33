"""The two sides of the oracle for one model, each in a process of its own: `stock` and `runtime`.

``python -m tests.cpp.archs.sides SIDE`` reads a job (JSON) from its standard input and writes arrays to the
file that the job names. The unpatched library knows nothing of skipping. A layer that does nothing is made
for it by `silence`; the state of a sequence is carried between that model and the whole one.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFReader

from first_llama.backends import load_for_stock
from tests.driver import F32, Session, log
from tests.runtime_calls import DECODE, OFF, PROMPT, First

PROMPT_TOKENS = [(7 * i * i + 3 * i + 5) % 128 for i in range(40)]
FORCED = [11, 90, 3, 64]
SECOND = [77, 21, 102]
#: A prompt that fits into a sliding window (16 tokens in the tiny gemma3) together with the steps after it,
#: so that no transfer of its state moves cells; and the rows of its chunks.
SHORT, CHUNK = PROMPT_TOKENS[:11], 4
N_CTX = 256

#: What a layer adds to its input goes through one of these last.
_LAST = re.compile(
    r"blk\.(\d+)\.(attn_output|attn_output_b|attn_output_norm|ffn_down|ffn_down_exps|ffn_down_shexp"
    r"|ffn_down_chexps|post_attention_norm|post_ffw_norm|post_norm|layer_output_norm|layer_output_scale)"
    r"(\.weight|\.bias)?"
)

#: Models with experts only, whose graphs build a feed-forward without weights: nothing must enter it.
_EMPTY_FEED_FORWARD = ("refact", "ernie4_5-moe")

Arrays = dict[str, F32]
Job = dict[str, Any]


def silence(path: Path, layers: Sequence[int], out: Path) -> None:
    """Copy a model, with layers that add nothing to their input: all that they add with is zero.

    What is added is then exactly 0, so the layer's output is its input, bit for bit, whatever the
    architecture does by a layer's number. K and V are computed as before.
    """
    shutil.copyfile(path, out)
    reader = GGUFReader(path)
    arch = reader.fields["general.architecture"].contents()
    # gemma4 multiplies what a layer puts out; talkie what is added of the embedding
    one = "layer_output_scale" if arch == "gemma4" else ""
    with out.open("r+b") as file:
        for tensor in reader.tensors:
            match = _LAST.fullmatch(tensor.name)
            if not match and arch in _EMPTY_FEED_FORWARD:
                match = re.fullmatch(r"blk\.(\d+)\.(ffn_norm)\.weight", tensor.name)
            if match and int(match[1]) in layers:
                file.seek(tensor.data_offset)
                file.write(np.full_like(tensor.data, match[2] == one).tobytes())


def take_state(session: Session, other: Session) -> None:
    """Give the sequence of `other` what is cached in `session`.

    Tokens that no window reaches any more are left out, so cells move and sums change their order: where
    bits are compared, both sides go through the same transfers.
    """
    llama, n_past = session.llama, session.n_past
    size = llama.llama_state_seq_get_size(session.ctx, 0)
    buffer = (ctypes.c_uint8 * size)()
    assert llama.llama_state_seq_get_data(session.ctx, buffer, size, 0) == size
    other.clear()
    assert llama.llama_state_seq_set_data(other.ctx, buffer, size, 0) > 0
    other.n_past = n_past


# ---- the unpatched library


def stock(job: Job) -> Arrays:
    import llama_cpp

    assert not hasattr(llama_cpp.llama_cpp._lib, "first_abi_version"), "this is not the unpatched library"
    out: Arrays = {}
    with Session(job["path"], n_ctx=N_CTX) as session:
        out["prompt"] = session.eval(PROMPT_TOKENS, all_outputs=True)
        out["steps"] = session.steps(FORCED)
        session.clear()
        session.eval(PROMPT_TOKENS)
        take_state(session, session)
        out["moved_steps"] = session.steps(FORCED)
        session.clear()
        session.n_batch = CHUNK
        out["chunked"] = session.eval(SHORT)
    out |= {f"hidden-{il}": rows for il, rows in layer_outputs(job["path"]).items()}
    for i, paths in enumerate(job["masked"]):
        out |= {f"{i}-{name}": rows for name, rows in _masked(job["path"], paths).items()}
    return out


def _masked(path: str, paths: dict[str, str]) -> Arrays:
    """What the method asks for: prompts at full depth, decode rows without the layers, K and V filled."""
    out: Arrays = {}
    with Session(path, n_ctx=N_CTX) as full, Session(paths["silent"], n_ctx=N_CTX) as silent:
        out["prompt"] = full.eval(PROMPT_TOKENS)
        take_state(full, silent)
        out["steps"] = silent.steps(FORCED)
        take_state(silent, full)
        out["second"] = full.eval(SECOND)
        full.clear()
        full.n_batch = CHUNK
        out["chunked"] = full.eval(SHORT)
        take_state(full, silent)
        out["chunked_steps"] = silent.steps(FORCED)
        silent.clear()
        out["alone"] = silent.steps([5, *FORCED])
    if "pruned" in paths:
        with Session(paths["pruned"], n_ctx=N_CTX) as pruned:
            out["pruned"] = pruned.steps([5, *FORCED])
    return out


class Layers(Session):
    """A session that keeps what each layer puts out, under the name that most architectures give it."""

    def _watch(self) -> Any:
        import llama_cpp

        # the unpatched library lies one folder below the ggml that both use
        near = Path(llama_cpp.llama_cpp._lib._name).parents[:2]
        ggml = ctypes.CDLL(str(next(path for folder in near for path in folder.glob("*ggml-base*"))))
        ggml.ggml_get_name.restype, ggml.ggml_get_name.argtypes = ctypes.c_char_p, [ctypes.c_void_p]
        ggml.ggml_nbytes.restype, ggml.ggml_nbytes.argtypes = ctypes.c_size_t, [ctypes.c_void_p]
        get = ggml.ggml_backend_tensor_get
        get.restype, get.argtypes = None, [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t]
        self.outputs: dict[int, F32] = {}

        def note(tensor: int, ask: bool, _: object) -> bool:
            match = re.fullmatch(rb"l_out-(\d+)", ggml.ggml_get_name(tensor))
            if match and not ask:
                data = np.empty(ggml.ggml_nbytes(tensor) // 4, np.float32)
                get(tensor, data.ctypes.data, 0, data.nbytes)
                self.outputs[int(match[1])] = data
            return bool(match) or not ask

        return llama_cpp.ggml_backend_sched_eval_callback(note)


def layer_outputs(path: str) -> dict[int, F32]:
    """The output of each layer for the prompt, by layer: F32 [n_tokens, n_embd]; empty if it has no name."""
    with Layers(path, n_ctx=N_CTX, watch=True) as session:
        session.eval(PROMPT_TOKENS)
        shape = len(PROMPT_TOKENS), session.llama.llama_model_n_embd(session.model)
        plain = {il: x for il, x in session.outputs.items() if x.size == shape[0] * shape[1]}
        return {il: x.reshape(shape) for il, x in plain.items()}


# ---- the patched library


def allowed(job: Job) -> Arrays:
    """Which layers the runtime lets a caller skip, and the lists that the oracle shall try."""
    with Session(job["path"], n_ctx=N_CTX) as session:
        first = First(session)
        single = [il for il in range(first.n_layer) if first.try_list([il]) == 0]
        first.try_list([1])  # for the reason, if it is refused
        lists = [[single[len(single) // 2]]] if single else []
        for several in (single[1::2], single[::2], single[::3], single[-2:]) if single else ():
            several = sorted({*several, single[-1]})
            if len(several) > 1 and first.try_list(several) == 0:
                lists.append(several)
                break
        n_embd = session.llama.llama_model_n_embd(session.model)
    may = {"n_layer": first.n_layer, "n_embd": n_embd, "single": np.array(single, int), "log": "".join(log)}
    may |= {f"list-{i}": layers for i, layers in enumerate(lists)}
    return {name: np.array(value) for name, value in may.items()}


def runtime(job: Job) -> Arrays:
    out: Arrays = {}
    log.clear()
    with Session(job["path"], n_ctx=N_CTX) as session:
        First(session).mode(OFF)
        out["prompt"] = session.eval(PROMPT_TOKENS, all_outputs=True)
        out["steps"] = session.steps(FORCED)
    for i, skip in enumerate(job["lists"]):
        out |= {f"{i}-{name}": rows for name, rows in _listed(job["path"], skip).items()}
        out |= {f"{i}-{name}": rows for name, rows in _beside_another(job["path"], skip).items()}
    out["log"] = np.array("".join(log))
    log.clear()
    return out | _routed(job["routed"])


def _listed(path: str, skip: list[int]) -> Arrays:
    out: Arrays = {}
    with Session(path, n_ctx=N_CTX) as session:
        first = First(session)
        first.list(skip)
        first.phase(PROMPT)
        out["prompt"] = session.eval(PROMPT_TOKENS)
        take_state(session, session)
        first.phase(DECODE)
        out["steps"] = session.steps(FORCED)
        out["skipped"] = np.array(first.skipped(), int)
        take_state(session, session)
        first.phase(PROMPT)
        out["second"] = session.eval(SECOND)
        session.clear()
        first.phase(DECODE)
        out["alone"] = session.steps([5, *FORCED])
        session.clear()
        session.n_batch = CHUNK
        first.phase(PROMPT)
        out["chunked"] = session.eval(SHORT)
        first.phase(DECODE)
        out["chunked_steps"] = session.steps(FORCED)
    return out


def _beside_another(path: str, skip: list[int]) -> Arrays:
    """The first decode row of a sequence in a batch with prompt rows of another one."""
    with Session(path, n_ctx=N_CTX, n_seq_max=2) as session:
        first = First(session)
        first.list(skip)
        first.phase(PROMPT)
        session.eval(PROMPT_TOKENS)
        assert first.lib.first_set_seq_phase(session.ctx, 0, DECODE) == 0
        rows = [(FORCED[0], len(PROMPT_TOKENS), True, [0])]
        rows += [(token, i, False, [1]) for i, token in enumerate(SECOND)]
        mixed = session.decode(rows)
        rows = [(FORCED[1], len(PROMPT_TOKENS) + 1, True, [0])]
        return {"mixed": np.concatenate([mixed, session.decode(rows)])}


def _routed(path: str) -> Arrays:
    """A file with routers: the scores of the prompt, whole and in chunks, and what a budget then skips."""
    out: Arrays = {}
    for name, n_batch in (("whole", 512), ("in_chunks", CHUNK)):
        with Session(path, n_ctx=N_CTX, n_batch=n_batch) as session:
            first = First(session)
            out["status"] = np.array(first.status)
            if not first.available:
                break
            first.budget(0.3)
            first.phase(PROMPT)
            out[f"routed_{name}"] = session.eval(PROMPT_TOKENS)
            scores = first.scores()
            if scores is not None:
                out[f"scores_{name}"] = scores
            first.phase(DECODE)
            session.steps(FORCED)
            out[f"skipped_{name}"] = np.array(first.skipped(), int)
    return out | {"routed_log": np.array("".join(log))}


def main(side: str) -> None:
    job = json.load(sys.stdin)
    if side == "stock":
        load_for_stock(Path(os.environ["FIRST_LLAMA_LIB"]))
    arrays = {"stock": stock, "allowed": allowed, "runtime": runtime}[side](job)
    np.savez(job["out"], **arrays)


if __name__ == "__main__":
    main(sys.argv[1])
