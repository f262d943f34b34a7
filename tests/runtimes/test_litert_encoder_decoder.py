"""What LiteRT's encoder-decoder sessions do: sources one after the other, shared by forks, and files it refuses."""

from __future__ import annotations

import contextlib
import gc
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from edgescribe.converters.export.litert_decoder import export_litert_decoder
from edgescribe.converters.export.litert_encoder_decoder import export_litert_encoder_decoder
from edgescribe.converters.families.t5_layers import settle
from edgescribe.converters.freeze import freeze
from edgescribe.converters.student import Student
from edgescribe.converters.torch_decoder import graph_of
from edgescribe.errors import (
    BundleError,
    EngineError,
    InputError,
    OverBudgetError,
    UsageError,
    WrongAnswerError,
)
from edgescribe.runtimes.encoder_decoder_contract import EncoderDecoderOptions, EncoderDecoderSession, SourceAnswer
from edgescribe.runtimes.litert_decoder import DECODER
from edgescribe.runtimes.litert_encoder_decoder import ENCODER_DECODER, LiteRtEncoderDecoderSession
from edgescribe.runtimes.litert_encoder_decoder_file import read_encoder_decoder_file
from edgescribe.runtimes.registry import encoder_decoder_runtime
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

PRECISIONS = ("fp32", "w8a8-dynamic", "w4a8-dynamic")
VOCABULARY, SOURCE, TARGET = 97, 200, 150

Written = Callable[[str], tuple[Path, Any]]


@pytest.fixture(scope="module", autouse=True)
def one_torch_thread() -> Iterator[None]:
    """Matrices this small only wait for one another on several threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def student() -> Student:
    """A tiny T5 with a deep encoder and random weights."""
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(
        vocab_size=VOCABULARY, d_model=64, d_kv=16, d_ff=96, num_layers=3, num_decoder_layers=2, num_heads=4,
        feed_forward_proj="gated-gelu", decoder_start_token_id=0, relative_attention_max_distance=40,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = T5ForConditionalGeneration(config)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "relative" in name:
                    parameter.normal_()
                elif "shared" not in name:
                    parameter.add_(torch.randn_like(parameter) * 0.03)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    fields, tensors = settle(json.loads(config.to_json_string(use_diff=False)), state)
    return Student(fields, tensors, None, {}, "summarize", (), SOURCE, 0, "random", "0" * 64)


@pytest.fixture(scope="module")
def written(student: Student, tmp_path_factory: pytest.TempPathFactory) -> Written:
    """``written(precision)``: an artifact, and its reference in torch."""
    made: dict[str, tuple[Path, Any]] = {}

    def write(precision: str) -> tuple[Path, Any]:
        if precision not in made:
            graph = graph_of(student, precision).eval()
            path = tmp_path_factory.mktemp(precision) / "writer.tflite"
            with torch.no_grad():
                weights = freeze(graph)
            export_litert_encoder_decoder(student.anatomy, student.shape, weights, path, SOURCE, TARGET)
            made[precision] = path, graph
        return made[precision]

    return write


@pytest.fixture(scope="module")
def opened(written: Written) -> Iterator[LiteRtEncoderDecoderSession]:
    session = open_at(written("w8a8-dynamic")[0])
    yield session
    session.close()


@pytest.fixture
def session(opened: LiteRtEncoderDecoderSession) -> LiteRtEncoderDecoderSession:
    """A session in int8 that has read a source."""
    opened.read([1])
    return opened


def open_at(path: Path, **options: Any) -> LiteRtEncoderDecoderSession:
    return ENCODER_DECODER.open_encoder_decoder(path, EncoderDecoderOptions(**{"threads": 1, **options}))


def tokens_of(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, VOCABULARY, count).astype(np.int32)


def torch_logits(graph: Any, source: np.ndarray, target: np.ndarray) -> np.ndarray:
    feeds = {"source_ids": source, "input_ids": target}
    with torch.no_grad():
        found = graph.run({name: torch.from_numpy(ids[None].astype(np.int64)) for name, ids in feeds.items()})
    return found["logits"][0].numpy()


def assert_near(got: np.ndarray, expected: np.ndarray, precision: str) -> None:
    """Float32 differs in its last digits alone; rounded activations at times round the other way."""
    off = np.sqrt(np.square(got - expected).mean())
    assert off < (1e-5 if precision == "fp32" else 0.2) * expected.std()


def test_the_registry_finds_it() -> None:
    assert encoder_decoder_runtime("litert") is ENCODER_DECODER


@pytest.mark.parametrize("precision", PRECISIONS)
def test_sources_one_after_the_other_are_answered_as_torch_does(written: Written, precision: str) -> None:
    path, graph = written(precision)
    session = open_at(path, threads=2)
    assert isinstance(session, EncoderDecoderSession)
    for seed, count in enumerate((70, 5, SOURCE, 1, 64, 129)):
        source, target = tokens_of(count, seed), tokens_of(TARGET, seed + 9)
        expected = torch_logits(graph, source, target)
        session.read(source)
        assert (session.source_length, session.length) == (count, 0)
        assert_near(session.prefill(target[:60]), expected[59], precision)
        assert_near(session.step(int(target[60])), expected[60], precision)
        assert_near(session.verify(target[61:69]), expected[61:69], precision)
        session.prefill(tokens_of(10, seed=5))
        session.rewind(65)
        assert_near(session.prefill(target[65:]), expected[-1], precision)
        with pytest.raises(InputError, match="do not fit"):
            session.step(1)
        session.rewind(0)
        assert_near(session.verify(target[:3]), expected[:3], precision)
    session.close()
    session.close()
    for call in (lambda: session.step(1), lambda: session.read([1]), session.fork, session.save_cache):
        with pytest.raises(EngineError, match="closed"):
            call()


def test_nothing_is_written_before_a_source_was_read(written: Written) -> None:
    session = open_at(written("fp32")[0])
    assert session.source_length == session.length == 0
    for call in (session.prefill, session.verify):
        with pytest.raises(InputError, match="source"):
            call([1])
    with pytest.raises(InputError, match="source"):
        session.step(1)
    session.rewind(0)
    fork = session.fork()
    with pytest.raises(InputError, match="source"):
        fork.step(1)
    session.close()
    fork.read([1, 2])
    assert fork.step(0).shape == (VOCABULARY,)
    fork.close()


def test_sources_that_cannot_be_read_change_nothing(session: LiteRtEncoderDecoderSession) -> None:
    session.read([4, 5, 6])
    expected = session.step(0)
    session.rewind(0)
    session.prefill([0, 1])
    for wrong, message in (
        ([], "no tokens"),
        ([VOCABULARY], f"no token {VOCABULARY}"),
        ([-1], "no token -1"),
        (tokens_of(SOURCE + 1), "at once"),
    ):
        with pytest.raises(InputError, match=message):
            session.read(wrong)
    assert (session.source_length, session.length) == (3, 2)
    session.rewind(0)
    np.testing.assert_array_equal(session.step(0), expected)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("threads", [1, 2])
def test_a_token_has_the_same_logits_whatever_run_it_came_by(written: Written, precision: str, threads: int) -> None:
    """Bit for bit, in caches of all sizes."""
    session = open_at(written(precision)[0], threads=threads)
    assert session.verifies_alike
    session.read(tokens_of(90))
    tokens = tokens_of(TARGET, seed=4)
    steps = np.stack([session.step(int(token)) for token in tokens])
    for sizes in ((8,), (3, 5), (1, 8, 2), (7,)):
        session.rewind(0)
        at, turn, found = 0, 0, []
        while at < len(tokens):
            found.append(session.verify(tokens[at : at + sizes[turn % len(sizes)]]))
            at, turn = at + len(found[-1]), turn + 1
        np.testing.assert_array_equal(np.concatenate(found), steps)
    for count in (1, 9, 64, 65, TARGET):
        session.rewind(0)
        np.testing.assert_array_equal(session.prefill(tokens[:count]), steps[count - 1])
    session.close()


@pytest.mark.parametrize("precision", PRECISIONS)
def test_room_that_a_source_does_not_fill_changes_nothing(written: Written, precision: str) -> None:
    """Bit for bit: the same source behind longer ones, and in a session opened for shorter ones."""
    path, _ = written(precision)
    source, session = tokens_of(50), open_at(path)
    found = []
    for before in (1, SOURCE, 64, 65):
        session.read(tokens_of(before, seed=2))
        session.prefill([0, 1, 2])
        session.read(source)
        found.append(session.verify([0, 5, 6]))
    session.close()
    short = open_at(path, source_context=50, context=3)
    short.read(source)
    found.append(short.verify([0, 5, 6]))
    short.close()
    for each in found[1:]:
        np.testing.assert_array_equal(each, found[0])


@pytest.mark.parametrize("precision", PRECISIONS)
def test_forks_share_the_source_and_copy_the_target(written: Written, precision: str) -> None:
    path, graph = written(precision)
    session = open_at(path)
    source, other_source, tokens = tokens_of(40), tokens_of(150, 7), tokens_of(100, 3)
    session.read(source)
    session.prefill(tokens[:5])
    fork = session.fork()
    assert (fork.source_length, fork.length) == (40, 5)
    assert fork._caches.source is session._caches.source
    expected = session.verify(tokens[5:12])
    np.testing.assert_array_equal(fork.verify(tokens[5:12]), expected)
    # One reads another source; what the other one wrote and reads stays.
    session.read(other_source)
    assert_near(session.prefill(tokens), torch_logits(graph, other_source, tokens)[-1], precision)
    fork.rewind(5)
    np.testing.assert_array_equal(fork.verify(tokens[5:12]), expected)
    second = fork.fork()
    fork.close()
    second.rewind(5)
    np.testing.assert_array_equal(second.verify(tokens[5:12]), expected)
    session.close()
    second.rewind(5)
    np.testing.assert_array_equal(second.verify(tokens[5:12]), expected)
    second.close()


def test_a_session_takes_what_another_one_has(session: LiteRtEncoderDecoderSession) -> None:
    source, tokens = tokens_of(70, 1), tokens_of(120, 2)
    session.read(source)
    steps = np.stack([session.step(int(token)) for token in tokens])
    fork = session.fork()
    for length, other_length in ((3, 100), (100, 3), (64, 66), (10, 10), (1, 120), (0, 50)):
        session.read(source)
        if length:
            session.prefill(tokens[:length])
        fork.read(tokens_of(9, 5))
        fork.prefill(tokens_of(other_length, 6))
        fork.take(session)
        assert (fork.source_length, fork.length) == (70, length)
        np.testing.assert_array_equal(fork.step(int(tokens[length])), steps[length])
        np.testing.assert_array_equal(session.step(int(tokens[length])), steps[length])
    fork.take(fork)
    assert fork.length == 1
    fork.close()
    with pytest.raises(EngineError, match="closed"):
        session.take(fork)


def test_beams_take_turns(session: LiteRtEncoderDecoderSession) -> None:
    """Four hypotheses that part, end and take over from one another, as each would alone."""
    session.read(tokens_of(30, 4))
    beams = [session, *(session.fork() for _ in range(3))]
    texts: list[list[int]] = [[] for _ in beams]
    drawn = np.random.default_rng(0)
    for _ in range(20):
        for beam, text in zip(beams, texts, strict=True):
            text.append(int(drawn.integers(VOCABULARY)))
            beam.step(text[-1])
        taker, giver = drawn.integers(0, 4, 2)
        beams[taker].take(beams[giver])
        texts[taker] = list(texts[giver])
    last = [beam.step(5) for beam in beams]
    for beam in beams[1:]:
        beam.close()
    for text, expected in zip(texts, last, strict=True):
        session.rewind(0)
        session.prefill(text)
        np.testing.assert_array_equal(session.step(5), expected)


def test_a_session_takes_nothing_from_strangers(written: Written, session: LiteRtEncoderDecoderSession) -> None:
    stranger = open_at(written("w8a8-dynamic")[0])
    stranger.read([1, 2])
    session.read([3])
    session.step(0)
    with pytest.raises(InputError, match="forks"):
        session.take(stranger)
    assert (session.source_length, session.length) == (1, 1)
    stranger.close()


def test_forks_run_in_threads_of_their_own(session: LiteRtEncoderDecoderSession) -> None:
    session.read(tokens_of(20))
    results: dict[int, np.ndarray] = {}

    def write(number: int, fork: EncoderDecoderSession) -> None:
        if number % 2:
            fork.read(tokens_of(40 * number, number))
        results[number] = np.stack([fork.step(number + step) for step in range(12)])
        fork.close()

    threads = [threading.Thread(target=write, args=(number, session.fork())) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number in range(4):
        session.read(tokens_of(40 * number, number) if number % 2 else tokens_of(20))
        alone = np.stack([session.step(number + step) for step in range(12)])
        np.testing.assert_array_equal(results[number], alone)


def test_sources_are_freed_with_the_last_session_that_reads_them(session: LiteRtEncoderDecoderSession) -> None:
    session.read(tokens_of(10))
    fork = session.fork()
    shared = fork._caches.source
    assert shared is not None
    assert shared.users == 2
    session.read(tokens_of(10, 1))
    assert shared.users == 1
    own = session._caches.source
    session.read(tokens_of(12, 1))
    assert session._caches.source is own  # of nobody else, and of the same room: its memory is used again
    model = session._model
    assert model._sessions == 2
    del fork
    gc.collect()
    assert model._sessions == 1
    assert shared.users == 0


def test_a_saved_cache_goes_into_another_session_with_the_source(
    written: Written, session: LiteRtEncoderDecoderSession
) -> None:
    source, tokens = tokens_of(30), tokens_of(45, 1)
    session.read(source)
    session.prefill(tokens)
    saved = replace(session.save_cache(), tokens=tokens)
    expected = session.step(11)
    assert not any("source" in name for name in saved.arrays)
    other = open_at(written("w8a8-dynamic")[0], context=60)
    other.read(source)
    other.load_cache(saved)
    assert other.length == 45
    np.testing.assert_array_equal(other.step(11), expected)
    with pytest.raises(InputError):
        other.load_cache(replace(saved, tokens=tokens[:-1]))
    other.close()


def test_logits_belong_to_the_caller(session: LiteRtEncoderDecoderSession) -> None:
    first = session.prefill([1, 2, 3])
    kept = first.copy()
    session.verify([5, 6])
    session.step(4)
    np.testing.assert_array_equal(first, kept)


def test_what_runs_is_told(session: LiteRtEncoderDecoderSession) -> None:
    used = session.effective
    assert (used.runtime, used.engine, used.device, used.provider) == ("litert", "ai_edge_litert", "cpu", "XNNPACK")
    assert (used.precision, used.threads) == ("float32", 1)
    assert (session.vocabulary, session.context, session.source_context) == (VOCABULARY, TARGET, SOURCE)
    assert session.most_verified == 8


def test_contexts_devices_and_memory_are_held_to(written: Written) -> None:
    path, _ = written("w8a8-dynamic")
    session = open_at(path, context=7, source_context=9)
    assert (session.context, session.source_context) == (7, 9)
    with pytest.raises(InputError, match="at once"):
        session.read(tokens_of(10))
    session.read(tokens_of(9))
    with pytest.raises(InputError, match="do not fit"):
        session.prefill(tokens_of(8))
    session.close()
    for options in ({"context": TARGET + 1}, {"source_context": SOURCE + 1}, {"context": 0}):
        with pytest.raises(UsageError, match="context"):
            open_at(path, **options)
    with pytest.raises(EngineError, match="npu"):
        open_at(path, device="npu")
    predicted = ENCODER_DECODER.predicted_memory(path)
    fewer = ENCODER_DECODER.predicted_memory(path, 7, 9)
    assert fewer.cache < predicted.cache
    assert fewer.scratch < predicted.scratch
    open_at(path, memory_limit=predicted.total).close()
    with pytest.raises(OverBudgetError, match="predicted"):
        open_at(path, memory_limit=predicted.total - 1)


def test_known_answers_are_checked(written: Written, tmp_path: Path) -> None:
    path, graph = written("w8a8-dynamic")
    source, prompt = tokens_of(33), tokens_of(4, 2)
    expected = torch_logits(graph, source, prompt)[-1]
    best = np.argsort(-expected)[:5].astype(np.int32)
    answer = SourceAnswer(source, prompt, best, expected[best], 0.3)
    session = open_at(path, source_answers=[answer, answer])
    assert session.source_length == session.length == 0
    with pytest.raises(InputError, match="source"):
        session.step(0)
    session.close()
    wrong = SourceAnswer(source, prompt, best, expected[best] + 1, 0.3)
    with pytest.raises(WrongAnswerError, match="known answer 2 of 2"):
        open_at(path, source_answers=[answer, wrong], cache_dir=tmp_path)
    assert not list(tmp_path.iterdir())


def test_packed_weights_are_kept_in_the_cache_folder(
    written: Written, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a small model, and of one taken for large, whose halves let go of their weights in turns."""
    path, _ = written("w8a8-dynamic")
    answers, kept = [], set()
    for large in (1 << 30, 1 << 30, 0):
        monkeypatch.setattr("edgescribe.runtimes.litert_encoder_decoder_model._LARGE", large)
        session = open_at(path, cache_dir=tmp_path / "new" / "cache")
        for seed in range(2):
            session.read(tokens_of(20, seed))
            answers.append(session.prefill([1, 2, 3]))
        session.close()
        kept |= {(file.name, file.stat().st_size) for file in (tmp_path / "new" / "cache").iterdir()}
    assert len(kept) == 1
    without = open_at(path)
    for seed in range(2):
        without.read(tokens_of(20, seed))
        expected = without.prefill([1, 2, 3])
        for answer in answers[seed::2]:
            np.testing.assert_array_equal(answer, expected)
    without.close()


def test_a_file_tells_its_sizes(written: Written) -> None:
    path, _ = written("w4a8-dynamic")
    file = read_encoder_decoder_file(path)
    assert (file.vocabulary, file.context, file.source_context) == (VOCABULARY, TARGET, SOURCE)
    assert (file.sizes, file.last_only, file.encoder) == ((1, 8), frozenset(), "encode_of_200")
    assert file.source_shapes(5)["source_key_1"] == (1, 4, 5, 16)
    assert file.source_shapes(5)["source_value_1"] == (1, 4, 16, 5)
    assert file.cache_bytes(5) == file.source_bytes(5) == 2 * 2 * 4 * 5 * 16 * 4


def test_files_of_another_kind_are_refused(
    written: Written, student: Student, write_tflite: Callable[[str], Path], tmp_path: Path
) -> None:
    path, _ = written("w8a8-dynamic")
    with pytest.raises(BundleError, match="decoder"):
        DECODER.predicted_memory(path)
    with pytest.raises(BundleError, match="not an encoder-decoder"):
        open_at(write_tflite("static"))
    with pytest.raises(BundleError):
        open_at(tmp_path / "missing.tflite")


def test_a_decoder_is_not_opened_as_an_encoder_decoder(tmp_path: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=50, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        tie_word_embeddings=True, max_position_embeddings=32,
    )  # fmt: skip
    state = {name: each for name, each in LlamaForCausalLM(config).state_dict().items() if name != "lm_head.weight"}
    fields = json.loads(config.to_json_string(use_diff=False))
    decoder = Student(fields, state, None, {}, "generate", (), 32, 0, "random", "0" * 64)
    path = tmp_path / "decoder.tflite"
    export_litert_decoder(decoder.anatomy, decoder.shape, freeze(graph_of(decoder)), path, 32)
    with pytest.raises(BundleError, match="not an encoder-decoder"):
        open_at(path)


def test_damaged_files_are_refused(written: Written, tmp_path: Path) -> None:
    path = written("w4a8-dynamic")[0]
    content, damaged = path.read_bytes(), tmp_path / "damaged.tflite"
    changed = [b"", content[: len(content) // 3], b"not a model" * 50]
    for old, new in (
        (b"encode_of_200", b"encode_at_200"),
        (b"decode_1_of_150", b"decode_1_at_150"),
        (b"decode_8_of_150", b"decode_8_of_151"),
        (b"source_value_1", b"source_other_1"),
        (b"source_tokens", b"source_things"),
        (b"distances", b"distancer"),
        (b"key_start", b"kez_start"),
        (b"source_mask", b"source_task"),
    ):
        assert old in content
        changed.append(content.replace(old, new))
    for each in changed:
        damaged.write_bytes(each)
        with pytest.raises(BundleError):
            open_at(damaged)
        with pytest.raises(BundleError):
            ENCODER_DECODER.predicted_memory(damaged)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.floats(0, 1), value=st.integers(0, 255))
def test_a_damaged_description_is_refused_or_harmless(written: Written, place: float, value: int) -> None:
    """A byte of the tables, which lie before the constants' bytes and behind them."""
    path = written("fp32")[0]
    content = bytearray(path.read_bytes())
    content[8 + int(place * 4000)] = value
    damaged = path.with_name("damaged.tflite")
    damaged.write_bytes(content)
    with contextlib.suppress(BundleError):
        read_encoder_decoder_file(damaged)


def test_nothing_is_written_to_the_terminal_and_no_torch_is_loaded(written: Written) -> None:
    code = (
        "from pathlib import Path; from edgescribe.runtimes.registry import open_encoder_decoder; import sys\n"
        "session = open_encoder_decoder('litert', Path(sys.argv[1]))\n"
        "session.read(range(90)); session.prefill(range(90)); fork = session.fork(); fork.step(1); session.step(1)\n"
        "session.read(range(9)); session.take(fork); session.close(); fork.close()\n"
        "session = open_encoder_decoder('litert', Path(sys.argv[1])); session.read([1]); session.step(1)\n"
        "print(sorted(m for m in sys.modules if 'torch' in m))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(written("w8a8-dynamic")[0])], capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
    assert done.stdout == "[]\n"


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_road_to_a_text_gives_its_logits(
    written: Written, session: LiteRtEncoderDecoderSession, data: st.DataObject
) -> None:
    """Reads, prefills, steps, verifications, rewinds and takes in any order; the text held then has torch's logits."""
    graph = written("w8a8-dynamic")[1]
    source, text = tokens_of(5), [0]
    session.read(source)
    session.step(0)
    fork = session.fork()
    kept = (source, list(text))
    token = st.integers(0, VOCABULARY - 1)
    for _ in range(data.draw(st.integers(1, 6))):
        action = data.draw(st.sampled_from(["read", "prefill", "step", "verify", "rewind", "take", "give"]))
        if action == "read":
            source, text = tokens_of(data.draw(st.integers(1, SOURCE))), []
            session.read(source)
        elif action == "rewind":
            length = data.draw(st.integers(0, len(text)))
            session.rewind(length)
            del text[length:]
        elif action == "take":
            session.take(fork)
            source, text = kept[0], list(kept[1])
        elif action == "give":
            fork.take(session)
            kept = (source, list(text))
        else:
            most = {"prefill": 20, "step": 1, "verify": 8}[action]
            more = data.draw(st.lists(token, min_size=1, max_size=most))
            text += more
            if action == "step":
                session.step(more[0])
            else:
                getattr(session, action)(more)
    assert (session.source_length, session.length) == (len(source), len(text))
    last = data.draw(token)
    got = session.step(last)
    fork.close()
    expected = torch_logits(graph, source, np.array([*text, last], np.int32))[-1]
    assert_near(got, expected, "w8a8-dynamic")
