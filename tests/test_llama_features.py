"""What llama_cpp.Llama can do besides plain completions still works while layers are skipped."""

from __future__ import annotations

import json
import math
import pickle
from contextlib import closing
from pathlib import Path
from typing import Any

import gguf
import huggingface_hub as hub
import llama_cpp
import numpy as np
import pytest
from llama_cpp.llama_cache import LlamaRAMCache
from llama_cpp.llama_grammar import LlamaGrammar

from tests.conftest import TinyModel
from tests.llama_helpers import OTHER, PROMPT, SKIPS, answer, assert_same_route, fresh, load
from tests.tiny_models import write_tiny

MESSAGES: Any = [{"role": "user", "content": "How many hats are there?"}]
SCHEMA = {
    "type": "object",
    "properties": {"hats": {"type": "integer", "minimum": 0, "maximum": 9}},
    "required": ["hats"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("skip", SKIPS)
def test_grammar(tiny_model: TinyModel, skip: Any) -> None:
    grammar = LlamaGrammar.from_string('root ::= [a-c]+ "!"', verbose=False)
    with closing(load(tiny_model(), skip=skip)) as llm:
        result: Any = llm(PROMPT.decode(), max_tokens=8, temperature=0, grammar=grammar)
        text = result["choices"][0]["text"].rstrip("!")
        assert text and set(text) <= set("abc")
        assert result["first"]["skipped"]


@pytest.mark.parametrize("stream", [False, True])
def test_json_schema(tiny_model: TinyModel, stream: bool) -> None:
    with closing(load(tiny_model())) as llm:
        result: Any = llm.create_chat_completion(
            MESSAGES,
            response_format={"type": "json_object", "schema": SCHEMA},
            max_tokens=60,
            temperature=0,
            logit_bias={261: -100.0},  # the space, of which a random model may never tire
            stream=stream,
        )
        if stream:
            chunks = list(result)
            text = "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks)
            result = chunks[-1]
        else:
            text = result["choices"][0]["message"]["content"]
        assert set(json.loads(text)) == {"hats"}
        assert result["first"]["skipped"]


def test_a_tool_call_carries_first(tiny_model: TinyModel) -> None:
    tool: Any = {"type": "function", "function": {"name": "count", "parameters": SCHEMA}}
    choice: Any = {"type": "function", "function": {"name": "count"}}
    with closing(load(tiny_model())) as llm:
        for stream in (False, True):
            result: Any = llm.create_chat_completion(
                MESSAGES, tools=[tool], tool_choice=choice, max_tokens=20, stream=stream
            )
            assert (list(result)[-1] if stream else result)["first"] == llm.route.as_dict()


@pytest.mark.parametrize("chat_format", ["chatml", "llama-2", "gemma", "zephyr"])
def test_chat_formats(tiny_model: TinyModel, chat_format: str) -> None:
    with closing(load(tiny_model(), chat_format=chat_format)) as llm:
        result: Any = llm.create_chat_completion(MESSAGES, max_tokens=3)
        assert result["first"]["n_prompt"] == result["usage"]["prompt_tokens"]


@pytest.mark.parametrize("skip", [*SKIPS, "off"])
def test_logprobs(tiny_model: TinyModel, skip: Any) -> None:
    path = tiny_model()
    with closing(load(path, skip=skip, logits_all=True)) as llm:
        tokens = llm.tokenize(PROMPT)
        expected, route = fresh(path, tokens, 6, skip=skip)
        result: Any = llm(PROMPT.decode(), max_tokens=6, temperature=0, logprobs=2)
        logprobs = result["choices"][0]["logprobs"]
        assert llm.input_ids[len(tokens) : llm.n_tokens].tolist() == expected[:-1]
        assert len(logprobs["tokens"]) == 6
        # The likeliest token was taken, so its own log-probability is the best of those listed.
        for own, top in zip(logprobs["token_logprobs"], logprobs["top_logprobs"], strict=True):
            assert math.isclose(own, max(top.values()), abs_tol=1e-5) and own < 0
        assert_same_route(llm.route, route)
        stream: Any = llm(PROMPT.decode(), max_tokens=6, temperature=0, logprobs=2, stream=True)
        streamed = [c["choices"][0]["logprobs"]["token_logprobs"][0] for c in list(stream)[:-1]]
        assert streamed == pytest.approx(logprobs["token_logprobs"], abs=1e-4)


def test_seeds_decide_samples(tiny_model: TinyModel) -> None:
    def text(llm: llama_cpp.Llama, seed: int) -> str:
        result: Any = llm(PROMPT.decode(), max_tokens=10, temperature=1.5, seed=seed)
        return str(result["choices"][0]["text"])

    with closing(load(tiny_model())) as llm:
        first = text(llm, 1)
        assert text(llm, 1) == first
        assert text(llm, 2) != first
    with closing(load(tiny_model())) as llm:
        assert text(llm, 1) == first


@pytest.mark.parametrize("skip", SKIPS)
def test_logits_processors_and_stops(tiny_model: TinyModel, skip: Any) -> None:
    path = tiny_model()
    with closing(load(path, skip=skip)) as llm:
        tokens = llm.tokenize(PROMPT)
        forbidden = answer(llm, tokens, 3)[2]

        def forbid(_ids: Any, logits: Any) -> Any:
            logits[forbidden] = -math.inf
            return logits

        processors = llama_cpp.LogitsProcessorList([forbid])
        without = list(
            zip(llm.generate(tokens, temp=0.0, logits_processor=processors), range(6), strict=False)
        )
        assert forbidden not in [token for token, _ in without]
        result: Any = llm(PROMPT.decode(), max_tokens=12, temperature=0)
        text = result["choices"][0]["text"]
        stop = text[3:5]
        result = llm(PROMPT.decode(), max_tokens=12, temperature=0, stop=[stop])
        assert result["choices"][0]["text"] == text[: text.index(stop)]
        assert result["choices"][0]["finish_reason"] == "stop"
        assert result["first"]["skipped"]


@pytest.mark.parametrize("skip", SKIPS)
def test_lora(tiny_model: TinyModel, tmp_path: Path, skip: Any) -> None:
    path, adapter = tiny_model(), _write_lora(tmp_path / "lora.gguf")
    with closing(load(path)) as llm:
        tokens = llm.tokenize(PROMPT)
    plain, plain_route = fresh(path, tokens, skip=skip)
    adapted, route = fresh(path, tokens, skip=skip, lora_path=str(adapter))
    assert adapted != plain
    assert fresh(path, tokens, skip=skip, lora_path=str(adapter), n_batch=7)[0] == adapted
    assert fresh(path, tokens, skip=skip, lora_path=str(adapter), lora_scale=1e-9)[0] == plain
    if skip == "auto":
        assert route.scores != plain_route.scores  # routers see what the adapted layers pass on


def _write_lora(path: Path, rank: int = 4, n_embd: int = 64) -> Path:
    rng = np.random.default_rng(5)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", float(rank))
    for layer in range(6):
        for matrix, shape in (("lora_a", (rank, n_embd)), ("lora_b", (n_embd, rank))):
            data = rng.standard_normal(shape).astype(np.float32) * np.float32(0.4)
            writer.add_tensor(f"blk.{layer}.attn_q.weight.{matrix}", data)
            writer.add_tensor(f"blk.{layer}.attn_output.weight.{matrix}", data.copy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_embeddings_are_those_of_full_depth(tiny_model: TinyModel, capfd: pytest.CaptureFixture[str]) -> None:
    texts = [PROMPT.decode(), OTHER.decode(), "hats"]
    with closing(load(tiny_model(routers=False), embedding=True, pooling_type=1)) as llm:
        expected = np.array(llm.embed(texts))
    with closing(load(tiny_model(), embedding=True, pooling_type=1)) as llm:
        assert np.array_equal(np.array(llm.embed(texts)), expected)
        for text, row in zip(texts, expected, strict=True):
            assert np.allclose(llm.embed(text), row, atol=1e-4)
        result = llm.create_embedding(texts)
        assert len(result["data"]) == 3 and llm.skip == "auto"
    assert "first:" not in capfd.readouterr().err


def test_embedding_models_are_refused_as_before(tiny_model: TinyModel) -> None:
    with closing(load(tiny_model())) as llm:
        with pytest.raises(RuntimeError, match="embedding=True"):
            llm.embed("text")
        tokens = llm.tokenize(PROMPT)
        assert answer(llm, tokens) == fresh(tiny_model(), tokens)[0]
        assert llm.route.skipped


@pytest.mark.parametrize("skip", [*SKIPS, "off"])
def test_pickle(tiny_model: TinyModel, skip: Any) -> None:
    with closing(load(tiny_model(), skip=skip, threshold=0.6, n_batch=32)) as llm:
        tokens = llm.tokenize(PROMPT)
        expected = answer(llm, tokens)
        with closing(pickle.loads(pickle.dumps(llm))) as copy:
            assert (copy.skip, copy.threshold, copy.n_batch) == (llm.skip, 0.6, 32)
            assert answer(copy, tokens) == expected


def test_weights_stay_mapped_without_repacking(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = write_tiny(tmp_path / "q4.gguf", weight_type="Q4_0")

    def repacked(**settings: bool) -> bool:
        with closing(load(path, verbose=True, **settings)) as llm:
            assert llm.model_params.use_extra_bufts == settings.get("repack", True)
            said = capfd.readouterr().err
            with closing(pickle.loads(pickle.dumps(llm))):
                assert ("CPU_REPACK model buffer" in capfd.readouterr().err) == (
                    "CPU_REPACK model buffer" in said
                )
        return "CPU_REPACK model buffer" in said

    if not repacked():
        pytest.skip("llama.cpp repacks nothing on this processor")
    assert repacked(repack=True) and not repacked(repack=False)


@pytest.mark.parametrize("skip", [*SKIPS, "off"])
def test_saved_states(tiny_model: TinyModel, skip: Any) -> None:
    path = tiny_model()
    with closing(load(path, skip=skip, refill=True)) as llm:
        tokens, other = llm.tokenize(PROMPT), llm.tokenize(OTHER)
        first = answer(llm, tokens)
        state = llm.save_state()
        for prompt in (tokens, tokens + first, tokens + first[:4] + other, tokens[:9] + other, other):
            answer(llm, other * 3)  # leaves more scores than the state has tokens
            llm.load_state(state)
            expected, route = fresh(path, prompt, skip=skip)
            assert answer(llm, prompt) == expected
            assert_same_route(llm.route, route)


@pytest.mark.parametrize("skip", [*SKIPS, "off"])
def test_ram_cache(tiny_model: TinyModel, skip: Any) -> None:
    path = tiny_model()

    def text(llm: llama_cpp.Llama, prompt: str) -> Any:
        result: Any = llm(prompt, max_tokens=8, temperature=0)
        return result["choices"][0]["text"]

    prompts = [PROMPT.decode(), OTHER.decode(), PROMPT.decode() + " It rained.", PROMPT.decode()]
    expected = []
    for prompt in prompts:
        with closing(load(path, skip=skip)) as llm:
            expected.append(text(llm, prompt))
    with closing(load(path, skip=skip)) as llm:
        llm.set_cache(LlamaRAMCache())
        for prompt, right in zip(prompts * 2, expected * 2, strict=True):
            assert text(llm, prompt) == right


@pytest.mark.parametrize(("routers", "skip"), [(False, [2, 3]), (True, [2, 3]), (True, "auto"), (True, 0.4)])
def test_a_saved_state_keeps_its_prompt(tiny_model: TinyModel, routers: bool, skip: Any) -> None:
    with closing(load(tiny_model(routers=routers), skip=skip)) as llm:
        tokens = llm.tokenize(PROMPT)
        answer(llm, tokens)
        state = llm.save_state()
        llm.reset()
        llm.load_state(state)
        answer(llm, tokens + llm.tokenize(OTHER))
        assert llm.timing.n_prompt == len(llm.tokenize(OTHER))


def test_from_pretrained_passes_skip_on(
    tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tiny_model()

    class Files:
        def ls(self, repo: str, recursive: bool = True) -> list[str]:
            return [f"{repo}/{path.name}"]

    monkeypatch.setattr(hub, "HfFileSystem", Files)
    monkeypatch.setattr(hub, "hf_hub_download", lambda **kwargs: str(path))
    from first_llama import Llama

    llm = Llama.from_pretrained(
        "some/model", "*-routers.gguf", local_dir=str(path.parent), skip=[3], verbose=False, n_ctx=64
    )
    with closing(llm):
        assert isinstance(llm, Llama) and llm.skip == [3]
