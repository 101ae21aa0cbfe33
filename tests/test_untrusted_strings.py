"""Text in a model file is data: no template reaches Python or files, and nothing in it steers a terminal."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from first_llama import Llama
from first_llama.cli._template import template_problem
from first_llama.convert.rewrite import encode_string, write_header
from first_llama.convert.scan import scan
from tests.cli.shell import assert_one_line_error, first_llama
from tests.conftest import TinyModel
from tests.tiny_models import N_QUIET

_TEMPLATE = "tokenizer.chat_template"


def _with_text(base: Path, out: Path, **texts: str) -> Path:
    """Write a copy of a model with other strings; "__" in a name stands for a dot."""
    container = scan(base)
    records = {r.key: r.raw for r in container.records}
    records |= {
        key: encode_string(key, text) for name, text in texts.items() for key in [name.replace("__", ".")]
    }
    with out.open("wb") as file:
        write_header(file, container, list(records.values()), [t.raw for t in container.tensors])
        file.write(base.read_bytes()[container.data_start :])
    return out


def _template(tiny_model: TinyModel, folder: Path, text: str) -> Path:
    return _with_text(tiny_model("llama"), folder / "m.gguf", tokenizer__chat_template=text)


HOSTILE = [
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ cycler.__init__.__globals__.os.system('touch TARGET') }}",
    "{% set x = joiner.__init__.__globals__ %}{{ x }}",
    "{{ messages.append(1) }}",
    "{% include 'TARGET' %}",
    "{% import 'os' as os %}{{ os.system('touch TARGET') }}",
]

FAILING = [
    "{% if %}",
    "{{ 1 / 0 }}",
    "{{ raise_exception('\x1b[2J no\nmore') }}",
    "{{ x.y.z }}",
    "{{ messages[0].content + 1 }}",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "{{ 'a' * 10 ** 15 }}",
    "{% for i in range(10 ** 9) %}{% endfor %}",
]


@pytest.mark.parametrize("text", HOSTILE + FAILING)
def test_a_template_reaches_nothing_and_fails_alone(text: str, tiny_model: TinyModel, tmp_path: Path) -> None:
    target = tmp_path / "made"
    model = _template(tiny_model, tmp_path, text.replace("TARGET", str(target)))
    with pytest.raises(Exception) as caught:  # whatever it is: the template says so
        llm = Llama(str(model), n_ctx=64, n_threads=1, verbose=False)
        llm.create_chat_completion([{"role": "user", "content": "Hi"}], max_tokens=2)
    problem = template_problem(caught.value)
    assert problem is not None and "\n" not in problem and "chat template fails" in problem
    assert not target.exists()


def test_other_errors_are_not_the_template_s() -> None:
    for error in (ZeroDivisionError("division by zero"), ValueError("no"), OSError(2, "no")):
        assert template_problem(error) is None


def test_the_command_line_says_it_in_one_line(tiny_model: TinyModel, tmp_path: Path) -> None:
    done = first_llama("run", "-m", _template(tiny_model, tmp_path, FAILING[2]), "-n", 2, "Hi")
    assert_one_line_error(done, 1, "chat template fails", "--raw")
    assert done.stderr.rstrip("\n").isprintable()


def _escaping(base: Path, out: Path) -> Path:
    """Write a copy of a model whose ordinary tokens are escape sequences."""
    container = scan(base)
    record = container.find("tokenizer.ggml.tokens")
    assert record is not None
    tokens = record.raw_strings()
    tokens[N_QUIET:] = [b"\x1b[2J%d" % i for i in range(N_QUIET, len(tokens))]
    raw = record.raw[: record.value_at] + b"".join(struct.pack("<Q", len(t)) + t for t in tokens)
    with out.open("wb") as file:
        records = [raw if r is record else r.raw for r in container.records]
        write_header(file, container, records, [t.raw for t in container.tensors])
        file.write(base.read_bytes()[container.data_start :])
    return out


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="no terminals here")
def test_an_answer_does_not_steer_the_terminal(tiny_model: TinyModel, tmp_path: Path) -> None:
    model = _escaping(tiny_model("llama"), tmp_path / "m.gguf")
    command = ["run", "-m", str(model), "-n", "6", "--threads", "1", "--temp", "0", "Hi"]
    parent, child = os.openpty()
    done = subprocess.run(
        [sys.executable, "-m", "first_llama", *command], stdin=child, stdout=child, timeout=300
    )
    os.close(child)
    text = os.read(parent, 1 << 16)
    os.close(parent)
    assert done.returncode == 0
    assert b"[2J" in text and b"\x1b" not in text


def test_names_are_not_paths_and_do_not_steer_the_terminal(tiny_model: TinyModel, tmp_path: Path) -> None:
    folder = tmp_path / "work"
    folder.mkdir()
    base = tiny_model("llama")
    texts = {
        "general__name": "../../up\x1b[2J",
        "first__train__x": "\x1b]0;title\x07",
        "general__url": "/etc/passwd",
    }
    model = _with_text(base, folder / "m.gguf", **texts)
    before = {p.name for p in (*tmp_path.iterdir(), *folder.iterdir())}
    for args in (
        ("inspect", model),
        ("inspect", model, "--json"),
        ("run", "-m", model, "-n", 2, "--raw", "Hi"),
    ):
        done = first_llama(*args)
        assert done.returncode == 0, done.stderr
        assert "\x1b" not in done.stdout + done.stderr
    assert {p.name for p in (*tmp_path.iterdir(), *folder.iterdir())} == before
