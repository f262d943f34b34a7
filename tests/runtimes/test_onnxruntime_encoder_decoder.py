"""What ONNX Runtime's encoder-decoder sessions do: sources one after the other, shared by forks, and damaged files."""

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
from edgescribe.converters.export.onnx_encoder_decoder import export_onnx_encoder_decoder
from edgescribe.converters.families.t5_layers import settle
from edgescribe.converters.freeze import freeze
from edgescribe.converters.student import Student
from edgescribe.converters.torch_decoder import graph_of
from edgescribe.errors import BundleError, EngineError, InputError, OverBudgetError, UsageError, WrongAnswerError
from edgescribe.runtimes.decoder_contract import CacheState
from edgescribe.runtimes.encoder_decoder_contract import EncoderDecoderOptions, EncoderDecoderSession, SourceAnswer
from edgescribe.runtimes.onnxruntime_decoder_pages import MappedPages
from edgescribe.runtimes.onnxruntime_encoder_decoder import ENCODER_DECODER
from edgescribe.runtimes.onnxruntime_encoder_decoder_file import read_encoder_decoder_file
from edgescribe.runtimes.registry import encoder_decoder_runtime
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

PRECISIONS = ("fp32", "w8a8-dynamic", "w4a8-dynamic")
TOLERANCES = {"fp32": 1e-4, "w8a8-dynamic": 0.2, "w4a8-dynamic": 0.2}
"""Largest difference from torch in logits of deviation about 1: the engine rounds activations in its own blocks."""

VOCABULARY, SOURCE, TARGET = 97, 90, 60
FILES = ("writer.onnx", "writer.source.onnx", "writer.kept.onnx", "writer.onnx.data")

Written = Callable[[str], tuple[Path, Any]]


def random_student(**sizes: Any) -> Student:
    from transformers import T5Config, T5ForConditionalGeneration

    given_sizes = {
        "vocab_size": VOCABULARY, "d_model": 64, "d_kv": 16, "d_ff": 96, "num_layers": 3, "num_decoder_layers": 2,
        "num_heads": 4, "feed_forward_proj": "gated-gelu", "relative_attention_max_distance": 40,
    } | sizes  # fmt: skip
    config = T5Config(**given_sizes, decoder_start_token_id=0)
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
    return Student(fields, tensors, None, {}, "summarize", (), SOURCE, 0, "random", "0" * 64)


def write(student: Student, precision: str, path: Path, source: int = SOURCE, target: int = TARGET) -> Any:
    graph = graph_of(student, precision).eval()
    with torch.no_grad():
        weights = freeze(graph)
    export_onnx_encoder_decoder(student.anatomy, student.shape, weights, path, source, target)
    return graph


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Written:
    """``written(precision)``: an artifact of a tiny T5 with a deep encoder, and its reference in torch."""
    student = random_student()
    made: dict[str, tuple[Path, Any]] = {}

    def find(precision: str) -> tuple[Path, Any]:
        if precision not in made:
            path = tmp_path_factory.mktemp(precision) / "writer.onnx"
            made[precision] = path, write(student, precision, path)
        return made[precision]

    return find


@pytest.fixture
def session(written: Written) -> Iterator[EncoderDecoderSession]:
    """A session in int8."""
    opened = open_at(written("w8a8-dynamic")[0])
    yield opened
    opened.close()


def open_at(path: Path, **options: Any) -> Any:
    return ENCODER_DECODER.open_encoder_decoder(path, EncoderDecoderOptions(**{"threads": 1, **options}))


def copied(path: Path, folder: Path) -> Path:
    for name in FILES:
        (folder / name).write_bytes(path.with_name(name).read_bytes())
    return folder / path.name


def tokens_of(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, VOCABULARY, count).astype(np.int32)


def torch_logits(graph: Any, source: np.ndarray, target: np.ndarray) -> np.ndarray:
    feeds = {"source_ids": source, "input_ids": target}
    with torch.no_grad():
        found = graph.run({name: torch.from_numpy(ids[None].astype(np.int64)) for name, ids in feeds.items()})
    return found["logits"][0].numpy()


def test_the_registry_finds_it_and_it_says_what_runs(session: EncoderDecoderSession) -> None:
    assert encoder_decoder_runtime("onnxruntime") is ENCODER_DECODER
    assert isinstance(session, EncoderDecoderSession)
    used = session.effective
    assert (used.runtime, used.device, used.provider, used.threads) == (
        "onnxruntime", "cpu", "CPUExecutionProvider", 1
    )  # fmt: skip
    assert (session.vocabulary, session.source_context, session.context) == (VOCABULARY, SOURCE, TARGET)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_sources_one_after_the_other_are_answered_as_torch_does(written: Written, precision: str) -> None:
    path, graph = written(precision)
    session = open_at(path, threads=2)
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
@pytest.mark.parametrize("threads", [1, 2])
def test_tokens_alone_get_the_bits_that_they_get_among_others(written: Written, precision: str, threads: int) -> None:
    session = open_at(written(precision)[0], threads=threads)
    session.read(tokens_of(SOURCE))
    tokens = tokens_of(TARGET, seed=4)
    steps = np.stack([session.step(int(token)) for token in tokens])
    equal = []
    for start, count in ((TARGET - 1, 1), (TARGET - 16, 16), (31, 3), (1, 2), (0, 16), (0, 1)):
        session.rewind(start)
        equal.append(np.array_equal(session.verify(tokens[start : start + count]), steps[start : start + count]))
    assert all(equal) or not session.verifies_alike
    assert session.verifies_alike == (precision != "fp32")
    assert (session.source_length, session.length) == (SOURCE, 1)  # the question leaves source and target alone
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
    near = {"atol": TOLERANCES[precision], "rtol": 0}
    session.rewind(0)
    np.testing.assert_allclose(session.prefill(tokens), torch_logits(graph, other_source, tokens)[-1], **near)
    session.close()
    second.rewind(0)
    np.testing.assert_allclose(second.prefill(tokens), torch_logits(graph, source, tokens)[-1], **near)
    second.close()


def test_a_session_takes_what_a_fork_has(written: Written) -> None:
    session = open_at(written("w8a8-dynamic")[0])
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
    stranger = open_at(written("w8a8-dynamic")[0])
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
    session = open_at(written("w8a8-dynamic")[0])
    session.read(tokens_of(30))
    tokens = tokens_of(20, 1)
    expected = session.prefill(tokens)
    forks = [session.fork() for _ in range(3)]
    found: list[np.ndarray] = []

    def work(fork: Any, own: int) -> None:
        for _ in range(3):
            fork.read(tokens_of(30 + own, own))
            fork.prefill(tokens)
            fork.read(tokens_of(30))
            found.append(fork.prefill(tokens))
        fork.close()

    threads = [threading.Thread(target=work, args=(fork, own)) for own, fork in enumerate(forks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 9
    for logits in found:
        np.testing.assert_array_equal(logits, expected)
    session.close()


def test_the_targets_cache_is_saved_and_put_back(session: EncoderDecoderSession, written: Written) -> None:
    tokens = tokens_of(12)
    session.read(tokens_of(30))
    session.prefill(tokens)
    saved = session.save_cache()
    expected = session.step(7)
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
@given(
    calls=st.lists(
        st.tuples(st.sampled_from(("read", "step", "verify", "rewind", "fork")), st.integers(0, 40)),
        min_size=1, max_size=14,
    )
)  # fmt: skip
def test_whatever_is_called_the_logits_are_those_of_the_text(
    session: EncoderDecoderSession, written: Written, calls: list[tuple[str, int]]
) -> None:
    plain = open_at(written("w8a8-dynamic")[0])
    source, target = tokens_of(5), [0]
    session.read(source)
    session.prefill(target)
    used = [session]
    for number, (call, amount) in enumerate(calls):
        now = used[-1]
        if call == "read":
            source, target = tokens_of(amount + 1, number), [0]
            now.read(source)
            now.prefill(target)
        elif call == "rewind":
            target = target[: 1 + amount % len(target)]
            now.rewind(len(target))
        elif call == "fork":
            used.append(now.fork())
        else:
            more = tokens_of(1 if call == "step" else 1 + amount % 16, amount)[: TARGET - 1 - len(target)].tolist()
            if more:
                target = [*target, *more]
                now.verify(more) if call == "verify" else now.step(more[0])
    plain.read(source)
    expected = plain.prefill([*target, 5])
    np.testing.assert_array_equal(used[-1].step(5), expected)
    plain.close()
    for each in used[1:]:
        each.close()


def test_contexts_and_memory_are_held_against_the_limits(written: Written) -> None:
    path = written("w8a8-dynamic")[0]
    whole, small = ENCODER_DECODER.predicted_memory(path), ENCODER_DECODER.predicted_memory(path, 10, 20)
    assert small.weights == whole.weights
    assert small.cache == (11 * 2 + 20 * 2) * 2 * 64 * 4
    assert whole.cache == ((TARGET + 1) * 2 + SOURCE * 2) * 2 * 64 * 4
    for wrong in (0, -1, 100):
        for name in ("context", "source_context"):
            with pytest.raises(UsageError, match="context"):
                open_at(path, **{name: wrong})
            with pytest.raises(UsageError, match="context"):
                ENCODER_DECODER.predicted_memory(path, **{name: wrong})
    with pytest.raises(OverBudgetError, match="MiB"):
        open_at(path, memory_limit=whole.total - 1)
    session = open_at(path, context=10, source_context=20, memory_limit=small.total)
    with pytest.raises(InputError, match="at once"):
        session.read(tokens_of(21))
    session.read(tokens_of(20))
    session.prefill(tokens_of(10))
    session.close()
    with pytest.raises(EngineError, match="device 'npu'"):
        open_at(path, device="npu")


def test_known_answers_are_checked_on_open(written: Written) -> None:
    path, graph = written("w8a8-dynamic")
    source, prompt, tokens = tokens_of(20), tokens_of(4, 1), np.array([3, 8], np.int32)
    expected = torch_logits(graph, source, prompt)[-1][tokens].astype(np.float32)
    answer = SourceAnswer(source, prompt, tokens, expected, 0.3)
    session = open_at(path, source_answers=[answer, answer])
    assert session.length == 0
    session.close()
    for wrong in (expected + 1, np.full(2, np.nan, np.float32)):
        with pytest.raises(WrongAnswerError, match="known answer 2 of 2"):
            open_at(path, source_answers=[answer, SourceAnswer(source, prompt, tokens, wrong, 0.3)])


@pytest.mark.parametrize("name", FILES)
def test_a_damaged_or_missing_file_is_named(written: Written, tmp_path: Path, name: str) -> None:
    path = copied(written("w8a8-dynamic")[0], tmp_path)
    file = tmp_path / name
    content = file.read_bytes()
    for damaged in (content[:-200], content[:100], b""):
        file.write_bytes(damaged)
        with pytest.raises((BundleError, EngineError), match=r"writer.*onnx"):
            open_at(path)
    file.unlink()
    with pytest.raises(BundleError, match=r"writer.*onnx"):
        open_at(path)


@pytest.mark.parametrize("name", FILES[1:3])
def test_files_of_two_artifacts_do_not_open_together(written: Written, tmp_path: Path, name: str) -> None:
    path = copied(written("w8a8-dynamic")[0], tmp_path)
    (tmp_path / name).write_bytes(written("w4a8-dynamic")[0].with_name(name).read_bytes())
    with pytest.raises(BundleError, match="not of one artifact"):
        open_at(path)
    (tmp_path / name).write_bytes(path.read_bytes())
    with pytest.raises(BundleError, match="not that part"):
        open_at(path)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(min_size=1, max_size=200), cut=st.integers(0, 5000), place=st.integers(0, 1 << 20))
def test_any_bytes_are_an_artifact_or_an_error_of_ours(
    written: Written, tmp_path_factory: pytest.TempPathFactory, content: bytes, cut: int, place: int
) -> None:
    path = copied(written("w4a8-dynamic")[0], tmp_path_factory.mktemp("any"))
    file = path.with_name(FILES[place % 3])
    whole = file.read_bytes()
    place %= len(whole)
    for damaged in (content, whole[:place], whole[:place] + content + whole[place + cut :]):
        file.write_bytes(damaged)
        try:
            assert read_encoder_decoder_file(path).source_context > 0
        except BundleError:
            continue


@pytest.mark.skipif(sys.platform != "linux", reason="pages of a mapped file are let go of on Linux")
def test_pages_that_one_session_mapped_are_let_go_of_and_no_others(tmp_path: Path) -> None:
    file = tmp_path / "numbers.bin"
    np.arange(1 << 20, dtype=np.int32).tofile(file)
    other, pages = np.memmap(file, np.int32, "c"), MappedPages()
    with pages.taken(file):
        mapped = np.memmap(file, np.int32, "c")

    def resident(array: np.ndarray) -> int:
        start = array.__array_interface__["data"][0]
        with Path("/proc/self/pagemap").open("rb") as table:
            table.seek(start // os.sysconf("SC_PAGE_SIZE") * 8)
            return sum(int(entry) >> 63 for entry in np.frombuffer(table.read(8 * 1024), np.uint64))

    expected = int(mapped.sum(dtype=np.int64))
    assert int(other.sum(dtype=np.int64)) == expected
    assert resident(mapped) == resident(other) == 1024
    with pages.releasing(60):
        assert int(mapped.sum(dtype=np.int64)) == expected
    assert (resident(mapped), resident(other)) == (0, 1024)
    assert int(mapped.sum(dtype=np.int64)) == expected


MEASURED = """
import sys
from pathlib import Path
import numpy as np
from edgescribe.runtimes.encoder_decoder_contract import EncoderDecoderOptions
from edgescribe.runtimes.onnxruntime_encoder_decoder import ENCODER_DECODER

def taken(name):
    return next(int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if name in line)

path, source = Path(sys.argv[1]), int(sys.argv[2])
session = ENCODER_DECODER.open_encoder_decoder(path, EncoderDecoderOptions(threads=1, source_context=source))
after = []
for count in (source, source // 3, source - 7, source // 2, source - 1, 20, source):
    session.read(np.arange(count) % session.vocabulary)
    session.step(0)
    after.append(taken("VmRSS") * 1024)
print(taken("VmHWM") * 1024, ENCODER_DECODER.predicted_memory(path, None, source).total, after[0], after[-1])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the process's memory from /proc")
@pytest.mark.slow
@pytest.mark.parametrize("precision", ["w8a8-dynamic", "w4a8-dynamic"])
def test_predicted_memory_is_what_a_process_takes_and_sources_leave_nothing_behind(
    precision: str, tmp_path: Path
) -> None:
    path = tmp_path / "writer.onnx"
    student = random_student(
        vocab_size=16000, d_model=512, d_kv=64, num_heads=8, d_ff=1024, num_layers=6, num_decoder_layers=6
    )
    write(student, precision, path, 700, 64)
    for source in (64, 700):
        done = subprocess.run(
            [sys.executable, "-c", MEASURED, str(path), str(source)], check=True, capture_output=True, text=True
        )
        peak, predicted, first, last = (int(word) for word in done.stdout.split())
        assert peak == pytest.approx(predicted, rel=0.2)
        assert last < first + (4 << 20)
