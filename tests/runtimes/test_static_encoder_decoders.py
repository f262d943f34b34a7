"""A trained summariser on static int8 grids that were calibrated without training: what it writes on each engine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from edgescribe.runtimes.encoder_decoder_contract import EncoderDecoderOptions, EncoderDecoderSession
from edgescribe.runtimes.registry import open_encoder_decoder

FILES = {"onnxruntime": "w.onnx", "openvino": "w.xml", "litert": "w.tflite"}
SOURCE, TARGET = 60, 20

pytestmark = pytest.mark.slow


class Written(NamedTuple):
    """Sources, what the fake-quantised graph and the float one write about each, and a session for each engine."""

    sources: list[np.ndarray]
    rounded: list[list[int]]
    in_float: list[list[int]]
    sessions: dict[str, EncoderDecoderSession]


@pytest.fixture(scope="module")
def written(summary_files: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Written]:
    from edgescribe.converters.conversion_data import examples_of, read_texts
    from edgescribe.converters.freeze import freeze
    from edgescribe.converters.make_summarizer_bundle import export_encoder_decoder
    from edgescribe.converters.read import read_student
    from edgescribe.converters.summary_data import encode_sources, end_id, start_ids
    from edgescribe.converters.torch_decoder import graph_of
    from edgescribe.converters.training import calibrate
    from edgescribe.converters.write_summaries import all_summaries

    student = read_student(summary_files.student, "summarize")
    train, evaluation = (read_texts(path, "summarize") for path in (summary_files.train, summary_files.evaluation))
    graph = graph_of(student, "w8a8-static")
    calibrate(graph, examples_of(train, student), batch_size=16, count=4)
    graph.eval()
    weights = freeze(graph)
    sources = encode_sources(student, list(evaluation.texts)[:40], SOURCE)
    limits = start_ids(student), [end_id(student)], TARGET
    texts = [[list(each) for each in all_summaries(one, sources, *limits)] for one in (graph, graph_of(student).eval())]
    folder: Path = tmp_path_factory.mktemp("static")
    with ExitStack() as stack:
        sessions = {}
        for runtime, name in FILES.items():
            export_encoder_decoder(student, runtime, weights, folder / name, SOURCE, TARGET)
            opened = open_encoder_decoder(runtime, folder / name, EncoderDecoderOptions(threads=1))
            sessions[runtime] = stack.enter_context(closing(opened))
        yield Written(sources, texts[0], texts[1], sessions)


def greedy(session: EncoderDecoderSession, source: np.ndarray, tokens: int, start: int = 0) -> list[int]:
    session.read(source)
    found = [start]
    while len(found) <= tokens and found[-1] != 1:
        found.append(int(session.step(found[-1]).argmax()))
    return [token for token in found[1:] if token != 1]


def test_every_engine_writes_what_the_rounded_graph_writes(written: Written) -> None:
    texts = {
        runtime: [greedy(session, source, TARGET - 1) for source in written.sources]
        for runtime, session in written.sessions.items()
    }
    expected = [[token for token in text if token > 1] for text in written.rounded]
    for runtime, found in texts.items():
        same = sum(ours == theirs for ours, theirs in zip(found, expected, strict=True))
        assert same >= 0.95 * len(expected), (runtime, same)
    assert sum(len({tuple(texts[runtime][at]) for runtime in FILES}) == 1 for at in range(len(expected))) >= 38


def test_rounding_alone_keeps_most_of_what_was_written_in_float(written: Written) -> None:
    same = sum(ours == theirs for ours, theirs in zip(written.rounded, written.in_float, strict=True))
    assert same >= 0.8 * len(written.in_float)


@pytest.mark.parametrize("runtime", FILES)
def test_forks_caches_and_rewinding(runtime: str, written: Written) -> None:
    session = written.sessions[runtime]
    first, second = written.sources[:2]
    session.read(first)
    session.prefill(np.array([0, *written.rounded[0][:3]], np.int32))
    with closing(session.fork()) as fork:
        one, other = session.step(5), fork.step(5)
        np.testing.assert_array_equal(one, other)
        fork.rewind(2)
        assert fork.length == 2
        assert session.length == 5
        fork.step(7)
        session.rewind(4)
        np.testing.assert_array_equal(session.step(5), one)
    session.read(second)
    assert session.length == 0
    assert not np.array_equal(session.prefill(np.array([0, *written.rounded[0][:3], 5], np.int32)), one)


def test_recovered_and_exported_it_is_held_against_its_known_answers(summary_files: Any, tmp_path: Path) -> None:
    import edgescribe
    from edgescribe.errors import WrongAnswerError
    from edgescribe.sdk.bundle import source_answers

    files = summary_files
    found = edgescribe.recover_checkpoint(
        files.student, teacher=files.student, task="summarize", train=files.train, validation=files.validation,
        out=tmp_path / "rounded", recipe="summarizer-npu-round",
    )  # fmt: skip
    assert (found.precision, found.training) == ("w8a8-static", ())
    bundle = edgescribe.export_checkpoint(found.folder, out=tmp_path / "bundle", texts=files.evaluation)
    assert [(each.runtime, each.precision) for each in bundle.manifest.artifacts] == [
        (runtime, "w8a8-static") for runtime in FILES
    ]
    for artifact in bundle.manifest.artifacts:
        path = bundle.folder / artifact.files[0].path
        known = source_answers(artifact)
        assert known
        open_encoder_decoder(artifact.runtime, path, EncoderDecoderOptions(threads=1, source_answers=known)).close()
        wrong = replace(known[0], expected=known[0].expected + 3 * known[0].tolerance)
        with pytest.raises(WrongAnswerError):
            open_encoder_decoder(artifact.runtime, path, EncoderDecoderOptions(threads=1, source_answers=(wrong,)))
