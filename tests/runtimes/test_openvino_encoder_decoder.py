"""What OpenVINO's encoder-decoder sessions do: sources one after the other, shared by forks, and damaged files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from edgescribe.converters.export.openvino_encoder_decoder import export_openvino_encoder_decoder
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
from edgescribe.runtimes.decoder_contract import CacheState
from edgescribe.runtimes.encoder_decoder_contract import (
    EncoderDecoderOptions,
    EncoderDecoderSession,
    SourceAnswer,
)
from edgescribe.runtimes.openvino_encoder_decoder import ENCODER_DECODER
from edgescribe.runtimes.openvino_encoder_decoder_file import files_of, read_encoder_decoder_file
from edgescribe.runtimes.openvino_encoder_decoder_memory import memory_of
from edgescribe.runtimes.registry import encoder_decoder_runtime
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

PRECISIONS = ("fp32", "w8a8-dynamic", "w4a8-dynamic")
TOLERANCES = {"fp32": 1e-4, "w8a8-dynamic": 0.2, "w4a8-dynamic": 0.2}
"""Largest difference from torch in logits of deviation about 1: the engine rounds activations in its own blocks."""

VOCABULARY, SOURCE, TARGET = 97, 90, 60

Written = Callable[[str], tuple[Path, Any]]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Written:
    """``written(precision)``: an artifact of a tiny T5 with a deep encoder, and its reference in torch."""
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
                    parameter.add_(torch.randn_like(parameter) * 0.05)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    fields, tensors = settle(json.loads(config.to_json_string(use_diff=False)), state)
    student = Student(fields, tensors, None, {}, "summarize", (), SOURCE, 0, "random", "0" * 64)
    made: dict[str, tuple[Path, Any]] = {}

    def write(precision: str) -> tuple[Path, Any]:
        if precision not in made:
            graph = graph_of(student, precision).eval()
            path = tmp_path_factory.mktemp(precision) / "writer.xml"
            with torch.no_grad():
                weights = freeze(graph)
            export_openvino_encoder_decoder(student.anatomy, student.shape, weights, path, SOURCE, TARGET)
            made[precision] = path, graph
        return made[precision]

    return write


@pytest.fixture
def session(written: Written) -> Iterator[EncoderDecoderSession]:
    """A session in int8."""
    opened = open_at(written("w8a8-dynamic")[0])
    yield opened
    opened.close()


def open_at(path: Path, **options: Any) -> Any:
    return ENCODER_DECODER.open_encoder_decoder(path, EncoderDecoderOptions(**{"threads": 1, **options}))


def tokens_of(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, VOCABULARY, count).astype(np.int32)


def torch_logits(graph: Any, source: np.ndarray, target: np.ndarray) -> np.ndarray:
    feeds = {"source_ids": source, "input_ids": target}
    with torch.no_grad():
        found = graph.run({name: torch.from_numpy(ids[None].astype(np.int64)) for name, ids in feeds.items()})
    return found["logits"][0].numpy()


def test_the_registry_finds_it() -> None:
    assert encoder_decoder_runtime("openvino") is ENCODER_DECODER


@pytest.mark.parametrize("precision", PRECISIONS)
def test_sources_one_after_the_other_are_answered_as_torch_does(written: Written, precision: str) -> None:
    path, graph = written(precision)
    session = open_at(path, threads=2)
    assert isinstance(session, EncoderDecoderSession)
    near = {"atol": TOLERANCES[precision], "rtol": 0}
    for seed, count in enumerate((70, 5, SOURCE, 1, 33)):
        source, target = tokens_of(count, seed), tokens_of(TARGET, seed + 9)
        expected = torch_logits(graph, source, target)
        session.read(source)
        assert (session.source_length, session.length) == (count, 0)
        np.testing.assert_allclose(session.prefill(target[:30]), expected[29], **near)
        np.testing.assert_allclose(session.step(int(target[30])), expected[30], **near)
        np.testing.assert_allclose(session.verify(target[31:40]), expected[31:40], **near)
        session.prefill(tokens_of(10, seed=5))
        session.rewind(35)
        np.testing.assert_allclose(session.prefill(target[35:]), expected[-1], **near)
        with pytest.raises(InputError, match="do not fit"):
            session.step(1)
        session.rewind(0)
        np.testing.assert_allclose(session.verify(target[:3]), expected[:3], **near)
    session.close()
    session.close()
    for call in (lambda: session.step(1), lambda: session.read([1]), session.fork, session.save_cache):
        with pytest.raises(EngineError, match="closed"):
            call()


def test_nothing_is_written_before_a_source_was_read(session: EncoderDecoderSession) -> None:
    assert session.source_length == session.length == 0
    for call in (session.prefill, session.verify):
        with pytest.raises(InputError, match="source"):
            call([1])
    with pytest.raises(InputError, match="source"):
        session.step(1)
    session.rewind(0)


def test_sources_that_cannot_be_read_change_nothing(session: EncoderDecoderSession) -> None:
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
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_tokens_alone_get_the_bits_that_they_get_among_others(written: Written, precision: str, threads: int) -> None:
    session = open_at(written(precision)[0], threads=threads)
    session.read(tokens_of(SOURCE))
    tokens = tokens_of(TARGET, seed=4)
    steps = np.stack([session.step(int(token)) for token in tokens])
    equal = []
    for start, count in ((TARGET - 1, 1), (TARGET - 16, 16), (31, 3), (1, 2), (0, 16), (0, 1)):
        session.rewind(start)
        equal.append(np.array_equal(session.verify(tokens[start : start + count]), steps[start : start + count]))
    alike = session.verifies_alike
    assert all(equal) or not alike
    if threads == 1 and precision == "fp32":
        assert alike
    assert session.length == 1  # the question leaves source and target alone
    session.rewind(0)
    session.verify(tokens[:16])
    session.verifies_alike = False
    assert not session.verifies_alike
    np.testing.assert_allclose(session.step(int(tokens[16])), steps[16], atol=TOLERANCES[precision], rtol=0)
    session.close()


@pytest.mark.parametrize("precision", PRECISIONS)
def test_forks_share_the_source_and_copy_the_target(written: Written, precision: str) -> None:
    path, graph = written(precision)
    session = open_at(path)
    source, other_source, tokens = tokens_of(40), tokens_of(50, 7), tokens_of(12, 3)
    session.read(source)
    session.prefill(tokens)
    fork = session.fork()
    assert (fork.source_length, fork.length) == (40, 12)
    expected = session.step(7)
    # What the one writes or reads is not the other's.
    session.read(other_source)
    session.prefill(tokens_of(20, 5))
    np.testing.assert_array_equal(fork.step(7), expected)
    second = fork.fork()
    fork.close()
    second.rewind(12)
    np.testing.assert_array_equal(second.step(7), expected)
    session.rewind(0)
    near = {"atol": TOLERANCES[precision], "rtol": 0}
    np.testing.assert_allclose(
        session.prefill(tokens), torch_logits(graph, other_source, tokens)[-1], **near
    )
    session.close()
    second.rewind(0)
    np.testing.assert_allclose(second.prefill(tokens), torch_logits(graph, source, tokens)[-1], **near)
    second.close()


def test_a_session_takes_what_a_fork_has(written: Written) -> None:
    session = open_at(written("fp32")[0])
    session.read(tokens_of(30))
    session.prefill([0, 3])
    one, two = session.fork(), session.fork()
    expected = [one.step(5), two.step(6)]
    # Beams that change places, by way of a third.
    session.take(one)
    one.take(two)
    two.take(session)
    assert (one.length, two.length, session.source_length) == (3, 3, 30)
    for beam, token, first in ((two, 5, expected[0]), (one, 6, expected[1])):
        following = beam.step(8)
        beam.rewind(2)
        np.testing.assert_array_equal(beam.step(token), first)
        np.testing.assert_array_equal(beam.step(8), following)
    # A rewound session gives what it has left, an empty one nothing, and another source comes along.
    two.rewind(1)
    one.take(two)
    assert one.length == 1
    np.testing.assert_array_equal(one.step(3), two.step(3))
    session.read(tokens_of(9, 2))
    one.take(session)
    assert (one.source_length, one.length) == (9, 0)
    np.testing.assert_array_equal(one.step(0), session.step(0))
    one.take(one)
    assert one.length == 1
    stranger = open_at(written("fp32")[0])
    stranger.read([1, 2])
    with pytest.raises(InputError, match="forks"):
        one.take(stranger)
    stranger.close()
    with pytest.raises(EngineError, match="closed"):
        one.take(stranger)
    for each in (session, one, two):
        each.close()


def test_a_fork_of_a_session_that_read_nothing_reads_for_itself(session: EncoderDecoderSession) -> None:
    fork = session.fork()
    assert fork.source_length == 0
    fork.read([3, 4])
    session.read([3, 4])
    np.testing.assert_array_equal(fork.step(0), session.step(0))
    fork.close()


def test_forks_run_from_several_threads(written: Written) -> None:
    session = open_at(written("fp32")[0])
    session.read(tokens_of(30))
    tokens = tokens_of(20, 1)
    expected = session.prefill(tokens)
    forks = [session.fork() for _ in range(3)]
    found: list[np.ndarray] = []

    def write(fork: Any, own: int) -> None:
        for _ in range(3):
            fork.read(tokens_of(30 + own, own))
            fork.prefill(tokens)
            fork.read(tokens_of(30))
            found.append(fork.prefill(tokens))
        fork.close()

    threads = [threading.Thread(target=write, args=(fork, own)) for own, fork in enumerate(forks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 9
    for logits in found:
        np.testing.assert_allclose(logits, expected, atol=1e-5, rtol=0)
    session.close()


def test_the_targets_cache_is_saved_and_put_back(session: EncoderDecoderSession, written: Written) -> None:
    tokens = tokens_of(12)
    session.read(tokens_of(30))
    session.prefill(tokens)
    saved = session.save_cache()
    expected = session.step(7)
    assert {array.dtype for array in saved.arrays.values()} == {np.dtype(np.float32)}
    other = open_at(written("w8a8-dynamic")[0], context=20)
    other.read(tokens_of(30))
    other.load_cache(CacheState(tokens, saved.arrays))
    np.testing.assert_array_equal(other.step(7), expected)
    name = next(iter(saved.arrays))
    for wrong in (
        CacheState(tokens[:-1], saved.arrays),
        CacheState(tokens, {each: array for each, array in saved.arrays.items() if each != name}),
        CacheState(tokens, {**saved.arrays, name: saved.arrays[name].astype(np.float64)}),
        CacheState(tokens_of(21), saved.arrays),
    ):
        with pytest.raises(InputError):
            other.load_cache(wrong)
    other.close()


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.sampled_from("readstepverifyrewind"), st.integers(0, 40)), min_size=1, max_size=12))
def test_whatever_is_called_the_logits_are_those_of_the_text(
    session: EncoderDecoderSession, written: Written, calls: list[tuple[str, int]]
) -> None:
    graph = written("w8a8-dynamic")[1]
    source, target = tokens_of(5), np.zeros(0, np.int32)
    session.read(source)
    logits = None
    for number, (letter, amount) in enumerate(calls):
        if letter in "rea":
            source, target, logits = tokens_of(1 + amount, number), target[:0], None
            session.read(source)
        elif letter in "dst":
            more = tokens_of(1 + amount % 3, number)
            if len(target) + len(more) <= TARGET:
                logits, target = session.prefill(more), np.concatenate([target, more])
        elif letter in "pvify":
            more = tokens_of(1 + amount % 16, number)
            if len(target) + len(more) <= TARGET:
                logits, target = session.verify(more)[-1], np.concatenate([target, more])
        else:
            target, logits = target[: min(amount, len(target))], None
            session.rewind(len(target))
        assert (session.source_length, session.length) == (len(source), len(target))
    if logits is not None:
        np.testing.assert_allclose(
            logits, torch_logits(graph, source, target)[-1], atol=TOLERANCES["w8a8-dynamic"] * 2, rtol=0
        )


def test_what_runs_is_told(session: Any) -> None:
    used = session.effective
    assert (used.runtime, used.engine, used.device, used.provider) == ("openvino", "openvino", "cpu", "CPU")
    assert (used.precision, used.threads) == ("float32", 1)
    assert (session.vocabulary, session.context, session.source_context) == (VOCABULARY, TARGET, SOURCE)


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
    assert ENCODER_DECODER.predicted_memory(path, 7, 9).cache < predicted.cache
    open_at(path, memory_limit=predicted.total).close()
    with pytest.raises(OverBudgetError, match="predicted"):
        open_at(path, memory_limit=predicted.total - 1)


def test_known_answers_are_checked(written: Written) -> None:
    path, graph = written("w8a8-dynamic")
    source, prompt = tokens_of(33), tokens_of(4, 2)
    expected = torch_logits(graph, source, prompt)[-1]
    best = np.argsort(-expected)[:5].astype(np.int32)
    answer = SourceAnswer(source, prompt, best, expected[best], TOLERANCES["w8a8-dynamic"])
    session = open_at(path, source_answers=[answer, answer])
    assert session.source_length == session.length == 0
    with pytest.raises(InputError, match="source"):
        session.step(0)
    session.close()
    wrong = SourceAnswer(source, prompt, best, expected[best] + 1, TOLERANCES["w8a8-dynamic"])
    with pytest.raises(WrongAnswerError, match="known answer 2 of 2"):
        open_at(path, source_answers=[answer, wrong])


def test_compiled_models_are_kept(written: Written, tmp_path: Path) -> None:
    path, _ = written("w4a8-dynamic")
    answers = []
    for _ in range(2):
        session = open_at(path, cache_dir=tmp_path)
        session.read(tokens_of(20))
        answers.append(session.prefill([1, 2, 3]))
        session.close()
        assert len(list(tmp_path.glob("*.blob"))) == 2
    np.testing.assert_array_equal(*answers)


def test_a_file_tells_its_sizes(written: Written) -> None:
    path, _ = written("w4a8-dynamic")
    file = read_encoder_decoder_file(path)
    assert (file.precision, file.context, file.source_context) == ("w4a8-dynamic", TARGET, SOURCE)
    assert (file.vocabulary, file.layers, file.source_layers) == (VOCABULARY, 2, 3)
    assert (file.cache_heads, file.cache_width, file.source_heads, file.source_width) == (4, 16, 4, 16)
    assert (file.hidden, file.neurons, file.heads) == (64, 96, 4)
    assert file.file_bytes == sum(each.stat().st_size for each in files_of(path))
    assert file.token_bytes == file.source_token_bytes == 2 * 4 * 2 * 64
    narrow, wide = (memory_of(file, 10, 20, 128, 16, widened) for widened in (False, True))
    assert wide.weights > 3 * narrow.weights
    assert narrow.cache < memory_of(file, 10, 21, 128, 16, False).cache


def copied(path: Path, folder: Path) -> Path:
    folder.mkdir()
    for file in files_of(path):
        (folder / file.name).write_bytes(file.read_bytes())
    return folder / path.name


def test_damaged_files_are_refused(written: Written, openvino_file: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="encoder-decoder"):
        open_at(openvino_file)
    with pytest.raises(BundleError):
        open_at(tmp_path / "missing.xml")
    original = written("w4a8-dynamic")[0]
    for number, file in enumerate(files_of(original)):
        for content in (None, b"", b"short", file.read_bytes()[: file.stat().st_size // 2], b"<net \xff\xfe"):
            path = copied(original, tmp_path / f"{number}-{len(content or b'') if content is not None else 'none'}")
            damaged = files_of(path)[number]
            damaged.unlink()
            if content is not None:
                damaged.write_bytes(content)
            with pytest.raises(BundleError):
                open_at(path)
    path = copied(original, tmp_path / "changed")
    for name in ("writer.xml", "writer.source.xml"):
        text = (path.parent / name).read_text()
        for old, new in (
            ("edgescribe encoder-decoder 1", "edgescribe encoder-decoder 0"),
            ('<layers value="2"', '<layers value="0"'),
            ('<layers value="2"', '<layers value="two"'),
            ('<vocabulary value="97" />', ""),
            ('<source_context value="90"', '<source_context value="91"'),
        ):
            assert old in text
            (path.parent / name).write_text(text.replace(old, new))
            with pytest.raises(BundleError):
                open_at(path)
        (path.parent / name).write_text(text)
    open_at(path).close()
    files_of(path)[1].write_text(path.read_text())
    with pytest.raises(BundleError, match="source_ids"):
        open_at(path)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux tells a process's pages")
def test_opened_files_have_few_pages_resident(written: Written) -> None:
    path, _ = written("fp32")
    session = open_at(path)
    stored = path.with_suffix(".bin")
    assert resident(stored) < stored.stat().st_size / 4
    session.read([1, 2])
    session.step(0)
    session.close()


def resident(path: Path) -> int:
    """Resident bytes of a file's mappings in this process."""
    found, counted = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line[:17]:
            counted = line.endswith(f" {path.resolve()}")
        elif counted and line.startswith("Rss:"):
            found += int(line.split()[1]) * 1024
    return found


OPEN = """
import socket, sys
def refuse(*_): raise SystemExit("the network was asked for")
socket.socket.connect = refuse
from pathlib import Path
from edgescribe.runtimes.registry import open_encoder_decoder
session = open_encoder_decoder("openvino", Path(sys.argv[1]))
session.read([1, 2, 3])
print(session.step(0).shape[0], *(name for name in sys.modules if "telemetry" in name and "openvino" in name))
"""


@pytest.mark.slow
def test_no_telemetry_is_loaded_and_no_network_asked_for(written: Written) -> None:
    done = subprocess.run(
        [sys.executable, "-c", OPEN, str(written("w8a8-dynamic")[0])],
        capture_output=True, text=True, check=False, env=dict(os.environ),
    )  # fmt: skip
    assert (done.returncode, done.stdout.split()) == (0, [str(VOCABULARY)]), done.stderr
