"""The plugin of `llm`: its model in this process, the command `llm` in one of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, cast

import pytest

from first_llama import Llama, _library
from first_llama.cli._console import n_cpus
from first_llama.default_model import SYSTEM_PROMPT
from tests.conftest import TinyModel

pytest.importorskip("llm", reason="llm is not installed; the extra [test] has it")

import llm

from first_llama import llm_models
from first_llama.llm_plugin import MODEL_ID, FirstModel

FINDER = Path(__file__).parent.parent / "python" / "_first_llama_finder.py"
OPTIONS = {"max_tokens": 8, "temperature": 0}


@pytest.fixture
def model(tiny_model: TinyModel) -> Iterator[FirstModel]:
    made = FirstModel("tiny", tiny_model())
    yield made
    for process in made._idle:
        process.close()


def expected(path: Path, messages: list[dict[str, str]], skip: Any = "auto", *, n_before: int = 0) -> Any:
    """What first_llama.Llama answers in this process, asked for the answer to the first messages before."""
    threads = max(1, n_cpus() // 2)
    with closing(
        Llama(str(path), skip=skip, n_ctx=0, n_threads=threads, n_threads_batch=threads, verbose=False)
    ) as llama:
        for part in ([messages[:n_before]] if n_before else []) + [messages]:
            answer = llama.create_chat_completion(
                cast(Any, part), max_tokens=8, temperature=0, repeat_penalty=1.1
            )
        return answer


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


@pytest.mark.parametrize(
    ("skip", "plain"), [(None, "auto"), ("off", "off"), ("0.4", 0.4), ("2,3", [2, 3]), ([4, 2], [2, 4])]
)
def test_answers_are_the_library_s(model: FirstModel, tiny_model: TinyModel, skip: Any, plain: Any) -> None:
    response = model.prompt("hats", skip=skip, stream=False, **OPTIONS)
    wanted = expected(tiny_model(), [user("hats")], plain)
    assert response.text() == wanted["choices"][0]["message"]["content"]
    document: Any = response.json()
    assert document["first"] == wanted["first"]
    assert document["finish_reason"] == "length"
    assert response.usage() == llm.Usage(input=wanted["usage"]["prompt_tokens"], output=8, details=None)


def test_streaming(model: FirstModel) -> None:
    pieces = list(model.prompt("hats", **OPTIONS))
    assert len(pieces) > 2
    assert "".join(pieces) == model.prompt("hats", stream=False, **OPTIONS).text()


def test_a_conversation_has_its_history(model: FirstModel, tiny_model: TinyModel) -> None:
    conversation = model.conversation()
    first = conversation.prompt("hats", system="Be brief.", **OPTIONS).text()
    second = conversation.prompt("and gloves", **OPTIONS)
    messages = [{"role": "system", "content": "Be brief."}, user("hats")]
    messages += [{"role": "assistant", "content": first}, user("and gloves")]
    wanted = expected(tiny_model(), messages, n_before=2)
    assert second.text() == wanted["choices"][0]["message"]["content"]
    assert second.usage().input == wanted["usage"]["prompt_tokens"]


def test_the_default_model_has_its_system_prompt() -> None:
    default = FirstModel(MODEL_ID)
    messages = default._request(default.prompt("hats").prompt)["messages"]
    assert messages == [{"role": "system", "content": SYSTEM_PROMPT}, user("hats")]
    messages = default._request(default.prompt("hats", system="Own.").prompt)["messages"]
    assert messages == [{"role": "system", "content": "Own."}, user("hats")]


def test_the_model_stays_loaded_between_answers(model: FirstModel) -> None:
    model.prompt("hats", **OPTIONS).text()
    (process,) = model._idle
    model.prompt("gloves", **OPTIONS).text()
    assert model._idle == [process] and process.is_ready


def test_two_answers_at_a_time(model: FirstModel) -> None:
    alone = [model.prompt(text, **OPTIONS).text() for text in ("hats", "gloves")]
    pairs = list(zip(model.prompt("hats", **OPTIONS), model.prompt("gloves", **OPTIONS), strict=False))
    assert len(pairs) > 2
    for whole, pieces in zip(alone, zip(*pairs, strict=True), strict=True):
        assert whole.startswith("".join(pieces))


def test_an_answer_that_is_not_read_to_its_end(model: FirstModel) -> None:
    whole = model.prompt("hats", **OPTIONS).text()
    stream = iter(model.prompt("hats", **OPTIONS))
    next(stream)
    cast(Any, stream).close()
    assert model.prompt("hats", **OPTIONS).text() == whole


def test_a_process_that_was_killed(model: FirstModel) -> None:
    whole = model.prompt("hats", **OPTIONS).text()
    (process,) = model._idle
    assert process._process is not None
    process._process.kill()
    process._process.wait()
    assert model.prompt("hats", **OPTIONS).text() == whole

    stream = iter(model.prompt("hats", max_tokens=400, temperature=0))
    next(stream)
    assert process._process is not None
    os.kill(process._process.pid, signal.SIGKILL)
    with pytest.raises(llm.ModelError, match=r"the model's process ended \(exit code -9\)"):
        list(stream)


def test_errors(model: FirstModel, tiny_model: TinyModel, tmp_path: Path) -> None:
    def error(made: FirstModel, text: str = "hats", **options: object) -> str:
        with pytest.raises(llm.ModelError) as caught:
            made.prompt(text, **options).text()
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "layer 0 may not be skipped" in error(model, skip="0")
    assert "does not fit into the context of 512" in error(model, "hats " * 300)
    assert model._idle[0].is_ready  # such an error costs no loading
    assert "does not exist" in error(FirstModel("none", tmp_path / "none.gguf"))
    mute = tmp_path / "mute.gguf"
    mute.write_bytes(
        tiny_model().read_bytes().replace(b"tokenizer.chat_template", b"tokenizer.chat_templatX")
    )
    assert "has no chat template" in error(FirstModel("mute", mute))
    for options in ({"skip": "most"}, {"skip": 1.5}, {"max_tokens": 0}, {"temperature": -1}, {"top": 1}):
        with pytest.raises(ValueError, match=r"skip|max_tokens|temperature|top"):
            model.prompt("hats", **options)


def python(code: str, **environment: str) -> str:
    """Run code in a new interpreter where LLAMA_CPP_LIB_PATH is not set; return what it printed."""
    inherited = {k: v for k, v in os.environ.items() if k != "LLAMA_CPP_LIB_PATH"}
    done = subprocess.run(
        [sys.executable, "-c", code], env={**inherited, **environment}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_importing_the_plugin_loads_no_library() -> None:
    heavy = ("llama_cpp", "torch", "transformers", "gguf")
    code = f"import sys, first_llama.llm_plugin; print([m for m in {heavy} if m in sys.modules])"
    assert python(code) == "[]"


@pytest.mark.parametrize("has_library", [True, False])
def test_another_plugin_s_llama_cpp_keeps_its_library(tmp_path: Path, has_library: bool) -> None:
    (tmp_path / "llama_cpp" / ("lib" if has_library else "other")).mkdir(parents=True)
    (tmp_path / "llama_cpp" / "__init__.py").write_text("")
    code = "import os, first_llama.llm_plugin; print(os.environ.get('LLAMA_CPP_LIB_PATH'))"
    wanted = None if has_library else _library.lib_folder()
    assert python(code, PYTHONPATH=str(tmp_path)) == str(wanted)
    # what the package installs, for a llama_cpp that is imported before first_llama
    code = f"import os, runpy; runpy.run_path({str(FINDER)!r}); import llama_cpp; " + code.split("; ")[1]
    assert python("import os, runpy, sys\n" + code, PYTHONPATH=str(tmp_path)) == str(wanted)


def llm_command(folder: Path, *args: object) -> subprocess.CompletedProcess[str]:
    """Run the real `llm` with its settings and logs in a folder."""
    environment = {k: v for k, v in os.environ.items() if k != "LLAMA_CPP_LIB_PATH"}
    return subprocess.run(
        [sys.executable, "-m", "llm", *map(str, args)],
        env={**environment, "LLM_USER_PATH": str(folder)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
    )


def output(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_plugin_is_installed() -> None:
    names = [point.value for point in entry_points(group="llm")]
    assert "first_llama.llm_plugin" in names, (
        "first-llama was installed before it had a plugin: install it again"
    )


def test_the_command(tiny_model: TinyModel, tmp_path: Path) -> None:
    assert f"FirstModel: {MODEL_ID}" in output(llm_command(tmp_path, "models"))
    output(llm_command(tmp_path, "first-llama", "add", "tiny", tiny_model()))
    assert output(llm_command(tmp_path, "first-llama", "list")) == f"tiny: {tiny_model()}\n"
    options = ("-o", "skip", "2,3", "-o", "max_tokens", 8, "-o", "temperature", 0)
    text = output(llm_command(tmp_path, "-m", "tiny", *options, "hats"))
    wanted = expected(tiny_model(), [user("hats")], [2, 3])
    assert text == wanted["choices"][0]["message"]["content"] + "\n"
    output(llm_command(tmp_path, "-c", *options, "and gloves"))
    rows = json.loads(output(llm_command(tmp_path, "logs", "--json", "-n", 0)))
    assert [row["response_json"]["first"]["skipped"] for row in rows] == [[2, 3], [2, 3]]
    first, second = (row["input_tokens"] for row in rows)
    assert first < second
    assert len({row["conversation_id"] for row in rows}) == 1
    failed = llm_command(tmp_path, "-m", "tiny", "-o", "skip", "0", "hats")
    assert failed.returncode == 1 and failed.stderr.startswith("Error: ") and failed.stderr.count("\n") == 1
    output(llm_command(tmp_path, "first-llama", "remove", "tiny"))
    assert llm_command(tmp_path, "-m", "tiny", "hats").returncode == 1


@pytest.mark.slow
def test_the_default_model(tmp_path: Path) -> None:
    options = ("-o", "max_tokens", 8, "-o", "skip", 0.2)
    assert len(output(llm_command(tmp_path, "-m", MODEL_ID, *options, "Why is the sky blue?")).strip()) > 8
    (row,) = json.loads(output(llm_command(tmp_path, "logs", "--json", "-n", 0)))
    assert len(row["response_json"]["first"]["skipped"]) == 6


def test_the_list_of_files(
    tiny_model: TinyModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from click.testing import CliRunner

    monkeypatch.setenv("LLM_USER_PATH", str(tmp_path))
    group = llm_models.commands(reserved=MODEL_ID)

    def run(*args: object) -> str:
        result = CliRunner().invoke(group, [str(arg) for arg in args])
        assert result.exit_code in (0, 1) and "Traceback" not in result.output
        return result.output

    text = tmp_path / "notes.txt"
    text.write_text("no model")
    assert "is not a GGUF file" in run("add", "x", text)
    assert "choose another name" in run("add", MODEL_ID, tiny_model())
    assert "no model is named x" in run("remove", "x")
    assert llm_models.registered() == {}
    assert run("add", "x", tiny_model()) == "" == run("add", "y", tiny_model())
    assert llm_models.registered() == {"x": tiny_model(), "y": tiny_model()}
    run("remove", "x")
    assert llm_models.registered() == {"y": tiny_model()}

    llm_models.list_file().write_text("[]")
    assert llm_models.registered() == {}
    assert capsys.readouterr().err.count("\n") == 1
    assert "mend or remove it" in run("add", "x", tiny_model())
    assert llm_models.list_file().read_text() == "[]"
