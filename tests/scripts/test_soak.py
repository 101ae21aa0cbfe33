"""scripts/soak.py: what counts as a fault, and a short run of it."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from random import Random
from typing import Any

import pytest

from tests.conftest import TinyModel
from tests.scripts.test_results import load


@pytest.fixture(scope="module")
def script() -> Any:
    return load("soak")


def test_growth_is_what_comes_after_the_warm_up(script: Any) -> None:
    assert script.growth_mb([0, 50, 90, 100] + [100] * 12) == 0
    assert script.growth_mb([100] * 4 + [100.0 + i for i in range(12)]) == 9
    assert script.growth_mb([100] * 15 + [900]) == 0  # a peak is no growth


def test_what_a_replay_forgives(script: Any) -> None:
    near = ({5: -0.1, 6: -3.0}, {7: -0.7, 8: -0.72}, {9: -0.1})
    alone = script.Answer("p", 3, (5, 7, 9), (2,), near)

    def differs(*tokens: int, skipped: tuple[int, ...] = (2,)) -> str | None:
        text: str | None = script.difference(script.Answer("p", 3, tokens, skipped), alone, 0.05)[0]
        return text

    assert differs(5, 7, 9) is None
    assert differs(5, 8, 1) is None  # a near tie, and another text from there on
    assert "token 0 is 6, alone 5, 2.900 likelier" in str(differs(6, 7, 9))
    assert "token 1 is 1, alone 7, inf likelier" in str(differs(5, 1, 9))
    assert "layers [] left out, alone [2]" in str(differs(5, 7, 9, skipped=()))


def test_a_short_soak(
    script: Any,
    tiny_model: TinyModel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out, data = tmp_path / "soak.json", tmp_path / "hats.jsonl"
    prompts = [" ".join(f"hats{(i * k) % 23}" for k in range(60)) for i in range(9)]
    data.write_text("".join(json.dumps({"prompt": p, "response": ""}) + "\n" for p in prompts))
    options = ["--seconds", "4", "--clients", "3", "--parallel", "2", "--replay", "10", "--tie", "0.01"]
    monkeypatch.setattr(
        "sys.argv", ["soak", str(tiny_model()), *options, "--data", str(data), "-o", str(out)]
    )
    code = script.main()
    document = json.loads(out.read_text())
    assert json.loads(capsys.readouterr().out) == document
    assert document["alive"] and not document["faults"] and not document["wrong"] and code == 0
    assert document["replayed"] == 10 and set(document["requests"]) == set(script.KINDS)
    assert all(mb > 1 for mb in document["memory_mb"])


class Broken(BaseHTTPRequestHandler):
    """Answers everything with one token, and nothing is refused."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        answer = {"tokens": [1], "timings": {"first": {"n_layer": 6, "skipped": []}}}
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(answer).encode())

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


def test_faults_are_seen(script: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Broken)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    tally = script.Tally()
    rng = Random(0)
    for kind in (script.PLAIN, script.REFUSED):
        monkeypatch.setattr(script, "WEIGHTS", [int(k == kind) for k in script.KINDS])
        for _ in range(8):
            script.one_request(f"http://127.0.0.1:{server.server_port}", ["a b c d e"], rng, tally)
    server.shutdown()
    assert any(fault.startswith("1 tokens instead of") for fault in tally.faults)
    assert "status 200 for a request that should be refused" in tally.faults
    assert tally.counts == {script.PLAIN: 8, script.REFUSED: 8}
