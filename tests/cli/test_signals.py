"""A signal in the middle of a write ends a verb in order: an exit code, and nothing half written."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from first_llama.cli import main
from first_llama.cli._signals import Stopped, signals_stop
from first_llama.convert.run_folder import save_run
from tests.conftest import TinyModel
from tests.tiny_models import random_routers, write_tiny

#: The command line, with a copy that stops half way, says so and waits for what the test does then.
_HALF = """
import sys, time
from first_llama.cli import main
from first_llama.convert import embed
whole = embed.copy_range
def half(source, out, start, size, path):
    whole(source, out, start, size // 2, path)
    print("half", flush=True)
    time.sleep(600)
embed.copy_range = half
sys.exit(main())
"""


def _started(*args: object, before: Callable[[], object] = lambda: None) -> subprocess.Popen[bytes]:
    """Start a verb and wait until it is in the middle of its output."""

    def prepare() -> None:
        for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(name, signal.SIG_DFL)
        before()

    process = subprocess.Popen(
        [sys.executable, "-c", _HALF, *map(str, args)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=prepare,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"half\n", process.communicate()[1]
    return process


SIGNALS = [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]


@pytest.mark.parametrize("verb", ["embed", "strip"])
@pytest.mark.parametrize(("number", "code"), SIGNALS)
def test_a_signal_in_mid_write(
    number: signal.Signals, code: int, verb: str, tiny_model: TinyModel, tmp_path: Path
) -> None:
    save_run(tmp_path / "run", random_routers())
    out = tmp_path / "out"
    out.mkdir()
    (out / "o.gguf").write_bytes(b"precious")
    run = [tmp_path / "run"] if verb == "embed" else []
    process = _started(verb, tiny_model(), *run, "-o", out / "o.gguf", "--force")
    try:
        assert len(list(out.glob(".*.part"))) == 1
        process.send_signal(number)
        printed, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert (process.returncode, printed, err) == (code, b"", b"")
    assert [(p.name, p.read_bytes()) for p in out.iterdir()] == [("o.gguf", b"precious")]


def test_in_the_middle_of_a_split_model(tmp_path: Path) -> None:
    first = write_tiny(tmp_path / "m.gguf", split_max_tensors=20)
    out = tmp_path / "out"
    out.mkdir()
    process = _started("strip", first, "-o", out / "o.gguf")
    try:
        process.terminate()
        assert process.wait(timeout=60) == 143
    finally:
        process.kill()
    assert list(out.iterdir()) == []


def test_what_was_ignored_stays_ignored(tiny_model: TinyModel, tmp_path: Path) -> None:
    """As under nohup: the terminal goes, the work goes on."""

    def nohup() -> None:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    process = _started("strip", tiny_model(), "-o", tmp_path / "o.gguf", before=nohup)
    try:
        process.send_signal(signal.SIGHUP)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(timeout=0.5)
        process.terminate()
        assert process.wait(timeout=60) == 143
    finally:
        process.kill()


def test_a_second_signal_does_not_break_the_cleaning_up() -> None:
    cleaned = False
    with pytest.raises(Stopped) as caught, signals_stop():
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            signal.raise_signal(signal.SIGHUP)
            cleaned = True
    assert cleaned and caught.value.exit_code == 143
    assert signal.getsignal(signal.SIGTERM) is signal.getsignal(signal.SIGHUP) is signal.SIG_DFL


def test_other_handlers_are_left_alone() -> None:
    heard: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: heard.append(number))
    try:
        with signals_stop():
            signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert heard == [signal.SIGTERM]


def test_a_thread_can_run_a_verb(tiny_model: TinyModel, capsys: pytest.CaptureFixture[str]) -> None:
    codes: list[int] = []
    thread = threading.Thread(target=lambda: codes.append(main(["inspect", str(tiny_model())])))
    thread.start()
    thread.join()
    assert codes == [0] and "routers" in capsys.readouterr().out
