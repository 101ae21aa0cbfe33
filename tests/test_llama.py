"""Settings, routes and the "first" object of first_llama.Llama."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from first_llama import FirstError, Llama, SkipError
from tests.conftest import TinyModel
from tests.llama_helpers import OTHER, PROMPT, SKIPS, answer, fresh, load

MESSAGES: Any = [{"role": "user", "content": "How many hats are there?"}]


def test_auto_skips_the_layers_scored_below_the_threshold(tiny_model: TinyModel) -> None:
    with closing(load(tiny_model())) as llm:
        llm(PROMPT.decode(), max_tokens=4)
        route = llm.route
    assert route.n_layer == 6 and route.n_prompt > 20
    assert route.scores[0] is None and route.scores[5] is None  # layers without a router
    scored = {i: s for i, s in enumerate(route.scores) if s is not None}
    assert all(0 < s < 1 for s in scored.values())
    assert route.skipped == [i for i, s in scored.items() if s < 0.5]
    assert route.skipped


def test_prompts_differ_in_their_routes(tiny_model: TinyModel) -> None:
    with closing(load(tiny_model())) as llm:
        llm(PROMPT.decode(), max_tokens=2)
        first = llm.route
        llm(OTHER.decode(), max_tokens=2)
        assert llm.route.scores != first.scores


def test_threshold_replaces_the_file_s(tiny_model: TinyModel) -> None:
    with closing(load(tiny_model(), threshold=0.999)) as llm:
        llm(PROMPT.decode(), max_tokens=2)
        assert llm.route.skipped == [1, 2, 3, 4]
        llm.threshold = 0.001
        llm(PROMPT.decode(), max_tokens=2)
        assert llm.route.skipped == []
        llm.threshold = None
        llm(PROMPT.decode(), max_tokens=2)
        assert llm.route.skipped == [i for i, s in enumerate(llm.route.scores) if s is not None and s < 0.5]


@pytest.mark.parametrize(("fraction", "n_skipped"), [(0, 0), (0.2, 1), (0.34, 2), (0.5, 3), (0.99, 4)])
def test_a_fraction_skips_the_lowest_scored_layers(
    tiny_model: TinyModel, fraction: float, n_skipped: int
) -> None:
    with closing(load(tiny_model(), skip=fraction)) as llm:
        llm(PROMPT.decode(), max_tokens=2)
        scored = sorted((s, i) for i, s in enumerate(llm.route.scores) if s is not None)
        assert llm.route.skipped == sorted(i for _, i in scored[:n_skipped])


def test_a_list_skips_these_layers_without_routers(tiny_model: TinyModel) -> None:
    plain = tiny_model(routers=False)
    with closing(load(plain, skip=(3, 1, 3))) as llm:
        assert llm.skip == [1, 3]
        tokens = llm.tokenize(PROMPT)
        skipping = answer(llm, tokens)
        assert llm.route.skipped == [1, 3]
        assert llm.route.scores == [None] * 6
    assert skipping != fresh(plain, tokens, skip="off")[0]


def test_off_is_a_file_without_routers(tiny_model: TinyModel) -> None:
    with closing(load(tiny_model(routers=False))) as plain:
        tokens = plain.tokenize(PROMPT)
        expected = answer(plain, tokens, 24)
        assert plain.skip == "auto" and plain.route.skipped == []
    with closing(load(tiny_model(), skip="off")) as llm:
        assert answer(llm, tokens, 24) == expected
        assert llm.route.skipped == [] and llm.route.scores == [None] * 6


def test_skip_can_change_between_prompts(tiny_model: TinyModel) -> None:
    path = tiny_model()
    with closing(load(path, skip="off")) as llm:
        tokens = llm.tokenize(PROMPT)
        for skip in ("off", "auto", [2, 3], 0.4, "off", 0.4, [1], "auto"):
            llm.skip = skip
            expected, route = fresh(path, tokens, skip=skip)
            assert answer(llm, tokens) == expected, skip
            assert llm.route.skipped == route.skipped, skip
            assert llm.route.n_prompt == route.n_prompt, skip


def test_a_refused_skip_changes_nothing(tiny_model: TinyModel) -> None:
    with closing(load(tiny_model(), skip=[2])) as llm:
        tokens = llm.tokenize(PROMPT)
        expected = answer(llm, tokens)
        for wrong in ([0], [2, 99], "on", 1.0):
            with pytest.raises(SkipError):
                llm.skip = wrong  # type: ignore[assignment]
        assert llm.skip == [2]
        assert answer(llm, tokens) == expected


@pytest.mark.parametrize(
    "skip", ["0.2", "3,5", "", 1, 1.5, -0.1, float("nan"), True, None, [-1], [1.5], ["3"], [True], {"a": 1}]
)
def test_nonsense_is_refused_before_the_model_is_read(skip: Any) -> None:
    with pytest.raises(SkipError, match=r"skip=.* is not understood; give 'auto'") as caught:
        Llama("no-such-file.gguf", skip=skip)
    assert isinstance(caught.value, FirstError) and isinstance(caught.value, ValueError)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("threshold", [0, 1, -1, float("nan"), "0.5", True])
def test_a_wrong_threshold_is_refused(threshold: Any) -> None:
    with pytest.raises(SkipError, match="threshold"):
        Llama("no-such-file.gguf", threshold=threshold)


@pytest.mark.parametrize(
    ("skip", "reason"),
    [
        ([0, 2], "layer 0 may not be skipped; this model may skip 1-4"),
        ([5], "layer 5 may not"),
        ([6], "layer 6"),
    ],
)
def test_layers_that_must_stay(tiny_model: TinyModel, skip: list[int], reason: str) -> None:
    with pytest.raises(SkipError, match=reason):
        load(tiny_model(), skip=skip)


def test_a_fraction_needs_routers(tiny_model: TinyModel) -> None:
    with pytest.raises(SkipError, match=r"needs routers .*first-llama embed"):
        load(tiny_model(routers=False), skip=0.2)


def test_the_last_layers_of_an_attention_type_must_stay(tiny_model: TinyModel) -> None:
    # Layers 2 and 5 of the tiny gemma3 see the whole context, the others a window.
    with pytest.raises(SkipError, match="attention type"):
        load(tiny_model("gemma3", routers=False), skip=[2, 5])


def test_numpy_numbers_are_numbers(tiny_model: TinyModel) -> None:
    with closing(load(tiny_model(), skip=np.array([3, 2]))) as llm:
        assert llm.skip == [2, 3]
        llm.skip = np.float32(0.25)
        assert llm.skip == 0.25


@pytest.mark.parametrize("skip", SKIPS)
def test_completions_carry_first(tiny_model: TinyModel, skip: Any) -> None:
    with closing(load(tiny_model(), skip=skip)) as llm:
        results = [
            llm(PROMPT.decode(), max_tokens=4),
            llm.create_completion(PROMPT.decode(), max_tokens=4),
            llm.create_chat_completion(MESSAGES, max_tokens=4),
        ]
        for result in results:
            first = json.loads(json.dumps(result, allow_nan=False))["first"]
            assert first["n_layer"] == 6
            assert first["skipped"] and len(first["scores"]) == 6
        assert first == llm.route.as_dict()


@pytest.mark.parametrize("chat", [False, True])
def test_streams_carry_first_in_the_last_chunk(tiny_model: TinyModel, chat: bool) -> None:
    with closing(load(tiny_model())) as llm:
        stream: Any
        if chat:
            stream = llm.create_chat_completion(MESSAGES, max_tokens=5, stream=True)
        else:
            stream = llm.create_completion(PROMPT.decode(), max_tokens=5, stream=True)
        chunks = list(stream)
        assert all("first" not in chunk for chunk in chunks[:-1])
        assert json.loads(json.dumps(chunks[-1], allow_nan=False))["first"] == llm.route.as_dict()
        assert llm.route.skipped


def test_openai_s_classes_keep_first(tiny_model: TinyModel) -> None:
    with closing(load(tiny_model())) as llm:
        result = llm.create_chat_completion_openai_v1(MESSAGES, max_tokens=2)
        assert result.first == llm.route.as_dict()


def test_the_route_is_known_while_the_answer_streams(tiny_model: TinyModel) -> None:
    with closing(load(tiny_model())) as llm:
        prompt = llm.tokenize(PROMPT)
        tokens = llm.generate(prompt, temp=0.0)
        next(tokens)
        route = llm.route
        assert route.skipped and route.n_prompt == len(prompt)
        next(tokens)
        assert llm.route == route
        tokens.close()


def test_timing_counts_tokens(tiny_model: TinyModel) -> None:
    with closing(load(tiny_model())) as llm:
        tokens = llm.tokenize(PROMPT)
        answer(llm, tokens, 5)
        timing = llm.timing
        assert (timing.n_prompt, timing.n_decode) == (len(tokens), 4)
        assert timing.prefill_tok_s and timing.prefill_tok_s > 0
        assert timing.decode_tok_s and timing.decode_tok_s > 0


def test_verbose_says_why_nothing_is_skipped(
    tiny_model: TinyModel, capfd: pytest.CaptureFixture[str]
) -> None:
    with closing(load(tiny_model(routers=False), verbose=True)):
        pass
    assert "every layer will run" in capfd.readouterr().err
    with closing(load(tiny_model(routers=False))):
        pass
    assert "every layer will run" not in capfd.readouterr().err


@pytest.mark.parametrize("logits_all", [False, True])
def test_a_context_that_llama_cpp_rounds_up(tiny_model: TinyModel, logits_all: bool) -> None:
    path = tiny_model()
    with closing(load(path, n_ctx=100, logits_all=logits_all)) as llm:
        tokens = llm.tokenize(PROMPT * 2)[:90]
        assert llm.n_ctx() > 100
        n = llm.n_ctx() - len(tokens)
        assert answer(llm, tokens, n) == fresh(path, tokens, n, n_ctx=llm.n_ctx())[0]
        assert llm.n_tokens > 100


def test_a_missing_file_is_the_parent_s_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="does not exist"):
        load(tmp_path / "none.gguf")
