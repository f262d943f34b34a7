"""What every runtime's decoder session must do, whatever the engine, on a tiny Llama with grouped heads.

A runtime joins by a line in EXPORTERS: the module and function that write its artifact, and the file's name.
"""

from __future__ import annotations

import importlib
import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from edgescribe.converters.freeze import freeze
from edgescribe.converters.student import Student
from edgescribe.converters.torch_decoder import TorchDecoder
from edgescribe.errors import (
    BundleError,
    EngineError,
    InputError,
    OverBudgetError,
    UsageError,
    WrongAnswerError,
)
from edgescribe.runtimes.decoder_contract import CacheState, DecoderAnswer, DecoderOptions, DecoderSession
from edgescribe.runtimes.registry import decoder_runtime, open_decoder
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

EXPORTERS = {
    "onnxruntime": ("edgescribe.converters.export.onnx_decoder", "export_onnx_decoder", "decoder.onnx"),
    "litert": ("edgescribe.converters.export.litert_decoder", "export_litert_decoder", "decoder.tflite"),
    "openvino": ("edgescribe.converters.export.openvino_decoder", "export_openvino_decoder", "decoder.xml"),
}
PRECISIONS = ("fp32", "w8a8-dynamic", "w4a8-dynamic")
TOLERANCES = {"fp32": 1e-4, "w8a8-dynamic": 0.05, "w4a8-dynamic": 0.05}
"""Largest difference from torch in logits of deviation about 0.4: engines round activations each in their own way."""

VOCABULARY, POSITIONS, CONTEXT = 101, 400, 300


def _exporters() -> dict[str, Any]:
    found = {}
    for name, (module, function, _) in EXPORTERS.items():
        try:
            found[name] = getattr(importlib.import_module(module), function)
        except ModuleNotFoundError:
            continue
    return found


@pytest.fixture(scope="module")
def student() -> Student:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=96, intermediate_size=160, num_hidden_layers=2, num_attention_heads=6,
        num_key_value_heads=2, max_position_embeddings=POSITIONS, tie_word_embeddings=True,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(5)
        model = LlamaForCausalLM(config)
    state = {name: tensor for name, tensor in model.state_dict().items() if name != "lm_head.weight"}
    fields = json.loads(config.to_json_string(use_diff=False))
    return Student(fields, state, None, {}, "generate", (), POSITIONS, 0, "random", "0" * 64)


@pytest.fixture(scope="module", params=[(name, each) for name in _exporters() for each in PRECISIONS], ids="-".join)
def made(
    request: pytest.FixtureRequest, student: Student, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path, TorchDecoder]:
    """Runtime, artifact and the torch reference of one precision."""
    runtime, precision = request.param
    graph = TorchDecoder(student, precision).eval()
    path = tmp_path_factory.mktemp(f"{runtime}-{precision}") / EXPORTERS[runtime][2]
    with torch.no_grad():
        _exporters()[runtime](student.anatomy, student.shape, freeze(graph), path, CONTEXT)
    return runtime, path, graph


@pytest.fixture(scope="module")
def opened(made: tuple[str, Path, TorchDecoder]) -> Iterator[DecoderSession]:
    session = open_decoder(made[0], made[1], DecoderOptions(threads=1))
    yield session
    session.close()


@pytest.fixture
def session(opened: DecoderSession) -> DecoderSession:
    """The opened session, empty."""
    opened.rewind(0)
    return opened


def tokens_of(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, VOCABULARY, count).astype(np.int32)


def torch_logits(graph: TorchDecoder, tokens: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return graph({"input_ids": torch.from_numpy(tokens[None].astype(np.int64))})["logits"][0].numpy()


def near(session: DecoderSession, precision: str) -> float:
    """How far apart two ways to the same logits may be: rounding of float32, or of activations where they are int8."""
    return 1e-5 if precision == "fp32" else TOLERANCES[precision]


def test_prefill_gives_what_torch_gives(made: tuple[str, Path, TorchDecoder], session: DecoderSession) -> None:
    graph = made[2]
    for count in (1, 2, 17, 150, CONTEXT):
        tokens = tokens_of(count, seed=count)
        session.rewind(0)
        got = session.prefill(tokens)
        assert got.dtype == np.float32
        assert got.shape == (VOCABULARY,)
        assert session.length == count
        np.testing.assert_allclose(got, torch_logits(graph, tokens)[-1], atol=TOLERANCES[graph.precision], rtol=0)


def test_tokens_one_by_one_give_what_torch_gives(
    made: tuple[str, Path, TorchDecoder], session: DecoderSession
) -> None:
    graph, tokens = made[2], tokens_of(40)
    expected = torch_logits(graph, tokens)
    for place, token in enumerate(tokens):
        np.testing.assert_allclose(session.step(int(token)), expected[place], atol=TOLERANCES[graph.precision], rtol=0)
    assert session.length == 40


def test_steps_into_the_same_array_give_what_steps_give(
    made: tuple[str, Path, TorchDecoder], session: DecoderSession
) -> None:
    tokens = [int(token) for token in tokens_of(70)]
    expected = [session.step(token) for token in tokens]
    session.rewind(0)
    kept = expected[0].copy()
    row = np.empty(VOCABULARY, np.float32)
    for token, right in zip(tokens, expected, strict=True):
        found = session.step(token, row)
        np.testing.assert_array_equal(found, right)
        found[:] = -np.inf  # a row is the caller's to change
    np.testing.assert_array_equal(expected[0], kept)
    for wrong in (np.empty(VOCABULARY - 1, np.float32), np.empty(VOCABULARY, np.float64)):
        with pytest.raises(InputError, match="do not go into"):
            session.step(tokens[0], wrong)
    assert session.length == len(tokens)


def test_a_step_takes_any_whole_number_and_refuses_what_is_none(session: DecoderSession) -> None:
    first = session.step(7)
    session.rewind(0)
    np.testing.assert_array_equal(session.step(np.int64(7)), first)  # type: ignore[arg-type]
    for wrong in (-1, VOCABULARY, 1.5, True, "7", None):
        with pytest.raises(InputError):
            session.step(wrong)  # type: ignore[arg-type]
    assert session.length == 1
    session.prefill(tokens_of(CONTEXT - 1))
    with pytest.raises(InputError, match="do not fit"):
        session.step(7)


def test_prefill_in_parts_gives_what_it_gives_at_once(
    made: tuple[str, Path, TorchDecoder], session: DecoderSession
) -> None:
    tokens = tokens_of(200)
    at_once = session.prefill(tokens)
    session.rewind(0)
    for part in (tokens[:3], tokens[3:70], tokens[70:71], tokens[71:]):
        got = session.prefill(part)
    np.testing.assert_allclose(got, at_once, atol=near(session, made[2].precision), rtol=0)


def test_verify_gives_the_logits_of_each_token(made: tuple[str, Path, TorchDecoder], session: DecoderSession) -> None:
    graph, tokens = made[2], tokens_of(60)
    expected = torch_logits(graph, tokens)
    session.prefill(tokens[:20])
    for count in sorted({1, 2, 3, min(5, session.most_verified), session.most_verified}):
        session.rewind(20)
        got = session.verify(tokens[20 : 20 + count])
        assert got.shape == (count, VOCABULARY)
        assert session.length == 20 + count
        np.testing.assert_allclose(got, expected[20 : 20 + count], atol=TOLERANCES[graph.precision], rtol=0)


def test_verify_is_bit_for_bit_what_steps_give_where_the_session_says_so(session: DecoderSession) -> None:
    tokens = tokens_of(70, seed=3)
    session.prefill(tokens[:33])
    steps = np.stack([session.step(int(token)) for token in tokens[33 : 33 + session.most_verified]])
    equal = []
    for count in range(1, session.most_verified + 1):
        session.rewind(33)
        equal.append(np.array_equal(session.verify(tokens[33 : 33 + count]), steps[:count]))
    assert all(equal) or not session.verifies_alike


def test_after_a_rewind_other_tokens_leave_no_trace(session: DecoderSession) -> None:
    tokens = tokens_of(50)
    session.prefill(tokens[:30])
    first = session.step(7)
    session.prefill(tokens_of(40, seed=9))
    session.rewind(30)
    assert session.length == 30
    np.testing.assert_array_equal(session.step(7), first)


def test_logits_belong_to_the_caller(session: DecoderSession) -> None:
    first = session.prefill([1, 2, 3])
    kept = first.copy()
    second = session.step(4)
    np.testing.assert_array_equal(first, kept)
    first[:] = 0
    several = session.verify([5, 6])
    copied = several.copy()
    session.step(8)
    np.testing.assert_array_equal(several, copied)
    assert not np.array_equal(second, kept)


def test_a_fork_goes_its_own_way(session: DecoderSession) -> None:
    tokens = tokens_of(25)
    session.prefill(tokens)
    expected = session.step(3)
    session.rewind(25)
    fork = session.fork()
    assert fork.length == 25
    fork.prefill(tokens_of(60, seed=4))
    np.testing.assert_array_equal(session.step(3), expected)
    fork.rewind(25)
    np.testing.assert_array_equal(fork.step(3), expected)
    session.rewind(0)
    session.prefill([9])
    np.testing.assert_array_equal(fork.prefill([5]), _after(session, [*tokens, 3], 5))
    fork.close()
    assert session.length == len(tokens) + 2


def _after(session: DecoderSession, tokens: list[int], last: int) -> np.ndarray:
    """Logits of ``last`` behind ``tokens``, of which the last one was a step."""
    session.rewind(0)
    session.prefill(tokens[:-1])
    session.step(int(tokens[-1]))
    return session.prefill([last])


def test_forks_run_in_threads_of_their_own(made: tuple[str, Path, TorchDecoder], session: DecoderSession) -> None:
    prompt = tokens_of(20)
    session.prefill(prompt)
    results: dict[int, np.ndarray] = {}

    def write(number: int, fork: DecoderSession) -> None:
        results[number] = np.stack([fork.step(number + step) for step in range(12)])
        fork.close()

    threads = [threading.Thread(target=write, args=(number, session.fork())) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number in range(4):
        session.rewind(20)
        alone = np.stack([session.step(number + step) for step in range(12)])
        np.testing.assert_array_equal(results[number], alone)


def test_weights_outlive_the_session_that_was_forked(made: tuple[str, Path, TorchDecoder]) -> None:
    first = open_decoder(made[0], made[1], DecoderOptions(threads=1))
    expected = first.prefill([1, 2, 3])
    first.rewind(2)
    fork = first.fork()
    first.close()
    first.close()
    np.testing.assert_allclose(fork.step(3), expected, atol=near(fork, made[2].precision), rtol=0)
    second = fork.fork()
    fork.close()
    assert second.step(4).shape == (VOCABULARY,)
    second.close()


def test_a_saved_cache_goes_into_another_session(made: tuple[str, Path, TorchDecoder], session: DecoderSession) -> None:
    tokens = tokens_of(45)
    session.prefill(tokens)
    saved = session.save_cache()
    expected = session.step(11)
    held = {name: np.array(array, copy=True) for name, array in saved.arrays.items()}
    session.prefill(tokens_of(30, seed=8))
    for name, array in saved.arrays.items():
        np.testing.assert_array_equal(array, held[name])
    other = open_decoder(made[0], made[1], DecoderOptions(threads=1, context=100))
    other.prefill([5, 6])
    other.load_cache(replace(saved, tokens=tokens))
    assert other.length == 45
    np.testing.assert_array_equal(other.step(11), expected)
    other.close()


def test_a_saved_cache_of_another_kind_is_refused(session: DecoderSession) -> None:
    tokens = tokens_of(12)
    session.prefill(tokens)
    expected = session.step(2)
    session.rewind(12)
    arrays = dict(session.save_cache().arrays)
    name = sorted(arrays)[0]
    missing = {key: array for key, array in arrays.items() if key != name}
    for wrong in (
        CacheState(tokens, missing),
        CacheState(tokens, {**arrays, "another": arrays[name]}),
        CacheState(tokens, {**arrays, name: arrays[name].astype(np.float64)}),
        CacheState(tokens, {**arrays, name: arrays[name][..., :-1]}),
        CacheState(tokens[:-1], arrays),
        CacheState(tokens_of(CONTEXT + 1), arrays),
    ):
        with pytest.raises(InputError):
            session.load_cache(wrong)
    assert session.length == 12
    np.testing.assert_array_equal(session.step(2), expected)


@pytest.mark.parametrize("wrong", [[], [-1], [VOCABULARY], [1, 2, VOCABULARY + 5], [[1, 2]], [0.5]])
def test_tokens_that_cannot_be_are_refused(session: DecoderSession, wrong: Any) -> None:
    session.prefill([1, 2, 3])
    for method in (session.prefill, session.verify):
        with pytest.raises(InputError):
            method(wrong)
    assert session.length == 3


def test_room_is_checked_before_anything_runs(session: DecoderSession) -> None:
    with pytest.raises(InputError, match="do not fit"):
        session.prefill(tokens_of(CONTEXT + 1))
    assert session.length == 0
    session.prefill(tokens_of(CONTEXT - 1))
    with pytest.raises(InputError, match="do not fit"):
        session.verify([1, 2])
    session.step(1)
    assert session.length == CONTEXT
    with pytest.raises(InputError, match="do not fit"):
        session.step(1)
    with pytest.raises(InputError):
        session.rewind(CONTEXT + 1)
    with pytest.raises(InputError):
        session.rewind(-1)
    session.rewind(0)
    with pytest.raises(InputError, match="the most"):
        session.verify(tokens_of(session.most_verified + 1))


def test_a_closed_session_says_so(made: tuple[str, Path, TorchDecoder]) -> None:
    session = open_decoder(made[0], made[1], DecoderOptions(threads=1, context=32))
    session.prefill([1, 2])
    saved = replace(session.save_cache(), tokens=np.array([1, 2], np.int32))
    session.close()
    for call in (
        lambda: session.prefill([1]),
        lambda: session.step(1),
        lambda: session.verify([1]),
        lambda: session.rewind(0),
        lambda: session.fork(),
        lambda: session.save_cache(),
        lambda: session.load_cache(saved),
    ):
        with pytest.raises(EngineError, match="closed"):
            call()


def test_a_smaller_context_takes_less_memory_and_works_alike(
    made: tuple[str, Path, TorchDecoder], session: DecoderSession
) -> None:
    runtime, path, graph = made
    adapter = decoder_runtime(runtime)
    whole, small = adapter.predicted_memory(path), adapter.predicted_memory(path, 64)
    assert whole == adapter.predicted_memory(path, CONTEXT)
    assert small.cache < whole.cache
    assert small.weights > 0
    assert small.total < whole.total
    short = open_decoder(runtime, path, DecoderOptions(threads=1, context=64))
    assert short.context == 64
    assert session.context == CONTEXT
    expected = session.prefill(tokens_of(64))
    np.testing.assert_allclose(short.prefill(tokens_of(64)), expected, atol=near(session, graph.precision), rtol=0)
    with pytest.raises(InputError, match="do not fit"):
        short.step(1)
    short.close()


def test_too_little_memory_is_refused_before_it_is_taken(made: tuple[str, Path, TorchDecoder]) -> None:
    runtime, path, _ = made
    needed = decoder_runtime(runtime).predicted_memory(path, 200).total
    with pytest.raises(OverBudgetError, match="context"):
        open_decoder(runtime, path, DecoderOptions(threads=1, context=200, memory_limit=needed - 1))
    open_decoder(runtime, path, DecoderOptions(threads=1, context=200, memory_limit=needed)).close()


def test_a_context_over_the_artifacts_is_refused(made: tuple[str, Path, TorchDecoder]) -> None:
    for context in (0, CONTEXT + 1):
        with pytest.raises(UsageError, match="context"):
            open_decoder(made[0], made[1], DecoderOptions(context=context))
        with pytest.raises(UsageError, match="context"):
            decoder_runtime(made[0]).predicted_memory(made[1], context)


def test_known_answers_are_checked_on_opening(made: tuple[str, Path, TorchDecoder]) -> None:
    runtime, path, graph = made
    prompt = tokens_of(150, seed=2)
    expected = torch_logits(graph, prompt)[-1]
    best = np.argsort(-expected)[:5].astype(np.int32)
    right = DecoderAnswer(prompt, best, expected[best], TOLERANCES[graph.precision])
    session = open_decoder(runtime, path, DecoderOptions(threads=1, answers=[right]))
    assert session.length == 0
    session.close()
    wrong = replace(right, expected=right.expected + 1)
    with pytest.raises(WrongAnswerError, match="answer 2 of 2"):
        open_decoder(runtime, path, DecoderOptions(threads=1, answers=[right, wrong]))


def test_what_runs_is_told(made: tuple[str, Path, TorchDecoder], session: DecoderSession) -> None:
    used = session.effective
    assert (used.runtime, used.device, used.threads) == (made[0], "cpu", 1)
    assert used.engine_version
    assert session.vocabulary == VOCABULARY
    assert isinstance(session, DecoderSession)


def test_a_device_that_is_not_there_is_refused(made: tuple[str, Path, TorchDecoder]) -> None:
    with pytest.raises(EngineError):
        open_decoder(made[0], made[1], DecoderOptions(device="npu"))


def test_a_damaged_artifact_is_refused(made: tuple[str, Path, TorchDecoder], tmp_path: Path) -> None:
    runtime, path, _ = made
    copy = tmp_path / path.name
    content = path.read_bytes()
    for damaged in (b"", content[: len(content) // 3], b"not a model" * 50):
        copy.write_bytes(damaged)
        with pytest.raises((BundleError, EngineError)):
            open_decoder(runtime, copy, DecoderOptions(threads=1))
        with pytest.raises(BundleError):
            decoder_runtime(runtime).predicted_memory(copy)
    with pytest.raises(BundleError):
        open_decoder(runtime, tmp_path / f"missing{path.suffix}")


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(data=st.data())
def test_any_road_to_a_text_gives_its_logits(
    made: tuple[str, Path, TorchDecoder], session: DecoderSession, data: st.DataObject
) -> None:
    """Prefills, steps, verifications and rewinds in any order; the text held then has torch's logits."""
    session.rewind(0)
    text: list[int] = []
    token = st.integers(0, VOCABULARY - 1)
    for _ in range(data.draw(st.integers(1, 6))):
        action = data.draw(st.sampled_from(["prefill", "step", "verify", "rewind"]))
        if action == "rewind":
            kept = data.draw(st.integers(0, len(text)))
            session.rewind(kept)
            del text[kept:]
            continue
        most = {"prefill": 40, "step": 1, "verify": min(8, session.most_verified)}[action]
        more = data.draw(st.lists(token, min_size=1, max_size=most))
        text += more
        if action == "step":
            session.step(more[0])
        else:
            getattr(session, action)(more)
    assert session.length == len(text)
    last = data.draw(token)
    got = session.step(last)
    expected = torch_logits(made[2], np.array([*text, last], np.int32))[-1]
    np.testing.assert_allclose(got, expected, atol=TOLERANCES[made[2].precision], rtol=0)
