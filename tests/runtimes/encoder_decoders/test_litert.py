"""What LiteRT's encoder-decoders have of their own: caches of several sizes, packed weights, and files it refuses."""

from __future__ import annotations

import contextlib
import gc
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edgescribe.converters.export.litert_decoder import export_litert_decoder
from edgescribe.converters.freeze import freeze
from edgescribe.converters.student import Student
from edgescribe.converters.torch_decoder import graph_of
from edgescribe.errors import BundleError, EngineError, WrongAnswerError
from edgescribe.runtimes.encoder_decoder_contract import SourceAnswer
from edgescribe.runtimes.litert_decoder import DECODER
from edgescribe.runtimes.litert_encoder_decoder import ENCODER_DECODER
from edgescribe.runtimes.litert_encoder_decoder_file import read_encoder_decoder_file
from edgescribe.runtimes.registry import encoder_decoder_runtime
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

Draw = Callable[..., np.ndarray]
Written = Callable[[str, str], Any]

VOCABULARY, SOURCE, TARGET = 97, 200, 150


@pytest.fixture(scope="module")
def runtime() -> str:
    return "litert"


def test_the_registry_finds_it() -> None:
    assert encoder_decoder_runtime("litert") is ENCODER_DECODER


@pytest.mark.parametrize("threads", [1, 2])
def test_a_token_has_the_same_logits_whatever_run_it_came_by(artifact: Any, threads: int, tokens_of: Draw) -> None:
    """Bit for bit, in caches of all sizes."""
    session = artifact.open(threads=threads)
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


def test_room_that_a_source_does_not_fill_changes_nothing(artifact: Any, tokens_of: Draw) -> None:
    """Bit for bit: the same source behind longer ones, and in a session opened for shorter ones."""
    source, session = tokens_of(50), artifact.open()
    found = []
    for before in (1, SOURCE, 64, 65):
        session.read(tokens_of(before, seed=2))
        session.prefill([0, 1, 2])
        session.read(source)
        found.append(session.verify([0, 5, 6]))
    session.close()
    short = artifact.open(source_context=50, context=3)
    short.read(source)
    found.append(short.verify([0, 5, 6]))
    short.close()
    for each in found[1:]:
        np.testing.assert_array_equal(each, found[0])



def test_a_session_takes_what_another_one_has_in_a_cache_of_another_size(session: Any, tokens_of: Draw) -> None:
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



def test_sources_are_freed_with_the_last_session_that_reads_them(session: Any, tokens_of: Draw) -> None:
    session.read(tokens_of(10))
    fork = session.fork()
    assert fork._caches.source is session._caches.source
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


def test_eight_tokens_are_verified_at_once_and_less_context_takes_less_scratch(int8: Any, session: Any) -> None:
    assert session.most_verified == 8
    whole, fewer = ENCODER_DECODER.predicted_memory(int8.path), ENCODER_DECODER.predicted_memory(int8.path, 7, 9)
    assert fewer.scratch < whole.scratch


def test_nothing_is_kept_of_a_file_that_answers_wrongly(int8: Any, tokens_of: Draw, tmp_path: Path) -> None:
    wrong = SourceAnswer(tokens_of(3), tokens_of(2), tokens_of(1), np.full(1, 99, np.float32), 0.3)
    with pytest.raises(WrongAnswerError):
        int8.open(source_answers=[wrong], cache_dir=tmp_path)
    assert not list(tmp_path.iterdir())


def test_packed_weights_are_kept_in_the_cache_folder(
    int8: Any, tokens_of: Draw, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a small model, and of one taken for large, whose halves let go of their weights in turns."""
    answers, kept = [], set()
    for large in (1 << 30, 1 << 30, 0):
        monkeypatch.setattr("edgescribe.runtimes.litert_encoder_decoder_model._LARGE", large)
        session = int8.open(cache_dir=tmp_path / "new" / "cache")
        for seed in range(2):
            session.read(tokens_of(20, seed))
            answers.append(session.prefill([1, 2, 3]))
        session.close()
        kept |= {(file.name, file.stat().st_size) for file in (tmp_path / "new" / "cache").iterdir()}
    assert len(kept) == 1
    without = int8.open()
    for seed in range(2):
        without.read(tokens_of(20, seed))
        expected = without.prefill([1, 2, 3])
        for answer in answers[seed::2]:
            np.testing.assert_array_equal(answer, expected)
    without.close()


def test_a_file_tells_its_sizes(written: Written) -> None:
    file = read_encoder_decoder_file(written("litert", "w4a8-dynamic").path)
    assert (file.vocabulary, file.context, file.source_context) == (VOCABULARY, TARGET, SOURCE)
    assert (file.sizes, file.last_only, file.encoder) == ((1, 8), frozenset(), "encode_of_200")
    assert file.source_shapes(5)["source_key_1"] == (1, 4, 5, 16)
    assert file.source_shapes(5)["source_value_1"] == (1, 4, 16, 5)
    assert file.cache_bytes(5) == file.source_bytes(5) == 2 * 2 * 4 * 5 * 16 * 4


def test_files_of_another_kind_are_refused(int8: Any, write_tflite: Callable[[str], Path]) -> None:
    with pytest.raises(BundleError, match="decoder"):
        DECODER.predicted_memory(int8.path)
    with pytest.raises(BundleError, match="not an encoder-decoder"):
        int8.open(write_tflite("static"))


def test_a_decoder_is_not_opened_as_an_encoder_decoder(int8: Any, tmp_path: Path) -> None:
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
        int8.open(path)


def test_damaged_files_are_refused(written: Written, tmp_path: Path) -> None:
    artifact = written("litert", "w4a8-dynamic")
    content, damaged = artifact.path.read_bytes(), tmp_path / "damaged.tflite"
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
            artifact.open(damaged)
        with pytest.raises(BundleError):
            ENCODER_DECODER.predicted_memory(damaged)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.floats(0, 1), value=st.integers(0, 255))
def test_a_damaged_description_is_refused_or_harmless(written: Written, place: float, value: int) -> None:
    """A byte of the tables, which lie before the constants' bytes and behind them."""
    path = written("litert", "fp32").path
    content = bytearray(path.read_bytes())
    content[8 + int(place * 4000)] = value
    damaged = path.with_name("damaged.tflite")
    damaged.write_bytes(content)
    with contextlib.suppress(BundleError):
        read_encoder_decoder_file(damaged)
