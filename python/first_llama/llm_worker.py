"""The other side of `llm_process`: a model that answers one JSON line after another.

A line on standard input is {"messages": [...], "skip": ..., "settings": {...}}, the settings being
create_chat_completion's. Standard output gets {"text": ...} for each piece and at last {"first": ...,
"finish_reason": ..., "usage": {...}}, or {"error": ...}.
"""

from __future__ import annotations

import json
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from first_llama import _library
from first_llama.cli._console import Logs, n_cpus
from first_llama.cli._model import model_file, open_model
from first_llama.errors import FirstError

if TYPE_CHECKING:
    from first_llama.chat.model import ChatModel


def main(args: list[str]) -> int:
    """Answer until standard input ends; `args` is the model's file, or nothing for the default model."""
    # Nothing that llama.cpp prints may come between our lines.
    channel = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    llm: ChatModel | None = None
    with suppress(KeyboardInterrupt, BrokenPipeError):
        for line in sys.stdin.buffer:
            try:
                if llm is None:
                    llm = _open(Path(args[0]) if args else None)
                _answer(llm, json.loads(line), channel)
            except (FirstError, ImportError) as e:
                _say(channel, {"error": " ".join(str(e).split())})
    # What is left in the channel has no reader any more.
    with suppress(BrokenPipeError):
        channel.close()
    return 0


def _open(path: Path | None) -> ChatModel:
    file = model_file(path)
    _library.first()
    logs = Logs(verbose=False)
    from first_llama.chat.model import ChatModel

    threads = max(1, n_cpus() // 2)
    # n_ctx 0: as long as the model was trained for
    llm = open_model(ChatModel, file, skip="off", n_ctx=0, threads=threads, verbose=False)
    logs.flush()
    if not llm.has_template:
        raise FirstError(f"{file} has no chat template; `first-llama run --raw` continues texts with it")
    return llm


def _answer(llm: ChatModel, request: dict[str, Any], channel: TextIO) -> None:
    llm.skip = request["skip"]
    n_prompt = llm.count(request["messages"])
    if n_prompt >= llm.n_ctx():
        raise FirstError(
            f"the conversation has {n_prompt} tokens and does not fit into the context of {llm.n_ctx()}; "
            "start a new one"
        )
    finish = None
    for text, reason in llm.pieces(request["messages"], request["settings"]):
        finish = reason or finish
        if text:
            _say(channel, {"text": text})
    usage = {"prompt_tokens": n_prompt, "completion_tokens": llm.n_answer}
    _say(channel, {"first": llm.route.as_dict(), "finish_reason": finish, "usage": usage})


def _say(channel: TextIO, document: dict[str, Any]) -> None:
    # ASCII: half a surrogate pair, which a model may produce, is no UTF-8
    channel.write(json.dumps(document, allow_nan=False) + "\n")
    channel.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
